#include "validation/trainer_pairs.hpp"
#include "validation/trainer_products.hpp"
#include "validation/trainer_run_template.hpp"

namespace moe::trainer {

template <>
NetworkRun train<double>(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights start,
                         std::uint64_t seed, const TrainOptions& options, const Team& team) {
  return Run<Cpu<double>>(spec, data, shape, std::move(start), seed, options)(team);
}

}  // namespace moe::trainer
