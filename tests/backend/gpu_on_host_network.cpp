// Networks that train on the GPU backend, its kernels run on the host.
#include "tests/backend/gpu_on_host.hpp"

#define MOE_DEVICE_NAME "GPU training on the host, thread by thread"
static const auto on_device = gpu_on_host::in_both_orders;

#include "tests/backend/gpu_network_operations.hpp"
#include "tests/backend/gpu_network_training.hpp"
#include "validation/network_memory.hpp"
#include "validation/trainer_pairs_gpu.hpp"
#include "validation/trainer_run_template.hpp"

namespace {

moe::NetworkRun train_at(int width, const moe::RunSpec& spec, const moe::Dataset& data,
                         const moe::TrainOptions& options) {
  const std::uint64_t seed = spec.sampling.seed;
  const moe::NetworkShape shape = moe::network_shape(spec, data, width);
  moe::NetworkWeights start = moe::start_weights(spec, data, width, seed, nullptr);
  return moe::trainer::Run<moe::Cuda<double>>(spec, data, shape, std::move(start), seed, options)(moe::trainer::Team{});
}
moe::NetworkRun train(const moe::RunSpec& spec, const moe::Dataset& data, const moe::TrainOptions& options) {
  return train_at(16, spec, data, options);
}

}  // namespace

TEST_CASE(
    "GPU training on the host, thread by thread: twenty steps and all that is observed are the CPU's within their "
    "rounding") {
  bool backwards = false;  // the two orders in turn: operations above are checked in both
  for (const auto& c : gpu_network_training::cases()) {
    gpu_on_host::take_turns(backwards ? gpu_on_host::Turns::last_to_first : gpu_on_host::Turns::first_to_last);
    backwards = !backwards;
    gpu_network_training::check(c, train, std::numeric_limits<double>::epsilon());
  }
}

TEST_CASE("GPU training on the host, thread by thread: a network that diverges ends where the CPU's does, by name") {
  gpu_network_training::check_failure(train);
}

TEST_CASE(
    "GPU training on the host, thread by thread: a step in which nothing is recorded waits once, for its outputs") {
  for (auto [name, spec, outputs] : gpu_network_training::cases()) {
    if (spec.training.dynamics == moe::Dynamics::flow) continue;  // of several stages
    INFO(name);
    const moe::Dataset data = network_fixture::data(12, 6, outputs);
    spec.training.batch = 0;
    spec.training.eval_every = spec.training.test_every = spec.output.observe_every = 1000;
    spec.output.observables = {"none"};
    spec.output.kernels_at.clear();
    spec.optimizer.lr *= 0.1;
    moe::TrainOptions options;
    options.keep = [](int, std::uint64_t, const moe::TrainOptions::State&) {};
    const auto waits = [&](int steps, int batch) {
      spec.training.steps = steps;
      spec.training.batch = batch;
      const std::size_t before = gpu_on_host::host_waits();
      REQUIRE(!train(spec, data, options).failure);
      return gpu_on_host::host_waits() - before;
    };
    CHECK(waits(25, 0) - waits(5, 0) == 20);
    CHECK(waits(25, 5) - waits(5, 5) == 20);
    CHECK(waits(125, 5) - waits(5, 5) == 120 + 1);  // and lists of samples once in 64 steps
  }
}

TEST_CASE("GPU training on the host, thread by thread: a network takes the memory that was estimated before, or less") {
  for (auto [name, spec, outputs] : gpu_network_training::cases())
    for (const bool observed : {true, false})
      for (const auto& [width, samples] : {std::pair{16, 200}, {96, 20}}) {
        if (!observed) spec.output.observables = {"none"};
        spec.training.steps = std::min(spec.training.steps, 2);
        spec.output.kernels_at.clear();
        if (spec.training.batch > 0) spec.training.batch = samples / 2;
        const moe::Dataset data = network_fixture::data(samples, 6, outputs);
        gpu_on_host::peak_bytes();
        REQUIRE(!train_at(width, spec, data, {}).failure);
        const auto taken = static_cast<double>(gpu_on_host::peak_bytes());
        INFO(name, ", observed ", observed, ", width ", width, ", samples ", samples);
        const double share = taken / (moe::gpu_network_bytes(spec, data, width) - moe::gpu::library_bytes);
        CHECK(share <= 1);
        CHECK(share > 0.3);
      }
}
