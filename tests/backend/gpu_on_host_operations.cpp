// Kernels of the GPU backend, run on the host thread by thread, in two orders: an index that is off or a meeting that is missing shows
// on machines without a GPU.
#include "tests/backend/gpu_on_host.hpp"

#define MOE_DEVICE_NAME "GPU kernels on the host, thread by thread"
static const auto on_device = gpu_on_host::in_both_orders;

#include "tests/backend/gpu_operations.hpp"
