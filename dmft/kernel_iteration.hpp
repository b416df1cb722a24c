/// Kernel iteration (theory section 6): correlations and responses are the unknowns, sites are sampled given them, and estimate them
/// anew, until the change is Monte Carlo noise.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dmft/site_batch.hpp"
#include "dmft/solve.hpp"

namespace moe {

struct IterationOptions {
  BatchCounts batch{2048, 512, 0};  ///< sites of one batch; explicit experts and hidden units stay the network's
  int batches = 1;                  ///< per iteration and replica
  int replicas = 8;                 ///< chains with random numbers and kernels of their own, for errors; at least 3
  int most = 40;                    ///< iterations after which a change above the noise is a failure
  int averaged = 10;                ///< iterations after the floor that the results average over
  int threads = 0;                  ///< 0: all cores
  std::function<void(int iteration, const std::vector<double>& loss)>
      on_iteration;  ///< loss (steps), mean over replicas
};

/// Change from one iteration to the next, |mean over replicas|, in units of that mean's own standard error: about 1 at the floor.
struct IterationChange {
  double loss = 0;      ///< root mean square over steps of (mean change)/(its error), step by step
  double kernels = 0;   ///< largest over kernels, of Frobenius norms
  std::string largest;  ///< which kernel that is
  bool at_floor(double threshold) const { return loss <= threshold && kernels <= threshold; }
};

/// |F(k) - k| / |k| in Frobenius norms, F one iteration, k a kernel averaged over iterations after the floor and replicas.
struct KernelResidual {
  std::string name;
  double value = 0, noise = 0;  ///< noise: what the sampling error of both alone would give
};

struct IterationResult {
  Curve loss;                                          ///< [step], averages after the floor
  std::vector<Eigen::MatrixXd> f;                      ///< (C, P) per step
  std::vector<std::vector<double>> loss_per_replica;   ///< [replica][step]
  std::vector<std::vector<double>> loss_by_iteration;  ///< [iteration][step], mean over replicas
  std::vector<IterationChange> changes;                ///< [iteration]; the first is from zero
  int floor_at = -1;                                   ///< iteration whose change is noise; -1: none was
  std::vector<KernelResidual> residuals;
  KernelSet kernels;  ///< averages after the floor
};

/// Sentences that name what kernel iteration does not solve; empty: it solves this.
std::vector<std::string> iteration_faults(const RunSpec& spec);

/// Iterates from zero kernels. Throws ConfigError; NumericsError with step and kernel of what is not finite or grows without end.
IterationResult iterate_kernels(const RunSpec& spec, const Dataset& data, const IterationOptions& options);

}  // namespace moe
