/// How a kernel iteration went: part of a limit's result.
#pragma once

#include <string>
#include <vector>

#include "support/archive.hpp"

namespace moe {

/// Change of a replica from one iteration to the next, root mean square over replicas, in units of the scatter over replicas.
struct IterationChange {
  double loss = 0;     ///< largest over steps
  double kernels = 0;  ///< largest over kernels, of CausalMatrix::norm
  int largest = 0;     ///< which of kernel_names that is
  bool at_floor(double threshold) const { return loss <= threshold && kernels <= threshold; }
};

/// |F(k) - k| / |k| in CausalMatrix::norm, F one iteration with fresh random numbers, k a replica's kernel at rest; mean over replicas of
/// the difference.
struct KernelResidual {
  std::string name;
  double value = 0, noise = 0;  ///< noise: what the scatter over replicas lets one expect of sampling errors alone
};

struct IterationReport {
  std::vector<std::vector<double>> loss_by_iteration;  ///< [iteration][step], mean over replicas
  std::vector<IterationChange> changes;                ///< [iteration]; the first is from zero
  int floor_at = -1;                                   ///< iteration, from 1, at which the first draw is at its floor
  int draws = 0;                                       ///< sets of random numbers that came to their floors
  int passes_left_out = 0;                             ///< of a replica, which went astray with what others change
  std::vector<KernelResidual> residuals;               ///< made from fresh numbers at the end; empty after an interrupt
  void transfer(Archive& a) {
    a("loss_by_iteration", loss_by_iteration);
    std::vector<std::vector<double>> rows;
    for (const IterationChange& c : changes) rows.push_back({c.loss, c.kernels, static_cast<double>(c.largest)});
    a("changes", rows);
    changes.clear();
    for (const auto& row : rows) changes.push_back({row[0], row[1], static_cast<int>(row[2])});
    a("floor_at", floor_at);
    a("draws", draws);
    a("passes_left_out", passes_left_out);
  }
};

}  // namespace moe
