// Kernels of the GPU backend on the GPU; without one the cases say so and pass.
#include "support/gpu.hpp"

#define MOE_DEVICE_NAME "GPU kernels on the device"
static void on_device(void (*check)());

#include "tests/backend/gpu_network_operations.hpp"
#include "tests/backend/gpu_operations.hpp"

static void on_device(void (*check)()) {
  if (const moe::gpu::Device card = moe::gpu::device(); card.present)
    check();
  else
    MESSAGE("skipped: ", card.why_not);
}

const char* vectors_of_other_files();  // gpu_solve.cpp

// Else the linker, which keeps one copy of each of Eigen's functions, may keep a slow one with other roundings.
TEST_CASE("GPU code for the host: Eigen uses the vectors there that it uses in other files") {
  CHECK(std::string(Eigen::SimdInstructionSetsInUse()) == vectors_of_other_files());
}
