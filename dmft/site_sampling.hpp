/// What kernel iteration (theory section 6) asks of the sampling of sites, and gets: problem, batches, means, and backends.
#pragma once

#include <Eigen/Core>
#include <array>
#include <atomic>
#include <memory>
#include <string_view>
#include <vector>

#include "dmft/kernel_set.hpp"
#include "dmft/limit_spec.hpp"

namespace moe {

class StreamNumbers;

/// What all batches of sites of a run share: P samples, queries at steps 0 .. steps - 1. Under mini-batches all samples ask at every step,
/// and Delta is zero but for those of the step: what they send back is nothing.
struct SiteProblem {
  const LimitSpec* limit;
  Eigen::MatrixXd x, y;  ///< (D, P), (C, P)
  Index steps;
  int batches = 1;                            ///< whose means a replica's kernels are
  std::vector<std::vector<int>> learns = {};  ///< [step] the samples of a mini-batch; empty: all

  Index P() const { return x.cols(); }
  Index n() const { return steps * x.cols(); }
  CausalShape shape() const { return {x.cols(), steps}; }
  /// Of a matrix (rows, P) the columns of step t's samples.
  Eigen::MatrixXd of_batch(const Eigen::MatrixXd& all, Index t) const {
    return learns.empty() ? all : Eigen::MatrixXd(all(Eigen::all, learns[static_cast<std::size_t>(t)]));
  }
};

/// One over how often a mini-batch has each of its samples: more than once where it goes on from one shuffled epoch to the next. Such a
/// sample asks once, and sends back the sum of what it sends back each time.
Eigen::VectorXd shares(const std::vector<int>& batch);

/// Sites of one batch. In regime I all of them march together, with the M experts; elsewhere neurons and experts go by themselves.
struct BatchCounts {
  Index neurons, experts, hidden;
};

/// How one matrix acts between experts and neurons: (1/K) sum_i of per-expert or stacked matrices, or one matrix for all experts.
struct Aggregation {
  bool shared = false;
  double memory = 1;  ///< prefactor of initial responses in a neuron's field: 1/kappa, shared 1
  double field =
      1;  ///< of its Gaussian part: the same, sqrt(M)/K for the M fields of explicit experts, which enter as one
  double response = 1;  ///< of the products with white numbers: 1/sqrt(M) there
  /// How many independent products a response to fields of variance `other` on `sites` sites is the mean of, in units of the variance `own`
  /// that the matrix has on the neurons that it acts on (SiteField).
  double answers_to_neurons(double sites, double own, double other) const {
    return sites * own / other * (field / memory) * (field / memory);
  }
  /// The same of a response on neurons that acts on experts.
  double answers_to_experts(double sites, double own, double other) const {
    return sites * own / other / (response * response);
  }
  static Aggregation of(const BlockSpec& block, bool shared);
};

/// Paths (sites, n) of one batch in one block: what the learned parts of an entrywise rule run over (T23), an order parameter beside the
/// kernels. Empty where the rule is linear.
struct BlockPaths {
  Eigen::MatrixXd phi, D;         ///< of neurons; phi what the block reads
  Eigen::MatrixXd rho, ghat, Gv;  ///< of experts; of their units
  std::array<Eigen::MatrixXd*, 5> all() { return {&phi, &D, &rho, &ghat, &Gv}; }
};
struct SitePaths {
  std::vector<BlockPaths> blocks;
  std::vector<Eigen::MatrixXd*> all() {
    std::vector<Eigen::MatrixXd*> paths;
    for (BlockPaths& block : blocks)
      for (Eigen::MatrixXd* path : block.all()) paths.push_back(path);
    return paths;
  }
  bool has_any() const { return !blocks.empty() && blocks[0].phi.size() > 0; }
  void transfer(Archive& a) {
    std::size_t count = blocks.size();
    a("count", count);
    blocks.resize(count);
    for (std::size_t k = 0; k < all().size(); ++k) a(fmt::format("path{}", k), *all()[k]);
  }
};
/// Zeros, of a batch of this limit's sample counts.
SitePaths zero_paths(const LimitSpec& limit, Index n);

/// Parts of a block's step, each of which asks only what the kernels of those before it give: after it kernels of its own are known.
enum class Stage {
  features,  ///< phi, what the block reads, and how it answers to the fields of earlier steps
  forward,   ///< G v
  outputs,   ///< D
  backward   ///< ghat, rho
};
inline constexpr std::array all_stages = {Stage::features, Stage::forward, Stage::outputs, Stage::backward};

/// What a batch measures of its fields at every step, in the order of the rows of BatchMeans::fields, block after block; those of the
/// stream (is_of_block) stand with the first. noise_left, of the sampling and not of the network: SiteField::noise_left summed over a block's
/// fields.
inline constexpr std::array site_observables = {
    "rms_h",     "rms_phi",   "rms_y",    "rms_D",   "rms_xi",      "rms_r",        "rms_u",          "rms_v",
    "rms_u_all", "rms_v_all", "rms_zeta", "rms_rho", "ess_forward", "ess_backward", "router_entropy", "noise_left"};

/// Block l's row of one of them.
Index row_of(int l, std::string_view observable);

/// Averages over one batch, to be summed over batches.
struct BatchMeans {
  KernelSet kernels;
  Eigen::MatrixXd fields;  ///< (L site_observables, steps): mean squares for rms_..., values for the rest
  Eigen::MatrixXd f;       ///< (C, n); empty: a batch without neurons
  SitePaths paths;         ///< not summed: of the batch that stands for the sites
  void transfer(Archive& a) {
    a("kernels", kernels);
    a("paths", paths);
    a("fields", fields);
    a("f", f);
  }
  void add(const BatchMeans& batch);  ///< of the same limit
  void scale(double factor);
};

/// f and fields of zeros, and of every block where the rule has paths room for them; no kernels.
BatchMeans zero_means(const SiteProblem& problem);

/// Columns of a kernel that a batch adds at once: enough for a fast product.
inline constexpr Index site_columns_at_once = 256;

/// sample_batch given one replica's kernels, by any number of threads at once.
class ReplicaSampler {
 public:
  ReplicaSampler() = default;
  ReplicaSampler(const ReplicaSampler&) = delete;
  ReplicaSampler& operator=(const ReplicaSampler&) = delete;
  virtual ~ReplicaSampler() = default;
  virtual BatchMeans sample(const BatchCounts& counts, StreamNumbers& streams, const std::atomic<bool>* interrupt) = 0;
};

/// Batches of sites on one backend, for those that choose it where the program runs.
struct SiteBackend {
  std::unique_ptr<ReplicaSampler> (*sampler)(const SiteProblem&, const KernelSet&, const SitePaths&) = nullptr;
  BatchMeans (*pass)(const SiteProblem&, const BatchCounts&, std::vector<StreamNumbers>, KernelSet,
                     const std::atomic<bool>*) = nullptr;
};
/// On the CPU, or on the GPU (throws BackendError in a build without CUDA).
SiteBackend site_backend(Precision precision, Device device);

}  // namespace moe
