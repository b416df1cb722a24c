/// One MoE block in the limit: (T2)-(T4) forward, (T7)-(T10) backward, on the samples.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <vector>

#include "dmft/expert_matrix.hpp"
#include "dmft/expert_measures.hpp"
#include "dmft/gating.hpp"
#include "dmft/limit_spec.hpp"
#include "dmft/pointwise.hpp"

namespace moe {

/// Fields of one stored step, sites fastest: neurons (S, P), experts (SE, P), product sites (SE Sa, P).
template <class B>
struct BlockFields {
  using Matrix = typename B::Matrix;
  Matrix r, mask, G, s, rho;    ///< (SE, P)
  Matrix u, v, Gv, zeta, ghat;  ///< (SE Sa, P)
  Matrix xi_A, xi_Q;            ///< (S, P): what experts and router send back
  BlockFields(Index S, Index SE, Index sites, Index P)
      : r(SE, P),
        mask(SE, P),
        G(SE, P),
        s(SE, P),
        rho(SE, P),
        u(sites, P),
        v(sites, P),
        Gv(sites, P),
        zeta(sites, P),
        ghat(sites, P),
        xi_A(S, P),
        xi_Q(S, P) {}
};

template <class B>
class Block {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// P: samples of a stored step. `neurons` are those of the residual stream, with what was drawn on them for it; the block's own
  /// draws are orthogonal to these.
  Block(const BlockSpec& spec, Population<B> neurons, StreamNumbers& streams, Index P)
      : spec_(spec),
        neurons_(std::move(neurons)),
        shape_{spec.counts.experts, spec.counts.hidden, spec.counts.kappa()},
        phi_basis_(neurons_.sites(), spec.tolerance),
        D_basis_(neurons_.sites(), spec.tolerance),
        rho_basis_(shape_.experts, spec.tolerance),
        experts_(shape_.experts, streams.next(), spec.matching),
        sites_(shape_.sites(), streams.next(), spec.matching),
        fields_(neurons_.sites(), shape_.experts, shape_.sites(), P),
        bias_(shape_.experts, spec.gate.has_bias() ? 1 : 0) {
    const LimitConstants& c = spec.constants;
    const auto structure = [&](bool shared) {
      return shared ? Structure::shared : spec.experts_sampled ? Structure::stacked : Structure::per_expert;
    };
    const Structure of_A = structure(c.expert_in_shared), of_B = structure(c.expert_out_shared);
    const Index kinds_of_hidden = of_A == Structure::per_expert || of_B == Structure::per_expert ? shape_.experts
                                  : of_A == Structure::shared || of_B == Structure::shared       ? 1
                                                                                                 : 0;
    for (Index i = 0; i < kinds_of_hidden; ++i)
      hidden_.push_back(std::make_unique<Population<B>>(shape_.hidden, streams.next(), spec.matching));
    if (spec.experts_sampled) {
      router_ = std::make_unique<Operator<B>>(experts_, rho_basis_, neurons_, phi_basis_, c.router, spec.router,
                                              streams.next());
    } else {
      // qbar_i: M explicit vectors over the neurons, W0 = qbar^T (theory section 4, "Q (I)").
      Matrix qbar(neurons_.sites(), shape_.experts);
      auto W0 = Matrix::uninitialized(shape_.experts, neurons_.sites());
      if (c.explicit_router_var > 0) neurons_.draw(qbar);
      scaled_transpose<B>(qbar, static_cast<Real>(std::sqrt(c.explicit_router_var)), W0);
      router_ = std::make_unique<Operator<B>>(std::move(W0), spec.router);
    }
    const typename ExpertMatrix<B>::Populations on{&neurons_, &sites_, &hidden_};
    const GaussianConstants B_transposed{c.expert_out.beta2, c.expert_out.chi2, c.expert_out.responses};
    A_ = std::make_unique<ExpertMatrix<B>>(of_A, shape_, on, phi_basis_, c.expert_in, spec.expert_in, spec.tolerance,
                                           streams);
    B_ = std::make_unique<ExpertMatrix<B>>(of_B, shape_, on, D_basis_, B_transposed, spec.expert_out, spec.tolerance,
                                           streams);
    if (spec.starts_dense) start_dense();
  }

  const SiteShape& shape() const { return shape_; }
  BlockFields<B>& fields() { return fields_; }

  /// y (S, P) of the normalised stream z (S, P).
  void forward(View z, View y) {
    BlockFields<B>& f = fields_;
    z_ = z;
    phi_basis_.ask(z);
    router_->forward(z, f.r);  // (T2), (T15)
    apply_gate<B>(spec_.gate, f.r, bias_, f.mask, f.G);
    A_->to_experts(z, f.u);  // (T3), (T16)
    activate_and_gate<B>(spec_.activation, spec_.activation_scale, f.u, f.G, f.v, f.Gv);
    B_->from_experts(f.Gv, y);  // (T4), (T17)
  }

  /// xi (S, P) from A and Q alone, of D (S, P) = -N dL/dy.
  void backward(View D, View xi) {
    BlockFields<B>& f = fields_;
    D_ = D;
    D_basis_.ask(D);
    B_->to_experts(D, f.zeta);                                                                // (T7), (T18)
    gated_slope<B>(spec_.activation, spec_.activation_scale, f.u, f.v, f.G, f.zeta, f.ghat);  // (T8)
    detail::mean_products_over_hidden<B>(f.v, f.zeta, f.s);
    gate_backward<B>(spec_.gate, f.mask, f.G, f.s, f.rho);  // (T9)
    if (spec_.gate.has_balance_loss()) balance_backward<B>(spec_.gate, f.r, f.mask, f.rho);
    A_->from_experts(f.ghat, f.xi_A);  // (T10), (T19)
    rho_basis_.ask(f.rho);
    router_->backward(f.rho, f.xi_Q, of_router());
    add<B>(f.xi_A, f.xi_Q, xi);
  }

  /// The two parts of a field of this step, before the update, of y as forward() gave it: W(0) and W(t) - W(0) acting on what is there now.
  enum class Split { r, u, y, zeta, xi_A, xi_Q };
  AnswerParts<B> parts(Split field, View y) {
    BlockFields<B>& f = fields_;
    const Part at_hand = router_->part_at_hand();
    switch (field) {
      case Split::r: return split<B>(f.r, at_hand, [&](View out) { router_->forward_part(at_hand, z_, out); });
      case Split::u: return A_->parts_to_experts(z_, f.u);
      case Split::y: return B_->parts_from_experts(f.Gv, y);
      case Split::zeta: return B_->parts_to_experts(D_, f.zeta);
      case Split::xi_A: return A_->parts_from_experts(f.ghat, f.xi_A);
      case Split::xi_Q: break;
    }
    return split<B>(f.xi_Q, at_hand, [&](View out) { router_->backward_part(at_hand, f.rho, out, of_router()); });
  }

  /// use(operator, z, x) for every operator of Q, A and B with its gradient sum_mu z_mu x_mu^T of this step. z and D of forward()
  /// and backward() must still stand.
  template <class Use>
  void for_each_gradient(Use&& use) {
    use(*router_, fields_.rho, z_);
    A_->for_each_gradient(fields_.ghat, z_, use);
    B_->for_each_gradient(fields_.Gv, D_, use);
  }

  /// With the loads of this step.
  void move_selection_bias() {
    if (spec_.gate.has_bias()) move_bias<B>(spec_.gate, fields_.mask, bias_);
  }

  /// Between steps: operators for which it pays by now become dense. True if one did.
  bool settle() {
    bool changed = false;
    for_each_operator([&](Operator<B>& o) {
      if (!o.dense_pays() || !o.can_become_dense()) return;
      o.become_dense();
      changed = true;
    });
    return changed;
  }

  /// y of other inputs (S, E); nothing is stored. Ask the stored queries of a step first.
  void evaluate(View z, View y, Weights weights) {
    const Index E = z.cols;
    auto r = Matrix::uninitialized(shape_.experts, E);
    auto mask = Matrix::uninitialized(shape_.experts, E);
    auto G = Matrix::uninitialized(shape_.experts, E);
    auto v = Matrix::uninitialized(shape_.sites(), E);
    router_->evaluate_forward(z, r, weights);
    apply_gate<B>(spec_.gate, r, weights == Weights::now ? bias_.view() : View{}, mask, G);  // at first there is none
    A_->evaluate_to_experts(z, v, weights);
    activate_and_gate<B>(spec_.activation, spec_.activation_scale, v, G, v, v);
    B_->evaluate_from_experts(v, y, weights);
  }

  /// Hidden features v(0) (sites, E) of other inputs (S, E) at initialisation.
  void initial_features(View z, View v0) {
    A_->evaluate_to_experts(z, v0, Weights::initial);
    activate<B>(spec_.activation, spec_.activation_scale, v0, v0);
  }

  /// (1/K) sum_i G_i B_i(0) w_i of given hidden features w (sites, P) with the gates of this step: an evaluation-only query (T26).
  void initial_aggregate(View w, View y) {
    auto Gw = Matrix::uninitialized(w.rows, w.cols);
    times_gate<B>(fields_.G, w, Gw);
    B_->evaluate_from_experts(Gw, y, Weights::initial);
  }

  void transfer(Archive& a) {
    a("neurons", neurons_);
    a("phi_basis", phi_basis_);
    a("D_basis", D_basis_);
    a("rho_basis", rho_basis_);
    a("experts", experts_);
    a("sites", sites_);
    a("hidden", hidden_);
    a("router", router_);
    a("A", A_);
    a("B", B_);
    a("bias", bias_);
  }

  template <class F>
  void for_each_operator(F&& f) {
    f(*router_);
    A_->for_each_operator(f);
    B_->for_each_operator(f);
  }
  /// Everything for diagnostics.
  Operator<B>& router() { return *router_; }
  ExpertMatrix<B>& expert_in() { return *A_; }
  ExpertMatrix<B>& expert_out() { return *B_; }
  Index phi_rank() const { return phi_basis_.rank(); }
  Index D_rank() const { return D_basis_.rank(); }

 private:
  void start_dense() {
    bool can = true;
    for_each_operator([&](Operator<B>& o) { can &= o.can_become_dense(); });
    if (!can && spec_.must_start_dense)
      throw ConfigError({fmt::format(
          "sampling.form = \"dense\": sites, neurons : experts : hidden units = {} : {} : {}, are out of the "
          "network's ratio by more than 2 %, which the dense form does not take (docs/theory.md, section "
          "6). Leave sampling.experts and sampling.hidden at 0 and raise sampling.neurons, so that rounding "
          "matters less, or use form = \"bases\".",
          spec_.counts.neurons, spec_.counts.experts, spec_.counts.hidden)});
    if (can) for_each_operator([](Operator<B>& o) { o.become_dense(); });
  }
  Into of_router() const { return {1 / shape_.kappa, 0}; }

  BlockSpec spec_;
  Population<B> neurons_;
  SiteShape shape_;
  QueryBasis<B> phi_basis_, D_basis_, rho_basis_;
  Population<B> experts_, sites_;
  std::vector<std::unique_ptr<Population<B>>> hidden_;
  BlockFields<B> fields_;
  std::unique_ptr<Operator<B>> router_;
  std::unique_ptr<ExpertMatrix<B>> A_, B_;
  Matrix bias_;  ///< (SE, 1) b of the selection, where it moves
  View z_, D_;   ///< queries of the step, owned by the stream
};

}  // namespace moe
