/// Where a training run starts: the numbers of the parameterization at its sizes, and its initial weights.
#pragma once

#include <cstdint>

#include "regimes/regime.hpp"
#include "validation/network.hpp"

namespace moe {

/// std, lr, eps and prefactor of the network of these sizes. Throws ConfigError.
NetworkConstants constants_at(const RunSpec& spec, const NetworkShape& shape);

/// `initial` where it is given (std::invalid_argument if its sizes are others), else network.init_from, else random ones.
NetworkWeights start_weights(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                             const NetworkWeights* initial);

}  // namespace moe
