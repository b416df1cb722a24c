/// What the networks are trained on.
#pragma once

#include <Eigen/Core>
#include <string>
#include <vector>

#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// x (D, P), y (C, P): one sample per column, float64; converted by whoever trains. Test sets may be empty (0 columns).
struct Dataset {
  Eigen::MatrixXd x, y;
  Eigen::MatrixXd x_test, y_test;
  std::string description;
};

/// Loads, selects (permutation by data.seed: first rows train, next test), builds targets for the loss and normalises.
/// mse with two classes: one target -1, +1; otherwise one-hot rows. Throws IoError, or ConfigError with every fault.
Dataset load_dataset(const RunSpec& spec);

/// Row numbers of step t's batch: (t*batch + j) mod P, or shuffled anew each epoch by data.seed. Empty vector: full batch.
std::vector<int> batch_rows(const RunSpec& spec, int num_train, int step);

}  // namespace moe
