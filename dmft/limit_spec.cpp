#include <fmt/format.h>

#include "dmft/solve.hpp"

namespace moe {

namespace {

UpdateRule update_rule(const RunSpec& spec, const LimitConstants& constants, Tensor tensor) {
  const OptimizerSpec& o = spec.optimizer;
  UpdateRule rule;
  rule.kind = o.name;
  rule.lr = constants.lr[tensor];
  rule.eps = constants.eps[tensor];
  rule.momentum = o.momentum;
  rule.beta1 = o.beta1;
  rule.beta2 = o.beta2;
  rule.decay = o.name == OptimizerKind::adamw ? 1 - o.lr * o.weight_decay : 1;
  return rule;
}

}  // namespace

LimitSpec limit_spec(const RunSpec& spec, int D, Faults& faults, std::vector<std::string>& warnings) {
  const Regime& regime = regime_named(spec.model.regime);
  LimitSpec limit;
  BlockSpec& block = limit.block;
  const Parameterization param = load_parameterization(spec, faults);
  if (!faults.empty()) return limit;
  block.constants = limit_constants(spec, param, regime, D, faults);
  warnings.insert(warnings.end(), block.constants.warnings.begin(), block.constants.warnings.end());
  block.counts = sample_counts(spec, regime);
  block.experts_sampled = regime.experts_sampled;
  block.hidden_sampled = regime.hidden_sampled;
  block.gate = {spec.model.gate, spec.model.routing == Routing::topk, block.counts.active};
  block.activation = spec.model.activation;
  block.activation_scale = spec.model.activation_scale;
  block.router = update_rule(spec, block.constants, Tensor::router);
  block.expert_in = update_rule(spec, block.constants, Tensor::expert_in);
  block.expert_out = update_rule(spec, block.constants, Tensor::expert_out);
  block.tolerance = spec.sampling.tolerance;
  limit.residual = spec.model.residual;
  limit.post_activation = spec.model.post_activation;
  limit.loss = spec.training.loss;
  limit.input = update_rule(spec, block.constants, Tensor::input);
  limit.readout = update_rule(spec, block.constants, Tensor::readout);
  limit.seed = spec.sampling.seed;
  if (!faults.empty()) return limit;

  if (spec.optimizer.name == OptimizerKind::signsgd) {
    const auto vanishing = vanishing_gradients(limit);
    if (!vanishing.empty())
      faults.add("optimizer.name", "signsgd", spec.place("optimizer.name"),
                 fmt::format("has no limit here: the gradient of {} vanishes with size, and its sign is then decided by finite-size "
                             "noise (docs/theory.md, section 5)",
                             fmt::join(vanishing, ", ")),
                 "Use adam with eps >= 0.02, or a regime and parameterization in which no gradient vanishes");
  }
  return limit;
}

std::vector<std::string> vanishing_gradients(const LimitSpec& spec) {
  const LimitConstants& c = spec.block.constants;
  const bool hidden_sampled = spec.block.hidden_sampled;
  const bool gated = spec.block.gate.kind != Gate::constant;
  const bool zeta = c.expert_out.beta2 == 0;                // no Gaussian part of B^T D
  const bool y = c.expert_out.chi2 == 0 && !spec.residual;  // no Gaussian part of B v
  const bool rho = gated && (hidden_sampled || zeta);       // <v zeta>_a of independent v, zeta
  const bool from_experts = c.expert_in.beta2 > 0 && !zeta;
  const double router_beta2 = spec.block.experts_sampled ? c.router.beta2 : c.explicit_router_var;
  const bool from_router = gated && router_beta2 > 0 && !rho;
  std::vector<std::string> names;
  if (!from_experts && !from_router && !spec.residual) names.emplace_back("input");
  if (rho) names.emplace_back("router");
  if (zeta) names.emplace_back("expert_in");
  if (y) names.emplace_back("readout");
  return names;
}

}  // namespace moe
