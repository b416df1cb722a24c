// Every combination of regime, parameterization, optimizer, routing, gate and loss against an independent float64 implementation of the
// causal sweep with the same sample counts, so that both have the same law and only sampling errors separate them. The slice in CI, all
// 144 in the long run. In regime I with top-K the limit is random: means and variances over realisations are compared.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "dmft/solve.hpp"
#include "tests/devices.hpp"
#include "tests/grid.hpp"
#include "validation/statistics.hpp"

namespace {

/// Of all comparisons of losses: their number and the sum of squares of z, to be judged together.
struct Calibration {
  double squares = 0, worst = 0;
  int count = 0;
  std::string worst_at;
  void see(double z, const std::string& where) {
    squares += z * z, ++count;
    if (std::abs(z) > worst) worst = std::abs(z), worst_at = where;
  }
};

constexpr double c = 4;  ///< standard errors
constexpr double rounding =
    1e-9;  ///< curves fixed by symmetry (f = 0 at t = 0 under matching) differ by rounding alone
/// Terms that are zero in the limit, or sums of few samples: 1 % of the largest value of the whole that they are a term of.
constexpr double observable_allowance = 0.01;

const std::vector<std::string> stored_observables = {"rms_h",    "rms_r",      "rms_u",           "rms_u_all",
                                                     "rms_y",    "rms_y_init", "rms_y_effective", "rms_y_propagating",
                                                     "rms_zeta", "rms_xi"};

void compare(const grid::Case& which, std::uint64_t seed, moe::Device device, Calibration& total) {
  const moe::H5Reader file(grid::file());
  const std::string name = which.name();
  const moe::H5Array loss = file.read(name + "/loss"), observables = file.read(name + "/observables");
  const std::size_t steps = loss.shape.at(1);  // loss: (mean, sem, variance, its error) x steps
  moe::RunSpec s = grid::spec(which);
  s.sampling.replicas = static_cast<int>(file.attribute_number(name, "replicas"));
  s.sampling.seed = seed;
  s.output.observables = stored_observables;
  moe::SolveOptions options;
  options.device = device;
  const moe::LimitResult ours = moe::solve_limit(s, grid::data(which), options);
  REQUIRE_FALSE(ours.failure);
  REQUIRE(ours.matching == !which.random_limit());
  REQUIRE(ours.loss.mean.size() == steps);

  for (std::size_t t = 0; t < steps; ++t) {
    const double mean = loss.values[t], sem = loss.values[steps + t];
    const double error = std::hypot(sem, ours.loss.sem[t]), deviation = ours.loss.mean[t] - mean;
    INFO(name, ": loss at step ", t, " is ", ours.loss.mean[t], " +- ", ours.loss.sem[t], ", reference ", mean, " +- ",
         sem);
    CHECK(std::abs(deviation) < c * error + rounding);
    if (error > rounding) total.see(deviation / error, fmt::format("{} step {}", name, t));
    if (!which.random_limit()) continue;
    std::vector<double> realisations;
    realisations.reserve(ours.loss_per_replica.size());
    for (const auto& replica : ours.loss_per_replica) realisations.push_back(replica[t]);
    const moe::statistics::Moments m = moe::statistics::moments(realisations);
    const double variance = loss.values[2 * steps + t], variance_error = loss.values[3 * steps + t];
    INFO("its variance over realisations is ", m.variance, " +- ", m.variance_error, ", reference ", variance, " +- ",
         variance_error);
    CHECK(std::abs(m.variance - variance) < c * std::hypot(m.variance_error, variance_error) + rounding);
  }
  // The errors must not be the whole test: at its best step the fall of the loss is many times the bound.
  double resolution = 0;
  for (std::size_t t = 1; t < steps; ++t)
    resolution = std::max(
        resolution, (loss.values[0] - loss.values[t]) / (c * std::hypot(loss.values[steps + t], ours.loss.sem[t])));
  INFO(name, ": the loss falls by ", resolution, " times the bound");
  CHECK(resolution > 5);

  REQUIRE(observables.shape == std::vector<std::size_t>{2, stored_observables.size(), steps});
  const auto row = [&](std::size_t part, std::size_t k) {
    const double* from = &observables.values[(part * stored_observables.size() + k) * steps];
    return std::vector<double>(from, from + steps);
  };
  for (std::size_t k = 0; k < stored_observables.size(); ++k) {
    const std::string& field = stored_observables[k];
    const auto values = row(0, k), errors = row(1, k);
    const bool term = field.starts_with("rms_y_");
    const auto whole = term ? row(0, 4) : values;
    const double largest = *std::max_element(whole.begin(), whole.end());
    const moe::Curve& curve = ours.observables.at(field);
    for (std::size_t t = 0; t < steps; ++t) {
      INFO(name, ": ", field, " at step ", t, " is ", curve.mean[t], " +- ", curve.sem[t], ", reference ", values[t],
           " +- ", errors[t]);
      CHECK(std::abs(curve.mean[t] - values[t]) <
            observable_allowance * largest + c * std::hypot(curve.sem[t], errors[t]) + rounding);
    }
  }
}

void compare(const std::vector<grid::Case>& cases, moe::Device device) {
  Calibration total;
  std::uint64_t seed = 7;  // a case has its own, so that only the stored runs' common seeds correlate cases
  for (const auto& which : cases) compare(which, seed++, device, total);
  const double square = total.squares / total.count;
  MESSAGE(fmt::format("{} cases, {} losses: mean z^2 = {:.2f}, largest |z| = {:.2f} ({})", cases.size(), total.count,
                      square, total.worst, total.worst_at));
  // Student's t of some 25 degrees of freedom has the variance 1.09. Half of each z^2 is the stored runs', who share seeds, so that about six
  // of them are independent: its standard deviation is sqrt(2/6)/2 = 0.3.
  CHECK(square < 1.09 + 4 * 0.3);
  CHECK(square > 0.3);
}

void compare(const std::vector<grid::Case>& cases) {
  devices::on_each([&](moe::Device device) { compare(cases, device); });
}

}  // namespace

TEST_CASE("grid: the slice contains every pair of levels of every two axes") {
  const auto levels = [](const grid::Case& which) {
    return std::vector<std::string>{"regime " + which.regime,
                                    "param " + which.param,
                                    "optimizer " + std::to_string(static_cast<int>(which.optimizer)),
                                    "routing " + std::to_string(static_cast<int>(which.routing)),
                                    "gate " + std::to_string(static_cast<int>(which.gate)),
                                    "loss " + std::to_string(static_cast<int>(which.loss))};
  };
  const auto pairs = [&](const std::vector<grid::Case>& cases) {
    std::map<std::string, int> seen;
    for (const auto& which : cases) {
      const auto l = levels(which);
      for (std::size_t a = 0; a < l.size(); ++a)
        for (std::size_t b = a + 1; b < l.size(); ++b) ++seen[l[a] + ", " + l[b]];
    }
    return seen;
  };
  CHECK(grid::whole().size() == 144);
  CHECK(grid::slice().size() == 18);
  const auto part = pairs(grid::slice());
  for (const auto& [pair, unused] : pairs(grid::whole())) {
    INFO(pair);
    CHECK(part.contains(pair));
  }
}

TEST_CASE("limit equals the independent reference on a slice of the grid [18 cases] [slow]") { compare(grid::slice()); }

TEST_CASE("limit equals the independent reference on the whole grid [144 cases]" * doctest::test_suite("long")) {
  compare(grid::whole());
}
