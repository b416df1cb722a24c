// Kernel iteration from zero kernels against the independent float64 sweep of tests/data/limits (check (4) of theory section 10).
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "dmft/kernel_iteration.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "tests/folders.hpp"

namespace {

void compare(const std::string& name, int steps, const moe::BatchCounts& batch) {
  const std::string stem = source_folder() + "/tests/data/limits/" + name;
  moe::RunSpec spec = moe::read_config(stem + ".toml");
  spec.training.steps = steps;
  spec.sampling.seed = 1;
  moe::IterationOptions options;
  options.batch = batch;
  options.draws = 1;
  const moe::IterationResult ours = moe::iterate_kernels(spec, moe::load_dataset(spec), options);
  REQUIRE(ours.report.floor_at > 0);
  CHECK(ours.report.floor_at <= 12);
  const moe::H5Reader file(stem + ".h5");
  const auto loss = file.read("expected/loss").values, sem = file.read("expected/loss_sem").values;
  for (std::size_t t = 0; t < ours.loss.mean.size(); ++t) {
    const double allowed = 4 * std::hypot(sem[t], ours.loss.sem[t]) + 1e-4;
    INFO(name, ": loss at step ", t, " is ", ours.loss.mean[t], " +- ", ours.loss.sem[t], ", reference ", loss[t],
         " +- ", sem[t]);
    CHECK(std::abs(ours.loss.mean[t] - loss[t]) <= allowed);
    CHECK(allowed < 0.025 * loss[0]);
  }
  CHECK(ours.loss.mean.front() - ours.loss.mean.back() > 0.15 * loss[0]);
  for (const auto& residual : ours.report.residuals) {
    INFO(name, ": ", residual.name, " changes by ", residual.value, ", noise ", residual.noise);
    CHECK(residual.value <= 2.5 * residual.noise);
  }
}

}  // namespace

TEST_CASE("kernel iteration equals the independent reference [II mssp sgd soft]") {
  compare("II_mssp_sgd_soft", 5, {2000, 1000, 0});
}
TEST_CASE("kernel iteration equals the independent reference [I mssp sgd soft]") {
  compare("I_mssp_sgd_soft", 9, {2500, 0, 1250});
}
TEST_CASE("kernel iteration equals the independent reference [III mssp sgd soft, gelu, residual]") {
  compare("III_mssp_sgd_soft", 6, {2500, 64, 96});
}
