/// At which steps a run is evaluated, tested and observed, and when it has diverged: the same for limit and network.
#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/run_spec.hpp"

namespace moe {

/// Time of a flow at which state t of 0..steps is recorded; with training.time not said it is t.
inline double flow_time(const TrainingSpec& training, int t) {
  return training.time > 0 ? training.time * t / training.steps : t;
}

/// Time of recorded state t of any run: of gradient descent its number.
inline double time_of(const TrainingSpec& training, int t) {
  return training.dynamics == Dynamics::flow ? flow_time(training, t) : t;
}

/// "100 steps", "gradient flow to the time of 100 steps".
inline std::string duration_text(const TrainingSpec& training) {
  if (training.dynamics == Dynamics::flow)
    return fmt::format("gradient flow to the time of {:g} steps", flow_time(training, training.steps));
  return fmt::format("{} steps", training.steps);
}

/// A loss from which no run comes back. `first`: loss of step 0.
inline bool has_diverged(double loss, double first) { return loss > 1e6 * std::max(first, 1.0); }

/// What to do about numbers that overflow or a loss that grows without end. `trained`: not before the first update.
inline std::string divergence_remedy(const RunSpec& spec, bool trained) {
  const TrainingSpec& training = spec.training;
  const std::string no_norm = spec.model.norm == Norm::rms
                                  ? ". A sample whose features all vanish has no norm (model.norm = rms): an input of "
                                    "zeros, or relu on few neurons"
                                  : "";
  if (!trained)
    return "The network has not been trained yet: lower model.output_scale or model.init_scale, or the size of the "
           "data" +
           no_norm;
  if (training.dynamics == Dynamics::gd) return "Lower optimizer.lr" + no_norm;
  if (training.stepper == Stepper::dopri5)
    return fmt::format("A gradient flow does not do that: lower training.rtol = {:g} and training.atol = {:g}{}",
                       training.rtol, training.atol, no_norm);
  return fmt::format("A gradient flow does not do that: lower training.step_size = {:g}{}", training.step_size,
                     no_norm);
}

/// What there is to say before a flow with error control whose right-hand side jumps; empty where it does not.
inline std::string jumping_flow_warning(const RunSpec& spec) {
  if (spec.training.dynamics != Dynamics::flow || spec.training.stepper != Stepper::dopri5) return "";
  const bool relu = spec.model.activation == Activation::relu || spec.model.post_activation == Activation::relu;
  const bool topk = spec.model.routing == Routing::topk;
  if (!relu && !topk) return "";
  return fmt::format(
      "the gradient jumps where {} switches, and training.stepper = \"dopri5\" shortens its steps until every jump is "
      "resolved: thousands of evaluations. training.stepper = \"rk4\" takes steps of training.step_size over "
      "them (docs/results.md, gradient flow)",
      relu && topk ? "a unit of relu or a choice of experts"
      : relu       ? "a unit of relu"
                   : "a choice of experts");
}

/// 0, every, 2 every, ... and always the last step T.
inline std::vector<int> steps_every(int every, int T) {
  std::vector<int> steps;
  for (long t = 0; t < T; t += std::max(1, every)) steps.push_back(static_cast<int>(t));  // t + every may exceed int
  steps.push_back(T);
  return steps;
}

/// training.eval_every, or when not said 1 with full batches and steps/20 (at least 1) with mini-batches.
inline int eval_interval(const TrainingSpec& training) {
  if (training.eval_every > 0) return training.eval_every;
  return training.batch > 0 ? std::max(1, training.steps / 20) : 1;
}

/// training.test_every, or when not said max(eval interval, steps/20).
inline int test_interval(const TrainingSpec& training) {
  return training.test_every > 0 ? training.test_every : std::max(eval_interval(training), training.steps / 20);
}

/// output.observe_every; with mini-batches and nothing said, steps/100 (at least 1), so that observing, which costs about a step,
/// stays cheap in long runs.
inline int observe_interval(const RunSpec& spec) {
  const bool said = spec.output.observe_every != 1 || spec.origin.contains("output.observe_every");
  if (said || spec.training.batch == 0) return spec.output.observe_every;
  return std::max(1, spec.training.steps / 100);
}

inline std::vector<int> eval_steps(const TrainingSpec& t) { return steps_every(eval_interval(t), t.steps); }
inline std::vector<int> test_steps(const TrainingSpec& t) { return steps_every(test_interval(t), t.steps); }
inline std::vector<int> observe_steps(const RunSpec& spec) {
  return steps_every(observe_interval(spec), spec.training.steps);
}

/// Those of a list that are within 0..T, sorted, each once.
inline std::vector<int> listed_steps(const std::vector<int>& list, int T) {
  std::vector<int> steps;
  for (int t : list)
    if (t >= 0 && t <= T) steps.push_back(t);
  std::sort(steps.begin(), steps.end());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  return steps;
}
inline std::vector<int> kernel_steps(const RunSpec& spec) {
  return listed_steps(spec.output.kernels_at, spec.training.steps);
}
inline std::vector<int> distribution_steps(const RunSpec& spec) {
  return listed_steps(spec.output.distributions_at, spec.training.steps);
}

}  // namespace moe
