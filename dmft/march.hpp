/// One replica's way through the training steps, and what it records. Instantiated once per backend and precision
/// (march_float32.cpp, march_float64.cpp), so that they compile side by side.
#pragma once

#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dmft/limit_spec.hpp"
#include "dmft/solve.hpp"
#include "support/archive.hpp"

namespace moe {

/// What one replica recorded, [step in its list].
struct Record {
  std::vector<double> loss, accuracy, test_loss, test_accuracy, batch_loss;
  std::vector<Eigen::MatrixXd> f;
  std::vector<std::vector<double>> observables;  ///< of recorded_all(Plan::observables, depth)
  std::map<std::string, std::vector<Eigen::MatrixXd>> kernels;
  std::map<std::string, std::vector<std::vector<double>>> distributions;
  std::map<std::string, std::vector<double>> diagnostics;
  double defect = 0;
  int dense_since = -1;
  int converged_at = -1;                 ///< step at which the loss reached training.stop_at_loss; -1: it did not
  std::optional<NumericsError> failure;  ///< ends the run: not part of a checkpoint

  void transfer(Archive& a) {
    a("loss", loss);
    a("accuracy", accuracy);
    a("test_loss", test_loss);
    a("test_accuracy", test_accuracy);
    a("batch_loss", batch_loss);
    a("f", f);
    a("observables", observables);
    a("kernels", kernels);
    a("distributions", distributions);
    a("diagnostics", diagnostics);
    a("defect", defect);
    a("dense_since", dense_since);
    a("converged_at", converged_at);
  }
};

struct Plan {
  const RunSpec* spec;
  const Dataset* data;
  LimitSpec limit;
  std::vector<int> eval_steps, test_steps, observe_steps, kernel_steps;
  std::vector<std::string> observables;  ///< selected ones, and those that warnings need
  bool keep_f = true;
  std::vector<int> distribution_steps = {};
};

/// Marches replica `index` from initialisation to the last step. NumericsError ends it; the record keeps what came before.
template <class B>
void march(const Plan& plan, int index, const SolveOptions& options, const std::atomic<bool>& stop, Record& record);

/// Which vanishing gradients exceed eps on plain samples at t = 0, "tensor (size)" each: a pilot of one step.
template <class B>
std::vector<std::string> noisy_gradients(const RunSpec& spec, const Dataset& data, LimitSpec limit);

}  // namespace moe
