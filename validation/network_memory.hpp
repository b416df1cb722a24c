/// How much memory training a network will need, before it starts.
#pragma once

#include "data/dataset.hpp"
#include "support/resources.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Peak bytes of training one network of width N, counted in double arithmetic: no configuration overflows it.
double network_bytes(const RunSpec& spec, const Dataset& data, int width);
/// Those in GPU memory when it is trained there.
double gpu_network_bytes(const RunSpec& spec, const Dataset& data, int width);

/// Throws ConfigError when the networks that train at once (the widest ones, one a thread; 0 threads: all cores) need
/// more than the machine has: with the largest array, what there is, and what reduces it.
void require_network_memory(const RunSpec& spec, const Dataset& data, int threads);

/// The same for networks that train on the GPU, of which the card must hold the widest, and the machine the weights of those at once.
void require_gpu_network_memory(const RunSpec& spec, const Dataset& data, int threads, const AvailableMemory& card);

/// On this device; automatic: the CPU.
void require_network_memory(const RunSpec& spec, const Dataset& data, int threads, Device device);

}  // namespace moe
