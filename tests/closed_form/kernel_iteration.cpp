// Kernel iteration against what is known (docs/known_solutions.md): kernels at initialisation are Gaussian integrals, linear networks are
// solved exactly, the first step by hand.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dmft/kernel_iteration.hpp"
#include "dmft/site_field.hpp"
#include "dmft/solve.hpp"
#include "tests/known_solutions.hpp"
#include "tests/limit_fixture.hpp"

namespace {

using Eigen::MatrixXd;
using moe::Kernel;
using moe::Tensor;

moe::IterationOptions options(moe::Index neurons, moe::Index experts, moe::Index hidden, int draws, int replicas) {
  moe::IterationOptions o;
  o.replicas = replicas;
  o.batch = {neurons, experts, hidden};
  o.draws = draws;
  return o;
}

moe::Dataset one_sample() {
  moe::Dataset d = limit_fixture::data(1, 5, 1);
  d.y(0, 0) = 1.5;
  return d;
}

/// Where an observable is in BatchMeans::fields.
Eigen::Index row_of(const std::string& name) {
  return std::find(moe::site_observables.begin(), moe::site_observables.end(), name) - moe::site_observables.begin();
}
double error_of_mean(const Eigen::ArrayXd& is) {
  const auto n = static_cast<double>(is.size());
  return std::sqrt((is - is.mean()).square().sum() / (n - 1) / n);
}

}  // namespace

TEST_CASE(
    "kernel iteration: correlations at initialisation are Gaussian integrals [regime x parameterization x "
    "activation]") {
  constexpr moe::Index P = 4;
  constexpr int replicas = 6;
  const moe::Dataset d = limit_fixture::data(P, 5, 1);
  for (const known::Case& row : known::cases)
    for (const moe::Activation activation :
         {moe::Activation::identity, moe::Activation::relu, moe::Activation::gelu, moe::Activation::tanh}) {
      const std::string regime = row.regime;
      moe::RunSpec s = limit_fixture::spec(regime, row.param, moe::OptimizerKind::sgd, 1, 0);
      s.sampling.precision = moe::Precision::float32;
      s.model.activation = activation;
      const moe::Index experts = regime == "I" ? 2 : regime == "II" ? 1000 : 100, hidden = regime == "II" ? 4 : 300;
      const moe::IterationResult r = moe::iterate_kernels(s, d, options(1000, experts, hidden, 1, replicas));
      REQUIRE(r.report.floor_at > 0);
      const known::InitialKernels expected(row, activation, d.x, d.y, 1000, static_cast<double>(experts),
                                           static_cast<double>(hidden), replicas);
      std::vector<std::pair<Kernel, const known::Estimate*>> compared = {{Kernel::phi, &expected.Phi},
                                                                         {Kernel::Gv, &expected.Gv},
                                                                         {Kernel::D, &expected.D},
                                                                         {Kernel::ghat, &expected.ghat}};
      if (regime == "II") compared.emplace_back(Kernel::rho, &expected.rho);
      for (const auto& [which, kernel] : compared) {
        const Eigen::MatrixXd is = r.kernels[which].step(0);
        INFO(regime, " ", std::string(row.param), ", activation ", static_cast<int>(activation), ": ",
             std::string(moe::kernel_names[static_cast<std::size_t>(which)]), " is\n", is, "\nexpected\n",
             kernel->value, "\nup to\n", 4 * kernel->error);
        CHECK(
            ((is - kernel->value).array().abs() <= 4 * kernel->error.array() + 1e-6 * kernel->value.maxCoeff()).all());
        CHECK(kernel->error.maxCoeff() <= 0.15 * kernel->value.maxCoeff());
      }
    }
}

TEST_CASE(
    "kernel iteration: linear networks with one tensor learning follow their tangent kernel's geometric series [regime "
    "x parameterization x tensor]") {
  constexpr double lr = 0.15;
  constexpr int T = 3;
  for (const auto& row : known::rates)
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

TEST_CASE("kernel iteration: linear limit, loss and every field of a run [regime x parameterization]") {
  constexpr double lr = 0.2;
  constexpr int T = 2, P = 2, replicas = 6;
  const moe::Dataset d = limit_fixture::data(P, 5, 2);
  for (const known::Case& row : known::cases) {
    const std::string regime = row.regime, param = row.param;
    moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, lr, T);
    s.sampling.precision = moe::Precision::float32;
    s.model.activation = moe::Activation::identity;
    s.model.gate = moe::Gate::constant;
    const moe::IterationResult r =
        moe::iterate_kernels(s, d, options(3000, regime == "II" ? 1500 : 4, 1500, 1, replicas));
    const known::LinearLimit exact(row.c, lr, d.x, d.y, T);
    for (std::size_t t = 0; t <= T; ++t) {
      const auto compare = [&](const char* name, double is, double sem, double expected) {
        INFO(regime, " ", param, ", step ", t, ": ", std::string(name), " is ", is, " +- ", sem, ", expected ",
             expected);
        CHECK(std::abs(is - expected) <= 4 * sem + 1e-6);
        CHECK(sem <= 0.04 * expected + 1.5e-3);
      };
      compare("loss", r.loss.mean[t], r.loss.sem[t], exact.loss(t, d.y));
      for (const auto& [name, kernels] : exact.fields()) {
        Eigen::ArrayXd is(replicas);  // mean squares
        for (int k = 0; k < replicas; ++k)
          is[k] = r.fields[static_cast<std::size_t>(k)](row_of(name), static_cast<Eigen::Index>(t));
        compare(name, is.mean(), error_of_mean(is), (*kernels)[t].trace() / P);
      }
    }
  }
}

TEST_CASE(
    "kernel iteration: at initialisation white numbers make room for what noise of responses adds to a field [regime x "
    "parameterization; sites in and out of the network's ratios] [slow]") {
  constexpr int P = 4, replicas = 600;
  const moe::Dataset d = limit_fixture::data(P, 6, 2);
  for (const known::Case& row : known::cases) {
    const std::string regime = row.regime, param = row.param;
    moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, 1, 0);
    s.model.activation = moe::Activation::identity;
    s.model.gate = moe::Gate::constant;
    const known::LinearLimit exact(row.c, 1, d.x, d.y, 0);
    if (exact.zeta[0].trace() == 0) continue;  // the backward half of the experts is not there yet
    // The noise is that of 48 neurons, however many units the field is on.
    for (const int hidden : {48, 96}) {
      const int experts = regime == "I" ? 2 : regime == "II" ? hidden / 4 : 12;
      const moe::IterationResult r =
          moe::iterate_kernels(s, d, options(48, experts, regime == "II" ? 4 : hidden, 1, replicas));
      // Of every replica <zeta zeta> over its own <D D>; zeta is B^T D, and of its variance noise of <z_a D> makes four parts in 48.
      Eigen::ArrayXd ratio(replicas);
      for (int k = 0; k < replicas; ++k) {
        const MatrixXd& fields = r.fields[static_cast<std::size_t>(k)];
        ratio[k] =
            fields(row_of("rms_zeta"), 0) / fields(row_of("rms_D"), 0) * exact.D[0].trace() / exact.zeta[0].trace();
      }
      INFO(regime, " ", param, ", ", hidden, " units: <zeta zeta> is ", ratio.mean(), " +- ", error_of_mean(ratio),
           " of <D D>");
      CHECK(std::abs(ratio.mean() - 1) <= 4 * error_of_mean(ratio));
      CHECK(error_of_mean(ratio) <= P / 48.0 / 6);
    }
  }
}

TEST_CASE(
    "kernel iteration: fields of few sites have the mean squares of many over some steps, router and all [II mssp, "
    "tanh, sigmoid] [slow]") {
  // 64 queries by the last step: half of what neurons can span. Noise of responses would be a quarter of <xi xi>.
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.5, 7);
  const moe::Dataset d = limit_fixture::data(8, 10, 2);
  constexpr int few = 200;
  const moe::IterationResult of_few = moe::iterate_kernels(s, d, options(128, 64, 0, 1, few));
  s.sampling.neurons = 2048;
  s.sampling.replicas = 8;
  const moe::LimitResult of_many = moe::solve_limit(s, d);
  for (const char* const name : {"rms_h", "rms_u_all", "rms_r", "rms_y", "rms_D", "rms_zeta", "rms_rho", "rms_xi"})
    for (std::size_t t = 0; t <= 7; ++t) {
      Eigen::ArrayXd is(few);
      for (int k = 0; k < few; ++k)
        is[k] = std::sqrt(of_few.fields[static_cast<std::size_t>(k)](row_of(name), static_cast<Eigen::Index>(t)));
      const moe::Curve& many = of_many.observables.at(name);
      const double error = std::hypot(error_of_mean(is), many.sem[t]);
      INFO(std::string(name), " of step ", t, " is ", is.mean() / many.mean[t], " +- ", error / many.mean[t],
           " of that of many sites");
      // And what few neurons do to a network: f scatters, and learning takes part of that back.
      CHECK(std::abs(is.mean() - many.mean[t]) <= 4 * error + 0.01 * many.mean[t]);
      CHECK(error <= 0.015 * many.mean[t]);
    }
}

TEST_CASE(
    "white numbers of a field: orthogonal to what was sent, as much left of them as answers leave [sites beside "
    "answers]") {
  using B = moe::Cpu<double>;
  constexpr Eigen::Index sites = 60, P = 5, steps = 6;
  for (const double answers : {20.0, 60.0, 90.0, 1e9}) {
    moe::QueryBasis<B> sent(sites, 1e-3);
    moe::CausalArray<B> root({P, steps}, nullptr);
    moe::SiteField<B> field(sites, root, 1, true, 1, answers, sent, {3, 0, 0, 0});
    moe::HostMatrix<double> query(sites, P), all(sites, P * steps);
    // Not more than 15/16 of sites and answers, and not more than would have to be doubled.
    const double of_doubled = 2.0 / sites - 1 / answers;
    const double most =
        std::min(15.0 / 16 * std::min<double>(sites, answers), of_doubled > 0 ? 1 / of_doubled : HUGE_VAL);
    double squares = 0, expected = 0, noise = 0;
    for (Eigen::Index t = 0; t < steps; ++t) {
      B::normal(query, {4, 0, static_cast<std::uint32_t>(t), 0});
      B::copy(query, all.columns(t * P, P));
      sent.ask(query);
      field.orthogonalize(sent, t);
      const auto rank = static_cast<double>(std::min((t + 1) * P, static_cast<Eigen::Index>(most)));
      CHECK(field.mean_squares().back() == doctest::Approx(1 - rank / answers));
      noise = (static_cast<double>((t + 1) * P) - rank) / answers;
      CHECK(field.noise_left() == doctest::Approx(noise));
      const MatrixXd now = B::download(field.white().columns(t * P, P)),
                     before = B::download(all.columns(0, (t + 1) * P));
      if (rank == static_cast<double>((t + 1) * P)) CHECK((before.transpose() * now).cwiseAbs().maxCoeff() <= 1e-10);
      squares += now.squaredNorm(), expected += (1 - rank / answers) * static_cast<double>(now.size());
    }
    INFO(answers, " answers");
    CHECK(squares == doctest::Approx(expected).epsilon(4 * std::sqrt(2.0 / expected)));
    CHECK((noise > 0) == (most < P * steps));
  }
}

TEST_CASE("kernel iteration: features and readout after the first step by hand [regime x parameterization]") {
  constexpr double lr = 2;
  constexpr int replicas = 8;
  const moe::Dataset d = one_sample();
  for (const known::Case& row : known::cases) {
    const std::string regime = row.regime, param = row.param;
    moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, lr, 1);
    s.sampling.precision = moe::Precision::float32;
    const moe::IterationResult r =
        moe::iterate_kernels(s, d, options(4000, regime == "II" ? 2000 : 32, 1000, 1, replicas));
    const known::FirstStep expected(row, moe::Activation::tanh, lr * d.y(0, 0));
    const Eigen::Index of_phi = row_of("rms_phi"), of_D = row_of("rms_D");
    Eigen::ArrayXd growth(replicas), w_bar(replicas);
    for (std::size_t k = 0; k < replicas; ++k) {
      const MatrixXd& fields = r.fields[k];
      growth[static_cast<Eigen::Index>(k)] = fields(of_phi, 1) / fields(of_phi, 0);
      w_bar[static_cast<Eigen::Index>(k)] = fields(of_D, 1) / std::pow(d.y(0, 0) - r.f_per_replica[k](0, 1), 2);
    }
    for (const auto& [name, is, value] :
         {std::tuple{"<phi phi> over that of t = 0", growth, expected.phi / expected.phi_before},
          std::tuple{"<wbar wbar>", w_bar, expected.w_bar}}) {
      const double sem = error_of_mean(is);
      INFO(regime, " ", param, ": ", std::string(name), " is ", is.mean(), " +- ", sem, ", expected ", value);
      CHECK(std::abs(is.mean() - value) <= 4 * sem + 1e-6);
      CHECK(sem <= 0.1 * (value - 1) + 0.015);
    }
  }
}

TEST_CASE(
    "kernel iteration: four batches halve the sampling errors of kernels, and sums are the same for any number of "
    "samplers and threads [II mssp]") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.5, 2);
  s.sampling.precision = moe::Precision::float32;
  const moe::Dataset d = limit_fixture::data(4, 5, 1);
  moe::IterationOptions o = options(300, 150, 0, 1, 12);
  std::vector<moe::IterationResult> runs;
  struct Way {
    int batches, samplers, threads;
  };
  for (const Way& way : {Way{1, 0, 2}, Way{4, 1, 1}, Way{4, 5, 2}, Way{4, 0, 3}}) {
    o.batches = way.batches, o.samplers = way.samplers, o.threads = way.threads;
    runs.push_back(moe::iterate_kernels(s, d, o));
  }
  for (std::size_t k = 2; k < runs.size(); ++k) {
    CHECK(runs[k].loss.mean == runs[1].loss.mean);
    for (std::size_t i = 0; i < moe::num_kernels; ++i) CHECK(runs[k].kernels.all()[i] == runs[1].kernels.all()[i]);
  }
  // Fields are averages over batches: the same with four as with one.
  for (const char* name : {"rms_h", "rms_y", "rms_D", "rms_u", "rms_v_all", "rms_zeta", "rms_rho", "router_entropy"}) {
    INFO(name);
    double mean[2], error[2];
    for (const std::size_t k : {0U, 1U}) {
      Eigen::ArrayXd of_replicas(o.replicas);
      for (int replica = 0; replica < o.replicas; ++replica)
        of_replicas[replica] = runs[k].fields[static_cast<std::size_t>(replica)](row_of(name), 2);
      mean[k] = of_replicas.mean(), error[k] = error_of_mean(of_replicas);
    }
    CHECK(std::abs(mean[1] - mean[0]) <= 4 * std::hypot(error[0], error[1]));
    CHECK(4 * std::hypot(error[0], error[1]) <= 0.5 * mean[0]);
  }
  double log_ratio = 0;
  for (std::size_t k = 0; k < runs[0].report.residuals.size(); ++k)
    log_ratio += std::log(runs[1].report.residuals[k].noise / runs[0].report.residuals[k].noise) /
                 static_cast<double>(runs[0].report.residuals.size());
  // Noise of 12 replicas is known to 1/sqrt(2 11) for a kernel of one direction, better for the rest and for their mean.
  const double allowed = 2 * std::sqrt(2.0) / std::sqrt(22.0) / std::sqrt(3.0);
  INFO("errors are smaller by ", std::exp(log_ratio));
  CHECK(std::abs(log_ratio - std::log(0.5)) < allowed);
}
