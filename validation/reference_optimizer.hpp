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
class Optimizer {
 public:
  /// lr, eps: raw values per tensor (NetworkConstants).
  Optimizer(const OptimizerSpec& spec, const PerTensor<double>& lr, const PerTensor<double>& eps);

  /// Makes one update of `w` from the gradient of the loss.
  void step(NetworkWeights& w, const NetworkWeights& gradient);

 private:
  struct Moments {
    MatrixXd first, second;
  };
  void update(Tensor which, MatrixXd& w, const MatrixXd& g);

  OptimizerSpec spec_;
  PerTensor<double> lr_, eps_;
  std::array<Moments, num_tensors> moments_;
  int steps_ = 0;  ///< updates made, the present one included
};

}  // namespace moe::reference
