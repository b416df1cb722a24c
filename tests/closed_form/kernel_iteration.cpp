// Kernel iteration against what is known: kernels at initialisation are Gaussian integrals, linear networks are scalar recursions.
#include <doctest/doctest.h>

#include <Eigen/Eigenvalues>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "dmft/kernel_iteration.hpp"
#include "tests/limit_fixture.hpp"

namespace {

using Eigen::MatrixXd;
using moe::Kernel;
using moe::Tensor;

/// Nodes and weights of <F(x)>, x ~ N(0, 1): eigenvectors of the Jacobi matrix of Hermite polynomials.
struct GaussHermite {
  Eigen::VectorXd x, w;
  explicit GaussHermite(int n) {
    MatrixXd jacobi = MatrixXd::Zero(n, n);
    for (int k = 1; k < n; ++k) jacobi(k, k - 1) = jacobi(k - 1, k) = std::sqrt(static_cast<double>(k));
    const Eigen::SelfAdjointEigenSolver<MatrixXd> eigen(jacobi);
    x = eigen.eigenvalues();
    w = eigen.eigenvectors().row(0).transpose().cwiseAbs2();
  }
};

/// <F(x_a) F(x_b)> of Gaussians with covariance C, for every pair.
template <class F>
MatrixXd pair_averages(const MatrixXd& C, F f) {
  static const GaussHermite rule(60);
  MatrixXd J(C.rows(), C.cols());
  for (Eigen::Index a = 0; a < C.rows(); ++a)
    for (Eigen::Index b = 0; b < C.cols(); ++b) {
      const double sa = std::sqrt(C(a, a)), along = C(a, b) / sa,
                   across = std::sqrt(std::max(0.0, C(b, b) - along * along));
      double sum = 0;
      for (Eigen::Index i = 0; i < rule.x.size(); ++i)
        for (Eigen::Index j = 0; j < rule.x.size(); ++j)
          sum += rule.w[i] * rule.w[j] * f(sa * rule.x[i]) * f(along * rule.x[i] + across * rule.x[j]);
      J(a, b) = sum;
    }
  return J;
}

moe::IterationOptions options(moe::Index neurons, moe::Index experts, moe::Index hidden, int draws, int replicas) {
  moe::IterationOptions o;
  o.replicas = replicas;
  o.batch = {neurons, experts, hidden};
  o.draws = draws;
  return o;
}

struct Rates {  // as in limit_linear.cpp
  const char* regime;
  const char* param;
  double input, expert_in, expert_out, readout;
};
constexpr double M = 2, Ne = 4, rho_M = 0.5, rho_e = 0.5;
const std::vector<Rates> table = {
    {"I", "mup", 1 / M, rho_e, 1, 1 / M}, {"I", "mssp", 1 / M, rho_e, 1, 1 / M},
    {"II", "mssp", 1, rho_M* Ne, 1, 1},   {"II", "mup", 0, 0, 1, 0},
    {"III", "mssp", 1, rho_e, 1, 1},      {"III", "mup", 0, rho_e, 1, 0},
};

moe::Dataset one_sample() {
  moe::Dataset d = limit_fixture::data(1, 5, 1);
  d.y(0, 0) = 1.5;
  return d;
}

}  // namespace

TEST_CASE("kernel iteration: correlations at initialisation are Gaussian integrals [II mssp, tanh, sigmoid gate]") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 1, 0);
  s.sampling.precision = moe::Precision::float32;
  constexpr moe::Index P = 4;
  const moe::Dataset d = limit_fixture::data(P, 5, 1);
  const moe::IterationResult r = moe::iterate_kernels(s, d, options(4000, 2000, 0, 4, 8));
  REQUIRE(r.report.floor_at > 0);
  const auto phi = [](double x) { return std::tanh(x); };
  const auto slope = [](double x) { return 1 - std::tanh(x) * std::tanh(x); };
  const auto gate = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto gate_slope = [&](double x) { return gate(x) * (1 - gate(x)); };
  const MatrixXd Phi = pair_averages(d.x.transpose() * d.x / 5.0, phi);
  const MatrixXd D = d.y.transpose() * d.y / (P * P);  // f = 0 and wbar of variance one: D = wbar y/P
  const MatrixXd G = pair_averages(Phi, gate), v = pair_averages(Phi, phi);
  // II MSSP: s_chi^2 = 1 of Q and A; of B s_beta^2 = rho_M N_e * N_e/(M N_e/N) = N_e^2 Var B/N = rho_M N_e, the variance of zeta.
  const double zeta2 = rho_M * Ne;
  const std::vector<std::pair<Kernel, MatrixXd>> expected = {
      {Kernel::phi, Phi},
      {Kernel::D, D},
      {Kernel::Gv, G.cwiseProduct(v)},
      {Kernel::ghat, zeta2 * G.cwiseProduct(pair_averages(Phi, slope)).cwiseProduct(D)},
      {Kernel::rho, zeta2 / Ne * pair_averages(Phi, gate_slope).cwiseProduct(v).cwiseProduct(D)}};
  for (const auto& [kernel, value] : expected) {
    const std::string name = moe::kernel_names[static_cast<std::size_t>(kernel)];
    // 8 replicas x 4 draws: an entry's products have a standard deviation of at most twice the largest diagonal entry (kurtosis
    // below that of a product of Gaussians, <x^4> = 3, times that of gates), over 2000 experts at least; f = 0 holds to 1/sqrt(4000).
    const double allowed = 4 * 2 * value.diagonal().maxCoeff() / std::sqrt(32.0 * 2000);
    INFO(name, " is\n", r.kernels[kernel], "\nexpected\n", value, "\nallowed ", allowed);
    CHECK((r.kernels[kernel] - value).cwiseAbs().maxCoeff() <= allowed);
    CHECK(allowed < 0.1 * value.diagonal().maxCoeff());
  }
}

TEST_CASE(
    "kernel iteration: linear networks with one tensor learning follow their tangent kernel's geometric series [regime "
    "x parameterization x tensor]") {
  constexpr double lr = 0.15;
  constexpr int T = 3;
  for (const auto& row : table)
    for (const auto& [tensor, rate] :
         {std::pair{Tensor::input, row.input}, std::pair{Tensor::expert_in, row.expert_in},
          std::pair{Tensor::expert_out, row.expert_out}, std::pair{Tensor::readout, row.readout}}) {
      moe::RunSpec s = limit_fixture::spec(row.regime, row.param, moe::OptimizerKind::sgd, lr, T);
      s.sampling.precision = moe::Precision::float32;
      s.model.activation = moe::Activation::identity;
      s.model.gate = moe::Gate::constant;
      for (std::size_t k = 0; k < moe::num_tensors; ++k)
        if (static_cast<Tensor>(k) != tensor) s.optimizer.lr_scale.values[k] = 0;
      const bool few_hidden = std::string(row.regime) == "II";
      const moe::IterationResult r =
          moe::iterate_kernels(s, one_sample(), options(1200, few_hidden ? 600 : 4, few_hidden ? 0 : 300, 1, 16));
      REQUIRE(r.report.floor_at > 0);
      for (int t = 0; t <= T; ++t) {
        const double expected = 1.5 * (1 - std::pow(1 - lr * rate, t));
        const double f = r.f(0, t);
        // f moves with sqrt(2 loss), so its standard error is that of the loss over |f - Y|.
        const double allowed = 4 * r.loss.sem[static_cast<std::size_t>(t)] / std::abs(1.5 - f) + 1e-6;
        INFO("regime ", std::string(row.regime), " ", std::string(row.param), ", only ",
             std::string(moe::tensor_names[static_cast<std::size_t>(tensor)]), ", step ", t, ": f = ", f, ", expected ",
             expected, ", allowed ", allowed);
        CHECK(std::abs(f - expected) <= allowed);
        CHECK(allowed < 0.15);
      }
    }
}
