#include "support/error.hpp"
#include "support/gpu.hpp"
#include "validation/trainer_run.hpp"

namespace moe::trainer {

// NOLINTNEXTLINE(performance-unnecessary-value-param): as where there is a GPU
NetworkRun train_on_gpu(const RunSpec&, const Dataset&, const NetworkShape&, NetworkWeights, std::uint64_t,
                        const TrainOptions&, const Team&) {
  throw BackendError("--device cuda: " + gpu::device().why_not);
}

}  // namespace moe::trainer
