/// What a limit is made of, as plain numbers in the units of theory section 3, and how they come out of a run's description.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "regimes/regime.hpp"
#include "support/error.hpp"
#include "support/matrix.hpp"
#include "support/run_spec.hpp"

namespace moe {

struct Dataset;

/// Optimizer of one tensor. lr and eps are the normalised ones; decay is the factor 1 - optimizer.lr * weight_decay per step.
struct UpdateRule {
  OptimizerKind kind = OptimizerKind::sgd;
  double lr = 0, eps = 0;
  double momentum = 0, beta1 = 0, beta2 = 0;
  double decay = 1;

  bool linear() const { return is_linear(kind); }
  bool has_velocity() const { return kind == OptimizerKind::momentum; }
  bool has_moments() const { return kind == OptimizerKind::adam || kind == OptimizerKind::adamw; }
};

/// The gate of one block. (1/K) sum_j becomes <.>_i / kappa over the sample, kappa = K_S / SE.
struct GateSpec {
  Gate kind = Gate::sigmoid;
  bool topk = false;
  Index active = 0;                ///< K_S
  double inverse_temperature = 1;  ///< gates see r/tau
  double balance_loss = 0;         ///< lambda of the balancing loss
  double balance_bias = 0;         ///< rate of the selection bias

  /// With soft routing every load is one and nothing to be balanced.
  bool has_balance_loss() const { return topk && balance_loss != 0; }
  bool has_bias() const { return topk && balance_bias != 0; }
};

/// Everything a block is made of, in limit units.
struct BlockSpec {
  LimitConstants constants;
  SampleCounts counts;
  bool experts_sampled = true;  ///< false: regime I, explicit experts with one operator each and an explicit router
  GateSpec gate;
  Activation activation = Activation::tanh;
  double activation_scale = 1;
  UpdateRule router, expert_in, expert_out;
  double tolerance = 0.01;
  bool starts_dense = false;  ///< every operator in the dense form from the beginning, where sample counts allow it
  bool must_start_dense = false;
  bool matching = true;
};

/// What a layer does around its block.
struct LayerSpec {
  Norm norm = Norm::none;
  Activation post_activation = Activation::identity;
  double branch = 1;  ///< L^-alpha
  bool residual = false;
};

/// All that a replica needs to know, resolved once from the run's description.
struct LimitSpec {
  BlockSpec block;
  LayerSpec layer;
  int depth = 1;  ///< layers, all alike
  Loss loss = Loss::mse;
  UpdateRule input, readout;
  std::uint64_t seed = 0;
  FlowSpec flow;  ///< how a gradient flow is integrated, where `flows`
  bool flows = false;
  std::vector<Tensor> vanishing;  ///< tensors whose gradient vanishes with size at t = 0 (theory section 5)
};

/// What one step asks: inputs D, outputs C, samples P.
struct StepShape {
  int inputs = 1, outputs = 1, samples = 1;
};

/// What a step of this run asks.
StepShape step_shape(const RunSpec& spec, const Dataset& data);

/// The units in which a replica works, out of description, parameterization and shape of a step. Faults: tables without a limit,
/// combinations that cannot run.
LimitSpec limit_spec(const RunSpec& spec, const StepShape& step, Faults& faults, std::vector<std::string>& warnings);
/// Nothing where there are faults. Without data what does not depend on it is looked at.
std::optional<LimitSpec> checked_limit(const RunSpec& spec, const Dataset* data, Faults& faults);

/// Regime I with top-K: which experts are chosen at vanishing logits is decided by fluctuations of averages over neurons, and the limit is a
/// random variable, every replica a realisation of it (docs/theory.md, 6.4). Of a description with all experts active still true.
bool has_random_limit(const RunSpec& spec);
bool has_random_limit(const LimitSpec& limit);
inline constexpr const char* random_limit_warning =
    "regime I with top-K: the limit is a random variable (docs/theory.md, section 6); errors are over realisations";

}  // namespace moe
