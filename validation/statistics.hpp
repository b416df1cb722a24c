/// Moments of independent runs, their standard errors, and Student's t.
#pragma once

#include <vector>

namespace moe::statistics {

struct Moments {
  double mean = 0, variance = 0, mean_error = 0, variance_error = 0;
  double excess_kurtosis = 0;
};

/// Standard error of the variance from the fourth central moment.
Moments moments(const std::vector<double>& x);

/// (difference of means) / (its standard error). Equal constants give 0.
double mean_z(const std::vector<double>& a, const std::vector<double>& b);
double variance_z(const std::vector<double>& a, const std::vector<double>& b);

/// A variance that is estimated with so many degrees of freedom (infinite: known).
struct Variance {
  double value = 0, degrees = 0;
};

/// Sum of independent variances; degrees of freedom by Welch and Satterthwaite.
Variance sum(const std::vector<Variance>& parts);

/// Two-sided probability of |z| or more under Student's t; degrees may be infinite.
double two_sided_probability(double z, double degrees);

/// |z| that is exceeded with probability `level`, two-sided.
double two_sided_bound(double level, double degrees);

}  // namespace moe::statistics
