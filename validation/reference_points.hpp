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

/// Selection and gates from the logits r (M, P). top-K: the K largest of each column, ties to the lower index; with a bias (M) those
/// of r + bias, which gates do not see.
/// Softmax is normalised so that (1/K) sum_i G_i = 1. The gate sees r/temperature. r must not hold NaN.
Gates gates(const ModelSpec& model, int K, const MatrixXd& r, const Eigen::VectorXd& bias = {});

/// dL/dr from dL/dG with the selection held (T9); both (M, P).
MatrixXd gate_backward(const ModelSpec& model, int K, const Gates& gates, const MatrixXd& dL_dG);

/// Load of every expert: the share of the tokens that choose it over K/M. (M)
Eigen::VectorXd loads(int K, const MatrixXd& active);
/// The balancing loss lambda <load_i mean_mu e_imu>_i, e_i = exp(r_i) / <exp r>, and its derivative with respect to r (M, P), the loads
/// given (T31).
double balance_loss(double lambda, const Eigen::VectorXd& load, const MatrixXd& r);
MatrixXd balance_backward(double lambda, const Eigen::VectorXd& load, const MatrixXd& r);

}  // namespace moe::reference
