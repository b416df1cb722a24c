#include "dmft/march_gpu.hpp"
#include "support/gpu.hpp"

namespace moe {

void march_on_gpu(const Plan&, int, const SolveOptions&, const std::atomic<bool>&, Record&) {
  throw BackendError("--device cuda: " + gpu::device().why_not);
}

}  // namespace moe
