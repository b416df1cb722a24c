/// How the networks of a sweep are shared out over ranks (support/ranks.hpp).
#pragma once

#include <cstddef>
#include <vector>

#include "support/run_spec.hpp"

namespace moe {

/// What listeners of TrainOptions throw to end a training: train_networks then throws it on every rank.
struct TrainingInterrupted {};

/// One network: places in network.widths and among the seeds.
struct NetworkJob {
  std::size_t width, seed;
};

/// All networks, the widest first, so that nobody is left alone with one at the end. Job k is of rank Ranks::owner(k).
std::vector<NetworkJob> network_jobs(const RunSpec& spec);

/// This rank's, in that order.
std::vector<NetworkJob> own_network_jobs(const RunSpec& spec);

}  // namespace moe
