// Solves and trainings on the GPU against those on the CPU; without a GPU the cases say so and check the refusal.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "support/error.hpp"
#include "support/gpu.hpp"
#include "tests/backend/gpu_network_training.hpp"
#include "tests/limit_fixture.hpp"

namespace {

/// Without a GPU: says so, and checks that the solve is refused by name.
bool refused_without_gpu(const moe::RunSpec& spec, const moe::Dataset& data, const moe::SolveOptions& options) {
  const moe::gpu::Device card = moe::gpu::device();
  if (card.present) return false;
  MESSAGE("skipped: ", card.why_not);
  try {
    moe::solve_limit(spec, data, options);
    FAIL("solved without a GPU");
  } catch (const moe::ConfigError& error) {
    REQUIRE(error.faults.size() == 1);
    CHECK(error.faults[0].find("--device cuda: " + card.why_not) == 0);
  }
  return true;
}

/// The losses of both within `rounding` of what they begin with. False: there is no GPU, and it is refused.
bool check_on_gpu(const moe::RunSpec& spec, const moe::Dataset& data, double rounding) {
  moe::SolveOptions options;
  options.device = moe::Device::cuda;
  if (refused_without_gpu(spec, data, options)) return false;
  INFO("regime ", spec.model.regime, ", optimizer ", static_cast<int>(spec.optimizer.name));
  const moe::LimitResult gpu = moe::solve_limit(spec, data, options), cpu = moe::solve_limit(spec, data);
  REQUIRE(gpu.loss.mean.size() == cpu.loss.mean.size());
  for (std::size_t t = 0; t < cpu.loss.mean.size(); ++t) {
    INFO("t = ", t);
    CHECK(std::abs(gpu.loss.mean[t] - cpu.loss.mean[t]) <= rounding * (1 + cpu.loss.mean[0]));
  }
  return true;
}

}  // namespace

/// Of Eigen, for gpu_on_device.cu.
const char* vectors_of_other_files() { return Eigen::SimdInstructionSetsInUse(); }

TEST_CASE(
    "a solve on the GPU is the CPU's within rounding in float64, step by step; without a GPU it is refused by name") {
  const moe::Dataset data = limit_fixture::data(5, 6, 1);
  for (const char* regime : {"I", "II", "III"})
    for (const auto optimizer : {moe::OptimizerKind::sgd, moe::OptimizerKind::adam}) {
      moe::RunSpec spec = limit_fixture::spec(regime, "mssp", optimizer, 0.1, 20);
      spec.sampling.neurons = 200;
      // Twenty steps of sums over 200 sites, enlarged by what training does to a perturbation: a thousandfold at most here
      // (measured on the CPU by perturbed inputs, tests/backend/gpu_march.hpp).
      if (!check_on_gpu(spec, data, 1e3 * 200 * 2.3e-16)) return;
    }
}

TEST_CASE("kernel iteration on the GPU is the CPU's within rounding in float64; without a GPU it is refused by name") {
  const moe::Dataset data = limit_fixture::data(4, 6, 1);
  for (const char* regime : {"I", "II", "III"})
    for (const auto optimizer : {moe::OptimizerKind::sgd, moe::OptimizerKind::adam}) {
      moe::RunSpec spec = limit_fixture::spec(regime, "mssp", optimizer, 0.1, 6);
      spec.sampling.method = moe::Method::iterate;
      spec.sampling.neurons = 100, spec.sampling.experts = 30, spec.sampling.hidden = 12;
      spec.sampling.site_batches = 2;
      // Sums over 360 units and 28 queries in six steps, enlarged as in the sweep above.
      if (!check_on_gpu(spec, data, 1e3 * 400 * 2.3e-16)) return;
    }
}

TEST_CASE("networks on the GPU are the CPU's within rounding, step by step; without a GPU they are refused by name") {
  const gpu_network_training::Train train = [](const moe::RunSpec& spec, const moe::Dataset& data,
                                               moe::TrainOptions options) {
    options.device = moe::Device::cuda;
    return moe::train_network(spec, data, 16, spec.sampling.seed, options);
  };
  if (const moe::gpu::Device card = moe::gpu::device(); !card.present) {
    MESSAGE("skipped: ", card.why_not);
    const moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 1);
    try {
      train(spec, network_fixture::data(4, 3, 1), {});
      FAIL("trained without a GPU");
    } catch (const moe::ConfigError& error) {
      REQUIRE(error.faults.size() == 1);
      CHECK(error.faults[0].find("--device cuda: " + card.why_not) == 0);
    }
    return;
  }
  for (gpu_network_training::Case c : gpu_network_training::cases()) {
    gpu_network_training::check(c, train, 2.3e-16);
    if (c.spec.model.routing == moe::Routing::topk) continue;  // in float32 another expert may be chosen
    c.spec.sampling.precision = moe::Precision::float32;
    gpu_network_training::check(c, train, 1.2e-7);
  }
  gpu_network_training::check_failure(train);
}

TEST_CASE("TF32 on the GPU rounds factors to 10 bits: losses are those of float32 to three digits and not to six") {
  if (const moe::gpu::Device card = moe::gpu::device(); !card.present) {
    MESSAGE("skipped: ", card.why_not);
    return;
  }
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 20);
  spec.sampling.precision = moe::Precision::float32;
  const moe::Dataset data = network_fixture::data(64, 32, 3);
  moe::TrainOptions options;
  options.device = moe::Device::cuda;
  const auto exact = moe::train_network(spec, data, 128, 0, options).loss;
  spec.network.tf32 = true;
  const auto rounded = moe::train_network(spec, data, 128, 0, options).loss;
  REQUIRE(exact.size() == rounded.size());
  double farthest = 0;
  for (std::size_t t = 0; t < exact.size(); ++t) farthest = std::max(farthest, std::abs(exact[t] - rounded[t]));
  // Relative roundings of 2^-11 with random signs, of outputs of order one, enlarged by twenty steps.
  CHECK(farthest < 20 * 5e-4 * (1 + exact[0]));
  CHECK(farthest > 1e-6 * exact[0]);
}
