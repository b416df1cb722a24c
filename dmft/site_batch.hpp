/// Batches of independent sites in kernel iteration (theory section 6), marched through all steps given the kernels.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "dmft/layer.hpp"
#include "dmft/site_field.hpp"
#include "dmft/site_sampling.hpp"
#include "dmft/update_rule.hpp"

namespace moe {

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

template <class B>
SiteBackend site_backend();
extern template SiteBackend site_backend<Cpu<float>>();
extern template SiteBackend site_backend<Cpu<double>>();

}  // namespace moe
