/// A Gaussian operator with its populations and bases, and the explicit random matrix that it stands for.
#pragma once

#include <Eigen/Core>

#include "dmft/operator.hpp"

namespace operator_fixture {

using B = moe::Cpu<double>;
using Matrix = B::Matrix;
using View = B::View;
using moe::Index;

inline Eigen::MatrixXd gaussian(Index rows, Index cols, std::uint64_t seed, std::uint32_t stream) {
  Matrix m(rows, cols);
  B::normal(m, {seed, 0, stream, 0});
  return B::download(m);
}

inline moe::UpdateRule rule(moe::OptimizerKind kind, double lr) {
  moe::UpdateRule r;
  r.kind = kind;
  r.lr = lr;
  r.momentum = 0.8;
  r.beta1 = 0.9;
  r.beta2 = 0.95;
  r.eps = 0.1;
  return r;
}

/// W: Y -> X on (SX, SY) sites.
class Asked {
 public:
  Asked(Index SX, Index SY, moe::GaussianConstants constants, const moe::UpdateRule& r, double tolerance, bool matching,
        std::uint64_t seed)
      : X_(SX, {seed, 0, 1, 0}, matching),
        Y_(SY, {seed, 0, 2, 0}, matching),
        zt_(SX, tolerance),
        xt_(SY, tolerance),
        op_(X_, zt_, Y_, xt_, constants, r, {seed, 0, 3, 0}) {}

  Eigen::MatrixXd forward(const Eigen::MatrixXd& x) {
    upload(x, x_);
    xt_.ask(x_);
    return answer([&](View a) { op_.forward(x_, a); }, X_.sites(), x.cols());
  }
  Eigen::MatrixXd backward(const Eigen::MatrixXd& z) {
    upload(z, z_);
    zt_.ask(z_);
    return answer([&](View a) { op_.backward(z_, a); }, Y_.sites(), z.cols());
  }
  Eigen::MatrixXd evaluate_forward(const Eigen::MatrixXd& x, moe::Weights weights = moe::Weights::now) {
    Matrix query;
    upload(x, query);
    return answer([&](View a) { op_.evaluate_forward(query, a, weights); }, X_.sites(), x.cols());
  }
  Eigen::MatrixXd evaluate_backward(const Eigen::MatrixXd& z, moe::Weights weights = moe::Weights::now) {
    Matrix query;
    upload(z, query);
    return answer([&](View a) { op_.evaluate_backward(query, a, weights); }, Y_.sites(), z.cols());
  }
  /// A part of what the last forward() or backward() has answered.
  Eigen::MatrixXd forward_part(moe::Part part) {
    return answer([&](View a) { op_.forward_part(part, x_, a); }, X_.sites(), x_.cols());
  }
  Eigen::MatrixXd backward_part(moe::Part part) {
    return answer([&](View a) { op_.backward_part(part, z_, a); }, Y_.sites(), z_.cols());
  }
  /// With the queries of the last forward() and backward().
  void update() { op_.update(z_, x_); }
  void become_dense() { op_.become_dense(); }
  moe::Operator<B>& op() { return op_; }
  Index rank_x() const { return xt_.rank(); }
  Index rank_z() const { return zt_.rank(); }

 private:
  static void upload(const Eigen::MatrixXd& from, Matrix& to) {
    to = Matrix(from.rows(), from.cols());
    B::upload(from, to);
  }
  template <class F>
  static Eigen::MatrixXd answer(F&& ask, Index sites, Index P) {
    auto a = Matrix::uninitialized(sites, P);
    ask(a.view());
    return B::download(a);
  }
  moe::Population<B> X_, Y_;
  moe::QueryBasis<B> zt_, xt_;
  moe::Operator<B> op_;
  Matrix x_, z_;
};

/// W x = W^ x / SY, W^T z = W^^T z / SX with i.i.d. W^ of variance s_chi^2 SY = s_beta^2 SX, and plain gradient descent on it.
class Explicit {
 public:
  Explicit(Index SX, Index SY, double chi2, double lr, std::uint64_t seed)
      : W_(gaussian(SX, SY, seed, 9) * std::sqrt(chi2 * static_cast<double>(SY))), lr_(lr) {}
  Eigen::MatrixXd forward(const Eigen::MatrixXd& x) {
    x_ = x;
    return W_ * x / static_cast<double>(W_.cols());
  }
  Eigen::MatrixXd backward(const Eigen::MatrixXd& z) {
    z_ = z;
    return W_.transpose() * z / static_cast<double>(W_.rows());
  }
  Eigen::MatrixXd evaluate_forward(const Eigen::MatrixXd& x) const { return W_ * x / static_cast<double>(W_.cols()); }
  Eigen::MatrixXd evaluate_backward(const Eigen::MatrixXd& z) const {
    return W_.transpose() * z / static_cast<double>(W_.rows());
  }
  void update() { W_ += lr_ * z_ * x_.transpose(); }
  void become_dense() {}

 private:
  Eigen::MatrixXd W_, x_, z_;
  double lr_;
};

}  // namespace operator_fixture
