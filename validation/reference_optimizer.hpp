/// Optimizers of a finite network, on the raw weights with the raw learning rates and eps of its parameterization.
#pragma once

#include <array>

#include "support/run_spec.hpp"
#include "validation/network.hpp"
#include "validation/reference_points.hpp"

namespace moe::reference {

/// W -= lr Psi(gradient history), tensor by tensor:
///   sgd       Psi = g
///   momentum  Psi = velocity, velocity <- momentum velocity + g
///   adam      Psi = m^ / (sqrt(v^) + eps), m^ and v^ corrected for their bias; 0 where m^ and the denominator vanish
///   adamw     as adam, after W *= 1 - optimizer.lr weight_decay (every tensor alike, lr without the table's power law)
///   signsgd   Psi = sign(g), sign(0) = 0
///   adafactor Psi = g / sqrt(row col / mean(row)), row and col running means of g^2 + eps^2 over columns and rows with weight
///             1 - t^-0.8, every expert's matrix and every block's router by itself; 0 where row or col vanishes (T30)
class Optimizer {
 public:
  /// lr, eps: raw values per tensor (NetworkConstants). M experts in each of L blocks.
  Optimizer(const OptimizerSpec& spec, const PerTensor<double>& lr, const PerTensor<double>& eps, int M, int L);

  /// Makes one update of `w` from the gradient of the loss.
  void step(NetworkWeights& w, const NetworkWeights& gradient);

 private:
  struct Moments {
    MatrixXd first, second;  ///< of adafactor row (rows, matrices), col (matrices, columns)
  };
  void update(Tensor which, MatrixXd& w, const MatrixXd& g);
  /// `matrices` stand one above another in w, or side by side.
  void adafactor(Tensor which, Eigen::Index matrices, bool side_by_side, MatrixXd& w, const MatrixXd& g);

  OptimizerSpec spec_;
  PerTensor<double> lr_, eps_;
  Eigen::Index experts_, blocks_;  ///< of a block; blocks
  std::array<Moments, num_tensors> moments_;
  int steps_ = 0;  ///< updates made, the present one included
};

}  // namespace moe::reference
