/// The reference trainer: small, in double precision, on matrices over all experts, with formulas of its own. It is what the
/// fast trainer behind validation/network.hpp is judged by; nothing else calls it.
#pragma once

#include <cstdint>

#include "validation/network.hpp"

namespace moe {

/// As train_network, whatever sampling.precision says, on the calling thread.
NetworkRun train_reference_network(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                                   const TrainOptions& options = {});

}  // namespace moe
