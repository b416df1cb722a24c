#include "validation/trainer_run_template.hpp"

namespace moe::trainer {

template NetworkRun train<double>(const RunSpec&, const Dataset&, const NetworkShape&, NetworkWeights, std::uint64_t,
                                  const TrainOptions&, const Team&);

}  // namespace moe::trainer
