/// Comparison of two samples of independent runs by mean and by variance, in standard errors.
#pragma once

#include <cmath>
#include <vector>

namespace statistics {

struct Moments {
  double mean = 0, variance = 0, mean_error = 0, variance_error = 0;
};

/// Standard error of the variance from the fourth central moment.
inline Moments moments(const std::vector<double>& x) {
  Moments m;
  const double n = static_cast<double>(x.size());
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
  return m;
}

/// (difference of means) / (its standard error). Equal constants give 0.
inline double mean_z(const std::vector<double>& a, const std::vector<double>& b) {
  const Moments x = moments(a), y = moments(b);
  const double error = std::hypot(x.mean_error, y.mean_error);
  return error > 0 ? (x.mean - y.mean) / error : (x.mean == y.mean ? 0 : HUGE_VAL);
}

inline double variance_z(const std::vector<double>& a, const std::vector<double>& b) {
  const Moments x = moments(a), y = moments(b);
  const double error = std::hypot(x.variance_error, y.variance_error);
  return error > 0 ? (x.variance - y.variance) / error : (x.variance == y.variance ? 0 : HUGE_VAL);
}

}  // namespace statistics
