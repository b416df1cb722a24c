// Limits of small problems against an independent float64 implementation of the causal sweep (tests/data/limits, with its own
// standard errors and allowances for finite sample counts); stacks of blocks (T28) and Adafactor (T30) too.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "support/observable.hpp"
#include "tests/devices.hpp"
#include "tests/folders.hpp"

namespace {

/// Of a stack of blocks the reference holds the RMS over all blocks.
moe::Curve over_blocks(const moe::LimitResult& r, const std::string& name, int depth) {
  const auto parts = moe::recorded(name, depth);
  moe::Curve whole = r.observables.at(parts[0].key);
  if (parts.size() == 1) return whole;
  for (std::size_t t = 0; t < whole.mean.size(); ++t) {
    double mean2 = 0, sem2 = 0;
    for (const moe::Recorded& one : parts) {
      mean2 += std::pow(r.observables.at(one.key).mean[t], 2) / depth;
      sem2 += std::pow(r.observables.at(one.key).sem[t], 2) / depth;
    }
    whole.mean[t] = std::sqrt(mean2), whole.sem[t] = std::sqrt(sem2);
  }
  return whole;
}

struct Worst {
  double ratio = 0;
  std::size_t step = 0;
  void see(double deviation, double allowed, std::size_t t) {
    if (deviation / allowed > ratio) ratio = deviation / allowed, step = t;
  }
};

void compare(const std::string& name, int neurons, moe::Precision precision, moe::Device device) {
  const std::string stem = source_folder() + "/tests/data/limits/" + name;
  moe::RunSpec spec = moe::read_config(stem + ".toml");
  spec.sampling.replicas = 8;
  spec.sampling.seed = 1;
  spec.sampling.precision = precision;
  if (neurons > 0) spec.sampling.neurons = neurons;
  moe::SolveOptions options;
  options.device = device;
  const moe::LimitResult ours = moe::solve_limit(spec, moe::load_dataset(spec), options);
  REQUIRE_FALSE(ours.failure);
  const moe::H5Reader file(stem + ".h5");
  const auto loss = file.read("expected/loss").values, sem = file.read("expected/loss_sem").values;
  const double allowance = file.read("expected/allowance").values.at(0);
  REQUIRE(ours.loss.mean.size() == loss.size());
  Worst worst;
  for (std::size_t t = 0; t < loss.size(); ++t)
    worst.see(std::abs(ours.loss.mean[t] - loss[t]), 4 * std::hypot(sem[t], ours.loss.sem[t]) + allowance, t);
  INFO(name, ": loss at step ", worst.step, " is ", ours.loss.mean[worst.step], " +- ", ours.loss.sem[worst.step],
       ", reference ", loss[worst.step], " +- ", sem[worst.step]);
  CHECK(worst.ratio <= 1);
  // The allowance must not be the whole test: at its steepest the curve moves by more than ten times what is allowed.
  CHECK(loss.front() - loss.back() > 10 * (4 * std::hypot(sem[10], ours.loss.sem[10]) + allowance) * 0.5);

  int compared = 0;
  for (const auto& member : file.members("expected/observables")) {
    if (member.ends_with("_sem")) continue;
    const auto values = file.read("expected/observables/" + member).values,
               errors = file.read("expected/observables/" + member + "_sem").values;
    const moe::Curve curve = over_blocks(ours, member, spec.model.depth);
    // Terms of a sum are measured by the sum.
    const std::string whole = member.starts_with("rms_y_") ? "rms_y" : member;
    const auto scale = file.read("expected/observables/" + whole).values;
    const double largest = *std::max_element(scale.begin(), scale.end());
    Worst at;
    for (std::size_t t = 0; t < values.size(); ++t)
      at.see(std::abs(curve.mean[t] - values[t]),
             0.03 * scale[t] + 0.02 * largest + 4 * std::hypot(errors[t], curve.sem[t]), t);
    INFO(name, ": ", member, " at step ", at.step, " is ", curve.mean[at.step], ", reference ", values[at.step]);
    CHECK(at.ratio <= 1);
    ++compared;
  }
  CHECK(compared >= 10);
}
void compare(const std::string& name, int neurons, moe::Precision precision = moe::Precision::float32) {
  devices::on_each([&](moe::Device device) { compare(name, neurons, precision, device); });
}

}  // namespace

TEST_CASE("limit equals the independent reference [I mssp sgd soft]") { compare("I_mssp_sgd_soft", 0); }
TEST_CASE("limit equals the independent reference [II mssp sgd soft]") { compare("II_mssp_sgd_soft", 0); }
TEST_CASE("limit equals the independent reference [II mssp adam topk] [slow]") { compare("II_mssp_adam_topk", 0); }
TEST_CASE("limit equals the independent reference [III mssp sgd soft] [slow]") { compare("III_mssp_sgd_soft", 0); }
TEST_CASE("limit equals the independent reference [III mup sgd topk] [slow]") { compare("III_mup_sgd_topk", 0); }
TEST_CASE("limit equals the independent reference in float64 too [II mssp sgd soft] [slow]") {
  compare("II_mssp_sgd_soft", 0, moe::Precision::float64);
}
TEST_CASE("limit equals the independent reference [II mssp sgd, 3 blocks, norm]") { compare("deep_II_mssp_sgd_L3", 0); }
TEST_CASE("limit equals the independent reference [I mup sgd, 2 blocks, alpha = 1/2, softmax, temperature 1/2]") {
  compare("deep_I_mup_sgd_L2", 0);
}
TEST_CASE("limit equals the independent reference [II mssp adam topk, 2 blocks, alpha = 1/2, norm, no residual]") {
  compare("deep_II_mssp_adam_L2", 0);
}
TEST_CASE("limit equals the independent reference [III mup adam topk, 2 blocks, norm, temperature 2]") {
  compare("deep_III_mup_adam_topk_L2", 0);
}
TEST_CASE("limit equals the independent reference [III mssp adafactor topk, 2 blocks, norm, temperature 2] [slow]") {
  compare("adafactor_III_mssp_topk_L2", 0);
}
