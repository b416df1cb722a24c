// Adafactor (T30) in the limit's array over pairs, in the finite trainer's matrices and in the reference trainer: values worked out by
// hand, and the formula written out entry by entry.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "dmft/update_rule.hpp"
#include "tests/network_fixture.hpp"
#include "validation/reference_optimizer.hpp"
#include "validation/trainer_rule.hpp"

namespace {

using Eigen::MatrixXd;
using moe::Index;
using B = moe::Cpu<double>;

moe::UpdateRule adafactor(double lr, double eps) {
  moe::UpdateRule rule;
  rule.kind = moe::OptimizerKind::adafactor;
  rule.lr = lr;
  rule.eps = eps;
  return rule;
}

moe::HostMatrix<double> host(const MatrixXd& from) {
  moe::HostMatrix<double> to(from.rows(), from.cols());
  B::upload(from, to);
  return to;
}

/// (T30) as it stands, for one matrix.
struct WrittenOut {
  double eps;
  MatrixXd row, col;
  int t = 0;
  MatrixXd psi(const MatrixXd& g) {
    if (t++ == 0) row = MatrixXd::Zero(g.rows(), 1), col = MatrixXd::Zero(1, g.cols());
    const double weight = std::pow(t, -0.8);
    MatrixXd out(g.rows(), g.cols());
    for (Index i = 0; i < g.rows(); ++i) {
      double mean = 0;
      for (Index j = 0; j < g.cols(); ++j) mean += (g(i, j) * g(i, j) + eps * eps) / static_cast<double>(g.cols());
      row(i, 0) = (1 - weight) * row(i, 0) + weight * mean;
    }
    for (Index j = 0; j < g.cols(); ++j) {
      double mean = 0;
      for (Index i = 0; i < g.rows(); ++i) mean += (g(i, j) * g(i, j) + eps * eps) / static_cast<double>(g.rows());
      col(0, j) = (1 - weight) * col(0, j) + weight * mean;
    }
    for (Index i = 0; i < g.rows(); ++i)
      for (Index j = 0; j < g.cols(); ++j) out(i, j) = g(i, j) / std::sqrt(row(i, 0) * col(0, j) / row.mean());
    return out;
  }
};

double deviation(const MatrixXd& a, const MatrixXd& b) { return (a - b).cwiseAbs().maxCoeff(); }

}  // namespace

TEST_CASE("Adafactor's first step on a gradient of rank one is that of its signs, whatever its size (T30) [eps = 0]") {
  // g = z x^T: row = z^2 <x^2>, col = <z^2> x^2, mean(row) = <z^2> <x^2>.
  const MatrixXd z = network_fixture::gaussian(6, 1, 1e-3, 1), x = network_fixture::gaussian(5, 1, 40, 2);
  auto zs = host(z), xs = host(x);
  moe::LearnedArray<B> array(6, 5, adafactor(0.5, 0));
  array.update(zs, xs);
  const MatrixXd signs = (z * x.transpose()).cwiseSign();
  CHECK(deviation(B::download(array.value()), 0.5 * signs) < 1e-14);
}

TEST_CASE("Adafactor leaves alone what never had a gradient [eps = 0; limit]") {
  MatrixXd z = network_fixture::gaussian(4, 2, 1, 1), x = network_fixture::gaussian(3, 2, 1, 2);
  z.middleRows(2, 2).setZero();  // the second of two matrices
  x.row(1).setZero();            // a column of both
  auto zs = host(z), xs = host(x);
  moe::LearnedArray<B> array(4, 3, adafactor(0.5, 0), 1, {2, 1});
  array.update(zs, xs);
  const MatrixXd value = B::download(array.value());
  REQUIRE(value.allFinite());
  CHECK(value.bottomRows(2).isZero(0));
  CHECK(value.col(1).isZero(0));
  CHECK(value(0, 0) != 0);
}

TEST_CASE(
    "Adafactor over pairs of sites is (T30), every matrix by itself [limit; 3 matrices, 5 steps, several pieces] "
    "[slow]") {
  // 3 matrices of 30,000 rows: gradients are made a few columns at a time.
  const Index rows = 30000, cols = 7, P = 3;
  constexpr double eps = 0.3, lr = 0.1, scale = 0.7;
  moe::LearnedArray<B> array(3 * rows, cols, adafactor(lr, eps), scale, {3, 1});
  std::vector<WrittenOut> by_hand(3, WrittenOut{eps, {}, {}});
  MatrixXd expected = MatrixXd::Zero(3 * rows, cols);
  for (std::uint32_t t = 0; t < 5; ++t) {
    const MatrixXd z = network_fixture::gaussian(3 * rows, P, 1.0 + t, 10 + 2 * t),
                   x = network_fixture::gaussian(cols, P, 1, 11 + 2 * t);
    auto zs = host(z), xs = host(x);
    array.update(zs, xs);
    for (Index e = 0; e < 3; ++e)
      expected.middleRows(e * rows, rows) +=
          scale * lr * by_hand[static_cast<std::size_t>(e)].psi(z.middleRows(e * rows, rows) * x.transpose());
  }
  // 5 steps of size lr, each with sums of 30,000 terms.
  CHECK(deviation(B::download(array.value()), expected) < 5 * lr * 30000 * 2.3e-16);
}

TEST_CASE("Adafactor on a matrix of the finite trainer is (T30) [5 steps, eps, both precisions]") {
  const auto check = [](auto real, double rounding) {
    using Real = decltype(real);
    const Index N = 21, columns = 4;
    constexpr double eps = 0.3, lr = 0.1;
    moe::OptimizerSpec spec;
    spec.name = moe::OptimizerKind::adafactor;
    moe::HostMatrix<Real> w(N, columns), row(N, 1), col(1, columns), gradient(N, columns);
    WrittenOut by_hand{eps, {}, {}};
    MatrixXd expected = MatrixXd::Zero(N, columns);
    for (int t = 1; t <= 5; ++t) {
      const MatrixXd g = network_fixture::gaussian(N, columns, t, static_cast<std::uint32_t>(t));
      moe::Cpu<Real>::upload(g, gradient);
      moe::trainer::Rule<Real>::at(spec, lr, eps, t).factored_step(gradient, w, row, col);
      expected -= lr * by_hand.psi(g);
    }
    CHECK(deviation(moe::Cpu<Real>::download(w), expected) < rounding);
  };
  check(double{}, 1e-14);
  check(float{}, 5 * 0.1 * 3 * 8 * 1.2e-7);  // 5 steps of at most 3 lr, 8 roundings each
}

TEST_CASE("Adafactor's tensors of a network are matrices of their own: experts, and routers of blocks [reference]") {
  // Two experts in each of two blocks, N = 2, N_e = 1. Were matrices not apart, the large gradients would make the small ones' steps small.
  moe::OptimizerSpec spec;
  spec.name = moe::OptimizerKind::adafactor;
  moe::PerTensor<double> lr, eps;
  lr.values.fill(0.1);
  moe::reference::Optimizer optimizer(spec, lr, eps, 2, 2);
  const auto zero = [] {
    return moe::NetworkWeights{MatrixXd::Zero(2, 3), MatrixXd::Zero(4, 2), MatrixXd::Zero(4, 2), MatrixXd::Zero(2, 4),
                               MatrixXd::Zero(1, 2)};
  };
  moe::NetworkWeights w = zero(), g = zero();
  g.w_in << 1, -2, 3, 2, -4, 6;  // rank one: signs
  // Routers of two experts and two neurons: [3 4; 0 0] has row = (12.5, 0), col = (4.5, 8), mean(row) = 6.25, so that
  // Psi = 3 / sqrt(12.5 * 4.5 / 6.25) = 1 and 4 / sqrt(12.5 * 8 / 6.25) = 1; that of block 2 is a thousand times larger.
  g.router << 3, 4, 0, 0, 3000, 0, 0, 3000;
  g.expert_in << 1, -1, 100, 1, 0, 5, -7, 2;
  g.expert_out << 1, 100, 0, -7, -1, 1, 5, 2;
  g.readout << 2, -5;
  optimizer.step(w, g);
  MatrixXd router(4, 2), expert_in(4, 2);
  // Block 2, diag(3000, 3000): row = col = 4.5e6 = mean(row); Psi = 3000 / sqrt(4.5e6) = sqrt(2).
  router << 1, 1, 0, 0, std::sqrt(2.0), 0, 0, std::sqrt(2.0);
  expert_in << 1, -1, 1, 1, 0, 1, -1, 1;
  CHECK(deviation(w.w_in, -0.1 * g.w_in.cwiseSign()) < 1e-15);
  CHECK(deviation(w.router, -0.1 * router) < 1e-15);
  CHECK(deviation(w.expert_in, -0.1 * expert_in) < 1e-15);
  CHECK(deviation(w.expert_out, -0.1 * expert_in.transpose()) < 1e-15);
  CHECK(deviation(w.readout, -0.1 * g.readout.cwiseSign()) < 1e-15);
}
