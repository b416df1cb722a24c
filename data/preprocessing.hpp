/// From raw samples to what is trained on: targets, normalisation, checks of the values. Samples are columns.
#pragma once

#include <Eigen/Core>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "support/error.hpp"

namespace moe {

/// y (C, P) for labels 0..classes-1: one-hot columns, or one row -1, +1 for mse with two classes.
Eigen::MatrixXd targets(const std::vector<int>& labels, int classes, Loss loss);

/// In place. sample: each column to mean 0, mean square 1 over its D entries; feature: each row to mean 0, mean square
/// 1 over the training columns, the test set by the same shift and factor. What is constant becomes 0.
void normalize(Dataset& data, Normalize how);

/// One fault for each of x, y, x_test, y_test that holds NaN or infinity, naming the first place.
void check_finite(const Dataset& data, const std::string& source, Faults& faults);

/// Cross entropy needs targets that are distributions: nonnegative, sum 1 within 1e-6, at least two classes.
void check_targets(const Dataset& data, const RunSpec& spec, Faults& faults);

}  // namespace moe
