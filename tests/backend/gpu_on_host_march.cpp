// The time step of the GPU backend, its kernels run on the host.
#include "tests/backend/gpu_on_host.hpp"

#define MOE_DEVICE_NAME "GPU time step on the host"
static const auto on_device = gpu_on_host::in_both_orders;

#include "tests/backend/gpu_march.hpp"
