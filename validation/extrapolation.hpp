/// Finite-size extrapolation of means over seeds, and the limit's own bias of order 1/S (docs/validation.md).
#pragma once

#include <vector>

#include "validation/statistics.hpp"

namespace moe {

/// Mean over the seeds of one width and the standard error of that mean.
struct WidthMean {
  double N = 0;
  double mean = 0, error = 0;
  double seeds = 0;
};

/// A value with what is known of its error: a statistical part with its degrees of freedom, and a systematic one.
struct Estimate {
  double value = 0;
  statistics::Variance statistical;
  double systematic = 0;  ///< standard deviation
  double error() const;
};

struct Extrapolation {
  Estimate at_infinity;
  double correction = 0;  ///< c_1: size of the leading correction at the smallest width
  double chi2 = 0;        ///< of the fit, the term of the next order included
};

/// How large the next order is taken to be: c_2 of f = L + c_1 x + c_2 x^2 is normal with this many times the standard deviation |c_1|.
/// At the smallest width (x = 1) the next order is then as large as the leading one, which no series that is of use exceeds.
inline constexpr double next_order = 1.0;

/// L + c_1 x + c_2 x^2 with x = (N_1/N)^power, N_1 the smallest width, by weighted least squares; at least two widths, in any order.
/// c_2 is constrained as said above and enters the error as a systematic part. Weights come from one variance, pooled over widths, that
/// falls as 1/N, so that they do not follow the noise of few seeds; the error is of the seeds as they are. `at_N` > 0 asks for the value
/// at that width instead of at infinity.
Extrapolation extrapolate(const std::vector<WidthMean>& widths, double power, double at_N = 0);

/// The limit from S samples, and from S/ratio where there is such a solve: the bias b of the former is taken as normal around zero
/// with standard deviation `prior` and measured by the difference, second - full = (ratio^power - 1) b.
struct LimitMean {
  double full = 0, full_error = 0, full_replicas = 0;
  double second = 0, second_error = 0, second_replicas = 0;  ///< second_replicas = 0: no such solve
  double ratio = 2;
};
Estimate without_bias(const LimitMean& limit, double prior, double power);

}  // namespace moe
