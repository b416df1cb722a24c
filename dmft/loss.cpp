#include "dmft/loss.hpp"

#include <cmath>

namespace moe {

namespace {
/// log sum_c exp(f_c) of one column.
double log_sum_exp(const Eigen::Ref<const Eigen::VectorXd>& f) {
  const double top = f.maxCoeff();
  return top + std::log((f.array() - top).exp().sum());
}
}  // namespace

double loss_value(Loss loss, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y) {
  const auto P = static_cast<double>(f.cols());
  if (loss == Loss::mse) return 0.5 * (f - y).squaredNorm() / P;
  double total = 0;
  for (Eigen::Index p = 0; p < f.cols(); ++p) total += y.col(p).sum() * log_sum_exp(f.col(p)) - y.col(p).dot(f.col(p));
  return total / P;
}

Eigen::MatrixXd loss_delta(Loss loss, const Eigen::MatrixXd& f, const Eigen::MatrixXd& y) {
  const auto P = static_cast<double>(f.cols());
  if (loss == Loss::mse) return (y - f) / P;
  Eigen::MatrixXd delta(f.rows(), f.cols());
  for (Eigen::Index p = 0; p < f.cols(); ++p)
    delta.col(p) = (y.col(p).array() - y.col(p).sum() * (f.col(p).array() - log_sum_exp(f.col(p))).exp()) / P;
  return delta;
}

double accuracy(const Eigen::MatrixXd& f, const Eigen::MatrixXd& y) {
  Eigen::Index right = 0;
  for (Eigen::Index p = 0; p < f.cols(); ++p) {
    if (f.rows() == 1) {
      right += (f(0, p) > 0) == (y(0, p) > 0) ? 1 : 0;
      continue;
    }
    Eigen::Index predicted = 0, target = 0;
    f.col(p).maxCoeff(&predicted);
    y.col(p).maxCoeff(&target);
    right += predicted == target ? 1 : 0;
  }
  return static_cast<double>(right) / static_cast<double>(f.cols());
}

}  // namespace moe
