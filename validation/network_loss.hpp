/// Losses of theory section 1 on the outputs of a finite network, shared by the fast and the reference trainer.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <type_traits>

#include "support/host_device.hpp"
#include "support/matrix.hpp"
#include "support/run_spec.hpp"

namespace moe::network {

/// mse = (1/2) mean_mu |f - y|^2, cross entropy = mean_mu (-sum_c y log softmax(f)). f, y (C, P).
double loss_value(Loss kind, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);
/// dL/df (C, P), with its 1/P.
Eigen::MatrixXd loss_gradient(Loss kind, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);
/// The same of sample p, where f, y and g lie on a device.
template <class View, class Targets>
MOE_HD void loss_gradient_at(Loss kind, Index p, const View& f, const Targets& y, const View& g) {
  using Real = std::remove_reference_t<decltype(g(0, p))>;
  const auto P = static_cast<double>(f.cols);
  const auto output = [&](Index c) { return static_cast<double>(f(c, p)); };
  if (kind == Loss::mse) {
    for (Index c = 0; c < f.rows; ++c) g(c, p) = static_cast<Real>((output(c) - y(c, p)) / P);
    return;
  }
  double largest = output(0), sum = 0, of_targets = 0;
  for (Index c = 1; c < f.rows; ++c) largest = output(c) > largest ? output(c) : largest;
  for (Index c = 0; c < f.rows; ++c) {
    sum += std::exp(output(c) - largest);
    of_targets += y(c, p);
  }
  const double log_sum = std::log(sum);
  for (Index c = 0; c < f.rows; ++c)
    g(c, p) = static_cast<Real>((std::exp(output(c) - largest - log_sum) * of_targets - y(c, p)) / P);
}
/// Share of samples whose largest output is the largest target; with one output, whose signs agree.
double accuracy(const Eigen::MatrixXd& f, const Eigen::MatrixXd& y);

}  // namespace moe::network
