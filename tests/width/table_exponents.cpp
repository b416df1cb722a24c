// Every table that ships, in every regime and rule that it has: the size exponents that signal propagation predicts (regimes/exponents.hpp)
// against finite networks, for all root mean squares at t = 0, after one step and late.
//
// A prediction is a leading power. A term that vanishes with size may hide one that stays until N is huge, if the constant of the
// latter is small; so constants (learning rates, the router's scales) are chosen such that it is seen, where they can be. What is
// confirmed: no slope is above the predicted one, at t = 0 none is below it, and what is to be zero is zero. Later slopes
// may be below only in the tables that are marked, a fifth of them at most: where the leading term is not yet the largest.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "regimes/exponents.hpp"
#include "support/observable.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/network.hpp"
#include "validation/network_start.hpp"
#include "validation/power_law_fit.hpp"
#include "validation/reference_model.hpp"
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
  /// The step that is late: correlations are there, and there is still an error to learn from. 0: not compared.
  int late = 4;
  moe::Activation activation = moe::Activation::tanh;
  double router_lr = 20, router_std = 1;  ///< times the table's
  double lr = 1;
  bool hides =
      false;  ///< leading terms that come late and small: some slopes are below the predicted ones at these widths

  /// `count` of them, each twice the last; in III, where a network has as many weights as N cubed, from half of `first`.
  std::vector<int> widths(int first, int count = 3) const {
    if (std::string(regime) == "III") first /= 2;
    std::vector<int> list;
    for (int k = 0; k < count; ++k) list.push_back(first << k);
    return list;
  }
  std::size_t stages() const { return late > 0 ? 3 : 2; }
  std::string title() const {
    return fmt::format("{} {} {}{}{}", regime, param, optimizer == sgd ? "sgd" : "adam", eps == 0 ? " eps=0" : "",
                       activation == moe::Activation::identity ? " identity" : "");
  }
};

/// In regime I the response of a router of size 1/N adds to a fluctuation larger by N^1/2: a larger router shows it.
constexpr double larger_router = 10;

const std::vector<Case> cases = {
    {"I", "mup", sgd, 1, 3, moe::Activation::tanh, 20, larger_router},
    {.regime = "II", .param = "mup", .optimizer = sgd, .hides = true},
    {.regime = "III", .param = "mup", .optimizer = sgd, .hides = true},
    {"I", "mup", adam, 1, 6, moe::Activation::tanh, 20, larger_router},
    {.regime = "II", .param = "mup", .optimizer = adam, .hides = true},
    {.regime = "III", .param = "mup", .optimizer = adam, .hides = true},
    {"I", "mssp", sgd, 1, 3},
    {"II", "mssp", sgd, 1, 3, moe::Activation::tanh, 20, 1, 0.6},  // at lr 1 the error is learned by then
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
    // Late, rms_f and rms_zeta of I SP do not reach their slopes at these widths, and many networks blow up.
    {"I", "sp", sgd, 1, 0, moe::Activation::identity, 1, 1, 3, true},
    {"II", "sp", sgd},
    {"III", "sp", sgd},
    {"I", "sp", adam, 1, 0, moe::Activation::identity, 1, 1, 3, true},
    {"II", "sp", adam, 1, 3},  // by step 4 the error is learned
    {"III", "sp", adam},
    {"I", "simplep", adam},
    {"I", "mup_moe", adam, 1, 6, moe::Activation::tanh, 20, larger_router},
    {"III", "jiang", adam},
};

struct Sample {
  std::vector<double> N, mean, error;  ///< of mean squares, by width
};

/// Power of N of the root mean square less the predicted one; the error is that of the fit.
moe::PowerLawFit beyond(const Sample& sample, double predicted) {
  const auto n = static_cast<Eigen::Index>(sample.N.size());
  const Eigen::ArrayXd N = Eigen::Map<const Eigen::ArrayXd>(sample.N.data(), n) / sample.N.front();
  const Eigen::ArrayXd power = N.pow(-2 * predicted) / sample.mean.front();
  const Eigen::ArrayXd y = Eigen::Map<const Eigen::ArrayXd>(sample.mean.data(), n) * power;
  const Eigen::ArrayXd e = Eigen::Map<const Eigen::ArrayXd>(sample.error.data(), n) * power;
  const auto list = [](const Eigen::ArrayXd& a) { return std::vector<double>(a.data(), a.data() + a.size()); };
  moe::PowerLawFit fit = moe::fit_power_law(list(N), list(y), list(e));
  fit.exponent /= 2, fit.error /= 2;
  return fit;
}

moe::RunSpec spec_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, c.lr, std::max(c.late, 1));
  s.model.experts = 4;
  s.model.expert_width = 8;
  s.model.activation = c.activation;
  s.model.init_scale[moe::Tensor::router] = c.router_std;
  s.optimizer.lr_scale[moe::Tensor::router] = c.router_lr;
  s.optimizer.eps = c.eps;
  s.output.observables = {"all"};
  return s;
}

/// Slopes of one case against predictions, and what became of them.
class Comparison {
 public:
  explicit Comparison(const Case& c, std::size_t predictions)
      : case_(c),
        bound_(moe::statistics::two_sided_bound(level / static_cast<double>(3 * predictions * cases.size()), 15)) {}

  void add(const std::string& name, std::size_t stage, const std::optional<double>& predicted, const Sample& sample) {
    const std::string what = fmt::format("{}: {} {}", case_.title(), name, moe::stage_names[stage]);
    ++compared_;
    if (!predicted) {
      const double largest = *std::max_element(sample.mean.begin(), sample.mean.end());
      CHECK_MESSAGE(largest == 0, what << ": identically zero is predicted, found " << largest);
      return;
    }
    const moe::PowerLawFit fit = beyond(sample, *predicted);
    std::string values;
    for (double m : sample.mean) values += fmt::format(" {:.3g}", std::sqrt(m));
    INFO(fmt::format("{}: predicted {:g}, slope {:.3f} +- {:.3f}; values{}", what, *predicted,
                     *predicted + fit.exponent, fit.error, values));
    ++fitted_;
    squared_ += fit.exponent * fit.exponent;
    if (fit.exponent > above_) {
      above_ = fit.exponent;
      highest_ = fmt::format("{} {} ({:+.3f} +- {:.3f}:{})", name, moe::stage_names[stage], above_, fit.error, values);
    }
    const double open = allowance + bound_ * fit.error;
    CHECK(fit.exponent < open);
    if (stage == 0) CHECK(fit.exponent > -open);
    if (fit.exponent < -open)
      below_.push_back(fmt::format("{} {} ({:+.2f}:{})", name, moe::stage_names[stage], fit.exponent, values));
  }

  void conclude() const {
    MESSAGE(
        fmt::format("{}: {} powers compared, of these {} identically zero; rms of measured - predicted {:.3f}; "
                    "highest {}; below the prediction at these widths: {}",
                    case_.title(), compared_, compared_ - fitted_, std::sqrt(squared_ / std::max(fitted_, 1)), highest_,
                    below_.empty() ? "none" : fmt::format("{}", fmt::join(below_, ", "))));
    CHECK(static_cast<double>(below_.size()) <= (case_.hides ? 0.2 * compared_ : 0));
  }

 private:
  const Case& case_;
  double bound_;
  int compared_ = 0, fitted_ = 0;
  double squared_ = 0, above_ = -std::numeric_limits<double>::infinity();
  std::string highest_;
  std::vector<std::string> below_;
};

/// Trains `count` networks of width N, from the seed numbered `first`.
std::vector<moe::NetworkRun> trained(moe::RunSpec s, const moe::Dataset& d, int N, int first, int count) {
  s.network.widths = {N};
  s.network.seeds = count;
  s.sampling.seed = static_cast<std::uint64_t>(1000 * N + first);
  return moe::train_networks(s, d, 0).at(0);
}

/// How many seeds of width N: the wide ones fluctuate less and cost more.
int seeds_of(int N, const std::vector<int>& widths, int seeds) { return std::max(16, seeds * widths.front() / N); }

void append(Sample& sample, int N, const std::vector<double>& squares) {
  const moe::statistics::Moments m = moe::statistics::moments(squares);
  sample.N.push_back(N), sample.mean.push_back(m.mean), sample.error.push_back(m.mean_error);
}

/// Trains and compares the root mean squares of all observables.
void confirm(const Case& c, const std::vector<int>& widths, int seeds) {
  const moe::RunSpec s = spec_of(c);
  std::vector<std::vector<moe::NetworkRun>> runs;
  for (int N : widths) runs.push_back(trained(s, limit_fixture::data(2, 5, 1), N, 0, seeds_of(N, widths, seeds)));
  const auto predictions = moe::observable_exponents(s);
  double late_output = 0;
  for (const auto& e : predictions)
    if (e.name == "rms_f" && e.at[2]) late_output = *e.at[2];
  Comparison comparison(c, predictions.size());
  for (const auto& predicted : predictions) {
    if (!runs.front().front().observables.contains(predicted.name)) continue;
    if (predicted.name.starts_with("load") || predicted.name.starts_with("ess") || predicted.name == "router_entropy")
      continue;
    for (std::size_t stage = 0; stage < c.stages(); ++stage) {
      if (predicted.at[stage] && !std::isfinite(*predicted.at[stage])) continue;  // grows with every step
      Sample sample;
      bool blown_up = false;
      for (const auto& of_width : runs) {
        std::vector<double> squares;
        for (const auto& run : of_width) {
          if (run.failure) {
            INFO(fmt::format("{}, N = {}: {}", c.title(), of_width.front().shape.N, run.failure->what()));
            REQUIRE(late_output > 0);  // blows up only where it is to grow with size
            REQUIRE(run.failure->step == c.late);
            blown_up = true;
            if (stage == 2) continue;
          }
          const auto& values = run.observables.at(predicted.name);
          squares.push_back(std::pow(stage == 2 ? values.back() : values.at(stage), 2));
        }
        if (blown_up && stage == 2) break;
        append(sample, of_width.front().shape.N, squares);
      }
      if (blown_up && stage == 2) continue;
      comparison.add(predicted.name, stage, predicted.at[stage], sample);
    }
  }
  comparison.conclude();
}

double mean_square(const Eigen::MatrixXd& x) { return x.squaredNorm() / static_cast<double>(x.size()); }

/// Mean squares of atomic quantities, from the weights of now and of t = 0: what no observable is.
std::map<std::string, double> atomic_squares(const moe::RunSpec& s, const moe::NetworkShape& shape,
                                             const moe::Dataset& d, const moe::NetworkWeights& start,
                                             const moe::NetworkWeights& now) {
  const moe::reference::Model model{s.model, s.training.loss, shape, moe::constants_at(s, shape).aggregation};
  const auto a0 = moe::reference::forward(model, start, d.x, 0), a = moe::reference::forward(model, now, d.x, 0);
  const moe::NetworkWeights g = moe::reference::backward(model, now, a, d.y, 0).weights;
  const Eigen::MatrixXd dphi = a.phi - a0.phi;
  std::map<std::string, double> squares;
  squares["r_propagating"] = mean_square(start.router * dphi);
  squares["u_propagating"] = mean_square(start.expert_in * dphi);
  for (int i = 0; i < shape.M; ++i) {
    const Eigen::MatrixXd v0 = a0.blocks[0].v.middleRows(i * shape.Ne, shape.Ne),
                          v = a.blocks[0].v.middleRows(i * shape.Ne, shape.Ne), B0 = start.B(i, shape.Ne);
    squares["expert_output_init"] += mean_square(B0 * v0) / shape.M;
    squares["expert_output_propagating"] += mean_square(B0 * (v - v0)) / shape.M;
    squares["expert_output_effective"] += mean_square((now.B(i, shape.Ne) - B0) * v) / shape.M;
  }
  squares["f_effective"] = mean_square((now.readout - start.readout) * a.s.z);
  const double N = shape.N, K = shape.K, Ne = shape.Ne;
  squares["gradient_input"] = mean_square(N * g.w_in);
  squares["gradient_router"] = mean_square(K * g.router);
  squares["gradient_expert_in"] = mean_square(K * Ne * g.expert_in);
  squares["gradient_expert_out"] = mean_square(K * N * g.expert_out);
  squares["gradient_readout"] = mean_square(g.readout);
  return squares;
}

/// The same of the atomic quantities; gains, rates and eps are entries of the table, what is over eps is their quotient.
void confirm_atomic(const Case& c, const std::vector<int>& widths, int seeds) {
  moe::RunSpec s = spec_of(c);
  s.output.weights = true;
  const moe::Dataset d = limit_fixture::data(2, 5, 1);
  moe::Faults faults;
  const auto predictions = moe::atomic_exponents(s, moe::load_parameterization(s, faults));
  Comparison comparison(c, predictions.size());
  for (std::size_t stage = 0; stage < c.stages(); ++stage) {
    s.training.steps = std::array{0, 1, c.late}[stage];
    std::map<std::string, Sample> samples;
    bool blown_up = false;
    for (int N : widths) {
      std::map<std::string, std::vector<double>> squares;
      const int count = seeds_of(N, widths, seeds), at_once = 8;  // weights take memory
      for (int first = 0; first < count && !blown_up; first += at_once)
        for (const auto& run : trained(s, d, N, first, std::min(at_once, count - first))) {
          blown_up = blown_up || run.failure;
          if (blown_up) break;
          for (const auto& [name, square] :
               atomic_squares(s, run.shape, d, moe::random_weights(s, d, N, run.seed), run.final_weights))
            squares[name].push_back(square);
        }
      for (const auto& [name, of_seeds] : squares) append(samples[name], N, of_seeds);
    }
    if (blown_up) continue;  // `confirm` says whether that may be
    for (const auto& predicted : predictions) {
      if (predicted.at[stage] && !std::isfinite(*predicted.at[stage])) continue;
      if (const auto found = samples.find(predicted.name); found != samples.end())
        comparison.add(predicted.name, stage, predicted.at[stage], found->second);
    }
  }
  comparison.conclude();
}

}  // namespace

TEST_CASE("size exponents of every table are those of finite networks [all tables, regimes and rules, N = 32 to 128]") {
  for (const Case& c : cases) confirm(c, c.widths(32), 64);
}

TEST_CASE("exponents of atomic terms and gradients are those of networks [all tables, N = 32 to 128] [slow]") {
  for (const Case& c : cases) confirm_atomic(c, c.widths(32), 32);
}

TEST_CASE(
    "size exponents of every table are those of finite networks [all tables, regimes and rules, N to 512 or 256]" *
    doctest::test_suite("long")) {
  for (const Case& c : cases) confirm(c, c.widths(64, 4), 256);
}

TEST_CASE("exponents of atomic terms and gradients are those of networks [all tables, N to 512 or 256]" *
          doctest::test_suite("long")) {
  for (const Case& c : cases) confirm_atomic(c, c.widths(64, 4), 256);
}
