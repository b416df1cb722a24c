/// Power laws fitted to measurements with errors.
#pragma once

#include <vector>

namespace moe {

struct PowerLawFit {
  double exponent = 0;  ///< a of C x^a, within [-4, 2]
  double error = 0;     ///< of a, enlarged by sqrt(chi2/degrees) where the law fits worse than its errors say
  double chi2 = 0;      ///< over size - 2 degrees of freedom
};

/// Weighted least squares of y = C x^a with errors `e` > 0 on y, linear in y so that values of either sign and near zero count by what
/// they are worth. x > 0, at least two points. The error of `a` is the half-width of chi2 < minimum + 1.
PowerLawFit fit_power_law(const std::vector<double>& x, const std::vector<double>& y, const std::vector<double>& e);

}  // namespace moe
