// Learning-rate sweeps on curves whose optimum is known.
#include "validation/lr_sweep.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/random.hpp"

using namespace moe;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Losses 1 + (log eta - log best)^2 with noise that is common to all eta of a run, and noise of its own.
SweepCurve parabola(const std::vector<double>& eta, double best, double common, double own, std::uint32_t stream) {
  std::vector<std::vector<double>> runs;
  for (std::size_t e = 0; e < eta.size(); ++e) {
    std::vector<double> of_eta;
    for (std::uint64_t r = 0; r < 8; ++r) {
      double shared[2], alone[2];
      normal_pair(StreamKey{1, 0, stream, 0}, r, shared);
      normal_pair(StreamKey{2, static_cast<std::uint32_t>(e), stream, 0}, r, alone);
      const double x = std::log(eta[e] / best);
      of_eta.push_back(1 + x * x + common * shared[0] + own * alone[0]);
    }
    runs.push_back(of_eta);
  }
  return sweep_curve(runs);
}

std::vector<double> rates(const char* text) {
  Faults faults;
  auto eta = parse_sweep(text, faults);
  REQUIRE(faults.empty());
  return eta;
}

}  // namespace

TEST_CASE("a sweep is spaced equally in log; text that is none is refused with an example") {
  const auto eta = rates("0.01:1:3");
  REQUIRE(eta.size() == 3);
  CHECK(eta[1] == doctest::Approx(0.1));
  for (const char* text : {"", "1", "1:2", "0:1:3", "2:1:3", "1:2:2", "1:2:3x", "1:2:3:4", "a:b:c", "1:inf:3"}) {
    CAPTURE(text);
    Faults faults;
    CHECK(parse_sweep(text, faults).empty());
    REQUIRE(faults.list().size() == 1);
    CHECK(faults.list()[0].find("0.03:3:9") != std::string::npos);
  }
}

TEST_CASE("criteria by hand: last tenth, end, test") {
  const std::vector<int> steps = {0, 5, 10, 18, 19, 20};
  const std::vector<double> loss = {9, 8, 7, 6, 5, 1};
  CHECK(criterion_value(SweepCriterion::tail, 20, steps, loss, {}, {}) == 3);  // t = 19, 20
  CHECK(criterion_value(SweepCriterion::final, 20, steps, loss, {}, {}) == 1);
  CHECK(criterion_value(SweepCriterion::test, 20, steps, loss, {}, {3, 2}) == 2);
  std::vector<double> batches(20, 4.0);
  batches[18] = 2, batches[19] = 1;
  CHECK(criterion_value(SweepCriterion::tail, 20, steps, loss, batches, {}) == 1.5);
  CHECK(criterion_value(SweepCriterion::final, 20, steps, {1, NAN}, {}, {}) == infinity);
}

TEST_CASE("sweep of exact parabolas: optima, drift and lost losses by hand") {
  LrSweep s;
  s.eta = rates("0.1:10:9");
  s.widths = {64, 256};
  s.networks = {parabola(s.eta, 2, 0, 0, 1), parabola(s.eta, 1, 0, 0, 2)};
  s.limit = parabola(s.eta, 0.8, 0, 0, 3);
  analyse(s, 50);
  CHECK(s.optimum[0].eta.value == doctest::Approx(2));
  CHECK(s.optimum[1].eta.value == doctest::Approx(1));
  CHECK(s.limit_optimum.eta.value == doctest::Approx(0.8));
  CHECK(s.limit_optimum.loss.value == doctest::Approx(1));
  CHECK(s.optimum[0].eta.high - s.optimum[0].eta.low < 1e-9);
  CHECK(s.drift[0].value == doctest::Approx(std::log2(2.5)));
  CHECK(s.lost_largest[0].value == doctest::Approx(std::pow(std::log(2.0), 2)));
  CHECK(s.lost_largest[1].value == doctest::Approx(0));
  CHECK(s.lost_limit[0].value == doctest::Approx(std::pow(std::log(2.5), 2)));
  CHECK_FALSE(s.limit_optimum.at_edge);
}

TEST_CASE("noise that a run has at every learning rate moves no optimum; its own does, within the interval") {
  const auto eta = rates("0.1:10:9");
  const auto width_of = [&](double common, double own, std::uint32_t stream) {
    LrSweep s;
    s.eta = eta;
    s.widths = {64};
    s.networks = {parabola(eta, 1, common, own, stream)};
    s.limit = parabola(eta, 1, 0, 0, 3);
    analyse(s, 500);
    CHECK(std::abs(std::log(s.optimum[0].eta.value)) < 4 * own + 1e-9);
    return std::log(s.optimum[0].eta.high / s.optimum[0].eta.low) / 2;
  };
  CHECK(width_of(0.5, 0, 5) < 1e-9);
  // Vertex h/2 (l - r)/(l + r) with l + r = 2 h^2: errors of the mean own/sqrt(8) on three points give own/sqrt(8) sqrt(2)/(4 h).
  const double h = std::log(100.0) / 8, expected = 0.02 / std::sqrt(8.0) * std::sqrt(2.0) / (4 * h);
  // An error from 8 runs is known to a quarter; the average of 24 of them to a twentieth, and quantiles of 500 draws to less.
  double seen = 0;
  for (std::uint32_t stream = 5; stream < 29; ++stream) seen += width_of(0.5, 0.02, stream) / 24;
  CHECK(seen == doctest::Approx(expected).epsilon(0.2).scale(0));
}

TEST_CASE(
    "resampled means scatter as means of runs do, by hand for two runs; sizes and the limit are resampled by "
    "themselves") {
  // Of two runs 1 -+ d the means of a draw are 1 - d, 1, 1, 1 + d with equal weights; their variance d^2/2 is half of that of a mean, d^2.
  LrSweep s;
  s.eta = rates("0.1:10:9");
  s.widths = {64};
  std::vector<std::vector<double>> runs;
  for (const double eta : s.eta) {
    const double x = std::log(eta);
    runs.push_back({1 + x * x - 0.1, 1 + x * x + 0.1});
  }
  s.networks = {sweep_curve(runs)};
  s.limit = s.networks[0];
  analyse(s, 500);
  CHECK(s.optimum[0].loss.low == doctest::Approx(1 - 0.1 * std::sqrt(2.0)));
  CHECK(s.optimum[0].loss.high == doctest::Approx(1 + 0.1 * std::sqrt(2.0)));
  // The same curve twice: its optimum moves by itself in each.
  s.networks = {parabola(s.eta, 1, 0, 0.05, 5)};
  s.limit = s.networks[0];
  analyse(s, 500);
  CHECK(s.drift[0].value == 0);
  CHECK(s.drift[0].high - s.drift[0].low > 0.5 * std::log2(s.optimum[0].eta.high / s.optimum[0].eta.low));
}

TEST_CASE("intervals of a sweep hold the measured value, also of a cost near zero, to which noise only adds") {
  LrSweep s;
  s.eta = rates("0.1:10:9");
  s.widths = {64, 256};
  s.networks = {parabola(s.eta, 1, 0, 0.3, 1), parabola(s.eta, 1, 0, 0.02, 2)};
  s.limit = parabola(s.eta, 1, 0, 0, 3);
  analyse(s, 300);
  // Carried to the limit the optimum of N = 64 costs its squared distance to 1.
  const double cost = std::pow(std::log(s.optimum[0].eta.value), 2);
  CHECK(s.lost_limit[0].value == doctest::Approx(cost));
  for (const auto* intervals : {&s.drift, &s.lost_largest, &s.lost_limit})
    for (const Interval& i : *intervals) {
      CHECK(i.low <= i.value);
      CHECK(i.value <= i.high);
    }
  // With the limit's optimum where N = 64 has its own, the cost is zero and every resampling finds more.
  s.limit = parabola(s.eta, s.optimum[0].eta.value, 0, 0, 3);
  analyse(s, 300);
  CHECK(std::abs(s.lost_limit[0].value) < 1e-12);
  CHECK(s.lost_limit[0].low <= s.lost_limit[0].value);
  CHECK(s.lost_limit[0].high > 1e-5);
  const std::string report = lr_sweep_report(s);
  for (const char* part :
       {"lost at N = 256", "lost in the limit", "Tuned at N = 64, the limit loses", "of its best loss"})
    CHECK_MESSAGE(report.find(part) != std::string::npos, part);
  CHECK(report.find("Widen the sweep") == std::string::npos);
}

TEST_CASE(
    "between rates losses are one smooth curve, by hand; optimum and costs are read off it, and no cost is negative") {
  const auto sweep = [](const char* text, std::vector<std::vector<double>> networks, std::vector<double> limit) {
    LrSweep s;
    s.eta = rates(text);
    const auto curve = [](const std::vector<double>& losses) {
      std::vector<std::vector<double>> runs;
      for (const double loss : losses) runs.push_back({loss, loss});
      return sweep_curve(std::move(runs));
    };
    for (const auto& losses : networks) {
      s.widths.push_back(64 << s.widths.size());
      s.networks.push_back(curve(losses));
    }
    s.limit = curve(limit);
    analyse(s, 10);
    return s;
  };
  // Rates 1, 2, 4, 8. Losses 3 1 1 3: the parabolas through 3 1 1 and 1 1 3 have second difference 2 and are 1 - 1/4 at the middle.
  // Losses 3 1 1 7: second differences 2 and 6, mixed (1 - s) 2 + s 6, so the curve is 1 + (1 + 2 s) s (s - 1), lowest where
  // 6 s^2 - 2 s - 1 = 0: s = (1 + sqrt(7)) / 6. At the middle it is 1 + 2 (-1/4) = 1/2.
  const LrSweep s = sweep("1:8:4", {{3, 1, 1, 3}}, {3, 1, 1, 7});
  CHECK(s.optimum[0].eta.value == doctest::Approx(std::pow(2, 1.5)));
  CHECK(s.optimum[0].loss.value == doctest::Approx(0.75));
  const double at = (1 + std::sqrt(7.0)) / 6, lowest = 1 + (1 + 2 * at) * at * (at - 1);
  CHECK(s.limit_optimum.eta.value == doctest::Approx(std::pow(2, 1 + at)));
  CHECK(s.limit_optimum.loss.value == doctest::Approx(lowest));
  CHECK(s.lost_limit[0].value == doctest::Approx(0.5 - lowest));
  // Two rates beside divergence: a straight line, whose lowest point is its end.
  const LrSweep few = sweep("1:8:4", {{5, 2, infinity, infinity}}, {1, 2, 3, 4});
  CHECK(few.optimum[0].eta.value == doctest::Approx(2));
  CHECK(few.optimum[0].at_edge);
  CHECK(few.lost_limit[0].value == doctest::Approx(1));
  // An optimum beside a rate at which the limit diverges costs everything.
  CHECK(std::isinf(sweep("1:8:4", {{3, 1, 1, 3}}, {1, 2, infinity, infinity}).lost_limit[0].value));
  // Ragged losses; a cost is the difference of two values of a cubic, of some ten operations each.
  for (std::uint32_t stream = 0; stream < 200; ++stream) {
    double largest = 0;
    std::vector<std::vector<double>> curves(3);
    for (std::uint32_t k = 0; k < 3; ++k)
      for (std::uint64_t e = 0; e < 7; ++e) {
        double z[2];
        normal_pair(StreamKey{3, k, stream, 0}, e, z);
        curves[k].push_back(std::exp(z[0]));
        largest = std::max(largest, curves[k].back());
      }
    const LrSweep ragged = sweep("0.1:10:7", {curves[0], curves[1]}, curves[2]);
    for (const auto* lost : {&ragged.lost_largest, &ragged.lost_limit})
      for (const Interval& i : *lost) CHECK(i.low >= -20 * std::numeric_limits<double>::epsilon() * largest);
  }
}

TEST_CASE("runs that diverge count as infinite losses; an optimum beside them is marked as at the edge") {
  LrSweep s;
  s.eta = rates("0.1:10:5");
  s.widths = {64};
  SweepCurve curve = parabola(s.eta, 20, 0, 0.01, 1);  // falls all the way
  curve.runs[4][3] = infinity;
  s.networks = {sweep_curve(curve.runs)};
  s.limit = parabola(s.eta, 1, 0, 0.01, 3);
  analyse(s, 100);
  CHECK(s.networks[0].diverged == std::vector<int>{0, 0, 0, 0, 1});
  CHECK(std::isinf(s.networks[0].mean[4]));
  CHECK(s.optimum[0].at_edge);
  CHECK(s.optimum[0].eta.value == doctest::Approx(s.eta[3]));
  CHECK(std::isfinite(s.lost_limit[0].value));
  CHECK_FALSE(s.limit_optimum.at_edge);
  CHECK(lr_sweep_report(s).find("Widen the sweep") != std::string::npos);
}
