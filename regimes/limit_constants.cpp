#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "regimes/exponents.hpp"
#include "regimes/regime.hpp"

namespace moe {

namespace {

/// const * N^a M^b N_e^c K^d D^e.
PowerLaw law(double N, double M = 0, double Ne = 0, double K = 0, double D = 0) {
  PowerLaw result;
  result.exponents = {N, M, Ne, K, D, 0};
  return result;
}

/// What the limit says of a quantity with a given law (theory section 4): the value that N cancels from.
class Path {
 public:
  /// Sizes in units of N where they grow, M = rho_M, N_e = rho_e, K = kappa M; true sizes elsewhere.
  Path(const RunSpec& spec, const Regime& regime, int D) : growth_(regime.growth) {
    units_.N = 1;
    units_.M = regime.experts_sampled ? spec.model.experts_per_width : spec.model.experts;
    units_.Ne = regime.hidden_sampled ? spec.model.expert_width_per_width : spec.model.expert_width;
    const double active = active_fraction(spec) * units_.M;
    units_.K = regime.experts_sampled ? active : std::max(1.0, std::round(active));
    units_.D = D;
    units_.L = spec.model.depth;
  }

  double exponent(const PowerLaw& quantity) const {
    if (quantity.constant == 0) return 0;
    const double along = quantity.exponent_along(growth_);
    return std::abs(along) < zero_exponent ? 0 : along;
  }
  /// Limit of a quantity whose exponent is not positive: its value in units of N, or zero.
  double limit(const PowerLaw& quantity) const { return exponent(quantity) < 0 ? 0 : quantity.at(units_); }

 private:
  Sizes growth_, units_;
};

/// Table values with the multipliers and prefactors of the run taken in (theory section 1): K c B stands for B, alpha
/// W_out for W_out.
struct Absorbed {
  PerTensor<PowerLaw> variance, lr, eps;
};

Absorbed absorb(const RunSpec& spec, const Parameterization& param) {
  Absorbed result;
  PerTensor<PowerLaw> prefactor;
  prefactor[Tensor::expert_out] = law(0, 0, 0, 1) * power_law(spec.model.aggregation);
  prefactor[Tensor::readout] = spec.model.output_scale * PowerLaw{};
  const bool linear = is_linear(spec.optimizer.name);
  for (std::size_t i = 0; i < result.lr.values.size(); ++i) {
    const TensorRule& rule = param.rule.values[i];
    const double scale = spec.model.init_scale.values[i];
    const PowerLaw& factor = prefactor.values[i];
    PowerLaw variance = rule.std * rule.std * factor * factor;
    variance.constant *= scale * scale;
    result.variance.values[i] = variance;
    const double eta = spec.optimizer.lr * spec.optimizer.lr_scale.values[i];
    result.lr.values[i] = eta * (rule.lr * (linear ? factor * factor : factor));
    const double eps = spec.optimizer.name == OptimizerKind::signsgd ? 0 : spec.optimizer.eps;
    result.eps.values[i] = eps * (rule.eps * factor.pow(-1));
    if (spec.model.depth > 1 && in_block(static_cast<Tensor>(i))) {
      const DepthLaws depth = depth_laws(rule, spec.optimizer.name, spec.model.branch_exponent);
      result.lr.values[i] = result.lr.values[i] * depth.lr;
      result.eps.values[i] = result.eps.values[i] * depth.eps;
    }
  }
  if (spec.model.readout_init == ReadoutInit::zero) result.variance[Tensor::readout].constant = 0;
  return result;
}

/// Units of section 3 in which learning rates and eps are of order one.
struct Units {
  PerTensor<PowerLaw> lr, eps;
};

Units units_of(OptimizerKind optimizer) {
  Units units;
  if (is_linear(optimizer)) {
    units.lr = {{law(-1, 0, 0, 0, 1), law(1, 0, 0, -1), law(1, 0, -1, -1), law(-1, 0, 1, -1), law(1)}};
  } else {
    units.lr = {{law(0, 0, 0, 0, 1), law(1), law(1), law(0, 0, 1), law(1)}};
    units.eps = {{law(1), law(0, 0, 0, 1), law(0, 0, 1, 1), law(1, 0, 0, 1), law(0)}};
  }
  return units;
}

std::string tensor_name(Tensor t) { return tensor_names[static_cast<std::size_t>(t)]; }

std::string joined(const std::vector<Tensor>& tensors) {
  std::string text;
  for (const Tensor t : tensors) {
    text += text.empty() ? "" : ", ";
    text += tensor_name(t);
  }
  return text;
}

const char* const variance_readout = "N^2 Var W_out";
const char* const rate_quantity = "normalised learning rate";
const char* const eps_quantity = "normalised eps";

/// What a user can do about a quantity that grows.
std::string remedy(const RunSpec& spec, const SizeLaw& item) {
  if (item.quantity == variance_readout)
    return "Such a network starts in the regime of large outputs, and no feature-learning limit exists; what it tends "
           "to is the "
           "lazy limit, which a large model.output_scale reaches here with a readout std that falls as 1/N";
  const bool prefactor = item.tensor == Tensor::expert_out &&
                         (power_law(spec.model.aggregation) * law(0, 0, 0, 1)).exponent_along({1, 1, 1, 1, 0, 0}) != 0;
  if (prefactor)
    return "model.aggregation is taken into expert_out and does not fall as 1/K: use aggregation = {K = -1} or a table "
           "made for this prefactor";
  if (item.quantity == rate_quantity)
    return "Lower its power of N in the table, or train finite networks with it instead";
  return "Lower the power of N of its std in the table, or study finite networks with it instead";
}

/// What a law that grows is the cause of.
Cause cause_of(const SizeLaw& item) {
  if (item.quantity == rate_quantity) return cause_of(Cause::lr, item.tensor);
  const bool forward = item.quantity == "s_chi^2";
  switch (item.tensor) {
    case Tensor::input: return Cause::input_std;
    case Tensor::router: return forward ? Cause::router_chi : Cause::router_beta;
    case Tensor::expert_in: return forward ? Cause::expert_in_chi : Cause::expert_in_beta;
    case Tensor::expert_out: return forward ? Cause::expert_out_chi : Cause::expert_out_beta;
    case Tensor::readout: break;
  }
  return Cause::readout_std;
}

void report_growth(const RunSpec& spec, const Parameterization& param, const Regime& regime, const SizeLaw& item,
                   Faults& faults) {
  // A gain is the root of its variance.
  const double amount = item.quantity == rate_quantity ? item.exponent : item.exponent / 2;
  faults.add(fmt::format(
      "{}: no limit of this form in regime {}: {} of {} grows as N^{:.4g} along the path (it is {}; table {}, from "
      "{}): {}. {}",
      param.name, regime.name, item.quantity, tensor_name(item.tensor), item.exponent, item.law.text(),
      spec.model.param, spec.place("model.param"), cause_text(cause_of(item), amount, param, regime),
      remedy(spec, item)));
}

}  // namespace

NormalLaws normal_laws(const RunSpec& spec, const Parameterization& param, const Regime& regime) {
  const Absorbed absorbed = absorb(spec, param);
  const Units units = units_of(spec.optimizer.name);
  const auto& var = absorbed.variance;
  // Sampled experts that start independent are stacked: their matrices side by side are one matrix with M N_e rows or
  // columns.
  const auto stacked = [&](Tensor t) { return regime.experts_sampled && !param.rule[t].shared; };
  const PowerLaw in_sites = stacked(Tensor::expert_in) ? law(0, 1, 1) : law(0, 0, 1);
  const PowerLaw out_experts = stacked(Tensor::expert_out) ? law(0, 1) : law(0);
  NormalLaws laws;
  laws.input = law(0, 0, 0, 0, 1) * var[Tensor::input];
  laws.readout = law(2) * var[Tensor::readout];
  laws.router = {law(1) * var[Tensor::router], law(2, -1) * var[Tensor::router]};
  laws.explicit_router = law(2) * var[Tensor::router];
  laws.expert_in = {law(1) * var[Tensor::expert_in], law(2) * in_sites.pow(-1) * var[Tensor::expert_in]};
  laws.expert_out = {law(0, 0, 1) * out_experts.pow(-1) * var[Tensor::expert_out],
                     law(-1, 0, 2) * var[Tensor::expert_out]};
  for (std::size_t i = 0; i < laws.lr.values.size(); ++i) {
    laws.lr.values[i] = absorbed.lr.values[i] * units.lr.values[i];
    laws.eps.values[i] = absorbed.eps.values[i] * units.eps.values[i];
  }
  return laws;
}

std::vector<SizeLaw> size_laws(const RunSpec& spec, const Parameterization& param, const Regime& regime) {
  const NormalLaws normal = normal_laws(spec, param, regime);
  const Path path(spec, regime, 1);
  std::vector<SizeLaw> laws;
  const auto add = [&](Tensor t, const char* quantity, const PowerLaw& value) {
    laws.push_back({t, quantity, value, path.exponent(value), path.limit(value)});
  };
  for (std::size_t i = 0; i < tensor_names.size(); ++i) {
    const auto t = static_cast<Tensor>(i);
    switch (t) {
      case Tensor::input: add(t, "D Var W_in", normal.input); break;
      case Tensor::router:
        if (regime.experts_sampled) {
          add(t, "s_chi^2", normal.router.chi2);
          add(t, "s_beta^2", normal.router.beta2);
        } else {
          add(t, "N^2 Var Q", normal.explicit_router);
        }
        break;
      case Tensor::expert_in:
        add(t, "s_chi^2", normal.expert_in.chi2);
        add(t, "s_beta^2", normal.expert_in.beta2);
        break;
      case Tensor::expert_out:
        add(t, "s_chi^2", normal.expert_out.chi2);
        add(t, "s_beta^2", normal.expert_out.beta2);
        break;
      case Tensor::readout: add(t, variance_readout, normal.readout); break;
    }
    add(t, rate_quantity, normal.lr[t]);
    if (!is_linear(spec.optimizer.name)) add(t, eps_quantity, normal.eps[t]);
  }
  return laws;
}

LimitConstants limit_constants(const RunSpec& spec, const Parameterization& param, const Regime& regime, int D,
                               Faults& faults) {
  const Path path(spec, regime, D);
  LimitConstants constants;
  constants.expert_in_shared = param.rule[Tensor::expert_in].shared;
  constants.expert_out_shared = param.rule[Tensor::expert_out].shared;
  for (const Tensor t : {Tensor::expert_in, Tensor::expert_out}) {
    if (!param.rule[t].shared || regime.hidden_sampled) continue;
    faults.add(
        fmt::format("{}: {} is shared by all experts, which has no deterministic limit in regime {}: N_e stays fixed "
                    "there, so that the shared part does not average itself out. Remove 'shared' for this regime "
                    "(table {}, from {})",
                    param.name, tensor_name(t), regime.name, spec.model.param, spec.place("model.param")));
  }

  for (const SizeLaw& item : size_laws(spec, param, regime)) {
    const bool refused = param.rule[item.tensor].shared && !regime.hidden_sampled;
    if (item.exponent > 0 && item.quantity != eps_quantity && !refused)
      report_growth(spec, param, regime, item, faults);
    const std::string name = tensor_name(item.tensor);
    if (item.quantity == rate_quantity && item.exponent < 0)
      constants.warnings.push_back(
          fmt::format("{} is frozen: its normalised learning rate falls as N^{:.4g}", name, item.exponent));
    if (item.quantity != eps_quantity || constants.lr[item.tensor] == 0) {
      if (item.quantity == rate_quantity) constants.lr[item.tensor] = path.limit(item.law);
      continue;
    }
    if (item.exponent > 0) {
      constants.lr[item.tensor] = 0;
      constants.warnings.push_back(fmt::format(
          "{} is frozen: its normalised eps grows as N^{:.4g}, and the rule then no longer moves it; eps = 0 is the "
          "idealisation usually analysed for one constant eps",
          name, item.exponent));
      continue;
    }
    constants.eps[item.tensor] = path.limit(item.law);
    if (item.exponent < 0)
      constants.warnings.push_back(
          fmt::format("the normalised eps of {} falls as N^{:.4g} and is 0 in the limit: vanishing gradients then "
                      "enter finite networks "
                      "at full size with random sign (docs/theory.md, section 5, vanishing gradients)",
                      name, item.exponent));
  }

  for (const SizeLaw& item : size_laws(spec, param, regime))
    if (item.exponent <= 0 && !std::isfinite(path.limit(item.law)))
      faults.add(
          fmt::format("{}: {} of {} is {} in the limit (it is {}; table {}, from {}). Check its constant and "
                      "multipliers",
                      param.name, item.quantity, tensor_name(item.tensor), path.limit(item.law), item.law.text(),
                      spec.model.param, spec.place("model.param")));

  const NormalLaws normal = normal_laws(spec, param, regime);
  const auto sides = [&](const NormalLaws::Sides& of) {
    return GaussianConstants{path.limit(of.chi2), path.limit(of.beta2)};
  };
  constants.input_var = path.limit(normal.input);
  constants.readout_var = path.limit(normal.readout);
  if (regime.experts_sampled)
    constants.router = sides(normal.router);
  else
    constants.explicit_router_var = path.limit(normal.explicit_router);
  constants.expert_in = sides(normal.expert_in);
  constants.expert_out = sides(normal.expert_out);

  // The first block's output decides: without residual the others read it.
  const bool output_stays = constants.input_var > 0 && constants.expert_in.chi2 > 0 && constants.expert_out.chi2 > 0;
  if (spec.model.norm == Norm::rms && !spec.model.residual && !output_stays)
    faults.add("model.norm", "rms", spec.place("model.norm"),
               fmt::format("has no limit with {} in regime {} without residual: the output of a block vanishes with "
                           "size at t = 0, and the norm would enlarge what is left of it",
                           param.name, regime.name),
               "Use model.residual = true, or a parameterization whose output stays");

  // What vanishes with size has a sign all the same, of which the slope of relu is a function; at zero it would be none.
  const auto vanishes = [&](const PowerLaw& law) { return law.constant != 0 && path.limit(law) == 0; };
  const auto refuse_relu = [&](const char* key, const char* field) {
    faults.add(
        key, "relu", spec.place(key),
        fmt::format("is not solved with {} in regime {}: the {} vanishes with size at t = 0, and the slope of relu "
                    "is that of its sign, which stays",
                    param.name, regime.name, field),
        "Use tanh, gelu or identity, or a parameterization where it stays");
  };
  const bool there = normal.input.constant != 0 && normal.expert_in.chi2.constant != 0;
  if (spec.model.activation == Activation::relu &&
      (vanishes(normal.input) || (there && vanishes(normal.expert_in.chi2))))
    refuse_relu("model.activation", "argument");
  if (spec.model.post_activation == Activation::relu && there && normal.expert_out.chi2.constant != 0 &&
      (vanishes(normal.input) || vanishes(normal.expert_in.chi2) || vanishes(normal.expert_out.chi2)))
    refuse_relu("model.post_activation", "aggregated output");

  if (spec.optimizer.name == OptimizerKind::signsgd) {
    const auto vanishing = vanishing_gradients(spec, regime, constants);
    if (!vanishing.empty())
      faults.add(
          "optimizer.name", "signsgd", spec.place("optimizer.name"),
          fmt::format("has no limit with {} in regime {}: the gradient of {} vanishes with size at t = 0, and a rule "
                      "with eps = 0 turns what is left of it into steps of full size with random sign",
                      param.name, regime.name, joined(vanishing)),
          "Use adam with optimizer.eps >= 0.02, or a parameterization where no gradient vanishes");
  }
  return constants;
}

std::vector<Tensor> vanishing_gradients(const RunSpec& spec, const Regime& regime, const LimitConstants& constants) {
  // Order one at t = 0? Forward through the blocks: x, and v behind a Gaussian u; then backward.
  const int L = spec.model.depth;
  const bool residual = spec.model.residual;
  std::vector<bool> x = {constants.input_var > 0}, v;
  for (int l = 0; l < L; ++l) {
    v.push_back(x.back() && constants.expert_in.chi2 > 0);
    x.push_back((v.back() && constants.expert_out.chi2 > 0) || (residual && x.back()));
  }
  PerTensor<bool> order_one{{true, true, true, true, true}};
  order_one[Tensor::readout] = x.back();
  // The balancing loss pulls at the router whatever comes back from the readout.
  const bool balanced = spec.model.routing == Routing::topk && spec.model.balance_loss > 0;
  bool g = constants.readout_var > 0;
  for (int l = L - 1; l >= 0; --l) {
    const auto at = static_cast<std::size_t>(l);
    const bool zeta = g && constants.expert_out.beta2 > 0;
    // s_i = <v zeta>_a averages independent signs away where the hidden units grow; a constant gate ignores it.
    const bool rho = balanced || (zeta && v[at] && !regime.hidden_sampled && spec.model.gate != Gate::constant);
    const bool router_back =
        rho && (regime.experts_sampled ? constants.router.beta2 > 0 : constants.explicit_router_var > 0);
    order_one[Tensor::router] = order_one[Tensor::router] && rho && x[at];
    order_one[Tensor::expert_in] = order_one[Tensor::expert_in] && zeta && x[at];
    order_one[Tensor::expert_out] = order_one[Tensor::expert_out] && g && v[at];
    g = (zeta && constants.expert_in.beta2 > 0) || router_back || (residual && g);
  }
  order_one[Tensor::input] = g;
  // With a constant gate the logits enter nothing that the router could learn from.
  if (spec.model.gate == Gate::constant && !balanced) order_one[Tensor::router] = true;

  std::vector<Tensor> vanishing;
  for (std::size_t i = 0; i < tensor_names.size(); ++i)
    if (!order_one.values[i] && constants.lr.values[i] != 0) vanishing.push_back(static_cast<Tensor>(i));
  return vanishing;
}

}  // namespace moe
