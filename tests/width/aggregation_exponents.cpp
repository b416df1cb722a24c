// How the terms of the expert aggregation scale with the size in finite networks (theory section 7): some vanish under muP, all are of
// order one under MSSP. Exponents are fitted to seed averages over widths, at a step when the loss is falling.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/limit_fixture.hpp"
#include "validation/network.hpp"
#include "validation/power_law_fit.hpp"
#include "validation/statistics.hpp"

namespace {

/// Corrections of higher order in 1/N at these widths: an exponent may be off by this much beyond its sampling error.
constexpr double allowance = 0.12;

struct Term {
  std::string name;
  double exponent;  ///< predicted
  bool per_change =
      false;  ///< divide by rms(v(t) - v(0)): under muP learning is delayed the longer the larger the network
  bool at_start = false;  ///< measured at t = 0 instead
};

struct Setting {
  std::string regime, param;
  double lr;
  int step;  ///< at which terms are measured
  std::vector<Term> terms;
};

void confirm(const Setting& setting, const std::vector<int>& widths, int seeds) {
  moe::RunSpec s =
      limit_fixture::spec(setting.regime, setting.param, moe::OptimizerKind::sgd, setting.lr, setting.step);
  s.output.observables = {"change_v"};
  s.output.observe_every = setting.step;
  for (const Term& term : setting.terms) s.output.observables.push_back(term.name);
  const moe::Dataset d = limit_fixture::data(6, 5, 1);
  std::vector<std::vector<moe::NetworkRun>> runs;
  for (int N : widths) {  // the wide ones fluctuate less and cost more
    s.network.widths = {N};
    s.network.seeds = std::max(8, seeds * widths.front() / N);
    s.sampling.seed = static_cast<std::uint64_t>(1000 * N);
    runs.push_back(moe::train_networks(s, d, 0).at(0));
  }
  for (const Term& term : setting.terms) {
    std::vector<double> x, y, e;
    std::string values;
    for (const auto& of_width : runs) {
      std::vector<double> samples;
      for (const auto& run : of_width) {
        REQUIRE_FALSE(run.failure);
        const double scale = term.per_change ? run.observables.at("change_v").back() : 1;
        const auto& values_of = run.observables.at(term.name);
        samples.push_back((term.at_start ? values_of.front() : values_of.back()) / scale);
      }
      const moe::statistics::Moments m = moe::statistics::moments(samples);
      x.push_back(of_width.front().shape.N), y.push_back(m.mean), e.push_back(m.mean_error);
      values += fmt::format(" {:.4f}({:.4f})", m.mean, m.mean_error);
    }
    const moe::PowerLawFit fit = moe::fit_power_law(x, y, e);
    const std::string line =
        fmt::format("{} {} {}{} at t = {}: exponent {:.3f} +- {:.3f}, predicted {}; values{}", setting.regime,
                    setting.param, term.name, term.per_change ? " / change_v" : "", term.at_start ? 0 : setting.step,
                    fit.exponent, fit.error, term.exponent, values);
    MESSAGE(line);
    INFO(line);
    CHECK(fit.error < 0.15);  // else the fit says nothing
    CHECK(std::abs(fit.exponent - term.exponent) < allowance + 3 * fit.error);
  }
}

const Setting II_mup = {
    "II",
    "mup",
    1.0,
    8,
    {{"rms_y_init", -0.5}, {"rms_y_propagating", -0.5, true}, {"rms_zeta_init", -0.5}, {"rms_y_effective", 0}}};
const Setting II_mssp = {"II",
                         "mssp",
                         0.5,
                         6,
                         {{"rms_y_init", 0},
                          {"rms_y_propagating", 0},
                          {"rms_y_effective", 0},
                          {"rms_zeta_init", 0},
                          {"rms_zeta_effective", 0},
                          {"rms_xi_A_init", 0},
                          {"rms_r_init", 0}}};
// A^T ghat holds a Gaussian, which vanishes, and a response to A's forward answers, which does not (one-sided operator, (T13)). At t = 0
// zeta has mean zero given A, so that there is no response yet and the Gaussian is seen alone.
const Setting III_mup = {"III",
                         "mup",
                         1.0,
                         8,
                         {{"rms_y_init", -0.5},
                          {"rms_y_propagating", 0, true},
                          {"rms_y_effective", 0},
                          {"rms_xi_A_init", -0.5, false, true},
                          {"rms_xi_A_init", 0}}};
const Setting III_mssp = {
    "III",
    "mssp",
    0.5,
    6,
    {{"rms_y_init", 0}, {"rms_y_propagating", 0}, {"rms_y_effective", 0}, {"rms_zeta_init", 0}, {"rms_xi_A_init", 0}}};
const Setting I_mup = {"I", "mup", 0.5, 1, {{"rms_r_init", -0.5}, {"rms_u_init", 0}}};
const Setting I_mssp = {
    "I",
    "mssp",
    0.5,
    6,
    {{"rms_y_init", 0}, {"rms_y_propagating", 0}, {"rms_y_effective", 0}, {"rms_zeta_init", 0}, {"rms_xi_A_init", 0}}};

}  // namespace

TEST_CASE("aggregation terms of networks scale as predicted [II mup, N = 32 to 128]") {
  confirm(II_mup, {32, 64, 128}, 64);
}
TEST_CASE("aggregation terms of networks scale as predicted [II mssp, N = 32 to 128]") {
  confirm(II_mssp, {32, 64, 128}, 64);
}
TEST_CASE("aggregation terms of networks scale as predicted [III mup, N = 32 to 128]") {
  confirm(III_mup, {32, 64, 128}, 32);
}
TEST_CASE("aggregation terms of networks scale as predicted [III mssp, N = 32 to 128]") {
  confirm(III_mssp, {32, 64, 128}, 32);
}
TEST_CASE("rho(0) of shared experts is common to them: what one step teaches the router [III mssp, N = 16 to 128]") {
  confirm({"III", "mssp", 3, 1, {{"rms_xi_Q_effective", -0.5}}}, {16, 32, 64, 128}, 128);
}
TEST_CASE("aggregation terms of networks scale as predicted [I mup, N = 32 to 128]") {
  confirm(I_mup, {32, 64, 128}, 64);
}

TEST_CASE("aggregation terms of networks scale as predicted [all, to N = 512 or 256]" * doctest::test_suite("long")) {
  confirm(II_mup, {64, 128, 256, 512}, 256);
  confirm(II_mssp, {64, 128, 256, 512}, 256);
  confirm(III_mup, {32, 64, 128, 256}, 128);
  confirm(III_mssp, {32, 64, 128, 256}, 128);
  confirm(I_mup, {64, 128, 256, 512}, 256);
  confirm(I_mssp, {64, 128, 256, 512}, 256);
}
