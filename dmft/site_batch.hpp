/// Batches of independent sites in kernel iteration (theory section 6), marched through all steps given the kernels.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "dmft/kernel_set.hpp"
#include "dmft/site_field.hpp"
#include "dmft/update_rule.hpp"

namespace moe {

/// What all batches of sites of a run share: P samples, queries at steps 0 .. steps - 1. Under mini-batches all samples ask at every step,
/// and Delta is zero but for those of the step: what they send back is nothing.
struct SiteProblem {
  const LimitSpec* limit;
  Eigen::MatrixXd x, y;  ///< (D, P), (C, P)
  Index steps;
  std::vector<std::vector<int>> learns = {};  ///< [step] the samples of a mini-batch; empty: all

  Index P() const { return x.cols(); }
  Index n() const { return steps * x.cols(); }
  /// Of a matrix (rows, P) the columns of step t's samples.
  Eigen::MatrixXd of_batch(const Eigen::MatrixXd& all, Index t) const {
    return learns.empty() ? all : Eigen::MatrixXd(all(Eigen::all, learns[static_cast<std::size_t>(t)]));
  }
};

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
  static Aggregation of(const BlockSpec& block, bool shared);
};

/// Paths (sites, n) of one batch: what the learned parts of an entrywise rule run over (T23), an order parameter beside the kernels.
/// Empty where the rule is linear.
struct SitePaths {
  Eigen::MatrixXd phi, D;         ///< of neurons
  Eigen::MatrixXd rho, ghat, Gv;  ///< of experts; of their units
  std::array<Eigen::MatrixXd*, 5> all() { return {&phi, &D, &rho, &ghat, &Gv}; }
  void transfer(Archive& a) {
    for (int k = 0; k < 5; ++k) a(fmt::format("path{}", k), *all()[static_cast<std::size_t>(k)]);
  }
};
/// Zeros, of a batch of this limit's sample counts.
SitePaths zero_paths(const LimitSpec& limit, Index n);

/// Parts of a step, each of which asks only what the kernels of those before it give: after it kernels of its own are known.
enum class Stage {
  features,  ///< phi, and how it answers to the fields of earlier steps
  forward,   ///< G v
  outputs,   ///< f, D
  backward   ///< ghat, rho
};
inline constexpr std::array all_stages = {Stage::features, Stage::forward, Stage::outputs, Stage::backward};

/// Kernels as what fields are made of: roots of covariances, and memories W in field(t) += sum_s source(s) W(s, t). Where there are paths,
/// what has been learned acts by pairs, else by correlations of the paths, which linear rules allow.
template <class B>
struct SiteKernels {
  using Matrix = typename B::Matrix;
  Matrix root_phi, root_D, root_rho, root_ghat, root_Gv;  ///< L with L L^T the queries' correlation
  Matrix r_of_rho, u_of_ghat, u_of_shared, y_of_D, zeta_of_Gv, zeta_of_shared, xi_of_phi;
  Matrix phi, D, rho, ghat, Gv;  ///< paths that learned parts run over, or empty
  SiteKernels(const SiteProblem& problem, const KernelSet& kernels, const SitePaths& paths);
  /// Nothing is known yet: close() makes it known, stage by stage.
  explicit SiteKernels(const SiteProblem& problem);
  /// What the kernels of this stage of step t say, whose columns up to there are known.
  void close(const SiteProblem& problem, const KernelSet& kernels, Stage stage, Index t);

 private:
  SiteKernels(const SiteProblem& problem, const SitePaths& paths);
  void remember(const SiteProblem& problem, const KernelSet& kernels, Stage stage,
                Index t);  ///< memories' columns of step t
};

/// What a batch measures of its fields at every step, in the order of the rows of BatchMeans::fields.
inline constexpr std::array site_observables = {"rms_h",    "rms_phi", "rms_y",       "rms_D",        "rms_xi",
                                                "rms_r",    "rms_u",   "rms_v",       "rms_u_all",    "rms_v_all",
                                                "rms_zeta", "rms_rho", "ess_forward", "ess_backward", "router_entropy"};

/// Averages over one batch, to be summed over batches.
struct BatchMeans {
  KernelSet kernels;
  Eigen::MatrixXd fields;  ///< (site_observables, steps): mean squares for rms_..., values for the rest
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

/// Neurons: h, phi, y, D, xi along time, and the explicit router of regime I.
template <class B>
class NeuronBatch {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  NeuronBatch(const SiteProblem& problem, SiteKernels<B>& kernels, Index neurons, StreamNumbers& streams);

  void features(Index t);                     ///< (T1)
  void outputs(Index t);                      ///< (T4)-(T6), closes f(t) and Delta(t)
  void backward(Index t, View rho = View());  ///< (T10), (T20), (T21); rho (M, P) of explicit experts
  void logits(Index t, View r);               ///< r_i = <q_i phi> (M, P) of explicit experts
  void add_fields(BatchMeans& to);            ///< all of it but the kernels
  /// `weight` times columns first .. first + count, of whole steps, of this stage's kernels.
  void add_columns(Stage stage, Index first, Index count, double weight, KernelSet& kernels);

  /// For tests: Gaussian fields, drawn initial values, paths.
  SiteField<B> chi_B, beta_A, beta_Q;
  LearnedArray<B> W_in, w_bar, q;  ///< (S, inputs), (S, C), (S, M)
  Matrix phi, D;                   ///< (S, n)
  Eigen::MatrixXd f;               ///< (C, n)

 private:
  const SiteProblem& problem_;
  SiteKernels<B>& kernels_;
  Index S_, P_;
  Eigen::MatrixXd measured_;      ///< the first five rows of BatchMeans::fields
  LearnedArray<B> dQ_, dA_, dB_;  ///< (S, experts or units of the given paths), of entrywise rules
  Matrix h_, y_, s_, D0_;         ///< (S, P)
  Matrix x_, delta_;              ///< (inputs, P), (C, P)
};

/// Experts with their hidden units. Of explicit experts the logits come from the neurons, and averages over hidden units (s, hence
/// rho) are closed.
template <class B>
class ExpertBatch {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  ExpertBatch(const SiteProblem& problem, SiteKernels<B>& kernels, Index experts, Index hidden, StreamNumbers& streams);

  void forward(Index t, View logits = View());  ///< (T2), (T3), (T15), (T16)
  void backward(Index t);                       ///< (T7)-(T9), (T18)
  View rho_now() { return rho.columns(step_ * P_, P_); }
  void add_fields(BatchMeans& to);
  void add_columns(Stage stage, Index first, Index count, double weight, KernelSet& kernels);

  /// For tests.
  SiteField<B> chi_Q, chi_A, beta_B;  ///< over experts; over sites, or hidden units of shared matrices
  Matrix rho, ghat, Gv, shared_ghat, shared_Gv;

 private:
  const SiteProblem& problem_;
  SiteKernels<B>& kernels_;
  Index SE_, Sa_, P_, step_ = 0;
  double kappa_;
  bool explicit_;
  Eigen::MatrixXd measured_;  ///< the other rows of BatchMeans::fields
  GateSpec gate_;
  LearnedArray<B> dQ_, dA_, dB_;  ///< (SE or SE Sa, neurons of the given paths), of entrywise rules
  Matrix r_, G_, s_;              ///< (SE, P)
  Matrix u_, v_, zeta_, common_;  ///< (SE Sa, P); common_ (Sa, P)
  Matrix mask_;
};

/// Samples one batch of all kinds of sites. Deterministic in (seed, replica, iteration, batch). `interrupt` ends it between two steps,
/// with empty means.
template <class B>
BatchMeans sample_batch(const SiteProblem& problem, SiteKernels<B>& kernels, const BatchCounts& counts,
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
