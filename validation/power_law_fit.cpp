#include "validation/power_law_fit.hpp"

#include <algorithm>
#include <cmath>

namespace moe {

PowerLawFit fit_power_law(const std::vector<double>& x, const std::vector<double>& y, const std::vector<double>& e) {
  const auto chi2_at = [&](double a) {
    double yy = 0, yx = 0, xx = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      const double w = 1 / (e[k] * e[k]), power = std::pow(x[k] / x[0], a);
      yy += w * y[k] * y[k], yx += w * y[k] * power, xx += w * power * power;
    }
    return yy - yx * yx / xx;
  };
  constexpr double low = -4, high = 2, coarse = 0.05, fine = 0.001;
  PowerLawFit best;
  best.chi2 = HUGE_VAL;
  const auto search = [&](double from, double to, double step) {
    const auto steps = static_cast<int>(std::floor((to - from) / step));
    for (int k = 0; k <= steps; ++k) {
      const double a = from + k * step;
      if (const double chi2 = chi2_at(a); chi2 < best.chi2) best.chi2 = chi2, best.exponent = a;
    }
  };
  search(low, high, coarse);
  search(std::max(low, best.exponent - coarse), std::min(high, best.exponent + coarse), fine);
  const double degrees = std::max(1.0, static_cast<double>(x.size()) - 2);
  const double rise = std::max(1.0, best.chi2 / degrees);
  /// First exponent in a direction at which chi2 has risen: steps that double, then halve.
  const auto edge = [&](double end) {
    const double sign = end > best.exponent ? 1 : -1;
    double inside = best.exponent, step = fine;
    while (sign * (end - inside) > 0 && chi2_at(inside + sign * step) < best.chi2 + rise)
      inside += sign * step, step *= 2;
    while (step >= fine / 2) {
      if (chi2_at(inside + sign * step) < best.chi2 + rise) inside += sign * step;
      step /= 2;
    }
    return sign > 0 ? std::min(inside, end) : std::max(inside, end);
  };
  best.error = (edge(high) - edge(low)) / 2;
  return best;
}

}  // namespace moe
