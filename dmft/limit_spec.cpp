#include "dmft/limit_spec.hpp"

#include <algorithm>
#include <cmath>

#include "data/dataset.hpp"
#include "dmft/kernel_iteration.hpp"
#include "dmft/matched_draws.hpp"
#include "parameterizations/parameterization.hpp"

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

/// Logits that vanish with size still decide who is among the top K, by an order that does not: they keep a variance that is nothing
/// beside what is learned. Of explicit experts the limit is random anyway, with logits of any size.
void keep_order_of_logits(const RunSpec& spec, const Parameterization& param, const Regime& regime,
                          LimitConstants& constants) {
  if (spec.model.routing != Routing::topk || !regime.experts_sampled || constants.router.chi2 > 0) return;
  if (normal_laws(spec, param, regime).router.chi2.constant == 0) return;
  constexpr double of_order = 1e-12;
  constants.router.chi2 = of_order;
  constants.router.beta2 = of_order / spec.model.experts_per_width;  // in ratio
}

/// Where nothing is said the regime's default, or more where lists of matched draws would not hold the first step's; twice as
/// many at most.
SampleCounts counts_of(const RunSpec& spec, const Regime& regime, const LimitConstants& constants,
                       const StepShape& step, bool keeps_lists) {
  const SampleCounts counts = sample_counts(spec, regime);
  if (spec.sampling.neurons > 0 || !keeps_lists) return counts;
  RunSpec more = spec;
  more.sampling.neurons = matched_neurons(spec, constants, step, counts.neurons, 2 * counts.neurons);
  return more.sampling.neurons > 0 ? sample_counts(more, regime) : counts;
}

}  // namespace

StepShape step_shape(const RunSpec& spec, const Dataset& data) {
  const int P = spec.training.batch > 0 ? spec.training.batch : static_cast<int>(data.x.cols());
  return {static_cast<int>(data.x.rows()), static_cast<int>(data.y.rows()), P};
}

bool has_random_limit(const RunSpec& spec) {
  return spec.model.routing == Routing::topk && !regime_named(spec.model.regime).experts_sampled;
}

bool has_random_limit(const LimitSpec& limit) {
  const BlockSpec& block = limit.block;
  return !block.experts_sampled && block.gate.topk && block.gate.active < block.counts.experts;
}

LimitSpec limit_spec(const RunSpec& spec, const StepShape& step, Faults& faults, std::vector<std::string>& warnings) {
  const Regime& regime = regime_named(spec.model.regime);
  LimitSpec limit;
  BlockSpec& block = limit.block;
  Parameterization param;
  if (!faults.collect([&] { param = load_parameterization(spec); })) return limit;
  block.constants = limit_constants(spec, param, regime, step.inputs, faults);
  limit.vanishing = vanishing_gradients(spec, regime, block.constants);
  keep_order_of_logits(spec, param, regime, block.constants);
  warnings.insert(warnings.end(), block.constants.warnings.begin(), block.constants.warnings.end());
  limit.flows = spec.training.dynamics == Dynamics::flow;
  block.must_start_dense = spec.sampling.form == Form::dense;
  block.starts_dense = block.must_start_dense || (spec.sampling.form == Form::automatic && limit.flows);
  const bool keeps_lists = spec.sampling.matching != Matching::off && !block.starts_dense;
  faults.collect([&] { block.counts = counts_of(spec, regime, block.constants, step, keeps_lists); });
  block.experts_sampled = regime.experts_sampled;
  block.gate = {spec.model.gate,         spec.model.routing == Routing::topk,
                block.counts.active,     1 / spec.model.router_temperature,
                spec.model.balance_loss, spec.model.balance_bias};
  block.activation = spec.model.activation;
  block.activation_scale = spec.model.activation_scale;
  block.router = update_rule(spec, block.constants, Tensor::router);
  block.expert_in = update_rule(spec, block.constants, Tensor::expert_in);
  block.expert_out = update_rule(spec, block.constants, Tensor::expert_out);
  block.tolerance = spec.sampling.tolerance;
  limit.flow = flow_spec(spec.training);
  limit.depth = spec.model.depth;
  limit.layer = {spec.model.norm, spec.model.post_activation, std::pow(limit.depth, -spec.model.branch_exponent),
                 spec.model.residual};
  limit.loss = spec.training.loss;
  limit.input = update_rule(spec, block.constants, Tensor::input);
  limit.readout = update_rule(spec, block.constants, Tensor::readout);
  limit.seed = spec.sampling.seed;
  if (spec.sampling.method == Method::iterate) refuse_unsolved(spec, limit, faults);
  return limit;
}

std::optional<LimitSpec> checked_limit(const RunSpec& spec, const Dataset* data, Faults& faults) {
  LimitSpec limit;
  const bool sound = faults.collect([&] {
    Faults own;
    std::vector<std::string> warnings;  // solve_limit reports them
    limit = limit_spec(spec, data != nullptr ? step_shape(spec, *data) : StepShape{1, 1, 1}, own, warnings);
    own.throw_if_any();
  });
  return sound ? std::optional(limit) : std::nullopt;
}

}  // namespace moe
