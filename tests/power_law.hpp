/// Power laws fitted to measurements with errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace power_law {

struct Fit {
  double exponent = 0;  ///< a of C x^a
  double error = 0;     ///< of a, enlarged by sqrt(chi2/degrees) where the law fits worse than its errors say
  double chi2 = 0;      ///< over size - 2 degrees of freedom
};

/// Weighted least squares of y = C x^a with errors `e` on y, linear in y so that values of either sign and near zero count by what they
/// are worth. The error of `a` is the half-width of chi2 < minimum + 1.
inline Fit fit(const std::vector<double>& x, const std::vector<double>& y, const std::vector<double>& e) {
  const auto chi2_at = [&](double a) {
    double yy = 0, yx = 0, xx = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      const double w = 1 / (e[k] * e[k]), power = std::pow(x[k] / x[0], a);
      yy += w * y[k] * y[k], yx += w * y[k] * power, xx += w * power * power;
    }
    return yy - yx * yx / xx;
  };
  constexpr double low = -4, high = 2, step = 0.001;
  Fit best;
  best.chi2 = HUGE_VAL;
  for (double a = low; a <= high; a += step) {
    const double chi2 = chi2_at(a);
    if (chi2 < best.chi2) best.chi2 = chi2, best.exponent = a;
  }
  const double degrees = std::max(1.0, static_cast<double>(x.size()) - 2);
  const double rise = std::max(1.0, best.chi2 / degrees);
  double left = best.exponent, right = best.exponent;
  while (left > low && chi2_at(left) < best.chi2 + rise) left -= step;
  while (right < high && chi2_at(right) < best.chi2 + rise) right += step;
  best.error = (right - left) / 2;
  return best;
}

}  // namespace power_law
