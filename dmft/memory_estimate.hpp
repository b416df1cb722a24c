/// How much memory a solve will need, before it starts. An upper estimate: bases are taken as large as the number of
/// queries and the change to the dense form let them grow, and every operator at its larger side of that change.
#pragma once

#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "dmft/limit_spec.hpp"
#include "support/resources.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Sizes of a solve beyond those in its LimitSpec.
struct SolveSizes {
  double D = 0, C = 0;
  double batch = 0;    ///< P, samples of one step
  double train = 0;    ///< samples of the whole set; evaluated in pieces where batch < train
  double test = 0;     ///< test samples
  double steps = 0;    ///< T
  double records = 0;  ///< evaluations of the whole set
  double kernels = 0;  ///< steps at which kernels are stored
  bool float64 = false;
  double replicas = 1, concurrent = 1;
};
SolveSizes solve_sizes(const RunSpec& spec, const Dataset& data, int threads);

/// Arrays of one kind in one replica.
struct MemoryItem {
  std::string name;  ///< "expert_in: pair arrays (value, two moments), 3 x 4096 x 1024"
  double bytes = 0;
};

struct MemoryEstimate {
  std::vector<MemoryItem> items;  ///< of one replica, largest first
  double per_replica = 0;         ///< bytes, peak
  double common = 0;              ///< data and records, bytes
  double concurrent = 1;          ///< replicas that run at once
  double total() const { return common + concurrent * per_replica; }
  double output = 0;  ///< bytes of the result file, about
};

/// In double arithmetic throughout: no configuration overflows it.
MemoryEstimate memory_estimate(const LimitSpec& limit, const SolveSizes& sizes);

/// Throws ConfigError with the largest array, what is needed, what there is, and what reduces it, when the estimate
/// exceeds what is available.
void require_memory(const MemoryEstimate& estimate, const RunSpec& spec, const LimitSpec& limit,
                    const AvailableMemory& available = available_memory());

/// The same for a run whose replicas are on the GPU and whose records are on the host. Lowers `estimate.concurrent` to as many replicas
/// as the card holds at once, one at least.
void require_gpu_memory(MemoryEstimate& estimate, const RunSpec& spec, const LimitSpec& limit,
                        const AvailableMemory& card);

}  // namespace moe
