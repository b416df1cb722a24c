/// Definitions of site_batch.hpp; included by the files that instantiate them and by nobody else.
#pragma once

#include <cmath>
#include <functional>
#include <memory>

#include "dmft/site_batch.hpp"

namespace moe {

namespace detail {

/// What a linear rule has learned by step t of the gradients of steps s < t: `correlation` ((t + 1) P, P) of step t's queries, times
/// lr sum_{k < t - s} m^k, m the momentum.
Eigen::MatrixXd learned_of_kernel(const Eigen::MatrixXd& correlation, Index t, const UpdateRule& rule);

/// Gives the block of a step, which stands until the next is asked for.
using BlockOfStep = std::function<Eigen::Map<const Eigen::MatrixXd>(Index)>;

/// The block of step t of a root L^T, where `root` gives those before, and `correlation` ((t + 1) P, P) is that of step t's queries. What a
/// query adds to those before by less than `cutoff` is left out.
Eigen::MatrixXd next_of_root(const Eigen::MatrixXd& correlation, const BlockOfStep& root, double cutoff);

/// Responses ((t + 1) P, P) of step t's queries x to the first `known` steps of a field g = L Z: L^T R = <Z x> =: `products`.
Eigen::MatrixXd response_by_parts(const CausalMatrix& products, const BlockOfStep& root, Index t, Index known);

/// -dL/df (C, P) of step t's samples, zero for the others.
Eigen::MatrixXd delta_of(const SiteProblem& problem, const Eigen::MatrixXd& f, Index t);

/// What is left at step t of a matrix that decays.
double left_of(const UpdateRule& rule, Index t);

/// Coordinates of the inputs that give the same products: fewer than there are inputs where samples are fewer, for rules that do not
/// look at single coordinates.
Eigen::MatrixXd coordinates(const Eigen::MatrixXd& x, const UpdateRule& rule);

template <class B>
typename B::Matrix uploaded(const Eigen::MatrixXd& from) {
  auto to = B::Matrix::uninitialized(from.rows(), from.cols());
  B::upload(from, to);
  return to;
}

/// Copies of the columns of step t's samples, for what is measured of them; under full batches the array itself.
template <class B>
class OfBatch {
 public:
  OfBatch(const SiteProblem& problem, Index t) {
    if (!problem.learns.empty()) rows_ = &problem.learns[static_cast<std::size_t>(t)];
  }
  /// all += what there is for the samples of the step
  void add(typename B::View more, typename B::View all) const {
    if (rows_ == nullptr) return accumulate<B>(more, 1, all);
    for (Index p = 0; p < more.cols; ++p)
      accumulate<B>(more.columns(p, 1), 1, all.columns((*rows_)[static_cast<std::size_t>(p)], 1));
  }
  /// Of what samples send back each one's share, as it would be if the batch had it once.
  typename B::View share(typename B::View all) {
    const typename B::View copy = (*this)(all);
    if (rows_ == nullptr) return copy;
    const Eigen::VectorXd share = shares(*rows_);
    for (Index p = 0; p < copy.cols; ++p)
      if (share[p] < 1) scale<B>(copy.columns(p, 1), static_cast<typename B::Real>(share[p]));
    return copy;
  }
  typename B::View operator()(typename B::View all) {
    if (rows_ == nullptr) return all;
    copies_.push_back(B::Matrix::uninitialized(all.rows, static_cast<Index>(rows_->size())));
    const typename B::View copy = copies_.back();
    for (Index p = 0; p < copy.cols; ++p)
      B::copy(all.columns((*rows_)[static_cast<std::size_t>(p)], 1), copy.columns(p, 1));
    return copy;
  }

 private:
  const std::vector<int>* rows_ = nullptr;
  std::vector<typename B::Matrix> copies_;
};

/// A path's columns of the present step, or nothing where there are no paths.
template <class B>
typename B::View now(typename B::Matrix& path, Index t, Index P) {
  return path.empty() ? typename B::View{} : path.columns(t * P, P);
}

template <class B>
void clear(typename B::View a) {
  B::each(a.rows, a.cols, [=] MOE_HD(Index i, Index j) { a(i, j) = typename B::Real(0); });
}
/// out += sum_s source(s) W(s, t) over s < t, or s <= t: W is zero where causality says so.
template <class B>
void remember(typename B::Matrix& source, const CausalArray<B>& W, Index t, bool through_now, typename B::View out) {
  const Index length = (through_now ? t + 1 : t) * out.cols;
  if (length == 0 || W.empty()) return;
  const auto of_step = W.step(t);
  B::gemm(Op::plain, Op::plain, 1, source.columns(0, length), of_step.view.row_range(0, length), 1, out);
}

/// `factor` times the mean products (first + count, count) of b at the queries first .. first + count with a at all queries up to them.
template <class B>
Eigen::MatrixXd mean_products(typename B::View a, typename B::View b, Index first, Index count, double factor) {
  auto sums = B::Matrix::uninitialized(first + count, count);
  B::gemm(Op::transposed, Op::plain, factor / static_cast<double>(a.rows), a.columns(0, first + count),
          b.columns(first, count), 0, sums);
  return B::download(sums);
}
/// Of queries first .. first + count, of whole steps, what they have with those up to each.
inline void add_steps(const Eigen::MatrixXd& products, Index first, Index count, CausalMatrix& to) {
  const Index P = to.shape().P;
  for (Index now = 0; now < count; now += P) to.add((first + now) / P, products.block(0, now, first + now + P, P));
}
template <class B>
void add_correlation(typename B::View a, Index first, Index count, double weight, CausalMatrix& to) {
  add_steps(mean_products<B>(a, a, first, count, weight), first, count, to);
}
/// Products of the white numbers Z with what is asked, in units in which they are L^T R (response_by_parts): a step's queries know of none
/// of later steps, forward queries of none of their own.
template <class B>
void add_response(SiteField<B>& field, typename B::Matrix& asked, Index first, Index count, double weight,
                  bool of_own_step, CausalMatrix& to) {
  if (!field.present()) return;
  const Index P = to.shape().P;
  Eigen::MatrixXd products =
      mean_products<B>(field.white(), asked, first, count, weight * field.scale() / field.amplitude());
  for (Index now = 0; now < count && !of_own_step; now += P) products.block(first + now, now, P, P).setZero();
  const Index steps = (first + count) / P - (of_own_step ? 0 : 1);
  for (Index s = 0; s < steps; ++s) products.middleRows(s * P, P) /= field.mean_squares()[static_cast<std::size_t>(s)];
  add_steps(products, first, count, to);
}

template <class B>
double mean_square(typename B::View a) {
  return sum_of_squares<B>(a) / static_cast<double>(a.size());
}
/// A kernel's root and which it is of.
template <class B>
struct RootOf {
  CausalArray<B>* root;
  Kernel kernel;
  Stage stage;
};
template <class B>
std::vector<RootOf<B>> roots_of(SiteKernels<B>& given, const BlockSpec& block) {
  const LimitConstants& c = block.constants;
  std::vector<RootOf<B>> roots = {
      {&given.root_phi, Kernel::phi, Stage::features},
      {&given.root_Gv, c.expert_out_shared ? Kernel::shared_Gv : Kernel::Gv, Stage::forward},
      {&given.root_D, Kernel::D, Stage::outputs},
      {&given.root_ghat, c.expert_in_shared ? Kernel::shared_ghat : Kernel::ghat, Stage::backward}};
  if (block.experts_sampled) roots.push_back({&given.root_rho, Kernel::rho, Stage::backward});
  return roots;
}

template <class B>
BlockOfStep steps_of(const CausalArray<B>& root) {
  return [&root, room = std::make_shared<typename CausalArray<B>::Room>()](Index t) { return root.on_host(t, *room); };
}

/// Responses of step t's queries ((t + 1) P, P).
template <class B>
Eigen::MatrixXd response(SiteKernels<B>& given, const KernelSet& k, int l, Kernel which, Index t) {
  const auto to = [&](CausalArray<B>& root, Index known) {
    return response_by_parts(k.of(l, which), steps_of(root), t, known);
  };
  switch (which) {  // forward queries are asked before their step's fields are known
    case Kernel::router_x: return to(given.root_rho, t);
    case Kernel::A_x: return to(given.root_ghat, t);
    case Kernel::B_x: return to(given.root_D, t);
    case Kernel::B_z: return to(given.root_Gv, t + 1);
    case Kernel::A_z:
    case Kernel::router_z: return to(given.root_phi, t + 1);
    default: return {};  // correlations
  }
}

}  // namespace detail

template <class B>
SiteKernels<B>::SiteKernels(const SiteProblem& problem, const KernelSet& k, const SitePaths& paths, int l)
    : block_(l), file_(k.file()) {
  const BlockSpec& block = problem.limit->block;
  const auto room = [&] { return CausalArray<B>(problem.shape(), file_); };
  if (!paths.blocks.empty()) {
    const BlockPaths& of = paths.blocks[static_cast<std::size_t>(l)];
    phi = detail::uploaded<B>(of.phi), D = detail::uploaded<B>(of.D);
    rho = detail::uploaded<B>(of.rho), ghat = detail::uploaded<B>(of.ghat), Gv = detail::uploaded<B>(of.Gv);
  }
  for (CausalArray<B>* memory : {&u_of_ghat, &zeta_of_Gv, &y_of_D, &xi_of_phi}) *memory = room();
  if (block.constants.expert_in_shared) u_of_shared = room();
  if (block.constants.expert_out_shared) zeta_of_shared = room();
  if (block.experts_sampled) r_of_rho = room();
  for (const detail::RootOf<B>& of : detail::roots_of<B>(*this, block)) *of.root = room();
  if (k.of(l, Kernel::phi).empty()) return;
  for (Index t = 0; t < problem.steps; ++t)
    for (const Stage stage : all_stages) close(problem, k, stage, t);
}

template <class B>
void SiteKernels<B>::close(const SiteProblem& problem, const KernelSet& kernels, Stage stage, Index t) {
  for (const detail::RootOf<B>& of : detail::roots_of<B>(*this, problem.limit->block))
    if (of.stage == stage)
      of.root->set(
          t, detail::next_of_root(kernels.of(block_, of.kernel).step(t), detail::steps_of(*of.root), root_cutoff));
  remember(problem, kernels, stage, t);
}

template <class B>
void SiteKernels<B>::remember(const SiteProblem& problem, const KernelSet& k, Stage stage, Index t) {
  const BlockSpec& block = problem.limit->block;
  const LimitConstants& c = block.constants;
  const CausalShape shape = problem.shape();
  const double kappa = block.counts.kappa();
  const Aggregation of_A = Aggregation::of(block, c.expert_in_shared),
                    of_B = Aggregation::of(block, c.expert_out_shared);
  const auto nothing = [&] { return Eigen::MatrixXd(Eigen::MatrixXd::Zero(shape.rows(t), shape.P)); };
  // Answers of a matrix that decays do so with it; responses are to what it answered undecayed.
  const auto initial = [&](double variance, Kernel which, const UpdateRule& rule) {
    if (k.of(block_, which).empty()) return nothing();
    return Eigen::MatrixXd(variance * detail::left_of(rule, t) * detail::response<B>(*this, k, block_, which, t));
  };
  const auto learned = [&](Kernel which, const UpdateRule& rule) {  // by pairs where there are paths (T23)
    return phi.empty() ? detail::learned_of_kernel(k.of(block_, which).step(t), t, rule) : nothing();
  };
  switch (stage) {
    case Stage::features: {
      // u = A F: initial responses act on the queries of A, what is learned on every expert's own ghat (T12), (T16).
      const Eigen::MatrixXd u_initial = initial(c.expert_in.beta2, Kernel::A_x, block.expert_in);
      const Eigen::MatrixXd u_learned = learned(Kernel::phi, block.expert_in);
      if (of_A.shared) u_of_shared.set(t, u_initial);
      u_of_ghat.set(t, of_A.shared ? u_learned : u_initial + u_learned);
      if (block.experts_sampled)
        r_of_rho.set(
            t, initial(c.router.beta2, Kernel::router_x, block.router) + learned(Kernel::phi, block.router));  // (T15)
      return;
    }
    case Stage::forward:
      y_of_D.set(t, of_B.memory * initial(c.expert_out.beta2, Kernel::B_x, block.expert_out) +
                        learned(Kernel::Gv, block.expert_out) / kappa);  // (T12), (T17)
      return;
    case Stage::outputs: {
      const Eigen::MatrixXd zeta_initial = initial(c.expert_out.chi2, Kernel::B_z, block.expert_out);  // (T13), (T18)
      const Eigen::MatrixXd zeta_learned = learned(Kernel::D, block.expert_out);
      if (of_B.shared) zeta_of_shared.set(t, zeta_initial);
      zeta_of_Gv.set(t, of_B.shared ? zeta_learned : zeta_initial + zeta_learned);
      return;
    }
    case Stage::backward: {
      Eigen::MatrixXd xi = of_A.memory * initial(c.expert_in.chi2, Kernel::A_z, block.expert_in) +
                           learned(Kernel::ghat, block.expert_in) / kappa;  // (T13), (T19)
      if (block.experts_sampled)
        xi +=
            initial(c.router.chi2, Kernel::router_z, block.router) / kappa + learned(Kernel::rho, block.router) / kappa;
      xi_of_phi.set(t, xi);
      return;
    }
  }
}

template <class B>
NeuronBatch<B>::NeuronBatch(const SiteProblem& problem, std::vector<SiteKernels<B>>& kernels, const BatchCounts& counts,
                            StreamNumbers& streams)
    : w_bar(counts.neurons, problem.y.rows(), problem.limit->readout),
      f(problem.y.rows(), problem.n()),
      problem_(problem),
      kernels_(kernels),
      S_(counts.neurons),
      P_(problem.P()),
      measured_(
          Eigen::MatrixXd::Zero(problem.limit->depth * static_cast<Index>(site_observables.size()), problem.steps)),
      h_(S_, P_),
      phi_(S_, P_),
      g_(S_, P_),
      norm_(problem.limit->layer.norm, S_, P_),
      delta_(problem.y.rows(), P_) {
  const BlockSpec& block = problem.limit->block;
  const LimitConstants& c = block.constants;
  const auto D_in = static_cast<double>(problem.x.rows());
  x_ = detail::uploaded<B>(detail::coordinates(problem.x, problem.limit->input));
  W_in = LearnedArray<B>(S_, x_.rows(), problem.limit->input, 1 / D_in);
  B::normal(W_in.value(), streams.next());
  scale<B>(W_in.value(), static_cast<Real>(std::sqrt(c.input_var / D_in)));
  B::normal(w_bar.value(), streams.next());
  scale<B>(w_bar.value(), static_cast<Real>(std::sqrt(c.readout_var)));
  const Aggregation of_A = Aggregation::of(block, c.expert_in_shared),
                    of_B = Aggregation::of(block, c.expert_out_shared);
  const double batches = problem.batches, experts = batches * static_cast<double>(counts.experts);
  const auto units = [&](bool shared) { return (shared ? batches : experts) * static_cast<double>(counts.hidden); };
  blocks.reserve(kernels.size());
  for (SiteKernels<B>& given : kernels) {
    BlockOfNeurons<B>& own = blocks.emplace_back(S_, problem.n(), P_, problem.limit->layer.norm);
    if (!given.ghat.empty()) {
      const ArrayMatrices of_experts{1, given.rho.rows()};
      own.dA = LearnedArray<B>(S_, given.ghat.rows(), block.expert_in, 1, of_experts);
      own.dB = LearnedArray<B>(S_, given.Gv.rows(), block.expert_out, 1, of_experts);
      if (block.experts_sampled) own.dQ = LearnedArray<B>(S_, given.rho.rows(), block.router);
    }
    const auto draw = [&](const CausalArray<B>& root, const Aggregation& of, double own2, double other2, double sites,
                          QueryBasis<B>& sent) {
      return SiteField<B>(S_, root, of.field * std::sqrt(own2), own2 > 0, of.field,
                          of.answers_to_neurons(sites, own2, other2), sent, streams.next());
    };
    own.chi_B = draw(given.root_Gv, of_B, c.expert_out.chi2, c.expert_out.beta2, units(of_B.shared), own.sent_D);
    own.beta_A = draw(given.root_ghat, of_A, c.expert_in.beta2, c.expert_in.chi2, units(of_A.shared), own.sent_phi);
    if (block.experts_sampled) {
      own.beta_Q =
          draw(given.root_rho, Aggregation::of(block, false), c.router.beta2, c.router.chi2, experts, own.sent_phi);
    } else {
      own.q = LearnedArray<B>(S_, block.counts.experts, block.router);
      B::normal(own.q.value(), streams.next());
      scale<B>(own.q.value(), static_cast<Real>(std::sqrt(c.explicit_router_var)));
    }
  }
}

template <class B>
double& NeuronBatch<B>::measured(int l, const char* name, Index t) {
  return measured_(row_of(l, name), t);
}

template <class B>
void NeuronBatch<B>::features(Index t) {
  const BlockSpec& block = problem_.limit->block;
  B::gemm(Op::plain, Op::plain, 1, W_in.value(), x_, 0, h_);
  activate<B>(block.activation, block.activation_scale, h_, phi_);
  stream_ = phi_;
  detail::OfBatch<B> of_batch(problem_, t);
  measured(0, "rms_h", t) = detail::mean_square<B>(of_batch(h_));
  measured(0, "rms_phi", t) = detail::mean_square<B>(of_batch(phi_));
}

template <class B>
void NeuronBatch<B>::read(int l, Index t) {
  BlockOfNeurons<B>& block = blocks[static_cast<std::size_t>(l)];
  const View phi = block.phi.columns(t * P_, P_);
  B::copy(block.norm.forward(stream_), phi);
  block.sent_phi.ask(phi);
}

template <class B>
void NeuronBatch<B>::logits(int l, Index t, View r) {
  BlockOfNeurons<B>& block = blocks[static_cast<std::size_t>(l)];
  B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(S_), block.q.value(), block.phi.columns(t * P_, P_), 0,
          r);
}

template <class B>
void NeuronBatch<B>::write(int l, Index t) {
  const LimitSpec& limit = *problem_.limit;
  BlockOfNeurons<B>& block = blocks[static_cast<std::size_t>(l)];
  SiteKernels<B>& given = kernels_[static_cast<std::size_t>(l)];
  const double over_kappa = 1 / limit.block.counts.kappa();
  detail::clear<B>(block.y);
  block.chi_B.orthogonalize(block.sent_D, t);
  block.chi_B.add_to(block.y, t, detail::left_of(limit.block.expert_out, t));
  detail::remember<B>(block.D, given.y_of_D, t, false, block.y);
  block.dB.act(over_kappa / static_cast<double>(given.Gv.rows()), detail::now<B>(given.Gv, t, P_), block.y);
  join<B>(limit.layer, limit.block.activation_scale, block.y, stream_, block.x);
  stream_ = block.x;
  detail::OfBatch<B> of_batch(problem_, t);
  measured(l, "rms_y", t) = detail::mean_square<B>(of_batch(block.y));
}

template <class B>
void NeuronBatch<B>::outputs(Index t) {
  s_ = norm_.forward(stream_);
  // f = <wbar s> of the running ensemble, which closes Delta (T20)
  Matrix f_now(f.rows(), P_);
  B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(S_), w_bar.value(), s_, 0, f_now);
  f.middleCols(t * P_, P_) = B::download(f_now);
  B::upload(detail::delta_of(problem_, f.middleCols(t * P_, P_), t), delta_);
  B::gemm(Op::plain, Op::plain, 1, w_bar.value(), delta_, 0, g_);  // (T6)
  norm_.backward(g_);
}

template <class B>
void NeuronBatch<B>::receive(int l, Index t) {
  const LimitSpec& limit = *problem_.limit;
  BlockOfNeurons<B>& block = blocks[static_cast<std::size_t>(l)];
  const View D = block.D.columns(t * P_, P_);
  times_slope<B>(limit.layer.post_activation, limit.block.activation_scale, block.y, g_, D);
  if (limit.layer.branch != 1) scale<B>(D, static_cast<Real>(limit.layer.branch));
  block.sent_D.ask(D);
  block.dB.update(D, detail::now<B>(kernels_[static_cast<std::size_t>(l)].Gv, t, P_));
  detail::OfBatch<B> of_batch(problem_, t);
  measured(l, "rms_D", t) = detail::mean_square<B>(of_batch.share(D));
}

template <class B>
void NeuronBatch<B>::send(int l, Index t, View rho) {
  const LimitSpec& limit = *problem_.limit;
  const BlockSpec& spec = limit.block;
  BlockOfNeurons<B>& block = blocks[static_cast<std::size_t>(l)];
  SiteKernels<B>& given = kernels_[static_cast<std::size_t>(l)];
  Matrix xi(S_, P_);
  const double over_kappa = 1 / spec.counts.kappa();
  const View phi = block.phi.columns(t * P_, P_);
  block.beta_A.orthogonalize(block.sent_phi, t);
  block.beta_Q.orthogonalize(block.sent_phi, t);
  block.beta_A.add_to(xi, t, detail::left_of(spec.expert_in, t));
  block.beta_Q.add_to(xi, t, detail::left_of(spec.router, t));
  detail::remember<B>(block.phi, given.xi_of_phi, t, true, xi);
  measured(l, "noise_left", t) = block.chi_B.noise_left() + block.beta_A.noise_left() + block.beta_Q.noise_left();
  block.dA.act(over_kappa / static_cast<double>(given.ghat.rows()), detail::now<B>(given.ghat, t, P_), xi);
  block.dA.update(phi, detail::now<B>(given.ghat, t, P_));
  block.dQ.act(over_kappa / static_cast<double>(given.rho.rows()), detail::now<B>(given.rho, t, P_), xi);
  block.dQ.update(phi, detail::now<B>(given.rho, t, P_));
  if (!spec.experts_sampled) {
    block.q.act(1.0 / static_cast<double>(spec.counts.active), rho, xi);
    block.q.update(phi, rho);
  }
  block.norm.backward(xi);
  if (limit.layer.residual) accumulate<B>(g_, Real(1), xi);
  std::swap(g_, xi);
}

template <class B>
void NeuronBatch<B>::learn(Index t) {
  const BlockSpec& block = problem_.limit->block;
  detail::OfBatch<B> of_batch(problem_, t);
  measured(0, "rms_xi", t) = detail::mean_square<B>(of_batch.share(g_));
  w_bar.update(s_, delta_);  // (T20)
  times_slope<B>(block.activation, block.activation_scale, h_, g_, g_);
  W_in.update(g_, x_);  // (T21)
}

template <class B>
void NeuronBatch<B>::add_fields(BatchMeans& to) {
  to.f += f;
  to.fields += measured_;
}

template <class B>
void NeuronBatch<B>::add_columns(int l, Stage stage, Index first, Index count, double weight, KernelSet& k) {
  const BlockSpec& spec = problem_.limit->block;
  const LimitConstants& c = spec.constants;
  const Aggregation of_A = Aggregation::of(spec, c.expert_in_shared), of_B = Aggregation::of(spec, c.expert_out_shared);
  BlockOfNeurons<B>& block = blocks[static_cast<std::size_t>(l)];
  if (stage == Stage::features) {
    detail::add_correlation<B>(block.phi, first, count, weight, k.of(l, Kernel::phi));
    detail::add_response<B>(block.beta_A, block.phi, first, count, weight * of_A.response, false, k.of(l, Kernel::A_x));
    detail::add_response<B>(block.beta_Q, block.phi, first, count, weight, false, k.of(l, Kernel::router_x));
  } else if (stage == Stage::outputs) {
    detail::add_correlation<B>(block.D, first, count, weight, k.of(l, Kernel::D));
    detail::add_response<B>(block.chi_B, block.D, first, count, weight * of_B.response, true, k.of(l, Kernel::B_z));
  }
}

template <class B>
ExpertBatch<B>::ExpertBatch(const SiteProblem& problem, SiteKernels<B>& kernels, const BatchCounts& counts,
                            StreamNumbers& streams, int l)
    : sent_rho(counts.experts, basis_tolerance, ToleranceOf::query),
      sent_ghat(sites(counts, problem.limit->block.constants.expert_in_shared), basis_tolerance, ToleranceOf::query),
      sent_Gv(sites(counts, problem.limit->block.constants.expert_out_shared), basis_tolerance, ToleranceOf::query),
      rho(counts.experts, problem.n()),
      ghat(sites(counts, false), problem.n()),
      Gv(sites(counts, false), problem.n()),
      problem_(problem),
      kernels_(kernels),
      l_(l),
      SE_(counts.experts),
      Sa_(counts.hidden),
      P_(problem.P()),
      kappa_(problem.limit->block.counts.kappa()),
      explicit_(!problem.limit->block.experts_sampled),
      measured_(static_cast<Index>(site_observables.size()) - row_of(0, "rms_r"), problem.steps),
      gate_(problem.limit->block.gate),
      r_(SE_, P_),
      G_(SE_, P_),
      s_(SE_, P_),
      u_(SE_ * Sa_, P_),
      v_(SE_ * Sa_, P_),
      zeta_(SE_ * Sa_, P_),
      common_(Sa_, P_),
      mask_(SE_, P_),
      bias_(SE_, gate_.has_bias() ? 1 : 0) {
  gate_.active = std::max<Index>(1, std::lround(kappa_ * static_cast<double>(SE_)));
  const BlockSpec& block = problem.limit->block;
  const LimitConstants& c = block.constants;
  const double neurons = problem.batches * static_cast<double>(counts.neurons);
  const auto draw = [&](const CausalArray<B>& root, bool shared, double own2, double other2, QueryBasis<B>& sent) {
    const double answers = Aggregation::of(block, shared).answers_to_experts(neurons, own2, other2);
    return SiteField<B>(sent.sites(), root, std::sqrt(own2), own2 > 0, 1, answers, sent, streams.next());
  };
  if (!explicit_) chi_Q = draw(kernels.root_phi, false, c.router.chi2, c.router.beta2, sent_rho);
  chi_A = draw(kernels.root_phi, c.expert_in_shared, c.expert_in.chi2, c.expert_in.beta2, sent_ghat);
  beta_B = draw(kernels.root_D, c.expert_out_shared, c.expert_out.beta2, c.expert_out.chi2, sent_Gv);
  if (c.expert_in_shared) shared_ghat = Matrix(Sa_, problem.n());
  if (c.expert_out_shared) shared_Gv = Matrix(Sa_, problem.n());
  if (kernels.phi.empty()) return;
  const Index given = kernels.phi.rows();
  if (!explicit_) dQ_ = LearnedArray<B>(SE_, given, block.router);
  const ArrayMatrices of_experts{SE_, 1};
  dA_ = LearnedArray<B>(SE_ * Sa_, given, block.expert_in, 1, of_experts);
  dB_ = LearnedArray<B>(SE_ * Sa_, given, block.expert_out, 1, of_experts);
}

template <class B>
void ExpertBatch<B>::forward(Index t, View logits) {
  const BlockSpec& block = problem_.limit->block;
  step_ = t;
  const View r = r_, u = u_, Gv_now = Gv.columns(t * P_, P_);
  const double over_neurons = 1 / static_cast<double>(kernels_.phi.rows());
  const View phi = detail::now<B>(kernels_.phi, t, P_);
  chi_Q.orthogonalize(sent_rho, t);
  chi_A.orthogonalize(sent_ghat, t);
  detail::clear<B>(r);
  if (explicit_) {
    B::copy(logits, r);
  } else {
    chi_Q.add_to(r, t, detail::left_of(block.router, t));
    detail::remember<B>(rho, kernels_.r_of_rho, t, false, r);
    dQ_.act(over_neurons, phi, r);
  }
  apply_gate<B>(gate_, r, bias_, mask_, G_);
  if (block.constants.expert_in_shared) {
    detail::clear<B>(common_);
    chi_A.add_to(common_, t, detail::left_of(block.expert_in, t));
    detail::remember<B>(shared_ghat, kernels_.u_of_shared, t, false, common_);
    for_all_experts<B>(common_, u);
  } else {
    detail::clear<B>(u);
    chi_A.add_to(u, t, detail::left_of(block.expert_in, t));
  }
  detail::remember<B>(ghat, kernels_.u_of_ghat, t, false, u);
  dA_.act(over_neurons, phi, u);
  activate_and_gate<B>(block.activation, block.activation_scale, u, G_, v_, Gv_now);
  if (block.constants.expert_out_shared) mean_over_experts<B>(Gv_now, kappa_, shared_Gv.columns(t * P_, P_));
  sent_Gv.ask(asked_out().columns(t * P_, P_));
}

template <class B>
void ExpertBatch<B>::backward(Index t) {
  const BlockSpec& block = problem_.limit->block;
  const View zeta = zeta_, s = s_, ghat_now = ghat.columns(t * P_, P_);
  const View phi = detail::now<B>(kernels_.phi, t, P_), D = detail::now<B>(kernels_.D, t, P_);
  beta_B.orthogonalize(sent_Gv, t);
  if (block.constants.expert_out_shared) {
    detail::clear<B>(common_);
    beta_B.add_to(common_, t, detail::left_of(block.expert_out, t));
    detail::remember<B>(shared_Gv, kernels_.zeta_of_shared, t, true, common_);
    for_all_experts<B>(common_, zeta);
  } else {
    detail::clear<B>(zeta);
    beta_B.add_to(zeta, t, detail::left_of(block.expert_out, t));
  }
  detail::remember<B>(Gv, kernels_.zeta_of_Gv, t, true, zeta);
  dB_.act(1 / static_cast<double>(kernels_.D.rows()), D, zeta);
  dB_.update(Gv.columns(t * P_, P_), D);
  detail::mean_products_over_hidden<B>(v_, zeta, s);
  const View rho_now = rho.columns(t * P_, P_);
  gate_backward<B>(gate_, mask_, G_, s, rho_now);
  detail::OfBatch<B> of_batch(problem_, t);
  const View mask = of_batch(mask_);
  if (gate_.has_balance_loss()) {
    Matrix of_balance(SE_, mask.cols);
    balance_backward<B>(gate_, of_batch(r_), mask, of_balance);
    of_batch.add(of_balance, rho_now);
  }
  if (gate_.has_bias()) move_bias<B>(gate_, mask, bias_);
  gated_slope<B>(block.activation, block.activation_scale, u_, v_, G_, zeta, ghat_now);
  if (block.constants.expert_in_shared) mean_over_experts<B>(ghat_now, kappa_, shared_ghat.columns(t * P_, P_));
  sent_ghat.ask(asked_in().columns(t * P_, P_));
  sent_rho.ask(rho_now);
  dA_.update(ghat_now, phi);
  dQ_.update(rho_now, phi);
  const View u_of = of_batch(u_), v_of = of_batch(v_);
  measured_.col(t) << detail::mean_square<B>(of_batch(r_)), mean_square_of_active<B>(u_of, mask),
      mean_square_of_active<B>(v_of, mask), detail::mean_square<B>(u_of), detail::mean_square<B>(v_of),
      detail::mean_square<B>(of_batch.share(zeta_)), detail::mean_square<B>(of_batch.share(rho_now)),
      effective_experts<B>(of_batch(Gv.columns(t * P_, P_)), Sa_), effective_experts<B>(of_batch(ghat_now), Sa_),
      router_entropy<B>(of_batch(G_), static_cast<double>(gate_.active)),
      chi_Q.noise_left() + chi_A.noise_left() + beta_B.noise_left();
}

template <class B>
void ExpertBatch<B>::add_fields(BatchMeans& to) {
  to.fields.middleRows(row_of(l_, "rms_r"), measured_.rows()) += measured_;
}

template <class B>
void ExpertBatch<B>::add_columns(Stage stage, Index first, Index count, double weight, KernelSet& k) {
  const LimitConstants& c = problem_.limit->block.constants;
  if (stage == Stage::forward) {
    detail::add_correlation<B>(Gv, first, count, weight, k.of(l_, Kernel::Gv));
    if (c.expert_out_shared) detail::add_correlation<B>(shared_Gv, first, count, weight, k.of(l_, Kernel::shared_Gv));
    detail::add_response<B>(beta_B, asked_out(), first, count, weight, false, k.of(l_, Kernel::B_x));
  } else if (stage == Stage::backward) {
    detail::add_correlation<B>(ghat, first, count, weight, k.of(l_, Kernel::ghat));
    if (!explicit_) detail::add_correlation<B>(rho, first, count, weight, k.of(l_, Kernel::rho));
    if (c.expert_in_shared)
      detail::add_correlation<B>(shared_ghat, first, count, weight, k.of(l_, Kernel::shared_ghat));
    detail::add_response<B>(chi_Q, rho, first, count, weight, true, k.of(l_, Kernel::router_z));
    detail::add_response<B>(chi_A, asked_in(), first, count, weight, true, k.of(l_, Kernel::A_z));
  }
}

template <class B>
SiteBatch<B>::SiteBatch(const SiteProblem& problem, std::vector<SiteKernels<B>>& kernels, const BatchCounts& counts,
                        StreamNumbers& streams)
    : neurons(problem, kernels, counts, streams), r(counts.experts, problem.P()) {
  experts.reserve(kernels.size());
  for (std::size_t l = 0; l < kernels.size(); ++l)
    experts.emplace_back(problem, kernels[l], counts, streams, static_cast<int>(l));
}

template <class B>
void SiteBatch<B>::add_fields(BatchMeans& to) {
  neurons.add_fields(to);
  for (ExpertBatch<B>& of_block : experts) of_block.add_fields(to);
  if (to.paths.has_any()) return;
  for (std::size_t l = 0; l < to.paths.blocks.size(); ++l)
    to.paths.blocks[l] = {B::download(neurons.blocks[l].phi), B::download(neurons.blocks[l].D),
                          B::download(experts[l].rho), B::download(experts[l].ghat), B::download(experts[l].Gv)};
}

template <class B>
void SiteBatch<B>::add_columns(int l, Stage stage, Index first, Index count, double weight, KernelSet& kernels) {
  neurons.add_columns(l, stage, first, count, weight, kernels);
  experts[static_cast<std::size_t>(l)].add_columns(stage, first, count, weight, kernels);
}

template <class B, class Close>
void march(const std::vector<SiteBatch<B>*>& batches, Index t, const Close& close) {
  const auto all = [&](const auto& part) {
    for (SiteBatch<B>* batch : batches) part(*batch);
  };
  const auto depth = static_cast<int>(batches[0]->experts.size());
  const bool explicit_experts = !batches[0]->neurons.blocks[0].q.empty();
  all([&](auto& batch) { batch.neurons.features(t); });
  for (int l = 0; l < depth; ++l) {
    all([&](auto& batch) { batch.neurons.read(l, t); });
    close(l, Stage::features);
    all([&](auto& batch) {
      if (explicit_experts) batch.neurons.logits(l, t, batch.r);
      batch.experts[static_cast<std::size_t>(l)].forward(t, batch.r);
    });
    close(l, Stage::forward);
    all([&](auto& batch) { batch.neurons.write(l, t); });
  }
  all([&](auto& batch) { batch.neurons.outputs(t); });
  for (int l = depth; l-- > 0;) {
    all([&](auto& batch) { batch.neurons.receive(l, t); });
    close(l, Stage::outputs);
    all([&](auto& batch) { batch.experts[static_cast<std::size_t>(l)].backward(t); });
    close(l, Stage::backward);
    all([&](auto& batch) { batch.neurons.send(l, t, batch.experts[static_cast<std::size_t>(l)].rho_now()); });
  }
  all([&](auto& batch) { batch.neurons.learn(t); });
}

template <class B>
BatchMeans sample_batch(const SiteProblem& problem, std::vector<SiteKernels<B>>& kernels, const BatchCounts& counts,
                        StreamNumbers& streams, const std::atomic<bool>* interrupt) {
  SiteBatch<B> batch(problem, kernels, counts, streams);
  for (Index t = 0; t < problem.steps; ++t) {
    if (interrupt != nullptr && *interrupt) return {};
    march<B>({&batch}, t, [](int, Stage) {});
  }
  BatchMeans means = zero_means(problem);
  batch.add_fields(means);
  means.kernels = zero_kernels(*problem.limit, problem.shape(), kernels[0].file());
  // By some steps at a time: what queries have with later ones is not asked.
  const Index n = problem.n(), some = problem.P() * std::max<Index>(1, site_columns_at_once / problem.P());
  for (Index first = 0; first < n; first += some)
    for (int l = 0; l < problem.limit->depth; ++l)
      for (const Stage stage : all_stages)
        batch.add_columns(l, stage, first, std::min(some, n - first), 1, means.kernels);
  return means;
}

template <class B>
BatchMeans causal_pass(const SiteProblem& problem, const BatchCounts& counts, std::vector<StreamNumbers> streams,
                       KernelSet offset, const std::atomic<bool>* interrupt) {
  const int depth = problem.limit->depth;
  const SitePaths no_paths = zero_paths(*problem.limit, problem.n());
  std::vector<SiteKernels<B>> given;
  given.reserve(static_cast<std::size_t>(depth));
  for (int l = 0; l < depth; ++l) given.emplace_back(problem, KernelSet(depth, offset.file()), no_paths, l);
  KernelSet kernels = std::move(offset);  // averages are added to it
  std::vector<std::unique_ptr<SiteBatch<B>>> held;
  std::vector<SiteBatch<B>*> batches;
  for (StreamNumbers& own : streams) {
    held.push_back(std::make_unique<SiteBatch<B>>(problem, given, counts, own));
    batches.push_back(held.back().get());
  }
  const Index P = problem.P();
  const double weight = 1 / static_cast<double>(batches.size());
  // Learned parts by pairs run over the paths of the first batch (T23).
  const auto follow = [&](typename B::Matrix& path, typename B::Matrix& own, Index t) {
    if (!path.empty()) B::copy(own.columns(t * P, P), path.columns(t * P, P));
  };
  for (Index t = 0; t < problem.steps; ++t) {
    if (interrupt != nullptr && *interrupt) return {};
    march<B>(batches, t, [&](int l, Stage stage) {
      for (SiteBatch<B>* batch : batches) batch->add_columns(l, stage, t * P, P, weight, kernels);
      SiteKernels<B>& of_block = given[static_cast<std::size_t>(l)];
      of_block.close(problem, kernels, stage, t);
      BlockOfNeurons<B>& neurons = batches[0]->neurons.blocks[static_cast<std::size_t>(l)];
      ExpertBatch<B>& experts = batches[0]->experts[static_cast<std::size_t>(l)];
      switch (stage) {
        case Stage::features: return follow(of_block.phi, neurons.phi, t);
        case Stage::forward: return follow(of_block.Gv, experts.Gv, t);
        case Stage::outputs: return follow(of_block.D, neurons.D, t);
        case Stage::backward: return follow(of_block.ghat, experts.ghat, t), follow(of_block.rho, experts.rho, t);
      }
    });
  }
  BatchMeans means = zero_means(problem);
  for (SiteBatch<B>* batch : batches) batch->add_fields(means);
  means.f *= weight;
  means.fields *= weight;
  means.kernels = std::move(kernels);
  return means;
}

namespace detail {

template <class B>
class SamplerOn : public ReplicaSampler {
 public:
  SamplerOn(const SiteProblem& problem, const KernelSet& kernels, const SitePaths& paths) : problem_(problem) {
    given_.reserve(static_cast<std::size_t>(problem.limit->depth));
    for (int l = 0; l < problem.limit->depth; ++l) given_.emplace_back(problem, kernels, paths, l);
  }
  BatchMeans sample(const BatchCounts& counts, StreamNumbers& streams, const std::atomic<bool>* interrupt) override {
    return sample_batch<B>(problem_, given_, counts, streams, interrupt);
  }

 private:
  const SiteProblem& problem_;
  std::vector<SiteKernels<B>> given_;
};

template <class B>
std::unique_ptr<ReplicaSampler> make_sampler(const SiteProblem& problem, const KernelSet& kernels,
                                             const SitePaths& paths) {
  return std::make_unique<SamplerOn<B>>(problem, kernels, paths);
}

}  // namespace detail

template <class B>
SiteBackend site_backend() {
  return {detail::make_sampler<B>, causal_pass<B>};
}

}  // namespace moe
