#include <fmt/format.h>

#include <cmath>

#include "regimes/regime.hpp"

namespace moe {

namespace {

/// Powers of sizes can leave the range of numbers; a network of such numbers would only show NaN.
void require_finite(const RunSpec& spec, const Parameterization& param, const NetworkConstants& constants) {
  Faults faults;
  for (std::size_t i = 0; i < constants.std.values.size(); ++i) {
    const auto check = [&](const char* quantity, double value) {
      if (std::isfinite(value)) return;
      faults.add(fmt::format("{}: {} of {} is {} at this size (table {}, from {}). Check its power law and multiplier",
                             param.name, quantity, tensor_names[i], value, spec.model.param,
                             spec.place("model.param")));
    };
    check("the initial std", constants.std.values[i]);
    check("the learning rate", constants.lr.values[i]);
    check("eps", constants.eps.values[i]);
  }
  if (!std::isfinite(constants.aggregation))
    faults.add("model.aggregation", fmt::format("{}", constants.aggregation), spec.place("model.aggregation"),
               "is the prefactor at this size", "Check its power law");
  faults.throw_if_any();
}

}  // namespace

NetworkConstants network_constants(const RunSpec& spec, const Parameterization& param, const Sizes& sizes) {
  NetworkConstants constants;
  for (std::size_t i = 0; i < constants.std.values.size(); ++i) {
    const TensorRule& rule = param.rule.values[i];
    constants.std.values[i] = rule.std.at(sizes) * spec.model.init_scale.values[i];
    constants.lr.values[i] = rule.lr.at(sizes) * spec.optimizer.lr * spec.optimizer.lr_scale.values[i];
    constants.eps.values[i] =
        spec.optimizer.name == OptimizerKind::signsgd ? 0 : rule.eps.at(sizes) * spec.optimizer.eps;
    if (in_block(static_cast<Tensor>(i))) {
      const DepthLaws depth = depth_laws(rule, spec.optimizer.name, spec.model.branch_exponent);
      constants.lr.values[i] *= depth.lr.at(sizes);
      constants.eps.values[i] *= depth.eps.at(sizes);
    }
  }
  if (spec.model.readout_init == ReadoutInit::zero) constants.std[Tensor::readout] = 0;
  constants.expert_in_shared = param.rule[Tensor::expert_in].shared;
  constants.expert_out_shared = param.rule[Tensor::expert_out].shared;
  constants.aggregation = power_law(spec.model.aggregation).at(sizes);
  require_finite(spec, param, constants);
  return constants;
}

}  // namespace moe
