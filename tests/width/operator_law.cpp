// The law of a Gaussian operator's answers given past queries against an explicit random matrix of the same size: with counts in ratio,
// drawn plainly and with tolerance to zero they agree exactly, in mean and variance (theory section 6).
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "tests/operator_fixture.hpp"
#include "validation/statistics.hpp"

namespace {

using Eigen::MatrixXd;
using operator_fixture::Asked;
using operator_fixture::Explicit;
using operator_fixture::gaussian;
using operator_fixture::Index;

constexpr Index SX = 16, SY = 24, P = 2;
constexpr double chi2 = 1.2, beta2 = chi2 * SY / SX, lr = 0.4;
constexpr int num_features = 8;

double mean(const MatrixXd& a, const MatrixXd& b) { return a.cwiseProduct(b).mean(); }

/// Three steps of "training" whose queries depend on answers; statistics that see responses, new directions and the learned part.
template <class W>
std::array<double, num_features> play(W& w, int dense_after) {
  const MatrixXd x0 = gaussian(SY, P, 1, 1), z0 = gaussian(SX, P, 1, 2), probe = gaussian(SY, P, 1, 3),
                 back_probe = gaussian(SX, P, 1, 4);
  const MatrixXd a0 = w.forward(x0);
  const MatrixXd zq0 = (z0 + a0).array().tanh();
  const MatrixXd b0 = w.backward(zq0);
  w.update();
  if (dense_after == 1) w.become_dense();
  const MatrixXd x1 = (x0 + 0.7 * b0).array().tanh();
  const MatrixXd a1 = w.forward(x1);
  const MatrixXd zq1 = (0.5 * z0 + a1).array().tanh();
  const MatrixXd b1 = w.backward(zq1);
  const MatrixXd e1 = w.evaluate_forward((probe + b1).array().tanh()),
                 e2 = w.evaluate_backward((back_probe + a1).array().tanh());
  w.update();
  if (dense_after == 2) w.become_dense();
  const MatrixXd x2 = (0.3 * x0 + b1).array().tanh();
  const MatrixXd a2 = w.forward(x2);
  const MatrixXd b2 = w.backward((zq1 + a2).array().tanh());
  return {mean(a1, a1), mean(a1, a0), mean(a2, zq0), mean(a2, a2),
          mean(b2, x1), mean(b2, b2), mean(e1, a1),  mean(e2, e2)};
}

void compare(int dense_after, bool break_response) {
  constexpr int runs = 3000;
  std::array<std::vector<double>, num_features> asked, explicit_matrix;
  for (int k = 0; k < runs; ++k) {
    const auto seed = static_cast<std::uint64_t>(k + 1);
    // beta2 = 0 drops the response terms and the backward Gaussian: what check (2) of theory section 10 asks for.
    Asked w(SX, SY, {chi2, break_response ? 0.0 : beta2}, operator_fixture::rule(moe::OptimizerKind::sgd, lr), 1e-9,
            false, seed);
    Explicit e(SX, SY, chi2, lr, seed + 1000000);
    const auto a = play(w, dense_after), b = play(e, dense_after);
    for (std::size_t f = 0; f < num_features; ++f) {
      asked[f].push_back(a[f]);
      explicit_matrix[f].push_back(b[f]);
    }
  }
  double worst = 0;
  for (std::size_t f = 0; f < num_features; ++f) {
    const double zm = moe::statistics::mean_z(asked[f], explicit_matrix[f]),
                 zv = moe::statistics::variance_z(asked[f], explicit_matrix[f]);
    CAPTURE(f);
    CAPTURE(zm);
    CAPTURE(zv);
    worst = std::max({worst, std::abs(zm), std::abs(zv)});
    if (!break_response) {
      CHECK(std::abs(zm) < 4);  // 16 comparisons: one false alarm in a thousand draws of the seeds
      CHECK(std::abs(zv) < 4);
    }
  }
  if (break_response) CHECK(worst > 20);
}

}  // namespace

TEST_CASE("operator has the law of an explicit matrix [bases, SX=16, SY=24, 3000 matrices]") { compare(0, false); }
TEST_CASE("operator has the law of an explicit matrix [dense after the first step]") { compare(1, false); }
TEST_CASE("operator has the law of an explicit matrix [dense after the second step]") { compare(2, false); }
TEST_CASE("operator without its response terms does not have that law") { compare(0, true); }
