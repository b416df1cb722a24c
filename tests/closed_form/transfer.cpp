// What a transfer between sizes says, by hand: roles, drifts, the branch multiplier; and the steps at which runs record where nothing is said.
#include "regimes/transfer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "support/schedule.hpp"

using namespace moe;

namespace {

RunSpec run(const std::string& regime, const std::string& param) {
  RunSpec spec;
  spec.model.regime = regime;
  spec.model.param = param;
  spec.optimizer.name = OptimizerKind::adam;
  return spec;
}

constexpr Sizes base{.N = 256, .M = 16, .Ne = 64, .K = 4, .D = 1, .L = 3};
constexpr Sizes target{.N = 1024, .M = 64, .Ne = 256, .K = 16, .D = 1, .L = 12};

}  // namespace

TEST_CASE(
    "transfer: experts start equal where the table shares them, and what is dense has nothing to share [III mssp]") {
  const RunSpec spec = run("III", "mssp");
  for (const RoleMultipliers& role : role_multipliers(spec, load_parameterization(spec), base, target)) {
    CAPTURE(role.role);
    CHECK(role.shared == (role.role == "expert_up" || role.role == "expert_gate" || role.role == "expert_down"));
  }
}

TEST_CASE("transfer: BRANCH is the power of depth that the run has [alpha = 1/2, 1; four times as deep]") {
  for (const auto& [alpha, line] : {std::pair{0.5, "BRANCH = 0.5\n"}, std::pair{1.0, "BRANCH = 0.25\n"}}) {
    RunSpec spec = run("II", "mssp");
    spec.model.branch_exponent = alpha;
    const auto multipliers = role_multipliers(spec, load_parameterization(spec), base, target);
    CHECK(python_snippet(spec, multipliers, base, target).find(line) != std::string::npos);
  }
}

TEST_CASE(
    "transfer: a router whose std falls as 1/N loses the forward and keeps less of the backward gain [III jiang, by "
    "hand]") {
  const RunSpec spec = run("III", "jiang");
  const auto list = drifts(spec, load_parameterization(spec), base, target);
  const auto ratio = [&](const std::string& quantity) {
    const auto found = std::find_if(
        list.begin(), list.end(), [&](const Drift& d) { return d.tensor == Tensor::router && d.quantity == quantity; });
    return found == list.end() ? 1 : found->ratio;
  };
  CHECK(ratio("s_chi^2") == doctest::Approx(1.0 / 4));   // N Var Q = 1/N
  CHECK(ratio("s_beta^2") == doctest::Approx(1.0 / 4));  // N^2 Var Q / M = 1/M
}

TEST_CASE("steps at which nothing is said: evaluation, test and observation, with full and mini-batches") {
  RunSpec spec;
  TrainingSpec& t = spec.training;
  t.steps = 400;
  CHECK(eval_interval(t) == 1);
  CHECK(test_interval(t) == 20);
  CHECK(observe_interval(spec) == 1);
  t.batch = 8;
  CHECK(eval_interval(t) == 20);
  CHECK(test_interval(t) == 20);
  CHECK(observe_interval(spec) == 4);
  t.eval_every = 50;
  CHECK(test_interval(t) == 50);
  t.steps = 10, t.eval_every = 0;
  CHECK(eval_interval(t) == 1);
  CHECK(observe_interval(spec) == 1);
  CHECK(steps_every(4, 10) == std::vector<int>{0, 4, 8, 10});
}
