// The sweep against what is known (docs/known_solutions.md): with identity activation and constant gates the limit is a finite
// computation, with one sample scalar recursions (check (7) of theory section 10); kernels at initialisation are Gaussian integrals
// (check (8)); the first step by hand.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/known_solutions.hpp"
#include "tests/limit_fixture.hpp"

namespace {

using moe::Tensor;

using known::Rates, known::rho_M;

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
  for (const auto& row : known::rates)
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
  for (const auto& row : known::rates) {
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
  const auto arc_cosine = [](const Eigen::MatrixXd& C) {
    const known::Pointwise relu = known::phi_and_slope(moe::Activation::relu).first;
    return known::pair_products(C, Eigen::MatrixXd::Zero(C.rows(), C.cols()), relu).value;
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

TEST_CASE(
    "linear limit: loss and every field of a whole run are the exact ones [regime x parameterization x residual]") {
  constexpr double lr = 0.3, tolerance = 1e-6;
  constexpr int T = 6, P = 3;
  const moe::Dataset d = limit_fixture::data(P, 5, 2);
  for (const known::Case& row : known::cases)
    for (const bool residual : {false, true}) {
      const std::string regime = row.regime, param = row.param;
      moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, lr, T);
      s.model.activation = moe::Activation::identity;
      s.model.gate = moe::Gate::constant;
      s.model.residual = residual;
      s.sampling.neurons = regime == "III" ? 160 : 400;
      s.sampling.replicas = 2;
      s.sampling.tolerance = tolerance;
      const moe::LimitResult r = moe::solve_limit(s, d);
      const known::LinearLimit exact(row.c, lr, d.x, d.y, T, residual);
      for (std::size_t t = 0; t <= T; ++t) {
        // Matched draws are exactly orthogonal, so that no sampling error is left in linear fields: only the directions below the
        // tolerance of the bases, which add that much to fields.
        const auto compare = [&](const char* name, const moe::Curve& curve, double expected) {
          INFO(regime, " ", param, residual ? ", residual" : "", ", step ", t, ": ", std::string(name), " is ",
               curve.mean[t], ", expected ", expected);
          CHECK(std::abs(curve.mean[t] - expected) <= tolerance);
        };
        compare("loss", r.loss, exact.loss(t, d.y));
        for (const auto& [name, kernels] : exact.fields())
          compare(name, r.observables.at(name), std::sqrt((*kernels)[t].trace() / P));
      }
    }
}

TEST_CASE(
    "linear limit: any tolerance down to rounding gives exact numbers, and bases of the rank that there is [II mssp]") {
  constexpr double lr = 0.3;
  constexpr int T = 5, P = 4;
  const moe::Dataset d = limit_fixture::data(P, 6, 1);
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, lr, T);
  s.model.activation = moe::Activation::identity;
  s.model.gate = moe::Gate::constant;
  s.sampling.neurons = 400;
  s.sampling.replicas = 2;
  s.sampling.precision = moe::Precision::float64;
  const known::LinearLimit exact(known::cases[3].c, lr, d.x, d.y, T);
  for (const double tolerance : {1e-6, 1e-9, 1e-12, 0.0}) {
    s.sampling.tolerance = tolerance;
    const moe::LimitResult r = moe::solve_limit(s, d);
    for (std::size_t t = 0; t < T; ++t) {
      INFO("tolerance ", tolerance, ", step ", t, ": loss ", r.loss.mean[t], ", exact ", exact.loss(t, d.y));
      CHECK(std::abs(r.loss.mean[t] - exact.loss(t, d.y)) <= tolerance + 1e-11);
      // D = wbar Delta: one more direction a step, whatever the number of samples.
      CHECK(r.diagnostics.at("rank_D")[t] <= static_cast<double>(t + 1));
    }
  }
}

TEST_CASE("linear limit: the first step by hand [regime x parameterization]") {
  constexpr double eta = 0.3, Y = 1.5, q = eta * Y;
  const moe::Dataset d = one_sample();
  for (const known::Case& row : known::cases) {
    const known::LinearLimit exact(row.c, eta, d.x, d.y, 1);
    const auto [a, a_, b, b_] = row.c;
    const double f = q * (b_ + a_ * b_ + a + a * b), delta = Y - f;
    const double u = a + q * q * (a * a_ * b_ + (1 + a_) * (1 + a_) * b_), w = 1 + q * q * a * b;
    const double zeta = delta * delta * (b_ * w + q * q * (1 + b) * (1 + b) * a);
    const std::pair<double, double> pairs[] = {
        {exact.f[1](0, 0), f},
        {exact.phi[1](0, 0), 1 + q * q * a_ * b_},
        {exact.u[1](0, 0), u},
        {exact.D[1](0, 0), delta * delta * w},
        {exact.y[1](0, 0), b * u + q * q * std::pow((1 + a_) * b_ + a, 2)},
        {exact.zeta[1](0, 0), zeta},
        {exact.xi[1](0, 0), a_ * zeta + q * q * delta * delta * std::pow(a * (1 + b) + b_, 2)}};
    for (const auto& [is, expected] : pairs) {
      INFO(std::string(row.regime), " ", std::string(row.param), ": ", is, ", expected ", expected);
      CHECK(std::abs(is - expected) <= 1e-13 * (1 + expected));
    }
  }
}

TEST_CASE("first step: features and readout by hand [regime x parameterization x activation, sigmoid gate]") {
  constexpr double lr = 2;
  constexpr int runs = 12;
  const moe::Dataset d = one_sample();
  for (const known::Case& row : known::cases)
    for (const moe::Activation activation : {moe::Activation::tanh, moe::Activation::gelu}) {
      const std::string regime = row.regime, param = row.param;
      moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, lr, 1);
      s.model.activation = activation;
      s.sampling.neurons = regime == "III" ? 200 : 800;
      s.sampling.replicas = 1;
      const known::FirstStep expected(row, activation, lr * d.y(0, 0));
      Eigen::ArrayXd growth(runs), w_bar(runs);  // of the same samples, so that most of their error at t = 0 cancels
      for (int k = 0; k < runs; ++k) {
        s.sampling.seed = static_cast<std::uint64_t>(k);
        const moe::LimitResult r = moe::solve_limit(s, d);
        const auto &phi = r.observables.at("rms_phi").mean, &D = r.observables.at("rms_D").mean;
        growth[k] = (phi[1] * phi[1]) / (phi[0] * phi[0]);
        w_bar[k] = D[1] * D[1] / (2 * r.loss.mean[1]);
      }
      const auto compare = [&](const char* name, const Eigen::ArrayXd& is, double value) {
        const double sem = std::sqrt((is - is.mean()).square().sum() / (runs - 1) / runs);
        INFO(regime, " ", param, ", activation ", static_cast<int>(activation), ": ", std::string(name), " is ",
             is.mean(), " +- ", sem, ", expected ", value);
        CHECK(std::abs(is.mean() - value) <= 4 * sem + 1e-5);
        CHECK(sem <= 0.1 * (value - 1) + 4e-3);
      };
      compare("<phi phi> over that of t = 0", growth, expected.phi / expected.phi_before);
      compare("<wbar wbar>", w_bar, expected.w_bar);
    }
}

TEST_CASE("initialisation: kernels are Gaussian integrals [regime x parameterization x activation, sigmoid gate]") {
  constexpr int P = 4;
  const moe::Dataset d = limit_fixture::data(P, 5, 1);
  for (const known::Case& row : known::cases)
    for (const moe::Activation activation :
         {moe::Activation::identity, moe::Activation::relu, moe::Activation::gelu, moe::Activation::tanh}) {
      const std::string regime = row.regime;
      moe::RunSpec s = limit_fixture::spec(regime, row.param, moe::OptimizerKind::sgd, 1, 0);
      s.model.activation = activation;
      s.sampling.neurons = regime == "III" ? 400 : 1200;
      s.output.kernels_at = {0};
      const moe::LimitResult r = moe::solve_limit(s, d);
      const known::InitialKernels expected(row, activation, d.x, d.y, r.counts.neurons, r.counts.experts,
                                           r.counts.hidden, s.sampling.replicas);
      for (const auto& [name, kernel] : {std::pair{"Phi", &expected.Phi}, std::pair{"GvGv", &expected.Gv},
                                         std::pair{"DD", &expected.D}, std::pair{"ghatghat", &expected.ghat}}) {
        const Eigen::MatrixXd& is = r.kernels.at(name)[0];
        INFO(regime, " ", std::string(row.param), ", activation ", static_cast<int>(activation), ": ",
             std::string(name), " is\n", is, "\nexpected\n", kernel->value, "\nup to\n", 4 * kernel->error);
        CHECK(((is - kernel->value).array().abs() <= 4 * kernel->error.array() + 1e-12).all());
        CHECK(kernel->error.maxCoeff() <= 0.2 * kernel->value.maxCoeff());
      }
      if (regime == "II") {  // s_beta^2(Q) <rho^2>, s_beta^2(Q) = 1/rho_M, whose Gaussian fields are matched on neurons
        const double is = std::pow(r.observables.at("rms_xi_Q_init").mean[0], 2);
        const double value = expected.rho.value.trace() / P / rho_M, error = expected.rho.error.trace() / P / rho_M;
        INFO(regime, " ", std::string(row.param), ", activation ", static_cast<int>(activation), ": <xi_Q^2> is ", is,
             ", expected ", value, " up to ", 4 * error);
        CHECK(std::abs(is - value) <= 4 * error + 1e-12);
        CHECK(error <= 0.2 * value + 1e-12);
      }
    }
}
