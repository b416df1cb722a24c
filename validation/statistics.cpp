#include "validation/statistics.hpp"

#include <algorithm>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>

namespace moe::statistics {

namespace {

/// From so many degrees on Student's t is the normal distribution to all digits that matter.
constexpr double many_degrees = 1e6;

double z_of(double a, double b, double error) { return error > 0 ? (a - b) / error : (a == b ? 0 : HUGE_VAL); }

}  // namespace

Moments moments(const std::vector<double>& x) {
  Moments m;
  const auto n = static_cast<double>(x.size());
  for (double v : x) m.mean += v / n;
  double second = 0, fourth = 0;
  for (double v : x) {
    const double d = (v - m.mean) * (v - m.mean);
    second += d / n;
    fourth += d * d / n;
  }
  m.variance = second * n / (n - 1);
  m.mean_error = std::sqrt(m.variance / n);
  m.variance_error = std::sqrt(std::max(fourth - second * second, 0.0) / n);
  m.excess_kurtosis = second > 0 ? fourth / (second * second) - 3 : 0;
  return m;
}

double mean_z(const std::vector<double>& a, const std::vector<double>& b) {
  const Moments x = moments(a), y = moments(b);
  return z_of(x.mean, y.mean, std::hypot(x.mean_error, y.mean_error));
}

double variance_z(const std::vector<double>& a, const std::vector<double>& b) {
  const Moments x = moments(a), y = moments(b);
  return z_of(x.variance, y.variance, std::hypot(x.variance_error, y.variance_error));
}

Variance sum(const std::vector<Variance>& parts) {
  Variance total{0, std::numeric_limits<double>::infinity()};
  double per_degree = 0;
  for (const Variance& part : parts) {
    total.value += part.value;
    if (std::isfinite(part.degrees)) per_degree += part.value * part.value / part.degrees;
  }
  if (per_degree > 0) total.degrees = total.value * total.value / per_degree;
  return total;
}

double two_sided_probability(double z, double degrees) {
  if (std::isnan(z)) return z;
  if (std::isinf(z)) return 0;
  namespace bm = boost::math;
  if (degrees > many_degrees) return 2 * bm::cdf(bm::complement(bm::normal(), std::abs(z)));
  return 2 * bm::cdf(bm::complement(bm::students_t(degrees), std::abs(z)));
}

double two_sided_bound(double level, double degrees) {
  namespace bm = boost::math;
  if (degrees > many_degrees) return bm::quantile(bm::complement(bm::normal(), level / 2));
  return bm::quantile(bm::complement(bm::students_t(degrees), level / 2));
}

}  // namespace moe::statistics
