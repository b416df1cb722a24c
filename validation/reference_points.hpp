/// Activations and gates of a finite network, as arrays over units and samples. Written for the trainer alone:
/// the limit solver has formulas of its own.
#pragma once

#include <Eigen/Core>

#include "support/run_spec.hpp"

namespace moe::reference {

using Eigen::ArrayXXd;
using Eigen::MatrixXd;

/// phi(x) entrywise; tanh: tanh(b x)/b, gelu: x times the normal distribution function.
MatrixXd activate(Activation kind, double b, const MatrixXd& x);
/// phi'(x) entrywise; relu' is 0 at 0.
MatrixXd activate_derivative(Activation kind, double b, const MatrixXd& x);

/// Gates of one set of tokens. Shapes (M, P).
struct Gates {
  MatrixXd active;  ///< 1 where the expert is chosen by the token, else 0
  MatrixXd G;       ///< (T2); 0 where not active
};

/// Selection and gates from the logits r (M, P). top-K: the K largest of each column, ties to the lower index.
/// Softmax is normalised so that (1/K) sum_i G_i = 1. The gate sees r/temperature. r must not hold NaN.
Gates gates(const ModelSpec& model, int K, const MatrixXd& r);

/// dL/dr from dL/dG with the selection held (T9); both (M, P).
MatrixXd gate_backward(const ModelSpec& model, int K, const Gates& gates, const MatrixXd& dL_dG);

}  // namespace moe::reference
