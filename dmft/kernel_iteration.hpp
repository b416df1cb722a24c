/// Kernel iteration (theory section 6): correlations and responses are the unknowns, sites are sampled given them, and estimate them
/// anew, until the change is Monte Carlo noise.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dmft/iteration_report.hpp"
#include "dmft/site_sampling.hpp"
#include "dmft/solve.hpp"
#include "support/resources.hpp"

namespace moe {

struct IterationOptions {
  BatchCounts batch{2048, 512, 0};  ///< sites of one batch; explicit experts and hidden units stay the network's
  int batches = 1;   ///< per iteration and replica, each with a random stream of its own, added in their order
  int samplers = 0;  ///< batches that are sampled at once, as memory allows; 0: as many as threads
  int replicas = 8;  ///< chains with random numbers and kernels of their own, for errors; at least 3
  int most =
      0;  ///< iterations of a draw after which a change above the noise is a failure; 0: 40 + 4 T, as causality lets errors pass
  Start start = Start::pass;  ///< of every draw: one pass through time (causal_pass)
  int passed = 0;             ///< batches of a replica that a pass holds at once, as memory allows; 0: all
  int holders = 0;            ///< replicas in a pass at once, as memory allows; 0: as many as threads
  int window =
      0;  ///< from zero: steps by which the horizon grows, at the floor or after two iterations for each; 0: all at once
  double damping = 0;        ///< of kernels and paths, from zero
  int anderson = 0;          ///< past iterates, from zero; kernels only
  std::string scratch = {};  ///< folder of a file in which kernels are, and what fields are made of; empty: in memory
  int draws = 1;             ///< sets of random numbers, one after the other, that each replica averages over
  int threads = 0;           ///< 0: all cores
  SiteBackend sites = {};    ///< where sites are sampled; nothing: on the CPU, in the run's precision
  std::function<void(int iteration, double loss)> on_iteration;  ///< loss of the last step, mean over replicas
  std::function<void(int iterations)> on_resume;                 ///< a checkpoint knows these iterations
  Checkpoints* checkpoints = nullptr;            ///< of one job: replicas wait for each other in every iteration
  const std::atomic<bool>* interrupt = nullptr;  ///< set to end the batches that are being sampled, which are lost
};

struct IterationResult {
  SampleCounts counts;  ///< of a batch
  /// [step] of f, averaged over draws and replicas, jackknife errors over replicas; of a random limit mean over replicas of their own.
  Curve loss;
  Curve batch_loss;   ///< [step < T] the same of the step's own mini-batch; empty under full batches
  Eigen::MatrixXd f;  ///< (C, n), the average
  std::vector<Eigen::MatrixXd> f_per_replica;
  std::vector<std::vector<double>> batch_loss_per_replica;
  std::vector<Eigen::MatrixXd> fields;  ///< [replica], BatchMeans::fields, mean over draws
  KernelSet kernels;                    ///< mean over draws and replicas
  SitePaths paths;                      ///< of the first replica's last iteration
  IterationReport report;
  bool interrupted = false;  ///< fewer draws than asked for, or no residuals
};

/// There is no draw yet whose kernels came to rest.
struct IterationInterrupted : Error {
  using Error::Error;
};

/// Faults for what kernel iteration does not solve.
void refuse_unsolved(const RunSpec& spec, const LimitSpec& limit, Faults& faults);

/// IterationOptions::most of a run: sampling.iterations, or 40 + 4 T.
int most_iterations(const RunSpec& spec);

/// Batches of all replicas are sampled side by side; results do not depend on how many, nor on threads.
/// Iterates from one pass through time (causal_pass) or from zero kernels with random numbers that stay the same until the change of every
/// replica's loss, at each step, and of every kernel is a tenth of their scatter over replicas: the Monte Carlo floor. With fresh numbers in
/// every iteration the noise of kernels never meets the fields that it would have caused, and grows along time. Where a pass does not hold
/// all batches of a replica, every other iteration is a pass again, with what the last one has shown of the others. From zero, the next draw
/// starts from the kernels of the last.
/// A checkpoint holds all batches that were sampled, of the iteration under way too. Throws ConfigError; NumericsError with step and kernel of
/// what is not finite or grows without end, or if the floor is not reached; IterationInterrupted.
IterationResult iterate_kernels(const RunSpec& spec, const Dataset& data, const IterationOptions& options);

/// Queries of one step: all samples ask at every step, those of other mini-batches too.
StepShape iteration_step(const RunSpec& spec, const Dataset& data);

/// Bytes: kernels of all replicas and the arrays of the batches that are sampled at once, some of them on a GPU if there they are sampled.
struct IterationMemory {
  double kernels = 0, sampling = 0;  ///< kernels in a file are not among them
  double card = 0;                   ///< beside these, on the GPU
  int passed = 0;    ///< batches of a replica in a pass; 0: not asked for or none fits, and iterations start from zero
  int holders = 0;   ///< replicas in a pass at once
  int samplers = 1;  ///< batches at once: one per thread, fewer where memory is short
  double sites = 0;  ///< neurons, experts and their hidden units in an iteration, all replicas
  double checkpoint = 0;  ///< on disk, at most
  double scratch = 0;     ///< on disk, of kernels in a file, roots and memories; 0: all are in memory
  int arrays = 0;         ///< kernels of (T P)^2 entries in each replica
  double queries = 0;     ///< T P
  double total() const { return kernels + sampling; }
};
/// Kernels are on disk where memory does not hold them, or where it holds, without them, twice the batches in a pass. `card`: bytes of the
/// GPU that samples, if one does.
IterationMemory iteration_memory(const RunSpec& spec, const LimitSpec& limit, const StepShape& step, int threads,
                                 double available = available_memory().bytes, std::optional<double> card = {});

/// What the run says, with the sites of a batch that hold where it says nothing.
IterationOptions iteration_options(const RunSpec& spec, const LimitSpec& limit);

/// The solve of sampling.method = "iterate", with the curves that it has: test sets, and what is not in site_observables, are left out
/// with a warning.
LimitResult solve_by_iteration(const RunSpec& spec, const Dataset& data, const SolveOptions& solve);

}  // namespace moe
