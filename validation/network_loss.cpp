#include "validation/network_loss.hpp"

namespace moe::network {

using Eigen::MatrixXd;

namespace {

/// log softmax of every column.
MatrixXd log_softmax(const MatrixXd& f) {
  const MatrixXd shifted = f.rowwise() - f.colwise().maxCoeff();
  const Eigen::RowVectorXd log_sum = shifted.array().exp().colwise().sum().log();
  return shifted.rowwise() - log_sum;
}

}  // namespace

double loss_value(Loss kind, const MatrixXd& f, const MatrixXd& y) {
  const auto P = static_cast<double>(f.cols());
  if (kind == Loss::mse) return 0.5 * (f - y).squaredNorm() / P;
  return -y.cwiseProduct(log_softmax(f)).sum() / P;
}

double accuracy(const MatrixXd& f, const MatrixXd& y) {
  Eigen::Index correct = 0;
  for (Eigen::Index mu = 0; mu < f.cols(); ++mu) {
    if (f.rows() == 1) {
      correct += (f(0, mu) > 0) == (y(0, mu) > 0) ? 1 : 0;
    } else {
      Eigen::Index predicted = 0, target = 0;
      f.col(mu).maxCoeff(&predicted);
      y.col(mu).maxCoeff(&target);
      correct += predicted == target ? 1 : 0;
    }
  }
  return static_cast<double>(correct) / static_cast<double>(f.cols());
}

}  // namespace moe::network
