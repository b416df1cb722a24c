/// Which kernels an iteration goes on from: the last estimates, or a mixture with those before.
#pragma once

#include <utility>
#include <vector>

#include "dmft/kernel_set.hpp"

namespace moe {

/// Damping keeps a share d of the iterate k that an estimate F(k) was made from. Anderson acceleration takes the combination of the last
/// m + 1 iterates, sum_j a_j ((1 - d) F(k_j) + d k_j) with sum_j a_j = 1, whose change |sum_j a_j (F(k_j) - k_j)|^2 is least; all kernels
/// are one vector, each in units of its own norm. Both have the fixed points of F.
class KernelMixing {
 public:
  /// `empty`: a set without kernels, like those that will be mixed.
  KernelMixing(double damping, int memory, KernelSet empty)
      : damping_(damping), memory_(memory), empty_(std::move(empty)) {}

  bool active() const { return damping_ > 0 || memory_ > 0; }
  void mix(const KernelSet& iterate, KernelSet& estimate);
  /// Iterates of another map, or of another horizon, follow.
  void forget() { past_.clear(); }
  /// Kernel sets that it holds, of one chain.
  static int sets(int memory) { return memory > 0 ? 2 * (memory + 1) : 0; }

  void transfer(Archive& a);

 private:
  struct Past {
    KernelSet iterate, estimate;
  };
  double damping_;
  int memory_;
  KernelSet empty_;
  std::vector<Past> past_;  ///< oldest first
};

}  // namespace moe
