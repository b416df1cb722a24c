// Distributions of h, u and r at initialisation are Gaussian mixtures with variances known by hand; bins are those of one definition.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/distribution.hpp"
#include "tests/limit_fixture.hpp"

namespace {

double normal_below(double x, double variance) { return 0.5 * std::erfc(-x / std::sqrt(2 * variance)); }

/// Largest distance between the cumulated shares and the mean of Gaussian distribution functions of these variances.
double distance(const std::vector<double>& shares, const Eigen::VectorXd& variances) {
  double below = 0, worst = 0;
  for (int k = 0; k < moe::distribution_bins; ++k) {
    below += shares[static_cast<std::size_t>(k)];
    double expected = 0;
    for (const double v : variances)
      expected += normal_below(moe::distribution_edge(k + 1), v) / static_cast<double>(variances.size());
    worst = std::max(worst, std::abs(below - expected));
  }
  return worst;
}

}  // namespace

TEST_CASE("a distribution counts every entry once, in the bin between its edges; what lies outside in none") {
  const std::vector<double> edges = moe::distribution_edges();
  REQUIRE(edges.size() == moe::distribution_bins + 1);
  CHECK(std::is_sorted(edges.begin(), edges.end()));
  CHECK(edges.front() == -edges.back());
  CHECK(edges[moe::distribution_bins / 2] == 0);
  CHECK(edges.back() > 100);
  Eigen::MatrixXd field(4, 2);
  field << 0.7, -0.7, 1e-5, -1e-5, 1e4, std::nan(""), 0.7, 30;
  const std::vector<double> shares = moe::distribution(field);
  const auto at = [&](double x) {
    const auto above = std::upper_bound(edges.begin(), edges.end(), x);
    return shares[static_cast<std::size_t>(above - edges.begin() - 1)];
  };
  CHECK(at(0.7) == 0.25);
  for (const double x : {-0.7, 1e-5, -1e-5, 30.0}) CHECK(at(x) == 0.125);
  double total = 0;
  for (const double s : shares) total += s;
  CHECK(total == 0.75);
}

TEST_CASE(
    "at t = 0 h is N(0, Var W_in |x|^2), u and r are Gaussian mixtures over samples of variance s^2 <phi phi> "
    "[limit]") {
  // Plain samples; sites are independent, samples of one site are not: a share p has a variance of at most p (1 - p) / sites.
  moe::RunSpec s = limit_fixture::as_network(limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.5, 0), 4096);
  s.model.init_scale = {{1.3, 0.8, 1.2, 0.9, 1.1}};
  s.model.expert_width = 2;
  s.sampling.replicas = 16;
  s.output.distributions_at = {0};
  s.output.kernels_at = {0};
  const moe::Dataset d = limit_fixture::data(3, 5, 1);
  const moe::LimitResult result = moe::solve_limit(s, d);
  const double replicas = 16, S = result.counts.neurons, SE = result.counts.experts, sites = SE * result.counts.hidden;
  const Eigen::VectorXd phi = result.kernels.at("Phi")[0].diagonal();
  const moe::LimitConstants& c = result.constants;
  CHECK(c.input_var == doctest::Approx(1.69));
  const struct {
    const char* name;
    Eigen::VectorXd variances;
    double sites;
  } cases[] = {{"h", Eigen::VectorXd::Constant(3, 1.69), S},
               {"u", c.expert_in.chi2 * phi, sites},
               {"r", c.router.chi2 * phi, SE}};
  for (const auto& [name, variances, independent] : cases) {
    const auto& curve = result.distributions.at(name).at(0);
    // Hidden units of an expert, and all sites of a replica, share <phi phi> of finite S, a relative error of its root below sqrt(2/S),
    // which moves a Gaussian distribution function by at most 0.25 of it.
    const double allowed = 4 * (0.5 / std::sqrt(independent * replicas) + 0.25 * std::sqrt(2 / S / replicas));
    INFO(name, ": variance ", variances.mean(), ", allowed ", allowed);
    REQUIRE(curve.mean.size() == moe::distribution_bins);
    CHECK(distance(curve.mean, variances) < allowed);
    CHECK(distance(curve.mean, 1.2 * variances) > allowed);  // the test would see 10 % of a standard deviation
  }
}
