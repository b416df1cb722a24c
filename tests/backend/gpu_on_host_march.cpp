// The time step of the GPU backend, its kernels run on the host.
#include "tests/backend/gpu_on_host.hpp"

#define MOE_DEVICE_NAME "GPU time step on the host, thread by thread"
static const auto on_device = gpu_on_host::in_both_orders;

#include "dmft/memory_estimate.hpp"
#include "tests/backend/gpu_march.hpp"

TEST_CASE(
    "GPU time step on the host, thread by thread: a replica takes the memory that was estimated before, or less") {
  for (const gpu_march::Case& c : gpu_march::cases) {
    moe::RunSpec spec = gpu_march::run_of(c);
    spec.training.steps = 5;
    spec.sampling.neurons = 96;
    spec.sampling.precision = moe::Precision::float64;
    const moe::Dataset data = limit_fixture::data(12, 6, c.loss == moe::Loss::mse ? 1 : 3);
    moe::Faults faults;
    std::vector<std::string> warnings;
    const moe::LimitSpec limit = moe::limit_spec(spec, moe::step_shape(spec, data), faults, warnings);
    faults.throw_if_any();
    const double estimated = moe::memory_estimate(limit, moe::solve_sizes(spec, data, 1)).per_replica;
    const moe::Plan plan{&spec,
                         &data,
                         limit,
                         moe::eval_steps(spec.training),
                         {},
                         moe::observe_steps(spec),
                         moe::kernel_steps(spec),
                         moe::selected_observables(spec)};
    moe::Record record;
    gpu_on_host::peak_bytes();
    moe::march<moe::Cuda<double>>(plan, 0, {}, false, record);
    const double share = static_cast<double>(gpu_on_host::peak_bytes()) / estimated;
    INFO(std::string(c.regime), " ", std::string(c.param), ", optimizer ", static_cast<int>(c.optimizer), ", depth ",
         c.depth);
    CHECK(share <= 1);
    CHECK(share > 0.2);
  }
}
