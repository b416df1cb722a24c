// Every table that ships, in every regime and rule that it has: the size exponents that signal propagation predicts (regimes/exponents.hpp)
// against finite networks, for all root mean squares at t = 0, after one step and late.
//
// A prediction is a leading power. A term that vanishes with size may hide one that stays until N is huge, if the constant of the
// latter is small; so constants (learning rates, the router's scales) are chosen such that it is seen, and where the slope over the
// widths is nevertheless below the predicted one, the mean square over N^(2 exponent) is fitted as a + b/N: a has to be there.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <Eigen/Dense>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "regimes/exponents.hpp"
#include "support/observable.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/network.hpp"
#include "validation/power_law_fit.hpp"
#include "validation/statistics.hpp"

namespace {

constexpr auto sgd = moe::OptimizerKind::sgd, adam = moe::OptimizerKind::adam;

/// Corrections of higher order in 1/N at these widths: a slope may be off by this much beyond its error.
constexpr double allowance = 0.12;
/// Probability that a right theory fails a test here.
constexpr double level = 0.01;

struct Case {
  const char *regime, *param;
  moe::OptimizerKind optimizer;
  double eps = 1;  ///< above every gradient here, so that powers of gradient/eps are seen
  int late = 4;    ///< the step that is late: correlations are there, and there is still an error to learn from
  moe::Activation activation = moe::Activation::tanh;
  double router_lr = 20, router_std = 1;  ///< times the table's

  std::string title() const {
    return fmt::format("{} {} {}{}{}", regime, param, optimizer == sgd ? "sgd" : "adam", eps == 0 ? " eps=0" : "",
                       activation == moe::Activation::identity ? " identity" : "");
  }
};

/// In regime I the response of a router of size 1/N adds to a fluctuation larger by N^1/2: a larger router shows it.
constexpr double larger_router = 10;

const std::vector<Case> cases = {
    {"I", "mup", sgd, 1, 3, moe::Activation::tanh, 20, larger_router},
    {"II", "mup", sgd},
    {"III", "mup", sgd},
    {"I", "mup", adam, 1, 4, moe::Activation::tanh, 20, larger_router},
    {"II", "mup", adam},
    {"III", "mup", adam},
    {"I", "mssp", sgd, 1, 3},
    {"II", "mssp", sgd, 1, 3},
    {"III", "mssp", sgd, 1, 3},
    {"I", "mssp", adam},
    {"II", "mssp", adam},
    {"III", "mssp", adam},
    {"I", "ntp", sgd},
    {"II", "ntp", sgd},
    {"III", "ntp", sgd},
    {"I", "ntp", adam},
    {"II", "ntp", adam},
    {"III", "ntp", adam},
    {"I", "sp_lr_over_n", sgd},
    {"II", "sp_lr_over_n", sgd},
    {"III", "sp_lr_over_n", sgd},
    {"I", "sp_lr_over_n", adam},
    {"II", "sp_lr_over_n", adam},
    {"III", "sp_lr_over_n", adam},
    {"I", "sp", sgd, 1, 2, moe::Activation::identity},
    {"II", "sp", sgd},
    {"III", "sp", sgd},
    {"I", "sp", adam, 1, 2, moe::Activation::identity},
    {"II", "sp", adam},
    {"III", "sp", adam},
    {"I", "simplep", adam},
    {"I", "mup_moe", adam, 1, 4, moe::Activation::tanh, 20, larger_router},
    {"III", "jiang", adam},
};

struct Sample {
  std::vector<double> N, mean, error;  ///< of mean squares, by width
};

/// Constant of y = a + b x by weighted least squares, its error enlarged where the line fits worse than its errors say.
std::pair<double, double> constant_of_line(const Eigen::ArrayXd& x, const Eigen::ArrayXd& y,
                                           const Eigen::ArrayXd& error) {
  Eigen::MatrixXd A(x.size(), 2);
  A.col(0) = error.inverse();
  A.col(1) = x / error;
  const Eigen::Matrix2d covariance = (A.transpose() * A).inverse();
  const Eigen::VectorXd b = y / error;
  const Eigen::Vector2d c = covariance * (A.transpose() * b);
  const double degrees = std::max(1.0, static_cast<double>(x.size()) - 2);
  return {c(0), std::sqrt(covariance(0, 0) * std::max(1.0, (A * c - b).squaredNorm() / degrees))};
}

struct Comparison {
  double slope = 0, error = 0;     ///< of the root mean square, minus the predicted exponent
  double constant = 0, sigma = 0;  ///< of the line, over the mean square at the smallest width
};

Comparison compare(const Sample& sample, double predicted) {
  const auto n = static_cast<Eigen::Index>(sample.N.size());
  const Eigen::ArrayXd N = Eigen::Map<const Eigen::ArrayXd>(sample.N.data(), n) / sample.N.front();
  const Eigen::ArrayXd power = N.pow(-2 * predicted) / sample.mean.front();
  const Eigen::ArrayXd y = Eigen::Map<const Eigen::ArrayXd>(sample.mean.data(), n) * power;
  const Eigen::ArrayXd e = Eigen::Map<const Eigen::ArrayXd>(sample.error.data(), n) * power;
  const auto list = [](const Eigen::ArrayXd& a) { return std::vector<double>(a.data(), a.data() + a.size()); };
  const moe::PowerLawFit fit = moe::fit_power_law(list(N), list(y), list(e));
  Comparison c{fit.exponent / 2, fit.error / 2};
  std::tie(c.constant, c.sigma) = constant_of_line(N.inverse(), y, e);
  return c;
}

moe::RunSpec spec_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, 1, c.late);
  s.model.experts = 4;
  s.model.expert_width = 8;
  s.model.activation = c.activation;
  s.model.init_scale[moe::Tensor::router] = c.router_std;
  s.optimizer.lr_scale[moe::Tensor::router] = c.router_lr;
  s.optimizer.eps = c.eps;
  s.output.observables = {"all"};
  return s;
}

/// Trains and compares all root mean squares.
void confirm(const Case& c, const std::vector<int>& widths, int seeds) {
  moe::RunSpec s = spec_of(c);
  const moe::Dataset d = limit_fixture::data(2, 5, 1);
  std::vector<std::vector<moe::NetworkRun>> runs;
  for (int N : widths) {  // the wide ones fluctuate less and cost more
    s.network.widths = {N};
    s.network.seeds = std::max(16, seeds * widths.front() / N);
    s.sampling.seed = static_cast<std::uint64_t>(1000 * N);
    runs.push_back(moe::train_networks(s, d, 0).at(0));
  }
  const auto predictions = moe::observable_exponents(s);
  const double bound =
      moe::statistics::two_sided_bound(level / static_cast<double>(3 * predictions.size() * cases.size()), 15);
  int compared = 0, by_slope = 0;
  double worst = 0;
  std::string worst_name;
  for (const auto& predicted : predictions) {
    if (!runs.front().front().observables.contains(predicted.name)) continue;
    if (predicted.name.starts_with("load") || predicted.name.starts_with("ess") || predicted.name == "router_entropy")
      continue;
    for (std::size_t stage = 0; stage < 3; ++stage) {
      if (predicted.at[stage] && !std::isfinite(*predicted.at[stage])) continue;  // grows with every step
      Sample sample;
      double largest = 0;
      for (const auto& of_width : runs) {
        std::vector<double> squares;
        for (const auto& run : of_width) {
          REQUIRE_FALSE(run.failure);
          const auto& values = run.observables.at(predicted.name);
          squares.push_back(std::pow(stage == 2 ? values.back() : values.at(stage), 2));
        }
        const moe::statistics::Moments m = moe::statistics::moments(squares);
        sample.N.push_back(of_width.front().shape.N), sample.mean.push_back(m.mean),
            sample.error.push_back(m.mean_error);
        largest = std::max(largest, m.mean);
      }
      const std::string what = fmt::format("{}: {} {}", c.title(), predicted.name, moe::stage_names[stage]);
      ++compared;
      if (!predicted.at[stage]) {
        CHECK_MESSAGE(largest == 0, what << ": identically zero is predicted, found " << largest);
        continue;
      }
      const Comparison x = compare(sample, *predicted.at[stage]);
      std::string values;
      for (double m : sample.mean) values += fmt::format(" {:.3g}", std::sqrt(m));
      const std::string line =
          fmt::format("{}: predicted {:g}, slope {:.3f} +- {:.3f}, constant {:.4f} +- {:.4f}; values{}", what,
                      *predicted.at[stage], *predicted.at[stage] + x.slope, x.error, x.constant, x.sigma, values);
      INFO(line);
      CHECK(x.slope < allowance + bound * x.error);
      if (x.slope > -allowance - bound * x.error) {
        CHECK(x.error < 0.15);  // else the fit says nothing
        ++by_slope;
      } else {
        CHECK(x.constant > bound * x.sigma);
      }
      if (std::abs(x.slope) > std::abs(worst))
        worst = x.slope, worst_name = predicted.name + " " + moe::stage_names[stage];
    }
  }
  MESSAGE(fmt::format("{}: {} powers compared, {} by slope; largest deviation of a slope {:.3f} ({})", c.title(),
                      compared, by_slope, worst, worst_name));
}

}  // namespace

TEST_CASE("size exponents of every table are those of finite networks [all tables, regimes and rules, N = 32 to 128]") {
  for (const Case& c : cases)
    confirm(c, std::string(c.regime) == "III" ? std::vector{16, 32, 64} : std::vector{32, 64, 128}, 64);
}

TEST_CASE(
    "size exponents of every table are those of finite networks [all tables, regimes and rules, N to 512 or 256]" *
    doctest::test_suite("long")) {
  for (const Case& c : cases)
    confirm(c, std::string(c.regime) == "III" ? std::vector{32, 64, 128, 256} : std::vector{64, 128, 256, 512}, 256);
}
