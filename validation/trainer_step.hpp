/// One training step of a finite network: (T1)-(T5) and stacks of blocks (T28) forward, their derivatives backward, the update. Arrays
/// (units, P), the unit fastest; fields over (expert, token) pairs (N_e, pairs), see trainer_dispatch.hpp. On every backend B for which
/// trainer_backend.hpp is specialised.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <utility>
#include <vector>

#include "support/point.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_maps.hpp"
#include "validation/trainer_state.hpp"

namespace moe::trainer {

/// The function that weights are inserted into: everything but the weights.
struct Model {
  ModelSpec spec;
  Loss loss = Loss::mse;
  NetworkShape shape;
  double aggregation = 1;  ///< prefactor c of sum_i G_i B_i v_i, normally 1/K
};

/// What a block or the readout reads: the stream x, or with norm z_mu = x_mu / q_mu, q_mu the root mean square over neurons.
template <class B>
struct Normed {
  using Matrix = typename B::Matrix;
  using View = typename B::View;
  Matrix z, q;  ///< (N, P), (1, P); empty without norm
  View out;     ///< z, or x

  Normed(Norm kind, Index N, Index P) : z(kind == Norm::none ? 0 : N, P), q(kind == Norm::none ? 0 : 1, P) {}
};

/// Fields of one block in a forward pass on P samples.
template <class B>
struct BlockForward {
  using Matrix = typename B::Matrix;
  Normed<B> in;
  Matrix r;                              ///< (M, P) (T2)
  typename Pairs<B>::Dispatch dispatch;  ///< which experts the tokens use
  Matrix G;                              ///< (K, P): gates of the active experts of each token (T2)
  Matrix u, v, Gv;                       ///< (N_e, pairs) (T3)
  Matrix y, out;                         ///< (N, P) before psi (T4), and the stream behind the block

  BlockForward(Norm norm, const NetworkShape& z, Index P)
      : in(norm, z.N, P),
        r(z.M, P),
        G(z.K, P),
        u(z.Ne, z.K * P),
        v(z.Ne, z.K * P),
        Gv(z.Ne, z.K * P),
        y(z.N, P),
        out(z.N, P) {}
};

/// Fields of one forward pass on P samples.
template <class B>
struct Forward {
  using Matrix = typename B::Matrix;
  Matrix h, phi;                        ///< (N, P) (T1)
  std::vector<BlockForward<B>> blocks;  ///< L of them
  Normed<B> s;                          ///< what the readout reads (T5)
  Matrix f;                             ///< (C, P) (T5)

  Forward(Norm norm, const NetworkShape& z, Index P) : h(z.N, P), phi(z.N, P), s(norm, z.N, P), f(z.C, P) {
    blocks.reserve(static_cast<std::size_t>(z.L));
    for (int l = 0; l < z.L; ++l) blocks.emplace_back(norm, z, P);
  }
  /// For other numbers of samples, at most as many as at construction.
  void set_samples(Index P) {
    for (auto* field : {&h, &phi, &s.z, &s.q, &f}) field->set_columns(P);
    for (auto& b : blocks) {
      for (auto* field : {&b.in.z, &b.in.q, &b.r, &b.G, &b.y, &b.out}) field->set_columns(P);
      for (auto* field : {&b.u, &b.v, &b.Gv}) field->set_columns(b.G.rows() * P);
    }
  }
};

/// dL/df, dL/dy, ...: plain derivatives of the loss, no normalisation.
template <class B>
struct BlockBackward {
  using Matrix = typename B::Matrix;
  Matrix y;      ///< (N, P)
  Matrix Gv, u;  ///< (N_e, pairs)
  Matrix G;      ///< (K, P)
  Matrix r;      ///< (M, P), without balancing loss zero where not active
  Matrix x;      ///< (N, P): dL/dx of the stream before the block, residual part included
  Matrix x_A;    ///< (N, P): the experts' part of dL/dz, where it is kept; else empty

  BlockBackward(const NetworkShape& z, Index P, bool keeps_x_A)
      : y(z.N, P), Gv(z.Ne, z.K * P), u(z.Ne, z.K * P), G(z.K, P), r(z.M, P), x(z.N, P), x_A(keeps_x_A ? z.N : 0, P) {}
};
template <class B>
struct Backward {
  using Matrix = typename B::Matrix;
  Matrix f;                              ///< (C, P)
  Matrix s, h;                           ///< (N, P): s of the stream behind the last block
  std::vector<BlockBackward<B>> blocks;  ///< as in Forward
  Matrix& phi() { return blocks.front().x; }

  Backward(const NetworkShape& z, Index P, bool keeps_x_A) : f(z.C, P), s(z.N, P), h(z.N, P) {
    blocks.reserve(static_cast<std::size_t>(z.L));
    for (int l = 0; l < z.L; ++l) blocks.emplace_back(z, P, keeps_x_A);
  }
};

template <class B>
class Step {
 public:
  using Real = typename B::Real;
  using View = typename B::View;
  using P = Products<B>;

  explicit Step(Model model)
      : model_(std::move(model)), branch_(std::pow(model_.shape.L, -model_.spec.branch_exponent)) {}

  /// (T1)-(T5), (T28). Throws NumericsError naming `step` and the first field that is not finite, or leaves that to the next settle()
  /// or outputs(). bias (M, L): of the selection, or without columns.
  void forward(Tensors<B>& W, View bias, View x, int step, Forward<B>& a) const {
    View stream = features(W, x, step, a);
    for (Index l = 0; l < model_.shape.L; ++l) {
      BlockForward<B>& block = a.blocks[static_cast<std::size_t>(l)];
      block_forward(W, bias.cols > 0 ? bias.columns(l, 1) : bias, l, stream, step, block);
      stream = block.out;
    }
    normalise(stream, a.s);
    P::answer(W[Tensor::readout], real(model_.spec.output_scale), a.s.out, a.f);
    require_finite_(a.f, step, "f");
  }
  /// f (C, P) on the host, of finite numbers like all fields before: a step waits for the device here and nowhere else.
  Eigen::MatrixXd outputs(Forward<B>& a) const { return require_finite_.settle(a.f); }
  /// phi (N, P) of inputs x (D, P).
  View features(Tensors<B>& W, View x, int step, Forward<B>& a) const {
    P::collect(W[Tensor::input], 1, x, 0, a.h);
    require_finite_(a.h, step, "h");
    activate<B>(activation(), a.h, a.phi);
    return a.phi;
  }
  /// Block l on the stream x (N, P), which must stand until its gradients have been used. bias (M, 1) or without columns.
  void block_forward(Tensors<B>& W, View bias, Index l, View x, int step, BlockForward<B>& a) const {
    normalise(x, a.in);
    P::answer(block(W, Tensor::router, l), 1, a.in.out, a.r);
    require_finite_(a.r, step, "r");
    if (model_.spec.routing == Routing::soft)
      a.dispatch.choose_all(a.r.rows(), a.r.cols());
    else
      a.dispatch.choose_largest(a.r.view(), model_.shape.K, bias);
    Pairs<B>::gate(model_.spec, a.dispatch, a.r, a.G);
    P::answer(a.dispatch, block(W, Tensor::expert_in, l), 1, a.in.out, a.u);
    require_finite_(a.u, step, "u");
    activate<B>(activation(), a.u, a.v);
    Pairs<B>::times_gate(a.dispatch, a.G, a.v, a.Gv);
    P::collect(a.dispatch, block(W, Tensor::expert_out, l), real(model_.aggregation), a.Gv, a.y);
    require_finite_(a.y, step, "y");
    activate<B>(activation(model_.spec.post_activation), a.y, a.out);
    if (branch_ != 1) scale<B>(real(branch_), a.out);
    if (model_.spec.residual) add<B>(x, a.out);
  }

  /// Derivatives of the loss from g.f on, the one with respect to f. Throws as forward.
  void backward(Tensors<B>& W, Forward<B>& a, int step, Backward<B>& g) const { backward(W, a, step, nullptr, g); }

  /// One update of all tensors from the derivatives `g`.
  void update(const Updates<B>& learn, View x, Forward<B>& a, Backward<B>& g) const {
    for (Index l = 0; l < model_.shape.L; ++l) {
      const auto at = static_cast<std::size_t>(l);
      P::learn(a.blocks[at].dispatch, block(learn, Tensor::expert_in, l), 1, a.blocks[at].in.out, g.blocks[at].u);
      P::learn(a.blocks[at].dispatch, block(learn, Tensor::expert_out, l), real(model_.aggregation), g.blocks[at].y,
               a.blocks[at].Gv);
    }
    update_others(learn, x, a, g);
  }

  /// backward() and update(), bit for bit; where the backend can, experts learn on the way, and their weights are read once for both.
  /// If it throws, some have learnt and some have not.
  void backward_and_update(Tensors<B>& W, View x, Forward<B>& a, int step, const Updates<B>& learn,
                           Backward<B>& g) const {
    if constexpr (P::learns_on_the_way) {
      backward(W, a, step, &learn, g);
      update_others(learn, x, a, g);
    } else {
      backward(W, a, step, g);
      update(learn, x, a, g);
    }
  }

  /// The selection's bias in every block, bias (M, L).                                                              (T32)
  void move_bias(const Forward<B>& a, View bias) const {
    for (Index l = 0; l < bias.cols; ++l)
      Pairs<B>::move_bias(real(model_.spec.balance_bias), a.blocks[static_cast<std::size_t>(l)].dispatch,
                          bias.columns(l, 1));
  }

  /// Block l of a tensor.
  View block(Tensors<B>& W, Tensor t, Index l) const { return of_block(W[t].view(), l, model_.shape.L); }
  Update<B> block(const Updates<B>& learn, Tensor t, Index l) const { return of_block(learn[t], l, model_.shape.L); }

  /// z of x (T28); without norm x itself.
  void normalise(View x, Normed<B>& a) const {
    a.out = x;
    if (model_.spec.norm == Norm::none) return;
    a.out = a.z;
    trainer::normalise<B>(x, a.z, a.q);
  }

  PointActivation<Real> activation() const { return activation(model_.spec.activation); }
  /// What is not finite is named here at the latest.
  void settle() const { require_finite_.settle(); }

  const Model& model() const { return model_; }

 private:
  static Real real(double value) { return static_cast<Real>(value); }

  PointActivation<Real> activation(Activation kind) const { return {kind, real(model_.spec.activation_scale)}; }

  /// dL/dz becomes dL/dx, in place.
  void normalise_backward(Normed<B>& a, View g) const {
    if (model_.spec.norm != Norm::none) trainer::normalise_backward<B>(a.z, a.q, g);
  }

  /// Experts make their updates on the way if `learn` is there.
  void backward(Tensors<B>& W, Forward<B>& a, int step, const Updates<B>* learn, Backward<B>& g) const {
    P::collect(W[Tensor::readout], real(model_.spec.output_scale), g.f, 0, g.s);
    normalise_backward(a.s, g.s);
    View stream = g.s;
    for (Index l = model_.shape.L; l-- > 0;) {
      const auto at = static_cast<std::size_t>(l);
      block_backward(W, l, a.blocks[at], stream, step, learn, g.blocks[at]);
      stream = g.blocks[at].x;
    }
    times_slope<B>(activation(), a.h, stream, g.h);
    require_finite_(g.h, step, "dL/dh");
  }

  /// g.x out of `above`, the derivative with respect to the stream behind the block.
  void block_backward(Tensors<B>& W, Index l, BlockForward<B>& a, View above, int step, const Updates<B>* learn,
                      BlockBackward<B>& g) const {
    times_slope<B>(activation(model_.spec.post_activation), a.y, above, g.y);
    if (branch_ != 1) scale<B>(real(branch_), g.y);
    require_finite_(g.y, step, "dL/dy");
    through_expert_out(W, l, a, learn, g);
    Pairs<B>::through_experts(activation(), a.dispatch, a.u, a.v, a.G, g.Gv, g.u, g.G);
    Pairs<B>::gate_backward(model_.spec, a.dispatch, a.G, g.G, g.r);
    if (model_.spec.balance_loss != 0 && !a.dispatch.dense())
      Pairs<B>::balance_backward(model_.spec, a.dispatch, a.r, g.r);
    require_finite_(g.r, step, "dL/dr");
    through_expert_in(W, l, a, learn, g);
    if (g.x_A.size() > 0) B::copy(g.x, g.x_A);
    P::collect(block(W, Tensor::router, l), 1, g.r, 1, g.x);
    normalise_backward(a.in, g.x);
    if (model_.spec.residual) add<B>(above, g.x);
  }

  void through_expert_out(Tensors<B>& W, Index l, BlockForward<B>& a, const Updates<B>* learn,
                          BlockBackward<B>& g) const {
    const Real c = real(model_.aggregation);
    if constexpr (P::learns_on_the_way)
      if (learn) return P::answer_and_learn(a.dispatch, block(*learn, Tensor::expert_out, l), c, g.y, a.Gv, g.Gv);
    P::answer(a.dispatch, block(W, Tensor::expert_out, l), c, g.y, g.Gv);
  }
  void through_expert_in(Tensors<B>& W, Index l, BlockForward<B>& a, const Updates<B>* learn,
                         BlockBackward<B>& g) const {
    if constexpr (P::learns_on_the_way)
      if (learn) return P::collect_and_learn(a.dispatch, block(*learn, Tensor::expert_in, l), 1, g.u, a.in.out, g.x);
    P::collect(a.dispatch, block(W, Tensor::expert_in, l), 1, g.u, g.x);
  }

  /// One update of all tensors but the experts'.
  void update_others(const Updates<B>& learn, View x, Forward<B>& a, Backward<B>& g) const {
    P::learn(learn[Tensor::input], 1, g.h, x);
    for (Index l = 0; l < model_.shape.L; ++l) {
      const auto at = static_cast<std::size_t>(l);
      P::learn(block(learn, Tensor::router, l), 1, a.blocks[at].in.out, g.blocks[at].r);
    }
    P::learn(learn[Tensor::readout], real(model_.spec.output_scale), a.s.out, g.f);
  }

  Model model_;
  double branch_;  ///< L^-alpha
  mutable Guard<B> require_finite_;
};

}  // namespace moe::trainer
