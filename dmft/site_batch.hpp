/// Batches of independent sites in kernel iteration (theory section 6), marched through all steps given the kernels.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string_view>
#include <vector>

#include "dmft/kernel_set.hpp"
#include "dmft/layer.hpp"
#include "dmft/site_field.hpp"
#include "dmft/update_rule.hpp"

namespace moe {

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

/// One block's kernels as what fields are made of: roots of covariances, and memories W in field(t) += sum_s source(s) W(s, t). Where there are paths,
/// what has been learned acts by pairs, else by correlations of the paths, which linear rules allow.
template <class B>
struct SiteKernels {
  using Matrix = typename B::Matrix;
  CausalArray<B> root_phi, root_D, root_rho, root_ghat, root_Gv;  ///< L^T with L L^T the queries' correlation
  CausalArray<B> r_of_rho, u_of_ghat, u_of_shared, y_of_D, zeta_of_Gv, zeta_of_shared, xi_of_phi;
  Matrix phi, D, rho, ghat, Gv;  ///< paths that learned parts run over, or empty
  /// Of block l, and where its kernels are, in memory or in a file. From empty kernels nothing is known yet, and close() makes it known,
  /// stage by stage.
  SiteKernels(const SiteProblem& problem, const KernelSet& kernels, const SitePaths& paths, int l = 0);
  /// What the kernels of this stage of step t say, whose columns up to there are known.
  void close(const SiteProblem& problem, const KernelSet& kernels, Stage stage, Index t);
  const std::shared_ptr<ScratchFile>& file() const { return file_; }

 private:
  int block_;
  std::shared_ptr<ScratchFile> file_;
  void remember(const SiteProblem& problem, const KernelSet& kernels, Stage stage, Index t);  ///< memories of step t
};

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

/// What a neuron has of one block: the block's fields on it, what it reads and sends back.
template <class B>
struct BlockOfNeurons {
  using Matrix = typename B::Matrix;
  QueryBasis<B> sent_phi, sent_D;  ///< what fields are orthogonal to
  SiteField<B> chi_B, beta_A, beta_Q;
  LearnedArray<B> q;           ///< (S, M) of the explicit router
  LearnedArray<B> dQ, dA, dB;  ///< (S, experts or units of the given paths), of entrywise rules
  Matrix phi, D;               ///< (S, n); phi is z^l (T28)
  Matrix y, x;                 ///< (S, P); x the stream behind the block
  StreamNorm<B> norm;

  BlockOfNeurons(Index neurons, Index n, Index P, Norm kind)
      : sent_phi(neurons, basis_tolerance, ToleranceOf::query),
        sent_D(neurons, basis_tolerance, ToleranceOf::query),
        phi(neurons, n),
        D(neurons, n),
        y(neurons, P),
        x(neurons, P),
        norm(kind, neurons, P) {}
};

/// Neurons along time: input, the stream through all blocks, readout.
template <class B>
class NeuronBatch {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// `kernels` of every block.
  NeuronBatch(const SiteProblem& problem, std::vector<SiteKernels<B>>& kernels, const BatchCounts& counts,
              StreamNumbers& streams);

  void features(Index t);               ///< (T1)
  void read(int l, Index t);            ///< what block l reads (T28)
  void logits(int l, Index t, View r);  ///< r_i = <q_i phi> (M, P) of explicit experts
  void write(int l, Index t);           ///< y, and the stream behind block l (T4), (T28)
  void outputs(Index t);                ///< closes f(t) and Delta(t) (T5), (T6)
  void receive(int l, Index t);         ///< D of block l
  void send(int l, Index t,
            View rho);              ///< xi of block l, and what goes on below it (T10); rho (M, P) of explicit experts
  void learn(Index t);              ///< (T20), (T21)
  void add_fields(BatchMeans& to);  ///< f, and what is measured
  /// `weight` times columns first .. first + count, of whole steps, of this stage's kernels of block l.
  void add_columns(int l, Stage stage, Index first, Index count, double weight, KernelSet& kernels);

  /// For tests: drawn initial values, blocks.
  LearnedArray<B> W_in, w_bar;  ///< (S, inputs), (S, C)
  std::vector<BlockOfNeurons<B>> blocks;
  Eigen::MatrixXd f;  ///< (C, n)

 private:
  double& measured(int l, const char* name, Index t);

  const SiteProblem& problem_;
  std::vector<SiteKernels<B>>& kernels_;
  Index S_, P_;
  Eigen::MatrixXd measured_;  ///< BatchMeans::fields, of which experts have the other rows
  Matrix h_, phi_, g_;        ///< (S, P); g_ the backward field of the stream
  StreamNorm<B> norm_;
  View stream_, s_;   ///< of the present step; s_ what the readout reads
  Matrix x_, delta_;  ///< (inputs, P), (C, P)
};

/// Experts of one block with their hidden units. Of explicit experts the logits come from the neurons, and averages over hidden units (s, hence
/// rho) are closed.
template <class B>
class ExpertBatch {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  ExpertBatch(const SiteProblem& problem, SiteKernels<B>& kernels, const BatchCounts& counts, StreamNumbers& streams,
              int l = 0);

  void forward(Index t, View logits = View());  ///< (T2), (T3), (T15), (T16), (T32)
  void backward(Index t);                       ///< (T7)-(T9), (T18), (T31)
  View rho_now() { return rho.columns(step_ * P_, P_); }
  Matrix& asked_in() { return shared_ghat.empty() ? ghat : shared_ghat; }  ///< what A is asked, and B
  Matrix& asked_out() { return shared_Gv.empty() ? Gv : shared_Gv; }
  void add_fields(BatchMeans& to);  ///< what is measured
  void add_columns(Stage stage, Index first, Index count, double weight, KernelSet& kernels);

  QueryBasis<B> sent_rho, sent_ghat, sent_Gv;  ///< what fields are orthogonal to; of shared matrices over hidden units
  /// For tests.
  SiteField<B> chi_Q, chi_A, beta_B;  ///< over experts; over sites, or hidden units of shared matrices
  Matrix rho, ghat, Gv, shared_ghat, shared_Gv;

 private:
  static Index sites(const BatchCounts& counts, bool shared) { return (shared ? 1 : counts.experts) * counts.hidden; }

  const SiteProblem& problem_;
  SiteKernels<B>& kernels_;
  int l_;
  Index SE_, Sa_, P_, step_ = 0;
  double kappa_;
  bool explicit_;
  Eigen::MatrixXd measured_;  ///< its block's rows of BatchMeans::fields from rms_r on
  GateSpec gate_;
  LearnedArray<B> dQ_, dA_, dB_;  ///< (SE or SE Sa, neurons of the given paths), of entrywise rules
  Matrix r_, G_, s_;              ///< (SE, P)
  Matrix u_, v_, zeta_, common_;  ///< (SE Sa, P); common_ (Sa, P)
  Matrix mask_;
  Matrix bias_;  ///< (SE, 1) b of the selection, where it moves
};

/// Neurons with the experts of all blocks.
template <class B>
struct SiteBatch {
  NeuronBatch<B> neurons;
  std::vector<ExpertBatch<B>> experts;  ///< of every block
  typename B::Matrix r;                 ///< (M, P) logits of explicit experts

  SiteBatch(const SiteProblem& problem, std::vector<SiteKernels<B>>& kernels, const BatchCounts& counts,
            StreamNumbers& streams);
  void add_fields(BatchMeans& to);  ///< all of it but the kernels; paths of the first that adds
  void add_columns(int l, Stage stage, Index first, Index count, double weight, KernelSet& kernels);
};

/// Time step t of all batches, block by block up and down the stream. close(l, stage) after each of a block's stages.
template <class B, class Close>
void march(const std::vector<SiteBatch<B>*>& batches, Index t, const Close& close);

/// Columns of a kernel that a batch adds at once: enough for a fast product.
inline constexpr Index site_columns_at_once = 256;

/// Samples one batch of all kinds of sites. Deterministic in (seed, replica, iteration, batch). `interrupt` ends it between two steps,
/// with empty means.
template <class B>
BatchMeans sample_batch(const SiteProblem& problem, std::vector<SiteKernels<B>>& kernels, const BatchCounts& counts,
                        StreamNumbers& streams, const std::atomic<bool>* interrupt = nullptr);

/// The kernels that the same batches estimate from themselves, in one pass: all of them march together, and each stage of a step closes its
/// kernels, the mean over batches, before the next asks for them. What iterations of sample_batch with these numbers come to at rest, up to
/// rounding: a kernel at times up to t moves with kernels of stages before it alone. It holds all batches at once. One list of streams for
/// each batch. `offset` is added to what they estimate: zero_kernels, or what batches that are not held change of an average over all.
/// `interrupt` ends it between two steps, with empty means.
template <class B>
BatchMeans causal_pass(const SiteProblem& problem, const BatchCounts& counts, std::vector<StreamNumbers> streams,
                       KernelSet offset, const std::atomic<bool>* interrupt = nullptr);

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
template <class B>
SiteBackend site_backend();
extern template SiteBackend site_backend<Cpu<float>>();
extern template SiteBackend site_backend<Cpu<double>>();
/// On the CPU, or on the GPU (throws BackendError in a build without CUDA).
SiteBackend site_backend(Precision precision, Device device);

}  // namespace moe
