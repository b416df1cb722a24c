// Kernels of the GPU backend, run on the host thread by thread, in two orders: an index that is off or a meeting that is missing shows
// on machines without a GPU.
#include "tests/backend/gpu_on_host.hpp"

#define MOE_DEVICE_NAME "GPU kernels on the host, thread by thread"
static const auto on_device = gpu_on_host::in_both_orders;

#include "tests/backend/gpu_operations.hpp"

TEST_CASE("GPU kernels on the host, thread by thread: the host does not wait for small matrices on their way up") {
  for (const auto& [rows, cols] : {std::pair<moe::Index, moe::Index>{16, 16}, {7, 250}, {0, 3}, {64, 64}}) {
    const Eigen::MatrixXd m = gpu_operations::values(rows, cols);
    auto wide = moe::Cuda<double>::Matrix(rows + 2, cols);
    const std::size_t before = gpu_on_host::host_waits();
    moe::Cuda<double>::upload(m, wide.view().row_range(1, rows));
    CHECK((gpu_on_host::host_waits() == before) == (rows * cols <= 2048));
    CHECK(moe::Cuda<double>::download(wide).middleRows(1, rows) == m);
  }
}
