/// What the networks are trained on.
#pragma once

#include <Eigen/Core>
#include <memory>
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

/// Loads, selects, builds targets for the loss and normalises. Throws ConfigError with every fault, files that cannot be read among
/// them.
///
/// Selection. Labelled sources: data.seed permutes the samples; of those with labels below data.classes the first
/// data.train train and the next data.test test. Sources with a test part of their own (fashion-mnist, cifar10,
/// tinyimagenet) take the first data.test of that part, permuted likewise. gaussian draws are independent and taken in
/// order. HDF5 files keep their order: the first data.train rows of x, then x_test or, without it, the rows that
/// follow; data.classes does not touch them, and a data.test that nobody set is lowered to what the file has.
///
/// Targets. mse with two classes: one target -1, +1; otherwise one-hot; from HDF5 files as they stand.
Dataset load_dataset(const RunSpec& spec);
/// Nothing where there are faults, or where the source itself was refused.
std::unique_ptr<const Dataset> load_dataset(const RunSpec& spec, Faults& faults);

/// Row numbers of step t's batch: (t*batch + j) mod P, or shuffled anew each epoch by data.seed; of `steps` steps from there on those of one
/// after the other. Empty vector: full batch.
std::vector<int> batch_rows(const RunSpec& spec, int num_train, int step, int steps = 1);

}  // namespace moe
