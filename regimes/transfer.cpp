#include "regimes/transfer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "support/words.hpp"

namespace moe {

namespace {

struct SizeKey {
  const char* name;
  double Sizes::*member;
  bool required;
};
constexpr std::array<SizeKey, 6> size_keys = {{{"N", &Sizes::N, true},
                                               {"M", &Sizes::M, true},
                                               {"Ne", &Sizes::Ne, true},
                                               {"K", &Sizes::K, true},
                                               {"L", &Sizes::L, false},
                                               {"D", &Sizes::D, false}}};

/// A size that grows this much slower or faster than N still counts as growing with it: sizes are integers.
constexpr double exponent_slack = 0.05;

/// A role of a Transformer as a tensor of the theory with sizes of its own.
struct Role {
  const char* name;
  Tensor tensor;
  enum Width { of_experts, of_hidden, of_stream } width;  ///< N_e: that of an expert, or N for what is dense
  bool dense;                                             ///< always active, once: M = K = 1
  bool in_block;                                          ///< behind a branch multiplier L^-alpha
  enum Part { matrix, vector } part;  ///< a vector has no fan-in: what is learned moves by lr itself
  const char* like;
};
// An embedding is W_in with one-hot inputs. What is dense is an expert that is always active. A gain or bias of a field is the same
// matrix asked one constant number instead of N.
constexpr std::array<Role, 18> roles = {{
    {"embedding", Tensor::input, Role::of_experts, false, false, Role::matrix, "W_in, one-hot inputs"},
    {"norm", Tensor::input, Role::of_experts, false, true, Role::vector, "a vector over neurons"},
    {"final_norm", Tensor::input, Role::of_experts, false, false, Role::vector, "a vector over neurons"},
    {"bias", Tensor::input, Role::of_experts, false, true, Role::vector, "a vector over neurons"},
    {"expert_bias", Tensor::expert_in, Role::of_experts, false, true, Role::vector,
     "a vector over the units of an expert"},
    {"attention_q", Tensor::expert_in, Role::of_stream, true, true, Role::matrix, "A with M = K = 1, N_e = N"},
    {"attention_k", Tensor::expert_in, Role::of_stream, true, true, Role::matrix, "A with M = K = 1, N_e = N"},
    {"attention_v", Tensor::expert_in, Role::of_stream, true, true, Role::matrix, "A with M = K = 1, N_e = N"},
    {"attention_o", Tensor::expert_out, Role::of_stream, true, true, Role::matrix, "B with M = K = 1, N_e = N"},
    {"dense_up", Tensor::expert_in, Role::of_stream, true, true, Role::matrix, "A with M = K = 1, N_e = N"},
    {"dense_down", Tensor::expert_out, Role::of_stream, true, true, Role::matrix, "B with M = K = 1, N_e = N"},
    {"router", Tensor::router, Role::of_experts, false, true, Role::matrix, "Q"},
    {"expert_up", Tensor::expert_in, Role::of_experts, false, true, Role::matrix, "A; the gate of a gated unit too"},
    {"expert_gate", Tensor::expert_in, Role::of_experts, false, true, Role::matrix, "A"},
    {"expert_down", Tensor::expert_out, Role::of_experts, false, true, Role::matrix, "B"},
    {"shared_expert_up", Tensor::expert_in, Role::of_experts, true, true, Role::matrix, "A with M = K = 1"},
    {"shared_expert_down", Tensor::expert_out, Role::of_experts, true, true, Role::matrix, "B with M = K = 1"},
    {"unembedding", Tensor::readout, Role::of_experts, false, false, Role::matrix, "W_out"},
}};

Sizes sizes_of(const Role& role, Sizes s) {
  s.D = 1;
  if (role.dense) s.M = s.K = 1;
  if (role.width == Role::of_stream) s.Ne = s.N;
  return s;
}

}  // namespace

GivenSizes parse_sizes(const std::string& text, const std::string& flag, Faults& faults) {
  GivenSizes result;
  auto& [sizes, given] = result;
  for (const std::string& item : comma_separated(text)) {
    const std::size_t equals = std::min(item.find('='), item.size());
    const std::string name = item.substr(0, equals);
    const auto key = std::find_if(size_keys.begin(), size_keys.end(), [&](const SizeKey& k) { return name == k.name; });
    double value = 0;
    const char* const begin = item.data() + std::min(equals + 1, item.size());
    const auto read = std::from_chars(begin, item.data() + item.size(), value);
    if (key == size_keys.end())
      faults.add(fmt::format("command line: {} has '{}'. Write sizes as N=256,M=16,Ne=64,K=4,L=12", flag, item));
    else if (read.ec != std::errc{} || read.ptr != item.data() + item.size() || !(value >= 1) || !std::isfinite(value))
      faults.add(fmt::format("command line: {} has '{}', which is no size. Write a number >= 1", flag, item));
    else if (given.contains(name))
      faults.add(fmt::format("command line: {} gives {} twice. Remove one", flag, name));
    else
      sizes.*(key->member) = value;
    given.insert(name);
  }
  for (const auto& key : size_keys)
    if (key.required && !given.contains(key.name))
      faults.add(fmt::format("command line: {} lacks {}. Write sizes as N=256,M=16,Ne=64,K=4,L=12", flag, key.name));
  if (sizes.K > sizes.M)
    faults.add(fmt::format("command line: {} has K = {} above M = {}. A token cannot use more experts than there are",
                           flag, sizes.K, sizes.M));
  return result;
}

PathKind path_kind(const Sizes& base, const Sizes& target) {
  const auto log_ratio = [&](double Sizes::*size) { return std::log(target.*size / base.*size); };
  const double N = log_ratio(&Sizes::N), M = log_ratio(&Sizes::M), Ne = log_ratio(&Sizes::Ne), K = log_ratio(&Sizes::K);
  PathKind kind;
  const auto grows = [](double x) { return std::abs(x) > 1e-9; };
  kind.regime = grows(M) ? (grows(Ne) ? "III" : "II") : "I";
  if (!grows(N)) {
    if (!grows(M) && !grows(Ne) && !grows(K)) {
      kind.exact = true;
      kind.description = grows(log_ratio(&Sizes::L)) ? "Width, experts and expert width stay: nothing but depth changes"
                                                     : "Base and target are of the same size: nothing changes";
      return kind;
    }
    const bool granular = grows(M) && std::abs(M - K) < 1e-6 && std::abs(M + Ne) < 1e-6;
    kind.description = fmt::format(
        "N stays, so the path is in none of the regimes{}; the same sizes change as in regime {}",
        granular ? fmt::format(": it changes the granularity, M and K by {:.4g}, N_e by {:.4g}, at fixed width",
                               std::exp(M), std::exp(Ne))
                 : "",
        kind.regime);
    return kind;
  }
  const Regime& regime = regime_named(kind.regime);
  const auto off = [&](double exponent, double growth) { return std::abs(exponent - growth) > exponent_slack; };
  std::string deviations;
  const auto check = [&](const char* name, double logs, double growth) {
    if (off(logs / N, growth))
      deviations +=
          fmt::format("{}{} ~ N^{:.3g} instead of N^{:.3g}", deviations.empty() ? "" : ", ", name, logs / N, growth);
  };
  check("M", M, regime.growth.M);
  check("N_e", Ne, regime.growth.Ne);
  check("K", K, regime.growth.K);
  kind.exact = deviations.empty();
  if (kind.exact)
    kind.description = fmt::format("Regime {}: N by {:.4g}, M by {:.4g}, N_e by {:.4g}, K by {:.4g}", kind.regime,
                                   std::exp(N), std::exp(M), std::exp(Ne), std::exp(K));
  else
    kind.description = fmt::format(
        "Between the regimes: the same sizes grow as in regime {}, but {}; ratios of sizes that its limit holds fixed "
        "change "
        "along the path",
        kind.regime, deviations);
  return kind;
}

std::vector<RoleMultipliers> role_multipliers(const RunSpec& spec, const Parameterization& param, const Sizes& base,
                                              const Sizes& target) {
  const bool linear = is_linear(spec.optimizer.name);
  std::vector<RoleMultipliers> result;
  for (const Role& role : roles) {
    const TensorRule& rule = param.rule[role.tensor];
    const Sizes from = sizes_of(role, base), to = sizes_of(role, target);
    RoleMultipliers m;
    m.role = role.name;
    m.like = role.like;
    if (role.part == Role::matrix) m.std = rule.std.constant == 0 ? 0 : rule.std.at(to) / rule.std.at(from);
    m.lr = rule.lr.at(to) / rule.lr.at(from);
    m.eps = linear ? 1 : rule.eps.at(to) / rule.eps.at(from);
    if (role.part == Role::vector && role.tensor == Tensor::expert_in) m.lr *= target.N / base.N;  // fan-in one, not N
    if (role.in_block) {
      const DepthLaws depth = depth_laws(rule, spec.optimizer.name, spec.model.branch_exponent);
      m.lr *= depth.lr.at(target) / depth.lr.at(base);
      m.eps *= depth.eps.at(target) / depth.eps.at(base);
    }
    m.weight_decay = 1 / m.lr;
    m.shared = rule.shared && !role.dense && role.part == Role::matrix;
    result.push_back(std::move(m));
  }
  return result;
}

std::vector<Drift> drifts(const RunSpec& spec, const Parameterization& param, const Sizes& base, const Sizes& target) {
  // The table may be another regime's; what adds up and what averages out is a matter of the path.
  const Regime& regime = regime_named(path_kind(base, target).regime);
  const NormalLaws laws = normal_laws(spec, param, regime);
  Sizes from = base, to = target;
  from.D = to.D = 1;
  from.L = to.L = 1;
  std::vector<Drift> result;
  const auto add = [&](Tensor t, const char* quantity, const PowerLaw& law) {
    if (law.constant == 0) return;
    const double ratio = law.at(to) / law.at(from);
    if (std::abs(ratio - 1) > 1e-9) result.push_back({t, quantity, ratio});
  };
  const bool sampled = regime.experts_sampled;
  add(Tensor::input, "D Var W_in", laws.input);
  if (sampled) add(Tensor::router, "s_chi^2", laws.router.chi2);
  add(Tensor::router, sampled ? "s_beta^2" : "N^2 Var Q", sampled ? laws.router.beta2 : laws.explicit_router);
  add(Tensor::expert_in, "s_chi^2", laws.expert_in.chi2);
  add(Tensor::expert_in, "s_beta^2", laws.expert_in.beta2);
  add(Tensor::expert_out, "s_chi^2", laws.expert_out.chi2);
  add(Tensor::expert_out, "s_beta^2", laws.expert_out.beta2);
  add(Tensor::readout, "N^2 Var W_out", laws.readout);
  for (std::size_t i = 0; i < tensor_names.size(); ++i) {
    add(static_cast<Tensor>(i), "normalised learning rate", laws.lr.values[i]);
    if (!is_linear(spec.optimizer.name)) add(static_cast<Tensor>(i), "normalised eps", laws.eps.values[i]);
  }
  return result;
}

std::string python_snippet(const RunSpec& spec, const std::vector<RoleMultipliers>& multipliers, const Sizes& base,
                           const Sizes& target) {
  const auto sizes = [](const Sizes& s) {
    return fmt::format("N={:g}, M={:g}, Ne={:g}, K={:g}, L={:g}", s.N, s.M, s.Ne, s.K, s.L);
  };
  std::string table, shared;
  for (const auto& m : multipliers) {
    table += fmt::format("    \"{}\": {{\"std\": {}, \"lr\": {:.17g}, \"eps\": {:.17g}, \"weight_decay\": {:.17g}}},\n",
                         m.role, m.std ? fmt::format("{:.17g}", *m.std) : "None", m.lr, m.eps, m.weight_decay);
    if (m.shared) shared += fmt::format("\"{}\", ", m.role);
  }
  const bool linear = is_linear(spec.optimizer.name);
  return fmt::format(
      R"(# From the base model ({base}) to the target ({target}), in units of the base model's settings.
# Multiply the output of every residual branch by BRANCH; divide the sum over experts by K, or let the gates of a token sum to one.
# Router temperature and the coefficient of a load-balancing loss stay what they are.
import re

MULTIPLIERS = {{
{table}}}
BRANCH = {branch:.17g}
SHARED_AT_START = ({shared})  # roles whose experts start with equal weights


def role_of(name, roles):
    """Role of a parameter: the first pattern of `roles` (regular expression -> role) found in its name."""
    for pattern, role in roles.items():
        if re.search(pattern, name):
            if role not in MULTIPLIERS:
                raise KeyError(f"'{{role}}' is no role; there are {{', '.join(MULTIPLIERS)}}")
            return role
    raise KeyError(f"no pattern matches the parameter '{{name}}'")


def parameter_groups(model, roles, lr, {eps_argument}weight_decay=0.0):
    """Groups for {optimizer}: `lr`, ... are those of the base model."""
    groups = {{}}
    for name, parameter in model.named_parameters():
        groups.setdefault(role_of(name, roles), []).append(parameter)
    return [
        {{
            "params": parameters,
            "lr": lr * MULTIPLIERS[role]["lr"],
{eps_line}            "weight_decay": weight_decay * MULTIPLIERS[role]["weight_decay"],
        }}
        for role, parameters in groups.items()
    ]


def scale_init_(model, roles, expert=r"\.experts\.\d+\."):
    """Brings weights drawn with the base model's standard deviations to those of the target, and makes experts equal where they
    start so: parameters whose names differ in `expert` only, or the slices of one parameter with a leading expert dimension."""
    first = {{}}
    for name, parameter in model.named_parameters():
        role = role_of(name, roles)
        factor = MULTIPLIERS[role]["std"]
        if factor is not None:
            parameter.data.mul_(factor)
        if role in SHARED_AT_START:
            if re.search(expert, name):
                one = first.setdefault(re.sub(expert, ".", name), parameter)
                parameter.data.copy_(one.data)
            else:
                parameter.data[1:] = parameter.data[:1]
)",
      fmt::arg("base", sizes(base)), fmt::arg("target", sizes(target)), fmt::arg("table", table),
      fmt::arg("branch", std::pow(target.L / base.L, -spec.model.branch_exponent)), fmt::arg("shared", shared),
      fmt::arg("eps_argument", linear ? "" : "eps, "),
      fmt::arg("eps_line", linear ? "" : "            \"eps\": eps * MULTIPLIERS[role][\"eps\"],\n"),
      fmt::arg("optimizer", linear ? "torch.optim.SGD" : "torch.optim.AdamW"));
}

}  // namespace moe
