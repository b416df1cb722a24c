/// One training run: the loop over steps and what is recorded on the way. Instantiated once per precision and device
/// (trainer_float32.cpp, trainer_float64.cpp, trainer_gpu.cu), so that they compile side by side.
#pragma once

#include <algorithm>
#include <atomic>

#include "validation/network.hpp"

namespace moe::trainer {

/// Threads that a run may use: all of them over the runs that are still going, read anew at every step.
struct Team {
  int threads = 1;
  std::atomic<int> running = 1;
  int share() const { return std::max(1, threads / std::max(1, running.load())); }
};

/// Trains from `start` on the CPU. Results do not depend on the threads.
template <class Real>
NetworkRun train(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights start,
                 std::uint64_t seed, const TrainOptions& options, const Team& team);

/// The same on the GPU, in the run's precision. Throws BackendError in a build without CUDA.
NetworkRun train_on_gpu(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights start,
                        std::uint64_t seed, const TrainOptions& options, const Team& team);

}  // namespace moe::trainer
