/// How much memory training a network will need, before it starts.
#pragma once

#include "data/dataset.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Peak bytes of training one network of width N, counted in double arithmetic: no configuration overflows it.
double network_bytes(const RunSpec& spec, const Dataset& data, int width);

/// Throws ConfigError when the networks that train at once (the widest ones, one a thread; 0 threads: all cores) need
/// more than the machine has: with the largest array, what there is, and what reduces it.
void require_network_memory(const RunSpec& spec, const Dataset& data, int threads);

}  // namespace moe
