/// Activations, gates and losses of a finite network, as arrays over units and samples. Written for the trainer alone:
/// the limit solver has formulas of its own.
#pragma once

#include <Eigen/Core>

#include "support/run_spec.hpp"

namespace moe::network {

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

/// mse = (1/2) mean_mu |f - y|^2, cross entropy = mean_mu (-sum_c y log softmax(f)). f, y (C, P).
double loss_value(Loss kind, const MatrixXd& f, const MatrixXd& y);
/// dL/df (C, P), with its 1/P.
MatrixXd loss_gradient(Loss kind, const MatrixXd& f, const MatrixXd& y);
/// Share of samples whose largest output is the largest target; with one output, whose signs agree.
double accuracy(const MatrixXd& f, const MatrixXd& y);

}  // namespace moe::network
