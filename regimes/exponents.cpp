#include "regimes/exponents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/observable.hpp"

namespace moe {

namespace {

/// Size of one named quantity at every stage.
using Stages = std::array<TracedSize, num_stages>;

std::map<std::string, Stages> stages_of(const RunSpec& spec, const Parameterization& param, const Regime& regime) {
  SignalPropagation<TracedSize> propagation(signal_setup<TracedSize>(spec, param, regime));
  const auto steps = propagation.run();
  std::map<std::string, Stages> result;
  for (std::size_t k = 0; k < steps.front().size(); ++k) {
    Stages& stages = result[steps.front()[k].first];
    for (std::size_t stage = 0; stage < num_stages; ++stage) {
      stages[stage] = steps[step_of_stage<TracedSize>[stage]][k].second;
      stages[stage].exponent = snapped(stages[stage].exponent);
    }
    if (stages.back().exponent > steps[late_step<TracedSize> - 1][k].second.exponent + zero_exponent)
      stages.back().exponent = unbounded;
  }
  return result;
}

/// "N^-0.5".
std::string power(double exponent) { return fmt::format("N^{:.4g}", exponent); }

/// Which entry of the table an answer or a learning rate rests on: "expert_out.std = Ne^-0.5".
std::string entry(const char* key, Tensor t, const PowerLaw& law) {
  return fmt::format("{}.{} = {}", tensor_names[static_cast<std::size_t>(t)], key, law.text());
}

/// One sentence on the stages with an exponent that is not zero, told by the worst of them.
std::string reason(const Stages& stages, const Parameterization& param, const Regime& regime) {
  const auto off = [](const TracedSize& s) { return !s.is_zero() && s.exponent != 0; };
  static constexpr std::array when = {"at t = 0", "after one step", "late"};
  const TracedSize* worst = nullptr;
  std::vector<std::pair<double, std::string>> sizes;  // of equal size together
  std::size_t there = 0;
  for (std::size_t k = 0; k < stages.size(); ++k) {
    there += stages[k].is_zero() ? 0 : 1;
    if (!off(stages[k])) continue;
    if (!sizes.empty() && sizes.back().first == stages[k].exponent)
      sizes.back().second += std::string(", ") + when[k];
    else
      sizes.emplace_back(stages[k].exponent, when[k]);
    if (!worst || (worst->exponent < 0 && stages[k].exponent != worst->exponent)) worst = &stages[k];
    // What grows without bound is told by how it began.
    if (worst->exponent == unbounded && k > 0 && off(stages[k - 1])) worst = &stages[k - 1];
  }
  if (!worst) return "";
  std::vector<std::pair<double, std::string>> clauses;
  for (std::size_t k = 0; k < worst->from.size(); ++k)
    if (const double amount = snapped(worst->from[k]); amount != 0)
      clauses.emplace_back(amount, cause_text(static_cast<Cause>(k), amount, param, regime));
  // What has the sign of the whole comes first.
  std::stable_sort(clauses.begin(), clauses.end(), [&](const auto& a, const auto& b) {
    return (worst->exponent < 0 ? a.first : -a.first) < (worst->exponent < 0 ? b.first : -b.first);
  });
  const bool always =
      sizes.size() == 1 &&
      static_cast<std::size_t>(std::count(sizes[0].second.begin(), sizes[0].second.end(), ',')) + 1 == there;
  std::string text;
  for (const auto& [exponent, where] : sizes)
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ",
                    exponent == unbounded ? "more with every step" : power(exponent), always ? "at all times" : where);
  text += ": ";
  for (std::size_t k = 0; k < clauses.size(); ++k) text += (k > 0 ? "; " : "") + clauses[k].second;
  return text;
}

ObservableExponents exponents_of(const std::string& name, const Stages& stages, const Parameterization& param,
                                 const Regime& regime) {
  ObservableExponents result;
  result.name = name;
  for (std::size_t k = 0; k < stages.size(); ++k)
    if (!stages[k].is_zero()) result.at[k] = stages[k].exponent;
  result.reason = reason(stages, param, regime);
  return result;
}

/// Observables that count, not measure a field.
std::optional<ObservableExponents> counted(const std::string& name, const Regime& regime) {
  ObservableExponents result;
  result.name = name;
  if (name == "router_entropy" || name == "load_q99" || name == "load_max") {
    result.at.fill(0);
    return result;
  }
  if (name != "ess_forward" && name != "ess_backward") return std::nullopt;
  result.at.fill(regime.growth.M);
  if (regime.growth.M > 0) result.reason = "counts experts, of which there are M ~ N";
  return result;
}

}  // namespace

std::string cause_text(Cause cause, double amount, const Parameterization& param, const Regime& regime) {
  const auto std_entry = [&](Tensor t) { return entry("std", t, param.rule[t].std); };
  const auto answers = [&](Tensor t, const char* what, const char* why) {
    return fmt::format("{} of the initial {} {} as {}{} ({}; order one wants {} times it)", what,
                       tensor_names[static_cast<std::size_t>(t)], amount < 0 ? "vanish" : "grow", power(amount),
                       amount < 0 ? why : "", std_entry(t), power(-amount));
  };
  switch (cause) {
    case Cause::neurons:
      return fmt::format("independent directions average out over the N neurons ({})", power(amount));
    case Cause::experts:
      return fmt::format("independent directions average out over the M experts ({})", power(amount));
    case Cause::hidden:
      return fmt::format("independent directions average out over the N_e units of an expert ({})", power(amount));
    case Cause::input_std: return answers(Tensor::input, "the preactivations", "");
    case Cause::readout_std:
      return fmt::format("N W_out of the initial readout {} as {} ({}; order one wants {} times it)",
                         amount < 0 ? "vanishes" : "grows", power(amount), std_entry(Tensor::readout), power(-amount));
    case Cause::router_chi: return answers(Tensor::router, "the logits", "");
    case Cause::router_beta: return answers(Tensor::router, "the backward answers", "");
    case Cause::expert_in_chi: return answers(Tensor::expert_in, "the forward answers", "");
    case Cause::expert_in_beta:
      return answers(Tensor::expert_in, "the backward answers",
                     regime.experts_sampled && !param.rule[Tensor::expert_in].shared
                         ? ", because independent experts average out in their sum over experts"
                         : "");
    case Cause::expert_out_chi:
      return answers(Tensor::expert_out, "the forward answers",
                     regime.experts_sampled && !param.rule[Tensor::expert_out].shared
                         ? ", because independent experts average out in their sum over experts"
                         : "");
    case Cause::expert_out_beta: return answers(Tensor::expert_out, "the backward answers", "");
    default: break;
  }
  const bool is_eps = cause >= Cause::eps;
  const auto t = static_cast<Tensor>(static_cast<int>(cause) - static_cast<int>(is_eps ? Cause::eps : Cause::lr));
  const TensorRule& rule = param.rule[t];
  const char* name = tensor_names[static_cast<std::size_t>(t)];
  if (is_eps)
    return fmt::format("the gradient of {} is smaller or larger than its eps by {} ({})", name, power(amount),
                       entry("eps", t, rule.eps));
  return fmt::format("the normalised learning rate of {} {} as {} ({}; order one wants {} times it)", name,
                     amount < 0 ? "falls" : "grows", power(amount), entry("lr", t, rule.lr), power(-amount));
}

template <class S>
SignalSetup<S> signal_setup(const RunSpec& spec, const Parameterization& param, const Regime& regime) {
  const NormalLaws laws = normal_laws(spec, param, regime);
  const auto root = [&](const PowerLaw& law, Cause cause) {  // of a variance
    return law.constant == 0 ? S{} : S::of(snapped(law.exponent_along(regime.growth) / 2), cause);
  };
  const auto gains = [&](const NormalLaws::Sides& of, Cause chi, Cause beta) {
    return Gains<S>{root(of.chi2, chi), root(of.beta2, beta)};
  };
  SignalSetup<S> setup;
  setup.neurons = S::of(regime.growth.N, Cause::neurons);
  setup.experts = S::of(regime.growth.M, Cause::experts);
  setup.hidden = S::of(regime.growth.Ne, Cause::hidden);
  setup.input = root(laws.input, Cause::input_std);
  setup.readout = root(laws.readout, Cause::readout_std);
  setup.router = gains(laws.router, Cause::router_chi, Cause::router_beta);
  setup.expert_in = gains(laws.expert_in, Cause::expert_in_chi, Cause::expert_in_beta);
  setup.expert_out = gains(laws.expert_out, Cause::expert_out_chi, Cause::expert_out_beta);
  for (std::size_t i = 0; i < tensor_names.size(); ++i) {
    const auto t = static_cast<Tensor>(i);
    const auto size = [&](const PowerLaw& law, Cause cause) {
      return law.constant == 0 ? S{} : S::of(snapped(law.exponent_along(regime.growth)), cause);
    };
    setup.lr[t] = size(laws.lr[t], cause_of(Cause::lr, t));
    setup.eps[t] = size(laws.eps[t], cause_of(Cause::eps, t));
  }
  setup.expert_in_shared = param.rule[Tensor::expert_in].shared;
  setup.expert_out_shared = param.rule[Tensor::expert_out].shared;
  setup.linear = is_linear(spec.optimizer.name);
  // The softmax over one active expert is 1.
  const bool one_active = !regime.experts_sampled && std::round(active_fraction(spec) * spec.model.experts) <= 1;
  setup.gate_varies = spec.model.gate != Gate::constant && !(spec.model.gate == Gate::softmax && one_active);
  setup.gate_relative = spec.model.gate == Gate::softmax;
  setup.topk = spec.model.routing == Routing::topk;
  setup.balanced = setup.topk && spec.model.balance_loss > 0;
  setup.residual = spec.model.residual;
  setup.loss_bounded = spec.training.loss == Loss::cross_entropy;
  setup.activation = spec.model.activation;
  setup.post_activation = spec.model.post_activation;
  return setup;
}
template SignalSetup<Size> signal_setup<Size>(const RunSpec&, const Parameterization&, const Regime&);
template SignalSetup<TracedSize> signal_setup<TracedSize>(const RunSpec&, const Parameterization&, const Regime&);

std::vector<ObservableExponents> observable_exponents(const RunSpec& spec) {
  return observable_exponents(spec, load_parameterization(spec));
}

std::vector<ObservableExponents> observable_exponents(const RunSpec& spec, const Parameterization& param) {
  const Regime& regime = regime_named(spec.model.regime);
  const auto stages = stages_of(spec, param, regime);
  std::vector<ObservableExponents> result;
  for (const auto& info : observable_table) {
    if (auto count = counted(info.name, regime))
      result.push_back(*count);
    else
      result.push_back(exponents_of(info.name, stages.at(info.name), param, regime));
  }
  return result;
}

std::vector<ObservableExponents> atomic_exponents(const RunSpec& spec, const Parameterization& param) {
  const Regime& regime = regime_named(spec.model.regime);
  const auto stages = stages_of(spec, param, regime);
  std::vector<ObservableExponents> result;
  result.reserve(std::size(atomic_table));
  for (const auto& info : atomic_table) result.push_back(exponents_of(info.name, stages.at(info.name), param, regime));
  return result;
}

}  // namespace moe
