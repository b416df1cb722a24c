// Errors and bounds of a comparison of networks with their limit against numbers worked out by hand, from curves made up for it
// (docs/validation.md).
#include "validation/comparison.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "validation/evidence.hpp"
#include "validation/observable_comparison.hpp"

using namespace moe;
using Eigen::MatrixXd;

namespace {

constexpr int N_1 = 64, N_2 = 128, S = 256;
constexpr double R = 5;  // replicas

/// Two widths whose means lie on 1.5 at N_1 and 1.25 at N_2, so that nothing but the order beyond is open at infinity; the same values
/// for every seed but for `scatter` up and down. Two steps.
Evidence evidence(const std::string& regime, const std::string& name, double limit, double sem, double scatter = 0) {
  Evidence e;
  e.spec.model.regime = regime;
  e.spec.optimizer.name = OptimizerKind::sgd;
  e.steps[name] = {0, 1};
  const bool squared = name.starts_with("rms_");
  for (const auto& [N, mean] : {std::pair{N_1, 1.5}, std::pair{N_2, 1.25}}) {
    NetworkSamples n;
    n.shape.N = N;
    MatrixXd values = MatrixXd::Constant(4, 2, squared ? std::sqrt(mean) : mean);
    values.topRows(2).array() += scatter;
    values.bottomRows(2).array() -= scatter;
    n.curves[name] = values;
    e.networks.push_back(n);
  }
  e.limit.curves[name] = {{limit, limit}, {sem, sem}};
  e.limit.replicas = static_cast<int>(R), e.limit.neurons = S;
  return e;
}

ObservableComparison compared(const Evidence& e, bool squared) {
  return compare_observable(e, {squared ? "rms_y" : "loss", "", squared});
}

/// What the next order leaves open at infinity: half of c_1 = 1/2 (tests/identity/extrapolation.cpp).
constexpr double open = 0.25;

}  // namespace

TEST_CASE("comparison: errors of a loss by hand, with the bias that is granted in each regime") {
  constexpr double m = 0.8, s = 0.01;
  for (const auto& [regime, lists_hold, share] : {std::tuple{"I", true, 5.0}, std::tuple{"II", false, 5.0},
                                                  std::tuple{"III", true, 10.0}, std::tuple{"III", false, 15.0}}) {
    Evidence e = evidence(regime, "loss", m, s);
    e.limit.lists_hold = lists_hold;
    const ObservableComparison c = compared(e, false);
    const double bias = share / S * (m + 0.1 * m);
    INFO("regime ", std::string(regime), ", lists hold: ", lists_hold);
    CHECK(c.limit_corrected[1] == m);
    CHECK(c.limit_corrected_error[1] == doctest::Approx(std::hypot(s, bias)).epsilon(1e-9));
    CHECK(c.error[1] == doctest::Approx(std::hypot(s, bias, open)).epsilon(1e-4));
    CHECK(c.z[1] == doctest::Approx((1 - m) / c.error[1]).epsilon(1e-4));
  }
}

TEST_CASE("comparison: a root mean square is compared as its square, with the errors of that by hand") {
  constexpr double m = 0.9, s = 0.2;
  const ObservableComparison c = compared(evidence("I", "rms_y", m, s), true);
  // Mean of squares over R replicas, and the error of it for normal ones.
  const double square = m * m + (R - 1) * s * s, error2 = 4 * m * m * s * s + 2 * R * std::pow(s, 4);
  const double bias = 5.0 / S * 2 * (square + 0.1 * square);
  CHECK(c.limit_corrected[1] == doctest::Approx(std::sqrt(square)).epsilon(1e-12));
  const double noise = 1e-5 * 1.5;  // rounding of the largest square; that of the sum it is a term of is nothing beside
  CHECK(c.error[1] == doctest::Approx(std::sqrt(error2 + bias * bias + open * open + noise * noise)).epsilon(1e-4));
}

TEST_CASE("comparison: a limit drawn plainly is granted the bias that networks of N = S have, twice") {
  Evidence e = evidence("I", "loss", 0.8, 0);
  e.limit.matching = false;
  // c_1 = 1/2 at N_1 is 1/8 at S.
  CHECK(compared(e, false).limit_corrected_error[1] == doctest::Approx(2 * 0.5 * N_1 / S).epsilon(1e-4));
}

TEST_CASE("comparison: what bases leave out of y_propagating under mini-batches is granted, and no more") {
  Evidence e = evidence("I", "rms_y_propagating", 1, 0);
  e.steps["rms_y"] = {0, 1};
  e.limit.curves["rms_y"] = {{3, 3}, {0, 0}};
  const auto error2 = [&](int batch, Form form) {
    e.spec.training.batch = batch;
    e.spec.sampling.form = form;
    e.spec.sampling.tolerance = 0.2;
    return std::pow(compare_observable(e, {"rms_y_propagating", "", true}).error[1], 2);
  };
  const double none = error2(0, Form::bases);
  CHECK(error2(4, Form::dense) == none);
  CHECK(error2(4, Form::bases) - none == doctest::Approx(std::pow(0.2 * 0.2 * 9, 2)).epsilon(1e-9));
}

TEST_CASE("comparison: variances over seeds and over replicas, the errors of their logarithms by hand") {
  Evidence e = evidence("I", "loss", 1.25, 0.02, 0.1);
  e.limit.random_limit = true;
  e.limit.matching = false;
  e.limit.neurons = N_2;  // at a width that is there
  const ObservableComparison c = compared(e, false);
  CHECK(c.limit_variance[1] == doctest::Approx(R * 0.02 * 0.02));
  // Four values of two kinds: variance 0.01 * 4/3, excess kurtosis -2, which counts as -1.
  const double of_seeds = 2.0 / 3 - 1.0 / 4, of_replicas = 2 / (R - 1) - 1 / R;
  CHECK(c.variance(1, 1) == doctest::Approx(0.01 * 4 / 3));
  CHECK(c.variance_z[1] ==
        doctest::Approx(std::log(0.01 * 4 / 3 / (R * 0.02 * 0.02)) / std::sqrt(of_seeds + of_replicas)).epsilon(1e-9));
}

TEST_CASE(
    "comparison: what would have been seen is told by steps after the first, and too little of it is no agreement") {
  ObservableComparison c;
  c.name = "loss", c.steps = {0, 1}, c.size = 2;
  c.z = {0, 0.5}, c.degrees = {HUGE_VAL, HUGE_VAL}, c.error = {10, 0.01};
  c.limit = c.limit_corrected = c.limit_corrected_error = c.extrapolated = c.extrapolated_error = {1, 1};
  judge(c, 0.01, false, S);
  CHECK(c.verdict == Verdict::agrees);
  CHECK(c.worst_step == 1);
  CHECK(c.resolution == doctest::Approx(2.5758 * 0.01 / 2).epsilon(1e-4));  // the normal distribution's two-sided 1 %
  c.worst_share = c.worst_z = 0;
  c.error = {0.01, 0.3};
  judge(c, 0.01, false, S);
  CHECK(c.verdict == Verdict::undecided);
}

TEST_CASE(
    "comparison: the level is shared by all that is judged, and errors too large to tell of the loss, or of most, "
    "decide nothing") {
  const auto of = [](std::vector<std::pair<std::string, double>> relative_errors, bool random = false) {
    Evidence e;
    for (const int N : {N_1, N_2}) {
      NetworkSamples n;
      n.shape.N = N;
      for (const auto& [name, unused] : relative_errors)
        n.curves[name] = (MatrixXd(3, 3) << 0.999, 1, 1.001, 1, 1.001, 0.999, 1.001, 0.999, 1).finished();
      e.networks.push_back(n);
    }
    for (const auto& [name, error] : relative_errors) {
      e.steps[name] = {0, 1, 2};
      e.limit.curves[name] = {{1, 1, 1}, {error, error, error}};
    }
    e.limit.replicas = 40, e.limit.neurons = 100000, e.limit.random_limit = random;
    return compare(e);
  };
  CHECK(of({{"loss", 1e-3}, {"batch_loss", 1e-3}}).comparisons == 6);
  CHECK(of({{"loss", 1e-3}, {"batch_loss", 1e-3}, {"accuracy", 1e-3}}).comparisons == 6);
  CHECK(of({{"loss", 1e-3}}, true).comparisons == 6);
  const Comparison three = of({{"loss", 1e-3}, {"test_loss", 1e-3}, {"batch_loss", 1e-3}});
  CHECK(three.overall == Overall::positive);
  for (const ObservableComparison& o :
       three.observables)  // nine of them, in which Student's t has four degrees at the least
    CHECK(o.bound[1] > 3.2);
  CHECK(of({{"loss", 1e-3}, {"test_loss", 1e-3}, {"batch_loss", 1}}).overall == Overall::positive);
  CHECK(of({{"loss", 1e-3}, {"test_loss", 1}, {"batch_loss", 1}}).overall == Overall::undecided);
  CHECK(of({{"loss", 1}, {"test_loss", 1e-3}, {"batch_loss", 1e-3}}).overall == Overall::undecided);
}
