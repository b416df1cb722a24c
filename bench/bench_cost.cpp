/// bench_cost: what the answer of a default solve costs by finite networks instead (docs/benchmarks.md).
///   bench_cost [CASE...]     cases: REGIME-PARAM-OPTIMIZER of the table in main; without arguments: all
///
/// Both compute the training loss alone: no test set, no observables.
/// Networks of a few widths are trained on all cores. Their mean loss at step t is fitted as a + c/N + d/N^2, the variance over
/// seeds as s/N, and the time of one seed as a power of N from the two largest widths. To be as good as the solve, whose standard
/// error at step t is e, networks need
///   as they are:        |c|/N <= e and s/N/seeds <= e^2;
///   extrapolated in 1/N: 2 m(2N) - m(N) has bias -d/(2 N^2), and seeds are shared among N and 2N at least cost.
/// c^2 and d^2 are used less their own variance, so that noise alone asks for nothing. The whole curve needs what its worst step
/// needs. Other steps are cheaper: the median over steps stands beside it.
#include <fmt/format.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/timing.hpp"
#include "data/dataset.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "validation/network.hpp"

namespace {

struct Case {
  const char *regime, *param, *optimizer;
  std::vector<int> widths, seeds;

  std::string name() const { return fmt::format("{}-{}-{}", regime, param, optimizer); }
};

/// One width: losses of its seeds and the wall time of one seed with all cores at work.
struct Trained {
  double N = 0, seconds = 0;
  std::vector<std::vector<double>> loss;  ///< [seed][step]

  double mean(std::size_t t) const {
    double total = 0;
    for (const auto& l : loss) total += l[t];
    return total / static_cast<double>(loss.size());
  }
  double variance(std::size_t t) const {
    double total = 0;
    for (const auto& l : loss) total += (l[t] - mean(t)) * (l[t] - mean(t));
    return total / static_cast<double>(loss.size() - 1);
  }
};

/// Least squares of the means in powers 1, 1/N, ... with known variances: coefficients and their variances.
struct Fit {
  Eigen::VectorXd value, variance;
  Fit(const std::vector<Trained>& widths, std::size_t t, double s, Eigen::Index terms) {
    const auto rows = static_cast<Eigen::Index>(widths.size());
    Eigen::MatrixXd X(rows, terms);
    Eigen::VectorXd y(rows);
    for (Eigen::Index k = 0; k < rows; ++k) {
      const Trained& w = widths[static_cast<std::size_t>(k)];
      const double sigma = std::sqrt(s / w.N / static_cast<double>(w.loss.size()));
      y(k) = w.mean(t) / sigma;
      for (Eigen::Index p = 0; p < terms; ++p) X(k, p) = std::pow(w.N, -static_cast<double>(p)) / sigma;
    }
    const Eigen::MatrixXd covariance = (X.transpose() * X).inverse();
    value = covariance * (X.transpose() * y);
    variance = covariance.diagonal();
  }
  /// |coefficient| without what its own noise adds.
  double size(Eigen::Index p) const { return std::sqrt(std::max(0.0, value(p) * value(p) - variance(p))); }
};

struct Need {
  double N = 0, seeds = 0, seconds = 0;
};

moe::RunSpec spec_of(const Case& c, const std::string& more) {
  return moe::read_config_text(
      fmt::format("[model]\nregime = '{}'\nparam = '{}'\n[optimizer]\nname = '{}'\n[data]\ntest = 0\n[output]\n"
                  "observables = 'none'\n{}",
                  c.regime, c.param, c.optimizer, more),
      "bench");
}

void compare(const Case& c) {
  const moe::RunSpec solve = spec_of(c, "");
  const moe::LimitResult limit = moe::solve_limit(solve, moe::load_dataset(solve));
  fmt::print("\n{}: default solve {:.1f} s, {} neurons, {} replicas\n", c.name(), limit.seconds, limit.counts.neurons,
             limit.replicas);

  std::vector<Trained> trained;
  for (std::size_t k = 0; k < c.widths.size(); ++k) {
    const moe::RunSpec spec =
        spec_of(c, fmt::format("[network]\nwidths = [{}]\nseeds = {}\n", c.widths[k], c.seeds[k]));
    const moe::Dataset data = moe::load_dataset(spec);
    moe::TrainOptions options;
    options.keep_outputs = false;
    Trained w;
    w.N = c.widths[k];
    std::vector<std::vector<moe::NetworkRun>> runs;
    w.seconds = bench::seconds_of([&] { runs = moe::train_networks(spec, data, 0, options); }) / c.seeds[k];
    for (auto& run : runs.front()) w.loss.push_back(std::move(run.loss));
    fmt::print("  N = {:>4}: {:>3} seeds, {:.3f} s each\n", c.widths[k], c.seeds[k], w.seconds);
    trained.push_back(std::move(w));
  }
  const Trained &wide = trained.back(), &narrower = trained[trained.size() - 2];
  const double power = std::log(wide.seconds / narrower.seconds) / std::log(wide.N / narrower.N);
  const auto seconds_at = [&](double N) { return wide.seconds * std::pow(N / wide.N, power); };

  std::vector<Need> plain, extrapolated;
  double z2 = 0;
  for (std::size_t t = 1; t < limit.loss.mean.size(); ++t) {
    double s = 0, freedom = 0;
    for (const Trained& w : trained) {
      const double f = static_cast<double>(w.loss.size()) - 1;
      s += f * w.N * w.variance(t);
      freedom += f;
    }
    s /= freedom;
    const double e = limit.loss.sem[t];
    const Fit line(trained, t, s, 2), parabola(trained, t, s, 3);
    const double off = parabola.value(0) - limit.loss.mean[t];
    z2 += off * off / (parabola.variance(0) + e * e);
    Need a;
    a.N = std::max(trained.front().N, line.size(1) / e);
    a.seeds = std::max(1.0, s / a.N / (e * e));
    a.seconds = a.seeds * seconds_at(a.N);
    plain.push_back(a);
    Need b;
    b.N = std::max(trained.front().N, std::sqrt(parabola.size(2) / (2 * e)));
    const double one = std::sqrt(s / b.N * seconds_at(b.N)), two = 2 * std::sqrt(s / (2 * b.N) * seconds_at(2 * b.N));
    b.seeds = (one + two) / (e * e) *
              (std::sqrt(s / b.N / seconds_at(b.N)) + 2 * std::sqrt(s / (2 * b.N) / seconds_at(2 * b.N)));
    b.seconds = std::max((one + two) * (one + two) / (e * e), seconds_at(b.N) + seconds_at(2 * b.N));
    extrapolated.push_back(b);
  }
  fmt::print(
      "  time of a seed ~ N^{:.2f}; networks extrapolated to 1/N = 0 against the limit: mean z^2 {:.2f} over steps\n",
      power, z2 / static_cast<double>(plain.size()));
  const auto report = [&](const char* name, std::vector<Need> needs) {
    const auto cheaper = [](const Need& x, const Need& y) { return x.seconds < y.seconds; };
    const auto worst = std::max_element(needs.begin(), needs.end(), cheaper);
    const auto step = worst - needs.begin() + 1;
    const Need w = *worst;
    std::nth_element(needs.begin(), needs.begin() + static_cast<std::ptrdiff_t>(needs.size() / 2), needs.end(),
                     cheaper);
    fmt::print(
        "  {:<20} worst step {:>3} (standard error {:.5f}): N = {:.0f}, {:.0f} seeds, {:.0f} s: {:.1f} solves; median "
        "step {:.1f}\n",
        name, step, limit.loss.sem[static_cast<std::size_t>(step)], w.N, w.seeds, w.seconds, w.seconds / limit.seconds,
        needs[needs.size() / 2].seconds / limit.seconds);
  };
  report("as they are", plain);
  report("extrapolated in 1/N", extrapolated);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::vector<Case> cases = {{"II", "mssp", "sgd", {64, 128, 256, 512}, {96, 64, 32, 16}},
                                     {"II", "mssp", "adam", {64, 128, 256, 512}, {96, 64, 32, 12}},
                                     {"II", "mup", "sgd", {64, 128, 256, 512}, {96, 64, 32, 16}},
                                     {"III", "mssp", "sgd", {32, 64, 128, 256}, {96, 64, 32, 12}}};
    const std::vector<std::string> wanted(argv + 1, argv + argc);
    for (const std::string& name : wanted)
      if (std::none_of(cases.begin(), cases.end(), [&](const Case& c) { return c.name() == name; }))
        throw std::runtime_error(fmt::format(R"(no case "{}"; cases are written like "{}")", name, cases[0].name()));
    for (const Case& c : cases)
      if (wanted.empty() || std::find(wanted.begin(), wanted.end(), c.name()) != wanted.end()) compare(c);
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_cost: {}\n", e.what());
    return 1;
  }
}
