#include "validation/reference_optimizer.hpp"

#include <cmath>

namespace moe::reference {

Optimizer::Optimizer(const OptimizerSpec& spec, const PerTensor<double>& lr, const PerTensor<double>& eps, int M, int L)
    : spec_(spec), lr_(lr), eps_(eps), experts_(M), blocks_(L) {}

void Optimizer::step(NetworkWeights& w, const NetworkWeights& gradient) {
  ++steps_;
  update(Tensor::input, w.w_in, gradient.w_in);
  update(Tensor::router, w.router, gradient.router);
  update(Tensor::expert_in, w.expert_in, gradient.expert_in);
  update(Tensor::expert_out, w.expert_out, gradient.expert_out);
  update(Tensor::readout, w.readout, gradient.readout);
}

void Optimizer::update(Tensor which, MatrixXd& w, const MatrixXd& g) {
  Moments& moments = moments_[static_cast<std::size_t>(which)];
  const double lr = lr_[which], eps = eps_[which];
  switch (spec_.name) {
    case OptimizerKind::sgd: w -= lr * g; return;
    case OptimizerKind::momentum:
      if (moments.first.size() == 0) moments.first = MatrixXd::Zero(g.rows(), g.cols());
      moments.first = spec_.momentum * moments.first + g;
      w -= lr * moments.first;
      return;
    case OptimizerKind::adamw: w *= 1 - spec_.lr * spec_.weight_decay; [[fallthrough]];
    case OptimizerKind::adam: {
      if (moments.first.size() == 0) {
        moments.first = MatrixXd::Zero(g.rows(), g.cols());
        moments.second = MatrixXd::Zero(g.rows(), g.cols());
      }
      moments.first = spec_.beta1 * moments.first + (1 - spec_.beta1) * g;
      moments.second = spec_.beta2 * moments.second + (1 - spec_.beta2) * g.cwiseAbs2();
      const double first_correction = 1 - std::pow(spec_.beta1, steps_);
      const double second_correction = 1 - std::pow(spec_.beta2, steps_);
      w -= lr * moments.first.binaryExpr(moments.second, [&](double m, double v) {
        const double denominator = std::sqrt(v / second_correction) + eps;
        return denominator > 0 ? m / first_correction / denominator : 0.0;
      });
      return;
    }
    case OptimizerKind::signsgd:
      w -= lr * g.unaryExpr([](double x) { return x > 0 ? 1.0 : (x < 0 ? -1.0 : 0.0); });
      return;
    case OptimizerKind::adafactor: {
      const bool experts = which == Tensor::expert_in || which == Tensor::expert_out;
      const Eigen::Index matrices = (in_block(which) ? blocks_ : 1) * (experts ? experts_ : 1);
      adafactor(which, matrices, which == Tensor::expert_out, w, g);
      return;
    }
  }
}

void Optimizer::adafactor(Tensor which, Eigen::Index matrices, bool side_by_side, MatrixXd& w, const MatrixXd& g) {
  const Eigen::Index rows = side_by_side ? g.rows() : g.rows() / matrices,
                     cols = side_by_side ? g.cols() / matrices : g.cols();
  Moments& moments = moments_[static_cast<std::size_t>(which)];
  if (moments.first.size() == 0) {
    moments.first = MatrixXd::Zero(rows, matrices);
    moments.second = MatrixXd::Zero(matrices, cols);
  }
  const double weight = std::pow(steps_, -0.8);
  for (Eigen::Index e = 0; e < matrices; ++e) {
    const MatrixXd one = side_by_side ? g.block(0, e * cols, rows, cols) : g.block(e * rows, 0, rows, cols);
    const MatrixXd squares = one.array().square() + eps_[which] * eps_[which];
    auto row = moments.first.col(e);
    auto col = moments.second.row(e);
    row += weight * (squares.rowwise().mean() - row);
    col += weight * (squares.colwise().mean() - col);
    MatrixXd psi = MatrixXd::Zero(rows, cols);
    for (Eigen::Index i = 0; i < rows; ++i)
      for (Eigen::Index j = 0; j < cols; ++j)
        if (row(i) > 0 && col(j) > 0) psi(i, j) = one(i, j) / std::sqrt(row(i) / row.mean() * col(j));
    w.block(side_by_side ? 0 : e * rows, side_by_side ? e * cols : 0, rows, cols) -= lr_[which] * psi;
  }
}

}  // namespace moe::reference
