// Statistics of the comparison against numbers worked out by hand.
#include "validation/extrapolation.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "validation/observable_comparison.hpp"
#include "validation/power_law_fit.hpp"
#include "validation/statistics.hpp"

using namespace moe;

TEST_CASE("moments of a few numbers by hand") {
  // 1, 2, 3, 6: mean 3, squares 4 + 1 + 0 + 9 = 14, fourth powers 16 + 1 + 0 + 81 = 98.
  const auto m = statistics::moments({1, 2, 3, 6});
  CHECK(m.mean == doctest::Approx(3));
  CHECK(m.variance == doctest::Approx(14.0 / 3));
  CHECK(m.mean_error == doctest::Approx(std::sqrt(14.0 / 12)));
  CHECK(m.variance_error == doctest::Approx(std::sqrt((98.0 / 4 - 3.5 * 3.5) / 4)));
  CHECK(m.excess_kurtosis == doctest::Approx(98.0 / 4 / (3.5 * 3.5) - 3));
  // 2 and 4: mean 3, variance 2, error 1. Differences are in units of the root of the sum of squared errors.
  CHECK(statistics::mean_z({1, 2, 3, 6}, {0, 2}) == doctest::Approx(2 / std::sqrt(14.0 / 12 + 1)));
  CHECK(statistics::mean_z({1, 1}, {1, 1, 1}) == 0);
  CHECK(statistics::variance_z({1, 2, 3, 6}, {0, 2}) ==
        doctest::Approx((14.0 / 3 - 2) / std::sqrt((98.0 / 4 - 3.5 * 3.5) / 4)));
}

TEST_CASE("Student's t: bounds of tables, and the normal distribution for known errors") {
  CHECK(statistics::two_sided_bound(0.05, 5) == doctest::Approx(2.5706).epsilon(1e-4));
  CHECK(statistics::two_sided_bound(0.01, 10) == doctest::Approx(3.1693).epsilon(1e-4));
  CHECK(statistics::two_sided_bound(0.05, std::numeric_limits<double>::infinity()) ==
        doctest::Approx(1.95996).epsilon(1e-5));
  CHECK(statistics::two_sided_probability(-2.5706, 5) == doctest::Approx(0.05).epsilon(1e-3));
  CHECK(statistics::two_sided_probability(HUGE_VAL, 5) == 0);
}

TEST_CASE("degrees of freedom by Welch and Satterthwaite; a known part has none to lose") {
  // (4 + 1)^2 / (16/4 + 1/9) = 25 / 4.1111.
  const auto v = statistics::sum({{4, 4}, {1, 9}});
  CHECK(v.value == doctest::Approx(5));
  CHECK(v.degrees == doctest::Approx(25 / (4.0 + 1.0 / 9)));
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(statistics::sum({{4, 4}, {4, infinity}}).degrees == doctest::Approx(16));
  CHECK(std::isinf(statistics::sum({{1, infinity}}).degrees));
}

TEST_CASE("fitted power is found exactly, with the error of two points by hand") {
  std::vector<double> x, y, e;
  for (double N : {64.0, 128.0, 256.0, 512.0}) x.push_back(N), y.push_back(-3 * std::pow(N, -0.75)), e.push_back(1e-4);
  const PowerLawFit fit = fit_power_law(x, y, e);
  CHECK(fit.exponent == doctest::Approx(-0.75).epsilon(0.001));
  CHECK(fit.chi2 < 1e-3);
  // y = 1, 1/2 with errors 0.001: a = log(y2/y1)/log 2, its error hypot(0.001/1, 0.001/0.5)/log 2.
  const PowerLawFit two = fit_power_law({1, 2}, {1, 0.5}, {0.001, 0.001});
  CHECK(two.exponent == doctest::Approx(-1).epsilon(0.001));
  CHECK(two.error == doctest::Approx(std::hypot(0.001, 0.002) / std::log(2)).epsilon(0.2).scale(0));
  // Where a power does not fit, what its errors leave says nothing: the error is that of the scatter, whatever is said of the points.
  const auto scattered = [](double error) {
    return fit_power_law({1, 2, 4}, {1, 0.6, 0.25}, {error, error, error}).error;
  };
  CHECK(scattered(1e-3) == doctest::Approx(scattered(1e-2)).epsilon(0.1).scale(0));
  CHECK(scattered(1e-2) > 0.05);
}

TEST_CASE(
    "extrapolation: exact on its own form, whatever the noise of the errors [power 1, 1/2; at infinity, at a width]") {
  for (const double power : {1.0, 0.5})
    for (const double c2 : {0.0, 0.3}) {
      CAPTURE(power);
      CAPTURE(c2);
      std::vector<WidthMean> widths;
      for (double N : {64.0, 128.0, 256.0, 512.0}) {
        const double x = std::pow(64 / N, power);
        widths.push_back({N, 2 + 0.5 * x + c2 * x * x, 1e-6 * std::sqrt(64 / N), 16});
      }
      const Extrapolation e = extrapolate(widths, power);
      // Errors of 1e-6 leave nothing for the constraint on c_2 to do.
      CHECK(e.at_infinity.value == doctest::Approx(2).epsilon(1e-5));
      CHECK(e.correction == doctest::Approx(0.5).epsilon(1e-3));
      CHECK(e.at_infinity.systematic < 1e-4);
      const double x = std::pow(64.0 / 200, power);
      CHECK(extrapolate(widths, power, 200).at_infinity.value ==
            doctest::Approx(2 + 0.5 * x + c2 * x * x).epsilon(1e-5));
    }
}

TEST_CASE("extrapolation from two widths by hand: the next order stays open and is granted") {
  // N = 64, 128 at f = 1.5, 1.25: linear in 1/N gives 1. With c_2 the weights stay 2 f(128) - f(64): L shifts by c_2/2 and its error is
  // half of |c_1| = 0.5 (errors of the means vanish beside it).
  const Extrapolation e = extrapolate({{64, 1.5, 1e-7, 16}, {128, 1.25, 1e-7, 16}}, 1);
  CHECK(e.at_infinity.value == doctest::Approx(1).epsilon(1e-5));
  CHECK(e.at_infinity.systematic == doctest::Approx(0.25).epsilon(1e-4));
  CHECK(e.at_infinity.statistical.value == doctest::Approx(5e-14).epsilon(1e-3).scale(0));
  CHECK(e.chi2 < 1e-6);
  // The errors of 16 seeds each, weights 2 and -1: (4 + 1)^2 / (16/15 + 1/15) degrees; of one width alone, 15.
  CHECK(e.at_infinity.statistical.degrees == doctest::Approx(25.0 / 17 * 15).epsilon(1e-3));
  CHECK(extrapolate({{64, 1.5, 0, 16}, {128, 1.25, 1e-7, 16}}, 1).at_infinity.statistical.degrees ==
        doctest::Approx(15).epsilon(1e-6));
  // At a width that is there nothing is open; between the two, where the line is at x = 3/4, x^2 may bend it by 1/16 of |c_1|.
  CHECK(extrapolate({{64, 1.5, 1e-7, 16}, {128, 1.25, 1e-7, 16}}, 1, 64).at_infinity.systematic < 1e-5);
  CHECK(extrapolate({{64, 1.5, 1e-7, 16}, {128, 1.25, 1e-7, 16}}, 1, 64 / 0.75).at_infinity.systematic ==
        doctest::Approx(0.5 / 16).epsilon(1e-4));
}

TEST_CASE("extrapolation: what the next order costs counts in the quality of a fit, by hand") {
  // f = x^2 at x = 1, 1/2, 1/4: c_2 = 1 is exact, and is measured against |c_1| of the best line through the three, weighted as 1/x.
  const std::vector<WidthMean> widths = {
      {64, 1, 1e-6, 16}, {128, 0.25, 1e-6 / std::sqrt(2.0), 16}, {256, 0.0625, 5e-7, 16}};
  double w = 0, wx = 0, wxx = 0, wf = 0, wxf = 0;
  for (const double x : {1.0, 0.5, 0.25}) w += 1 / x, wx += 1, wxx += x, wf += x, wxf += x * x;
  const double slope = (w * wxf - wx * wf) / (w * wxx - wx * wx);
  CHECK(extrapolate(widths, 1).chi2 == doctest::Approx(1 / (slope * slope)).epsilon(1e-3));
}

TEST_CASE("extrapolation: no scatter and no value is no trouble") {
  const Extrapolation zero = extrapolate({{64, 0, 0, 8}, {128, 0, 0, 8}, {256, 0, 0, 8}}, 1);
  CHECK(zero.at_infinity.value == 0);
  const Extrapolation constant = extrapolate({{64, 3, 0, 8}, {128, 3, 0, 8}, {256, 3, 0, 8}}, 1);
  CHECK(constant.at_infinity.value == doctest::Approx(3).epsilon(1e-7));
  CHECK(constant.at_infinity.error() < 1e-6);
}

TEST_CASE("bias of the limit: measured where the second solve is sharp, granted where there is none") {
  // f_S = 1 + b, f_{S/2} = 1 + 2 b with b = 0.01 known sharply: 2 f_S - f_{S/2} = 1, variance 4 + 1 times that of one.
  const Estimate sharp = without_bias({1.01, 1e-6, 16, 1.02, 1e-6, 16}, 0.1, 1);
  CHECK(sharp.value == doctest::Approx(1).epsilon(1e-6));
  CHECK(sharp.statistical.value == doctest::Approx(5e-12).epsilon(1e-3).scale(0));
  CHECK(sharp.systematic < 1e-6);
  // Noise far above the prior: nothing is learned, the prior is the systematic error.
  const Estimate blunt = without_bias({1.01, 0.5, 16, 1.02, 0.5, 16}, 0.001, 1);
  CHECK(blunt.value == doctest::Approx(1.01).epsilon(1e-5));
  CHECK(blunt.systematic == doctest::Approx(0.001).epsilon(1e-3).scale(0));
  // Prior and noise equal: half of the difference is believed. noise^2 = 2 * 0.01^2.
  const Estimate half = without_bias({1.01, 0.01, 16, 1.03, 0.01, 16}, std::sqrt(2.0) * 0.01, 1);
  CHECK(half.value == doctest::Approx(1.0));
  CHECK(half.systematic == doctest::Approx(std::sqrt(2.0) * 0.005));
  const Estimate alone = without_bias({1.01, 0.01, 16, 0, 0, 0}, 0.02, 1);
  CHECK(alone.value == 1.01);
  CHECK(alone.systematic == 0.02);
  CHECK(alone.statistical.degrees == 15);
}

TEST_CASE("judged steps are far apart") {
  std::vector<int> all(101);
  for (int t = 0; t <= 100; ++t) all[static_cast<std::size_t>(t)] = t;
  CHECK(judged_steps(all) == std::vector<int>{0, 1, 2, 4, 8, 16, 32, 64, 100});
  CHECK(judged_steps({0, 3, 6, 7}) == std::vector<int>{0, 7});
}
