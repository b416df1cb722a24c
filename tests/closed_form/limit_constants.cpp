/// Size exponents and limit constants of every table against theory sections 2 to 4 worked out by hand.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <string>
#include <vector>

#include "regimes/regime.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;

namespace {

constexpr double rho_M = 0.25, rho_e = 0.75, eta = 0.3, eps = 0.02;
constexpr int M = 6, Ne = 5, D = 12;

RunSpec run(const std::string& regime, const std::string& param, OptimizerKind optimizer) {
  RunSpec spec;
  spec.model.regime = regime;
  spec.model.param = param;
  spec.model.experts = M;
  spec.model.expert_width = Ne;
  spec.model.experts_per_width = rho_M;
  spec.model.expert_width_per_width = rho_e;
  spec.optimizer.name = optimizer;
  spec.optimizer.lr = eta;
  spec.optimizer.eps = eps;
  return spec;
}

Parameterization table(const RunSpec& spec) {
  Faults faults;
  Parameterization param = load_parameterization(spec, faults);
  REQUIRE_MESSAGE(faults.empty(), (faults.empty() ? "" : faults.list().front()));
  return param;
}

struct Outcome {
  LimitConstants constants;
  std::vector<std::string> faults;
  bool mentions(const std::string& a, const std::string& b = "") const {
    for (const auto& fault : faults)
      if (fault.find(a) != std::string::npos && fault.find(b) != std::string::npos) return true;
    return false;
  }
};

Outcome limit(const RunSpec& spec, const Parameterization& param) {
  Outcome outcome;
  Faults faults;
  outcome.constants = limit_constants(spec, param, regime_named(spec.model.regime), D, faults);
  outcome.faults = faults.list();
  return outcome;
}
Outcome limit(const RunSpec& spec) { return limit(spec, table(spec)); }

bool near(double a, double b) { return std::abs(a - b) <= 1e-12 * (1 + std::abs(b)); }

/// Exponents in N along the path, in the order of theory section 3 and 4.
struct Exponents {
  const char *regime, *param;
  OptimizerKind optimizer;
  std::vector<double> variances;  ///< W_in; Q (chi, beta or N^2 Var Q); A chi, beta; B chi, beta; W_out
  std::vector<double> lr;
  std::vector<double> eps;
};

const std::vector<double> balanced_I(7, 0), no_eps, zeros(5, 0);
constexpr auto sgd = OptimizerKind::sgd, adam = OptimizerKind::adam;

const std::vector<Exponents> exponent_table = {
    // The parameterizations of arXiv:2605.14200: all rates in balance everywhere.
    {"I", "mup", sgd, balanced_I, zeros, no_eps},
    {"I", "mup", adam, balanced_I, zeros, zeros},
    {"I", "mssp", sgd, balanced_I, zeros, no_eps},
    {"I", "mssp", adam, balanced_I, zeros, zeros},
    {"II", "mup", sgd, {0, 0, 0, 0, 0, -1, -1, 0}, zeros, no_eps},
    {"II", "mup", adam, {0, 0, 0, 0, 0, -1, -1, 0}, zeros, zeros},
    {"II", "mssp", sgd, {0, 0, 0, 0, 0, 0, 0, 0}, zeros, no_eps},
    {"II", "mssp", adam, {0, 0, 0, 0, 0, 0, 0, 0}, zeros, zeros},
    {"III", "mup", sgd, {0, 0, 0, 0, -1, -1, 0, 0}, zeros, no_eps},
    {"III", "mup", adam, {0, 0, 0, 0, -1, -1, 0, 0}, zeros, zeros},
    {"III", "mssp", sgd, {0, 0, 0, 0, 0, 0, 0, 0}, zeros, no_eps},
    {"III", "mssp", adam, {0, 0, 0, 0, 0, 0, 0, 0}, zeros, zeros},
    // SP: D Var W_in = 1, N Var Q = N Var A = 1, N_e Var B = 1, N^2 Var W_out = N.
    {"I", "sp", sgd, {0, 1, 0, 0, 0, 0, 1}, {-1, 1, 0, 0, 1}, no_eps},
    {"I", "sp", adam, {0, 1, 0, 0, 0, 0, 1}, {0, 1, 1, 1, 1}, {1, 0, 1, 1, 0}},
    {"II", "sp", sgd, {0, 0, 0, 0, 0, -1, -1, 1}, {-1, 0, 0, -2, 1}, no_eps},
    {"II", "sp", adam, {0, 0, 0, 0, 0, -1, -1, 1}, {0, 1, 1, 0, 1}, {1, 1, 1, 2, 0}},
    {"III", "sp", sgd, {0, 0, 0, 0, -1, -1, 0, 1}, {-1, 0, -1, -1, 1}, no_eps},
    {"III", "sp", adam, {0, 0, 0, 0, -1, -1, 0, 1}, {0, 1, 1, 1, 1}, {1, 1, 2, 2, 0}},
    {"I", "sp_lr_over_n", sgd, {0, 1, 0, 0, 0, 0, 1}, {-2, 0, -1, -1, 0}, no_eps},
    {"I", "sp_lr_over_n", adam, {0, 1, 0, 0, 0, 0, 1}, {-1, 0, 0, 0, 0}, {1, 0, 1, 1, 0}},
    {"II", "sp_lr_over_n", sgd, {0, 0, 0, 0, 0, -1, -1, 1}, {-2, -1, -1, -3, 0}, no_eps},
    {"II", "sp_lr_over_n", adam, {0, 0, 0, 0, 0, -1, -1, 1}, {-1, 0, 0, -1, 0}, {1, 1, 1, 2, 0}},
    {"III", "sp_lr_over_n", sgd, {0, 0, 0, 0, -1, -1, 0, 1}, {-2, -1, -2, -2, 0}, no_eps},
    {"III", "sp_lr_over_n", adam, {0, 0, 0, 0, -1, -1, 0, 1}, {-1, 0, 0, 0, 0}, {1, 1, 2, 2, 0}},
    {"I", "ntp", sgd, {0, 1, 0, 0, 0, 0, 1}, {-1, 0, -1, -1, 0}, no_eps},
    {"I", "ntp", adam, {0, 1, 0, 0, 0, 0, 1}, {0, .5, .5, .5, .5}, {1, .5, 1.5, 1.5, .5}},
    {"II", "ntp", sgd, {0, 0, 0, 0, 0, -1, -1, 1}, {-1, -1, -1, -2, 0}, no_eps},
    {"II", "ntp", adam, {0, 0, 0, 0, 0, -1, -1, 1}, {0, .5, .5, 0, .5}, {1, 1.5, 1.5, 2, .5}},
    {"III", "ntp", sgd, {0, 0, 0, 0, -1, -1, 0, 1}, {-1, -1, -2, -2, 0}, no_eps},
    {"III", "ntp", adam, {0, 0, 0, 0, -1, -1, 0, 1}, {0, .5, .5, .5, .5}, {1, 1.5, 2.5, 2.5, .5}},
    // Width-only tables for Adam (arXiv:2508.09752) and that of arXiv:2601.20205.
    {"I", "simplep", adam, {0, 1, 0, 0, 0, 0, 0}, zeros, {1, 0, 1, 1, 1}},
    {"I", "mup_moe", adam, {0, 0, 0, 0, 0, 0, 0}, zeros, {1, 1, 1, 1, 1}},
    {"III", "jiang", adam, {0, -1, -1, 0, -1, -1, 0, 0}, zeros, {1, 1, 2, 2, 0}},
};

}  // namespace

TEST_CASE("size exponents of every table, regime and optimizer are those worked out by hand") {
  for (const auto& row : exponent_table) {
    const std::string name = fmt::format("{} {} {}", row.regime, row.param, row.optimizer == sgd ? "sgd" : "adam");
    CAPTURE(name);
    const RunSpec spec = run(row.regime, row.param, row.optimizer);
    std::vector<double> variances, lr, normalised_eps;
    for (const auto& item : size_laws(spec, table(spec), regime_named(row.regime)))
      (item.quantity == "normalised learning rate" ? lr
       : item.quantity == "normalised eps"         ? normalised_eps
                                                   : variances)
          .push_back(item.exponent);
    const std::vector<double>& expected = row.variances;
    const auto agree = [](const std::vector<double>& a, const std::vector<double>& b) {
      bool same = a.size() == b.size();
      for (std::size_t i = 0; same && i < a.size(); ++i) same = std::abs(a[i] - b[i]) < 1e-9;
      return same;
    };
    CHECK_MESSAGE(agree(variances, expected), fmt::format("variances of {}", name));
    CHECK_MESSAGE(agree(lr, row.lr), fmt::format("learning rates of {}", name));
    CHECK_MESSAGE(agree(normalised_eps, row.eps), fmt::format("eps of {}", name));

    // Positive exponents of variances and rates are refused one by one, by name; nothing else is.
    const Outcome outcome = limit(spec);
    std::size_t growing = 0;
    for (const double e : expected) growing += e > 0;
    for (const double e : row.lr) growing += e > 0;
    CHECK(outcome.faults.size() == growing);
    for (std::size_t i = 0; i < 5; ++i) {
      if (row.lr[i] > 0)
        CHECK(outcome.mentions("normalised learning rate of " + std::string(tensor_names[i]), row.param));
      const bool frozen = row.lr[i] < 0 || (!row.eps.empty() && row.eps[i] > 0);
      if (frozen) CHECK(outcome.constants.lr.values[i] == 0);
      std::size_t warned = 0;
      for (const auto& w : outcome.constants.warnings)
        warned += w.starts_with(std::string(tensor_names[i]) + " is frozen");
      if (row.lr[i] <= 0) CHECK(warned == (frozen ? 1u : 0u));
    }
  }
}

TEST_CASE("limit constants of the tables with a limit are those of theory section 4") {
  struct Row {
    const char *regime, *param;
    GaussianConstants router, expert_in, expert_out;
    double explicit_router;
    bool shared;
  };
  const std::vector<Row> rows = {
      {"I", "mup", {}, {1, 1 / rho_e}, {1, rho_e}, 1, false},
      {"I", "mssp", {}, {1, 1 / rho_e}, {1, rho_e}, 0, false},
      {"II", "mup", {1, 1 / rho_M}, {1, 1 / (rho_M * Ne)}, {0, 0}, 0, false},
      {"II", "mssp", {1, 1 / rho_M}, {1, 1 / (rho_M * Ne)}, {1, rho_M * Ne}, 0, false},
      {"III", "mup", {1, 1 / rho_M}, {1, 0}, {0, rho_e}, 0, false},
      {"III", "mssp", {1, 1 / rho_M}, {1, 1 / rho_e}, {1, rho_e}, 0, true},
  };
  for (const auto& row : rows) {
    for (const auto optimizer : {sgd, OptimizerKind::momentum, adam, OptimizerKind::adamw}) {
      CAPTURE(row.regime);
      CAPTURE(row.param);
      RunSpec spec = run(row.regime, row.param, optimizer);
      spec.model.routing = Routing::topk;
      spec.model.active_fraction = 0.4;
      const Outcome outcome = limit(spec);
      const LimitConstants& c = outcome.constants;
      CHECK(outcome.faults.empty());
      CHECK(c.warnings.empty());
      CHECK(near(c.input_var, 1));
      CHECK(near(c.readout_var, 1));
      CHECK(near(c.router.chi2, row.router.chi2));
      CHECK(near(c.router.beta2, row.router.beta2));
      CHECK(near(c.explicit_router_var, row.explicit_router));
      CHECK(near(c.expert_in.chi2, row.expert_in.chi2));
      CHECK(near(c.expert_in.beta2, row.expert_in.beta2));
      CHECK(near(c.expert_out.chi2, row.expert_out.chi2));
      CHECK(near(c.expert_out.beta2, row.expert_out.beta2));
      CHECK(c.expert_in_shared == row.shared);
      CHECK(c.expert_out_shared == row.shared);
      for (const double lr : c.lr.values) CHECK(near(lr, eta));
      for (const double e : c.eps.values) CHECK(near(e, is_linear(optimizer) ? 0 : eps));

      spec.model.readout_init = ReadoutInit::zero;
      CHECK(limit(spec).constants.readout_var == 0);
    }
  }
}

TEST_CASE("multipliers, aggregation prefactor and output scale are taken in as theory section 1 says") {
  const double c = 1.5, alpha = 3;  // K c = 1.5
  for (const auto optimizer : {sgd, adam}) {
    const bool linear = optimizer == sgd;
    RunSpec spec = run("III", "mssp", optimizer);
    spec.model.aggregation = {{"const", c}, {"K", -1}};
    spec.model.output_scale = alpha;
    spec.model.init_scale = {{2, 0.5, 3, 0.25, 5}};
    spec.optimizer.lr_scale = {{1, 2, 3, 4, 0}};
    const Outcome outcome = limit(spec);
    REQUIRE(outcome.faults.empty());
    const LimitConstants& k = outcome.constants;
    CHECK(near(k.input_var, 4));
    CHECK(near(k.router.chi2, 0.25));
    CHECK(near(k.router.beta2, 0.25 / rho_M));
    CHECK(near(k.expert_in.chi2, 9));
    CHECK(near(k.expert_out.chi2, c * c / 16));
    CHECK(near(k.expert_out.beta2, rho_e * c * c / 16));
    CHECK(near(k.readout_var, 25 * alpha * alpha));
    CHECK(near(k.lr[Tensor::router], 2 * eta));
    CHECK(near(k.lr[Tensor::expert_out], 4 * eta * (linear ? c * c : c)));
    CHECK(k.lr[Tensor::readout] == 0);
    CHECK(k.warnings.empty());  // frozen by the user, not by size
    if (!linear) CHECK(near(k.eps[Tensor::expert_out], eps / c));
    spec.optimizer.lr_scale = {{1, 1, 1, 1, 1}};
    const LimitConstants moving = limit(spec).constants;
    CHECK(near(moving.lr[Tensor::readout], eta * (linear ? alpha * alpha : alpha)));
    if (!linear) CHECK(near(moving.eps[Tensor::readout], eps / alpha));
  }
}

TEST_CASE("a constant aggregation prefactor has a limit where K is constant, and is refused by name where K grows") {
  RunSpec spec = run("I", "mup", sgd);
  spec.model.aggregation = {{"const", 0.5}};
  const Outcome fixed = limit(spec);
  CHECK(fixed.faults.empty());
  CHECK(near(fixed.constants.expert_out.chi2, 0.25 * M * M));
  RunSpec few = spec;  // K is a whole number, halves away from zero
  few.model.routing = Routing::topk;
  few.model.active_fraction = 2.5 / M;
  CHECK(near(limit(few).constants.expert_out.chi2, 0.25 * 9));
  spec.model.regime = "II";
  spec.model.param = "mssp";
  const Outcome growing = limit(spec);
  CHECK(growing.mentions("s_chi^2 of expert_out grows as N^2", "model.aggregation"));
}

TEST_CASE("power laws at finite width approach what size_laws and limit_constants say") {
  // Independent of the exponent algebra: variances of real networks at two widths.
  for (const auto& row : exponent_table) {
    RunSpec spec = run(row.regime, row.param, row.optimizer);
    spec.model.experts_per_width = 0.5;
    const Parameterization param = table(spec);
    const Regime& regime = regime_named(row.regime);
    const LimitConstants k = limit(spec, param).constants;
    const auto variance_terms = [&](int N) {
      const Sizes s = network_sizes(spec, N, D);
      const auto std = network_constants(spec, param, s).std;
      const double var_A = std::pow(std[Tensor::expert_in], 2), var_B = std::pow(std[Tensor::expert_out], 2);
      const bool stack_A = regime.experts_sampled && !param.rule[Tensor::expert_in].shared;
      const bool stack_B = regime.experts_sampled && !param.rule[Tensor::expert_out].shared;
      return std::vector<double>{N * var_A, 1.0 * N * N * var_A / (s.Ne * (stack_A ? s.M : 1)),
                                 s.Ne * var_B / (stack_B ? s.M : 1), s.Ne * s.Ne * var_B / N,
                                 std::pow(N * std[Tensor::readout], 2)};
    };
    const int small = 1024, large = 65536;
    const auto at_small = variance_terms(small), at_large = variance_terms(large);
    const std::vector<double> limits = {k.expert_in.chi2, k.expert_in.beta2, k.expert_out.chi2, k.expert_out.beta2,
                                        k.readout_var};
    const std::size_t first = row.variances.size() == 8 ? 3 : 2;
    for (std::size_t i = 0; i < limits.size(); ++i) {
      const double slope = std::log(at_large[i] / at_small[i]) / std::log(double(large) / small);
      const double expected = row.variances.size() > first + i ? row.variances[first + i] : 0;
      CAPTURE(row.regime);
      CAPTURE(row.param);
      CAPTURE(i);
      CHECK(std::abs(slope - expected) < 1e-9);
      if (expected == 0) CHECK(near(limits[i], at_large[i]));
      if (expected < 0) CHECK(limits[i] == 0);
    }
  }
}

TEST_CASE("shared experts are refused where hidden units do not grow, with the reason") {
  const RunSpec spec = run("II", "mssp", sgd);
  Parameterization param = table(spec);
  param.rule[Tensor::expert_in].shared = true;
  const Outcome outcome = limit(spec, param);
  REQUIRE(outcome.faults.size() == 1);
  CHECK(outcome.mentions("expert_in is shared", "N_e stays fixed"));
}

TEST_CASE("readouts that grow are refused with the way to the lazy limit") {
  CHECK(limit(run("II", "ntp", sgd)).mentions("N^2 Var W_out of readout grows as N^1", "model.output_scale"));
  CHECK(limit(run("III", "sp", adam)).mentions("N^2 Var W_out of readout grows as N^1", "lazy"));
}

TEST_CASE("eps that falls with size is 0 in the limit, with a warning; eps = 0 never freezes") {
  RunSpec spec = run("II", "mssp", adam);
  Parameterization param = table(spec);
  param.rule[Tensor::expert_in].eps = power_law({{"K", -2}});
  const LimitConstants k = limit(spec, param).constants;
  CHECK(k.eps[Tensor::expert_in] == 0);
  CHECK(near(k.lr[Tensor::expert_in], eta));
  REQUIRE(k.warnings.size() == 1);
  CHECK(k.warnings[0].find("vanishing gradients") != std::string::npos);

  RunSpec idealised = run("III", "jiang", adam);
  idealised.optimizer.eps = 0;
  const Outcome outcome = limit(idealised);
  CHECK(outcome.faults.empty());
  CHECK(outcome.constants.warnings.empty());
  for (const double lr : outcome.constants.lr.values) CHECK(near(lr, eta));
}

TEST_CASE("gradients that vanish with size at t = 0 are those of theory section 5") {
  const auto vanishing = [](const char* regime, const char* param, bool residual, double balance = 0) {
    RunSpec spec = run(regime, param, adam);
    spec.model.residual = residual;
    if (balance > 0) spec.model.routing = Routing::topk;
    spec.model.balance_loss = balance;
    std::string names;
    for (const Tensor t : vanishing_gradients(spec, regime_named(regime), limit(spec).constants))
      names += std::string(tensor_names[static_cast<std::size_t>(t)]) + " ";
    return names;
  };
  CHECK(vanishing("II", "mssp", false) == "");
  CHECK(vanishing("II", "mup", false) == "input router expert_in readout ");
  CHECK(vanishing("II", "mup", true) == "router expert_in ");
  CHECK(vanishing("III", "mup", false) == "input router readout ");
  CHECK(vanishing("III", "mup", true) == "router ");
  CHECK(vanishing("III", "mssp", false) == "router ");
  CHECK(vanishing("I", "mssp", false) == "router ");
  CHECK(vanishing("I", "mup", false) == "router ");
  // A balancing loss pulls at the router, and through it at what is below where Q starts from order one on its way back.
  CHECK(vanishing("II", "mup", false, 0.1) == "expert_in readout ");
  CHECK(vanishing("III", "mup", false, 0.1) == "readout ");
  CHECK(vanishing("III", "mssp", false, 0.1) == "");
  CHECK(vanishing("I", "mssp", false, 0.1) == "");
}

TEST_CASE("signSGD runs where no gradient vanishes and is refused with the reason elsewhere") {
  const RunSpec fine = run("II", "mssp", OptimizerKind::signsgd);
  const Outcome outcome = limit(fine);
  CHECK(outcome.faults.empty());
  for (const double e : outcome.constants.eps.values) CHECK(e == 0);
  const Outcome refused = limit(run("I", "mssp", OptimizerKind::signsgd));
  REQUIRE(refused.faults.size() == 1);
  CHECK(refused.mentions("signsgd", "the gradient of router vanishes"));
}

TEST_CASE("power laws: value, exponent along a path, products, powers and text") {
  const PowerLaw a = power_law({{"const", 0.5}, {"N", -1}, {"M", 0.5}});
  const PowerLaw b = power_law({{"Ne", 2}, {"K", 1}, {"D", -0.5}, {"L", 3}});
  const Sizes s{8, 4, 3, 2, 16, 2};
  CHECK(near(a.at(s), 0.5 / 8 * 2));
  CHECK(near(b.at(s), 9.0 * 2 / 4 * 8));
  CHECK(near((a * b).at(s), a.at(s) * b.at(s)));
  CHECK(near((2.0 * a.pow(-2)).at(s), 2 / (a.at(s) * a.at(s))));
  CHECK(a.exponent_along({1, 1, 0, 1, 0, 0}) == -0.5);
  CHECK(b.exponent_along({1, 1, 1, 1, 0, 0}) == 3);
  CHECK(a.text() == "0.5 N^-1 M^0.5");
  CHECK(power_law({}).text() == "1");
  CHECK(power_law({{"N", 1}}).text() == "N");
  CHECK(power_law({{"const", 0}, {"N", 2}}).at({0, 1, 1, 1, 1, 1}) == 0);
  CHECK_THROWS_AS(power_law({{"P", 1}}), std::invalid_argument);
}

TEST_CASE("sizes of networks and samples round halves away from zero and keep one active expert") {
  RunSpec spec = run("III", "mssp", sgd);
  spec.model.experts_per_width = 0.5;
  spec.model.expert_width_per_width = 0.25;
  spec.model.routing = Routing::topk;
  spec.model.active_fraction = 0.5;
  const Sizes s = network_sizes(spec, 10, D);
  CHECK(s.M == 5);
  CHECK(s.Ne == 3);  // 2.5 away from zero
  CHECK(s.K == 3);
  CHECK(s.D == D);
  spec.model.active_fraction = 0.01;
  CHECK(network_sizes(spec, 10, D).K == 1);
  spec.model.routing = Routing::soft;
  CHECK(network_sizes(spec, 10, D).K == 5);

  spec.model.routing = Routing::topk;
  spec.model.active_fraction = 0.25;
  spec.sampling.neurons = 130;
  SampleCounts counts = sample_counts(spec, regime_named("III"));
  CHECK(counts.neurons == 130);
  CHECK(counts.experts == 65);
  CHECK(counts.hidden == 33);
  CHECK(counts.active == 16);
  CHECK(counts.kappa() == 16.0 / 65);
  spec.sampling.experts = 40;
  spec.sampling.hidden = 7;
  counts = sample_counts(spec, regime_named("III"));
  CHECK(counts.experts == 40);
  CHECK(counts.hidden == 7);
  counts = sample_counts(spec, regime_named("I"));
  CHECK(counts.experts == M);
  CHECK(counts.hidden == 7);
  counts = sample_counts(spec, regime_named("II"));
  CHECK(counts.experts == 40);
  CHECK(counts.hidden == Ne);
  spec.sampling.neurons = 0;
  CHECK(sample_counts(spec, regime_named("II")).neurons > 0);

  spec.model.experts_per_width = 0.01;
  spec.sampling.experts = 0;
  CHECK_THROWS_AS(network_sizes(spec, 10, D), ConfigError);
  spec.sampling.neurons = 10;
  CHECK_THROWS_AS(sample_counts(spec, regime_named("III")), ConfigError);
}

TEST_CASE("numbers of a finite network: muP in regime II with Adam at N = 64") {
  RunSpec spec = run("II", "mup", adam);
  spec.model.routing = Routing::topk;
  spec.model.active_fraction = 0.5;
  spec.model.init_scale[Tensor::input] = 2;
  spec.optimizer.lr_scale[Tensor::router] = 3;
  const Sizes s = network_sizes(spec, 64, D);
  const NetworkConstants c = network_constants(spec, table(spec), s);  // M = 16, K = 8, N_e = 5
  CHECK(near(c.std[Tensor::input], 2 / std::sqrt(12.0)));
  CHECK(near(c.std[Tensor::router], 1 / 8.0));
  CHECK(near(c.std[Tensor::expert_in], 1 / 8.0));
  CHECK(near(c.std[Tensor::expert_out], 1 / std::sqrt(5.0)));
  CHECK(near(c.std[Tensor::readout], 1 / 64.0));
  CHECK(near(c.lr[Tensor::input], eta / 12));
  CHECK(near(c.lr[Tensor::router], 3 * eta / 64));
  CHECK(near(c.lr[Tensor::expert_in], eta / 64));
  CHECK(near(c.lr[Tensor::expert_out], eta / 5));
  CHECK(near(c.lr[Tensor::readout], eta / 64));
  CHECK(near(c.eps[Tensor::input], eps / 64));
  CHECK(near(c.eps[Tensor::router], eps / 8));
  CHECK(near(c.eps[Tensor::expert_in], eps / (8 * 5)));
  CHECK(near(c.eps[Tensor::expert_out], eps / (8 * 64)));
  CHECK(near(c.eps[Tensor::readout], eps));
  CHECK(near(c.aggregation, 1 / 8.0));
  CHECK(!c.expert_in_shared);
}

TEST_CASE(
    "depth multiplies lr and eps of router and experts by (T29), in limit and network; a table that names L is left "
    "alone") {
  constexpr int L = 8;
  for (const OptimizerKind optimizer : {OptimizerKind::sgd, OptimizerKind::momentum, OptimizerKind::adam})
    for (const double alpha : {0.5, 1.0}) {
      RunSpec spec = run("II", "mssp", optimizer);
      const Outcome one = limit(spec);
      const NetworkConstants narrow = network_constants(spec, table(spec), network_sizes(spec, 64, D));
      spec.model.depth = L;
      spec.model.branch_exponent = alpha;
      const bool linear = is_linear(optimizer);
      const double lr = std::pow(L, linear ? 2 * alpha - 1 : alpha - 1), scaled_eps = linear ? 1 : std::pow(L, -alpha);
      Parameterization param = table(spec);
      const Outcome deep = limit(spec);
      const NetworkConstants network = network_constants(spec, param, network_sizes(spec, 64, D));
      REQUIRE(deep.faults.empty());
      for (const Tensor t : {Tensor::router, Tensor::expert_in, Tensor::expert_out}) {
        CHECK(near(deep.constants.lr[t], lr * one.constants.lr[t]));
        CHECK(near(deep.constants.eps[t], scaled_eps * one.constants.eps[t]));
        CHECK(near(network.lr[t], lr * narrow.lr[t]));
        CHECK(near(network.eps[t], scaled_eps * narrow.eps[t]));
      }
      for (const Tensor t : {Tensor::input, Tensor::readout}) {
        CHECK(deep.constants.lr[t] == one.constants.lr[t]);
        CHECK(network.lr[t] == narrow.lr[t]);
        CHECK(network.eps[t] == narrow.eps[t]);
      }
      param.rule[Tensor::router].names_depth = true;
      CHECK(limit(spec, param).constants.lr[Tensor::router] == one.constants.lr[Tensor::router]);
      CHECK(network_constants(spec, param, network_sizes(spec, 64, D)).lr[Tensor::router] == narrow.lr[Tensor::router]);
    }
}

TEST_CASE("a table names L by its learning rate, or by the eps of the rules that have one") {
  const TemporaryFolder folder;
  std::string text = "name = \"own\"\n";
  for (const char* tensor : tensor_names) {
    text += fmt::format("[any.any.{}]\nstd = {{N = -0.5}}\nlr = {{const = 1{}}}\n", tensor,
                        tensor == std::string("expert_in") ? ", L = -1" : "");
    text += fmt::format("eps = {{const = 1{}}}\n", tensor == std::string("router") ? ", L = -0.5" : "");
  }
  const std::string file = folder / "own.toml";
  write_bytes(file, text);
  for (const OptimizerKind optimizer : {sgd, OptimizerKind::momentum, adam, OptimizerKind::adafactor}) {
    const Parameterization param = table(run("II", file.c_str(), optimizer));
    CHECK(param.rule[Tensor::expert_in].names_depth);
    CHECK(param.rule[Tensor::router].names_depth == !is_linear(optimizer));
    CHECK_FALSE(param.rule[Tensor::expert_out].names_depth);
  }
}

TEST_CASE(
    "of a table's sections REGIME.OPTIMIZER wins over REGIME.any, that over any.OPTIMIZER, that over any.any, key by "
    "key") {
  const TemporaryFolder folder;
  std::string text = "name = \"own\"\n";
  for (const char* tensor : tensor_names)
    text += fmt::format("[any.any.{}]\nstd = {{N = -0.5}}\nlr = {{const = 1}}\neps = {{const = 1}}\n", tensor);
  text +=
      "[any.adam.router]\nstd = {const = 2}\nlr = {const = 2}\neps = {const = 2}\n"
      "[II.any.router]\nstd = {const = 3}\nlr = {const = 3}\n"
      "[II.adam.router]\nstd = {const = 4}\n";
  const std::string file = folder / "own.toml";
  write_bytes(file, text);
  const auto constants = [&](const char* regime, OptimizerKind optimizer) {
    const TensorRule rule = table(run(regime, file.c_str(), optimizer)).rule[Tensor::router];
    return std::vector{rule.std.constant, rule.lr.constant, rule.eps.constant};
  };
  CHECK(constants("II", adam) == std::vector<double>{4, 3, 2});
  CHECK(constants("III", adam) == std::vector<double>{2, 2, 2});
  CHECK(constants("II", sgd) == std::vector<double>{3, 3, 1});
  CHECK(constants("I", sgd) == std::vector<double>{1, 1, 1});
}

TEST_CASE("norm without residual: refused where a block's output vanishes with size, with the remedy") {
  for (const auto& [regime, param, stays] :
       {std::tuple{"I", "mup", true}, {"II", "mup", false}, {"II", "mssp", true}, {"III", "mup", false}}) {
    RunSpec spec = run(regime, param, OptimizerKind::sgd);
    spec.model.norm = Norm::rms;
    CHECK(limit(spec).faults.empty() == stays);
    if (!stays) CHECK(limit(spec).mentions("model.norm = rms", "residual = true"));
    spec.model.residual = true;
    CHECK(limit(spec).faults.empty());
  }
}

TEST_CASE(
    "gradients that vanish at t = 0 in a stack: without residual everything below a block that passes nothing back") {
  RunSpec spec = run("II", "mup", OptimizerKind::adam);
  spec.model.depth = 2;
  const auto vanishing = [&] {
    return vanishing_gradients(spec, regime_named(spec.model.regime), limit(spec).constants).size();
  };
  CHECK(vanishing() == 5);  // no y: neither readout nor anything below the last block
  spec.model.residual = true;
  CHECK(vanishing() == 2);  // zeta alone, as with one block
  spec.model.depth = 1;
  CHECK(vanishing() == 2);
  // A balancing loss pulls at the router of every block, but with nothing where no y comes in; it goes back to the input through the first.
  spec.model.depth = 2;
  spec.model.residual = false;
  spec.model.routing = Routing::topk;
  spec.model.balance_loss = 0.1;
  for (const Gate gate : {Gate::sigmoid, Gate::constant}) {
    spec.model.gate = gate;
    const auto list = vanishing_gradients(spec, regime_named("II"), limit(spec).constants);
    CHECK(list == std::vector{Tensor::router, Tensor::expert_in, Tensor::expert_out, Tensor::readout});
  }
}

TEST_CASE(
    "relu of what vanishes with size has the slope of a sign that stays: refused by name, and nothing else [II, III]") {
  for (const char* regime : {"II", "III"}) {
    RunSpec spec = run(regime, "mup", sgd);
    spec.model.residual = true;
    spec.model.activation = Activation::relu;  // of h and u, which stay
    CHECK(limit(spec).faults.empty());
    spec.model.post_activation = Activation::relu;  // of y, which does not
    CHECK(limit(spec).mentions("model.post_activation = relu", "vanishes with size"));
    spec.model.init_scale = {{1, 1, 1, 0, 1}};  // zero in networks too
    CHECK(limit(spec).faults.empty());
    spec.model.init_scale = {{1, 1, 1, 1, 1}};
    Parameterization param = table(spec);
    param.rule[Tensor::expert_in].std.exponents.N -= 0.25;
    CHECK(limit(spec, param).mentions("model.activation = relu", "vanishes with size"));
    spec.model.post_activation = Activation::gelu;
    CHECK_FALSE(limit(spec).mentions("vanishes with size"));
    spec = run(regime, "mssp", sgd);
    spec.model.post_activation = Activation::relu;
    CHECK(limit(spec).faults.empty());
  }
}
