#include "support/cuda.hpp"
#include "validation/trainer_pairs_gpu.hpp"
#include "validation/trainer_products_gpu.hpp"
#include "validation/trainer_run_template.hpp"

namespace moe::trainer {

NetworkRun train_on_gpu(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights start,
                        std::uint64_t seed, const TrainOptions& options, const Team& team) {
  const gpu::Tf32 products(spec.network.tf32);
  return spec.sampling.precision == Precision::float32
             ? Run<Cuda<float>>(spec, data, shape, std::move(start), seed, options)(team)
             : Run<Cuda<double>>(spec, data, shape, std::move(start), seed, options)(team);
}

}  // namespace moe::trainer
