#include "regimes/regime.hpp"

namespace moe {

NetworkConstants network_constants(const RunSpec& spec, const Parameterization& param, const Sizes& sizes) {
  NetworkConstants constants;
  for (std::size_t i = 0; i < constants.std.values.size(); ++i) {
    const TensorRule& rule = param.rule.values[i];
    constants.std.values[i] = rule.std.at(sizes) * spec.model.init_scale.values[i];
    constants.lr.values[i] = rule.lr.at(sizes) * spec.optimizer.lr * spec.optimizer.lr_scale.values[i];
    constants.eps.values[i] =
        spec.optimizer.name == OptimizerKind::signsgd ? 0 : rule.eps.at(sizes) * spec.optimizer.eps;
  }
  if (spec.model.readout_init == ReadoutInit::zero) constants.std[Tensor::readout] = 0;
  constants.expert_in_shared = param.rule[Tensor::expert_in].shared;
  constants.expert_out_shared = param.rule[Tensor::expert_out].shared;
  constants.aggregation = power_law(spec.model.aggregation).at(sizes);
  return constants;
}

}  // namespace moe
