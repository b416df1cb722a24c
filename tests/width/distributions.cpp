// Distributions of h, u and r in networks come to those of the limit as N grows, before and after learning.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/distribution.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/network.hpp"

namespace {

/// Values of a distribution function at a few places, one row a sample (seed or replica).
using Sample = std::vector<std::vector<double>>;

/// Shares below edges 20 % apart, from small values to far ones on both sides.
std::vector<double> below(const std::vector<double>& shares) {
  std::vector<double> values;
  double sum = 0;
  for (int k = 0; k < moe::distribution_bins; ++k) {
    sum += shares[static_cast<std::size_t>(k)];
    const double edge = moe::distribution_edge(k + 1);
    if ((k + 1) % 4 == 0 && std::abs(edge) > 0.1 && std::abs(edge) < 2) values.push_back(sum);
  }
  return values;
}

struct Estimate {
  double mean, error;
};
Estimate estimate(const Sample& sample, std::size_t place) {
  double mean = 0, square = 0;
  const double n = static_cast<double>(sample.size());
  for (const auto& row : sample) mean += row[place] / n;
  for (const auto& row : sample) square += (row[place] - mean) * (row[place] - mean) / (n - 1);
  return {mean, std::sqrt(square / n)};
}

}  // namespace

TEST_CASE(
    "distributions of h, u and r: networks extrapolated in 1/N agree with the limit, before and after learning; the "
    "limit of another time does not [II mssp]") {
  constexpr int steps = 8, seeds = 24;
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 1.0, steps);
  s.output.distributions_at = {0, steps};
  s.output.observables = {"none"};
  s.sampling.precision = moe::Precision::float32;
  const moe::Dataset data = limit_fixture::data(6, 5, 1);

  Sample limit[2][3], narrow[2][3], wide[2][3];
  const char* const names[] = {"h", "u", "r"};
  moe::RunSpec one = s;
  one.sampling.replicas = 1;
  one.sampling.neurons = 2048;
  for (int seed = 0; seed < seeds; ++seed) {
    one.sampling.seed = 100 + static_cast<std::uint64_t>(seed);
    const moe::LimitResult r = moe::solve_limit(one, data);
    for (std::size_t k = 0; k < 3; ++k)
      for (std::size_t t = 0; t < 2; ++t) limit[t][k].push_back(below(r.distributions.at(names[k]).at(t).mean));
    for (const int width : {64, 256}) {
      const moe::NetworkRun run = moe::train_network(s, data, width, static_cast<std::uint64_t>(seed));
      for (std::size_t k = 0; k < 3; ++k)
        for (std::size_t t = 0; t < 2; ++t)
          (width == 64 ? narrow : wide)[t][k].push_back(below(run.distributions.at(names[k]).at(t)));
    }
  }
  std::size_t moved = 0;
  for (std::size_t k = 0; k < 3; ++k)
    for (std::size_t t = 0; t < 2; ++t)
      for (std::size_t place = 0; place < limit[t][k].front().size(); ++place) {
        const Estimate at_64 = estimate(narrow[t][k], place), at_256 = estimate(wide[t][k], place),
                       theory = estimate(limit[t][k], place), other = estimate(limit[1 - t][k], place);
        // f(N) = f + c/N: f = (4 f(256) - f(64)) / 3.
        const double networks = (4 * at_256.mean - at_64.mean) / 3;
        const double error = std::hypot(4 * at_256.error / 3, at_64.error / 3, theory.error);
        INFO(names[k], " at time ", t, ", place ", place, ": networks ", networks, ", limit ", theory.mean, " +- ",
             error);
        // Some 200 comparisons of Student's t with 23 degrees of freedom: one of them above 5 in 400 runs.
        CHECK(std::abs(networks - theory.mean) < 5 * error);
        moved += std::abs(networks - other.mean) > 5 * std::hypot(error, other.error) ? 1 : 0;
      }
  CHECK(moved > 20);  // the test sees that fields move as they learn
}
