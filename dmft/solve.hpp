/// The limit of a run: replicas of the causal sweep, their means and standard errors.
#pragma once

#include <Eigen/Core>
#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "dmft/limit_spec.hpp"
#include "support/checkpoint.hpp"
#include "support/error.hpp"
#include "support/resources.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Mean over replicas and the standard error of that mean, per recorded step. One replica: standard error NaN.
struct Curve {
  std::vector<double> mean, sem;
};
/// Of rows of at least `length` values, one of each replica.
Curve curve_of(const std::vector<std::vector<double>>& rows, std::size_t length);

/// Everything one solve produced. Step lists say at which t the curves have values (t = 0: initialisation).
struct LimitResult {
  SampleCounts counts;
  LimitConstants constants;
  bool matching = true;       ///< what `auto` came to
  bool lists_hold = true;     ///< with matching: lists of draws hold the first step's (matched_draws.hpp)
  bool random_limit = false;  ///< regime with explicit experts and top-K: the error is over realisations
  std::vector<int> eval_steps, test_steps, observe_steps, kernel_steps, distribution_steps;
  Curve loss, accuracy, test_loss, test_accuracy, batch_loss;
  std::vector<Eigen::MatrixXd> f;  ///< (C, P) mean over replicas at eval_steps; empty if too large
  std::map<std::string, Curve> observables;
  std::map<std::string, std::vector<Eigen::MatrixXd>> kernels;  ///< (P, P) at kernel_steps, mean over replicas
  std::map<std::string, std::vector<Curve>>
      distributions;  ///< at distribution_steps: share of each bin of distribution.hpp
  std::map<std::string, std::vector<double>> diagnostics;  ///< per training step, mean over replicas
  std::map<std::string, double> summary;  ///< scalars: sample-ratio defect, smallest effective sample size, ...
  std::vector<std::vector<double>> loss_per_replica;  ///< [replica][eval step]
  std::vector<std::vector<double>> test_loss_per_replica, batch_loss_per_replica;
  std::vector<std::string> warnings;
  std::optional<NumericsError> failure;  ///< step and field at which the run stopped; curves end before it
  int converged_at = -1;                 ///< step at which a replica reached training.stop_at_loss; curves end there
  bool interrupted = false;              ///< SolveOptions::interrupt ended the run; curves hold what was computed
  int replicas = 0;                      ///< that the means are over
  double seconds = 0;
};

struct SolveOptions {
  int threads = 0;                                                  ///< 0: all cores
  Device device = Device::cpu;                                      ///< automatic: cpu
  std::function<void(int replica, int step, double loss)> on_step;  ///< thread-safe listener
  std::function<void(int replica, int steps)> on_resume;  ///< thread-safe listener: a checkpoint knows these steps
  Checkpoints* checkpoints = nullptr;                     ///< one job per replica
  std::string scratch = ".";                              ///< folder for what kernel iteration does not hold in memory
  const std::atomic<bool>* interrupt = nullptr;           ///< set to finish the present steps and return what there is
};

/// What a checkpoint of this solve belongs to.
RunIdentity solve_identity(const RunSpec& spec, const Dataset& data, const std::string& program);

/// Solves. Throws ConfigError, also for a run that does not fit into this machine's memory; a run that diverges returns
/// with `failure` set and what was computed before.
LimitResult solve_limit(const RunSpec& spec, const Dataset& data, const SolveOptions& options = {});

}  // namespace moe
