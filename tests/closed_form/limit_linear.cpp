// Identity activation, constant gate, one sample: the limit of a deep linear network reduces to scalar recursions (check (7) of theory
// section 10), and kernels at initialisation are Gaussian integrals (check (8)).
#include <doctest/doctest.h>

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "tests/limit_fixture.hpp"

namespace {

using moe::Tensor;

/// With f(0) = 0, target Y and only one tensor learning, f(t+1) = f(t) + eta rate (Y - f(t)): the rate is that tensor's tangent
/// kernel. rho_e = N_e/N, rho_M = M/N; M experts in regime I. Derivation for regime I: u_i = chi_i of variance 1, y_0 of variance
/// 1/M; zeta_i = Y b_i with b_i = B_i^T wbar of variance rho_e; a = (1/M) sum_i A_i^T b_i of variance 1/M. Readout learns with <y_0^2> =
/// 1/M, B with <u_i^2> <wbar^2> = 1, A with <b_i^2> <h^2> = rho_e, W_in with <a^2> = 1/M. The other rows follow with the constants of
/// theory section 4.
struct Rates {
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

moe::RunSpec linear(const Rates& row, double lr, int steps) {
  moe::RunSpec s = limit_fixture::spec(row.regime, row.param, moe::OptimizerKind::sgd, lr, steps);
  s.model.activation = moe::Activation::identity;
  s.model.gate = moe::Gate::constant;
  s.sampling.neurons = std::string(row.regime) == "III" ? 200 : 600;
  s.sampling.replicas = 6;
  return s;
}

moe::Dataset one_sample() {
  moe::Dataset d = limit_fixture::data(1, 5, 1);
  d.y(0, 0) = 1.5;
  return d;
}

}  // namespace

TEST_CASE(
    "linear limit: one tensor learning gives its tangent kernel's geometric series [regime x parameterization x "
    "tensor]") {
  constexpr double lr = 0.15;
  constexpr int T = 6;
  for (const auto& row : table)
    for (const auto& [tensor, rate] :
         {std::pair{Tensor::input, row.input}, std::pair{Tensor::expert_in, row.expert_in},
          std::pair{Tensor::expert_out, row.expert_out}, std::pair{Tensor::readout, row.readout}}) {
      moe::RunSpec s = linear(row, lr, T);
      for (std::size_t k = 0; k < moe::num_tensors; ++k)
        if (static_cast<Tensor>(k) != tensor) s.optimizer.lr_scale.values[k] = 0;
      const moe::LimitResult r = moe::solve_limit(s, one_sample());
      REQUIRE(r.f.size() == T + 1);
      for (int t = 0; t <= T; ++t) {
        const double expected = 1.5 * (1 - std::pow(1 - lr * rate, t));
        // f moves with sqrt(2 loss), so its standard error is that of the loss over |f - Y|; sample counts leave O(1/S).
        const double f = r.f[static_cast<std::size_t>(t)](0, 0);
        const double error =
            4 * r.loss.sem[static_cast<std::size_t>(t)] / std::abs(1.5 - f) + 12.0 / s.sampling.neurons * t * lr;
        INFO("regime ", row.regime, " ", row.param, ", only ", moe::tensor_names[static_cast<std::size_t>(tensor)],
             ", step ", t, ": f = ", f, ", expected ", expected, ", allowed ", error);
        CHECK(std::abs(f - expected) <= error + 1e-12);
      }
    }
}

TEST_CASE(
    "linear limit: all tensors learning, the first step is the sum of the tangent kernels [regime x "
    "parameterization]") {
  constexpr double lr = 0.2;
  for (const auto& row : table) {
    const moe::RunSpec s = linear(row, lr, 1);
    const moe::LimitResult r = moe::solve_limit(s, one_sample());
    // Exact: at t = 1 every cross term of two updates averages to zero, because f(0) = 0 and the fields of one update are independent of
    // those of another (regime I in full: f(1) = eta Y [<y_0^2> + <u^2> + <b^2> + <a^2>]).
    const double sum = row.input + row.expert_in + row.expert_out + row.readout;
    const double f = r.f[1](0, 0), expected = lr * 1.5 * sum;
    const double allowed = 4 * r.loss.sem[1] / std::abs(1.5 - f) + 12.0 * lr / s.sampling.neurons;
    INFO("regime ", row.regime, " ", row.param, ": f(1) = ", f, ", sum of tangent kernels ", expected, ", allowed ",
         allowed);
    CHECK(std::abs(f - expected) <= allowed);
  }
}

TEST_CASE(
    "initialisation: kernel of G v is the arc-cosine kernel, y has its variance, and lr -> 0 moves nothing [II mssp "
    "relu]") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 1e-9, 3);
  s.model.activation = moe::Activation::relu;
  s.model.gate = moe::Gate::constant;
  s.sampling.neurons = 4000;
  s.output.kernels_at = {0, 3};
  const moe::Dataset d = limit_fixture::data(5, 6, 1);
  const moe::LimitResult r = moe::solve_limit(s, d);
  // J(a, b) = <relu relu> of Gaussians with covariance C: sqrt(C_aa C_bb)/(2 pi) (sin theta + (pi - theta) cos theta).
  const auto arc_cosine = [](const Eigen::MatrixXd& C) {
    Eigen::MatrixXd J(C.rows(), C.cols());
    for (Eigen::Index a = 0; a < C.rows(); ++a)
      for (Eigen::Index b = 0; b < C.cols(); ++b) {
        const double size = std::sqrt(C(a, a) * C(b, b)), cosine = std::clamp(C(a, b) / size, -1.0, 1.0),
                     theta = std::acos(cosine);
        J(a, b) = size / (2 * std::numbers::pi) * (std::sin(theta) + (std::numbers::pi - theta) * cosine);
      }
    return J;
  };
  const Eigen::MatrixXd Phi = arc_cosine(d.x.transpose() * d.x / 6.0), GvGv = arc_cosine(Phi);
  // Monte Carlo error of an entry of relative fluctuation ~1.5 with 4 x 4000 neurons, 4 x 8000 sites, four standard errors.
  CHECK((r.kernels.at("Phi")[0] - Phi).cwiseAbs().maxCoeff() <= 4 * 1.5 * Phi.maxCoeff() / std::sqrt(16000.0));
  CHECK((r.kernels.at("GvGv")[0] - GvGv).cwiseAbs().maxCoeff() <=
        4 * 1.5 * GvGv.maxCoeff() * (1 / std::sqrt(16000.0) + 1 / std::sqrt(32000.0)));
  const double rms_y = std::sqrt(GvGv.diagonal().mean());
  CHECK(std::abs(r.observables.at("rms_y").mean[0] - rms_y) <= 0.02 * rms_y);
  for (std::size_t t = 1; t <= 3; ++t) {
    CHECK(std::abs(r.loss.mean[t] - r.loss.mean[0]) <= 1e-7);
    CHECK(r.observables.at("change_u").mean[t] <= 1e-6);
    CHECK(r.observables.at("rms_y_propagating").mean[t] <= 1e-6);
  }
}
