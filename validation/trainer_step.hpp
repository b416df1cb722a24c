/// One training step of a finite network: (T1)-(T5) and stacks of blocks (T28) forward, their derivatives backward, the update. Arrays
/// (units, P), the unit fastest; fields over (expert, token) pairs (N_e, pairs), see trainer_dispatch.hpp.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "support/cpu.hpp"
#include "support/error.hpp"
#include "support/point.hpp"
#include "validation/network_loss.hpp"
#include "validation/trainer_products.hpp"
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
template <class Real>
struct Normed {
  HostMatrix<Real> z, q;  ///< (N, P), (1, P); empty without norm
  HostView<Real> out;     ///< z, or x

  Normed(Norm kind, Index N, Index P) : z(kind == Norm::none ? 0 : N, P), q(kind == Norm::none ? 0 : 1, P) {}
};

/// Fields of one block in a forward pass on P samples.
template <class Real>
struct BlockForward {
  Normed<Real> in;
  HostMatrix<Real> r;         ///< (M, P) (T2)
  Dispatch dispatch;          ///< which experts the tokens use
  HostMatrix<Real> G;         ///< (K, P): gates of the active experts of each token (T2)
  HostMatrix<Real> u, v, Gv;  ///< (N_e, pairs) (T3)
  HostMatrix<Real> y, out;    ///< (N, P) before psi (T4), and the stream behind the block

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
template <class Real>
struct Forward {
  HostMatrix<Real> h, phi;                 ///< (N, P) (T1)
  std::vector<BlockForward<Real>> blocks;  ///< L of them
  Normed<Real> s;                          ///< what the readout reads (T5)
  HostMatrix<Real> f;                      ///< (C, P) (T5)

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
template <class Real>
struct BlockBackward {
  HostMatrix<Real> y;      ///< (N, P)
  HostMatrix<Real> Gv, u;  ///< (N_e, pairs)
  HostMatrix<Real> G;      ///< (K, P)
  HostMatrix<Real> r;      ///< (M, P), without balancing loss zero where not active
  HostMatrix<Real> x;      ///< (N, P): dL/dx of the stream before the block, residual part included

  BlockBackward(const NetworkShape& z, Index P)
      : y(z.N, P), Gv(z.Ne, z.K * P), u(z.Ne, z.K * P), G(z.K, P), r(z.M, P), x(z.N, P) {}
};
template <class Real>
struct Backward {
  HostMatrix<Real> f;                       ///< (C, P)
  HostMatrix<Real> s, h;                    ///< (N, P): s of the stream behind the last block
  std::vector<BlockBackward<Real>> blocks;  ///< as in Forward
  HostMatrix<Real>& phi() { return blocks.front().x; }

  Backward(const NetworkShape& z, Index P) : f(z.C, P), s(z.N, P), h(z.N, P) {
    blocks.reserve(static_cast<std::size_t>(z.L));
    for (int l = 0; l < z.L; ++l) blocks.emplace_back(z, P);
  }
};

template <class Real>
class Step {
 public:
  using B = Cpu<Real>;
  using View = HostView<Real>;
  using P = Products<Real>;

  explicit Step(Model model)
      : model_(std::move(model)), branch_(std::pow(model_.shape.L, -model_.spec.branch_exponent)) {}

  /// (T1)-(T5), (T28). Throws NumericsError naming `step` and the first field that is not finite. bias (M, L): of the selection, or
  /// without columns.
  void forward(Tensors<Real>& W, View bias, View x, int step, Forward<Real>& a) const {
    View stream = features(W, x, step, a);
    for (Index l = 0; l < model_.shape.L; ++l) {
      BlockForward<Real>& block = a.blocks[static_cast<std::size_t>(l)];
      block_forward(W, bias.cols > 0 ? bias.columns(l, 1) : bias, l, stream, step, block);
      stream = block.out;
    }
    normalise(stream, a.s);
    P::answer(W[Tensor::readout], real(model_.spec.output_scale), a.s.out, a.f);
    require_finite(a.f, step, "f");
  }
  /// phi (N, P) of inputs x (D, P).
  View features(Tensors<Real>& W, View x, int step, Forward<Real>& a) const {
    P::collect(W[Tensor::input], 1, x, 0, a.h);
    require_finite(a.h, step, "h");
    activate(model_.spec.activation, a.h, a.phi);
    return a.phi;
  }
  /// Block l on the stream x (N, P), which must stand until its gradients have been used. bias (M, 1) or without columns.
  void block_forward(Tensors<Real>& W, View bias, Index l, View x, int step, BlockForward<Real>& a) const {
    normalise(x, a.in);
    P::answer(block(W, Tensor::router, l), 1, a.in.out, a.r);
    require_finite(a.r, step, "r");
    if (model_.spec.routing == Routing::soft)
      a.dispatch.choose_all(a.r.rows(), a.r.cols());
    else
      a.dispatch.choose_largest(a.r.view(), model_.shape.K, bias);
    gate(a);
    P::answer(a.dispatch, block(W, Tensor::expert_in, l), 1, a.in.out, a.u);
    require_finite(a.u, step, "u");
    activate(model_.spec.activation, a.u, a.v);
    times_gate(a.dispatch, a.G, a.v, a.Gv);
    P::collect(a.dispatch, block(W, Tensor::expert_out, l), real(model_.aggregation), a.Gv, a.y);
    require_finite(a.y, step, "y");
    activate(model_.spec.post_activation, a.y, a.out);
    if (branch_ != 1) scale(a.out);
    if (model_.spec.residual) add(x, a.out);
  }

  /// Derivatives of the loss whose derivative with respect to f is `dL_df`. Throws as forward.
  void backward(Tensors<Real>& W, Forward<Real>& a, const Eigen::MatrixXd& dL_df, int step, Backward<Real>& g) const {
    B::upload(dL_df, g.f);
    P::collect(W[Tensor::readout], real(model_.spec.output_scale), g.f, 0, g.s);
    normalise_backward(a.s, g.s);
    View stream = g.s;
    for (Index l = model_.shape.L; l-- > 0;) {
      const auto at = static_cast<std::size_t>(l);
      block_backward(W, l, a.blocks[at], stream, step, g.blocks[at]);
      stream = g.blocks[at].x;
    }
    times_derivative(model_.spec.activation, a.h, stream, g.h);
    require_finite(g.h, step, "dL/dh");
  }

  /// One update of all tensors, slot(tensor) by rule(tensor).
  template <class SlotOf, class RuleOf>
  void update(const SlotOf& slot, View x, Forward<Real>& a, Backward<Real>& g, const RuleOf& rule) const {
    P::learn(rule(Tensor::input), slot(Tensor::input), 1, g.h, x);
    for (Index l = 0; l < model_.shape.L; ++l) {
      BlockForward<Real>& b = a.blocks[static_cast<std::size_t>(l)];
      BlockBackward<Real>& d = g.blocks[static_cast<std::size_t>(l)];
      const auto part = [&](Tensor t) { return of_block(slot(t), l, Index{model_.shape.L}); };
      P::learn(rule(Tensor::router), part(Tensor::router), 1, b.in.out, d.r);
      P::learn(b.dispatch, rule(Tensor::expert_in), part(Tensor::expert_in), 1, b.in.out, d.u);
      P::learn(b.dispatch, rule(Tensor::expert_out), part(Tensor::expert_out), real(model_.aggregation), d.y, b.Gv);
    }
    P::learn(rule(Tensor::readout), slot(Tensor::readout), real(model_.spec.output_scale), a.s.out, g.f);
  }

  /// b_i += rate sign(1 - load_i) in every block, bias (M, L), decided by whole numbers: load_i = tokens M / (P K).   (T32)
  void move_bias(const Forward<Real>& a, View bias) const {
    for (Index l = 0; l < bias.cols; ++l) {
      const Dispatch& d = a.blocks[static_cast<std::size_t>(l)].dispatch;
      for (Index i = 0; i < bias.rows; ++i) {
        const Index missing = d.pairs() - d.experts() * (d.begin(i + 1) - d.begin(i));
        bias(i, l) += real(model_.spec.balance_bias) * SignPoint<Real>()(static_cast<Real>(missing));
      }
    }
  }

  /// Block l of a tensor.
  View block(Tensors<Real>& W, Tensor t, Index l) const { return of_block(W[t].view(), l, model_.shape.L); }

  /// z of x (T28); without norm x itself.
  void normalise(View x, Normed<Real>& a) const {
    a.out = x;
    if (model_.spec.norm == Norm::none) return;
    const View z = a.out = a.z, q = a.q;
    B::column_sums(
        x.rows, x.cols, [=](Index n, Index p) { return x(n, p) * x(n, p); }, q);
    const Real per_unit = Real(1) / static_cast<Real>(x.rows);
    for (Index p = 0; p < x.cols; ++p) q(0, p) = std::sqrt(per_unit * q(0, p));
    B::each(x.rows, x.cols, [=](Index n, Index p) { z(n, p) = x(n, p) / q(0, p); });
  }

  /// values = phi(x) entrywise, whole arrays.
  void activate(Activation kind, View x, View values) const {
    PointActivation<Real>{kind, real(model_.spec.activation_scale)}.with_value(
        [&](auto phi) { B::each(x.size(), 1, [=](Index k, Index) { values.data[k] = phi(x.data[k]); }); });
  }

  /// out_a = G w_a for every pair.
  static void times_gate(const Dispatch& d, View G, View w, View out) {
    for_pairs(d, w.rows, [=, &d](Index k, Index p) {
      const Index pair = d.pair(k, p);
      const Real gate = G(k, p), *from = &w(0, pair);
      Real* const to = &out(0, pair);
#pragma omp simd
      for (Index a = 0; a < w.rows; ++a) to[a] = gate * from[a];
    });
  }

  const Model& model() const { return model_; }

 private:
  static Real real(double value) { return static_cast<Real>(value); }

  void times_derivative(Activation kind, View x, View g, View out) const {
    PointActivation<Real>{kind, real(model_.spec.activation_scale)}.with_derivative(
        [&](auto slope) { B::each(x.size(), 1, [=](Index k, Index) { out.data[k] = g.data[k] * slope(x.data[k]); }); });
  }
  static void add(View from, View to) {
    B::each(from.size(), 1, [=](Index k, Index) { to.data[k] += from.data[k]; });
  }

  void scale(View x) const {
    const Real factor = real(branch_);
    B::each(x.size(), 1, [=](Index k, Index) { x.data[k] *= factor; });
  }

  /// dL/dz becomes dL/dx = (dL/dz - z <z dL/dz>) / q, in place.
  void normalise_backward(Normed<Real>& a, View g) const {
    if (model_.spec.norm == Norm::none) return;
    auto overlaps = HostMatrix<Real>::uninitialized(1, g.cols);
    const View z = a.z, q = a.q, overlap = overlaps;
    B::column_sums(
        g.rows, g.cols, [=](Index n, Index p) { return z(n, p) * g(n, p); }, overlap);
    const Real per_unit = Real(1) / static_cast<Real>(g.rows);
    B::each(g.rows, g.cols,
            [=](Index n, Index p) { g(n, p) = (g(n, p) - per_unit * overlap(0, p) * z(n, p)) / q(0, p); });
  }

  /// g.x out of `above`, the derivative with respect to the stream behind the block.
  void block_backward(Tensors<Real>& W, Index l, BlockForward<Real>& a, View above, int step,
                      BlockBackward<Real>& g) const {
    times_derivative(model_.spec.post_activation, a.y, above, g.y);
    if (branch_ != 1) scale(g.y);
    require_finite(g.y, step, "dL/dy");
    P::answer(a.dispatch, block(W, Tensor::expert_out, l), real(model_.aggregation), g.y, g.Gv);
    through_experts(a, g);
    gate_backward(a, g);
    if (model_.spec.balance_loss != 0 && !a.dispatch.dense()) balance_backward(a, g);
    require_finite(g.r, step, "dL/dr");
    P::collect(a.dispatch, block(W, Tensor::expert_in, l), 1, g.u, g.x);
    P::collect(block(W, Tensor::router, l), 1, g.r, 1, g.x);
    normalise_backward(a.in, g.x);
    if (model_.spec.residual) add(above, g.x);
  }

  /// f(k, p) for the k-th active expert of every token p.
  template <class F>
  static void for_pairs(const Dispatch& d, Index units, const F& f) {
#pragma omp parallel for schedule(static) if (d.pairs() * units > moe::detail::parallel_threshold)
    for (Index p = 0; p < d.tokens(); ++p)
      for (Index k = 0; k < d.active(); ++k) f(k, p);
  }

  /// Gates of the active experts: sigmoid, exp(r) / ((1/K) sum_active exp(r)), or 1; the gate sees r/temperature. (T2)
  void gate(BlockForward<Real>& a) const {
    const Dispatch& d = a.dispatch;
    const View r = a.r, G = a.G;
    const Real inverse_tau = real(1 / model_.spec.router_temperature);
    const Index K = d.active();
    for (Index p = 0; p < d.tokens(); ++p) {
      Real* const g = &G(0, p);
      if (d.dense())
        for (Index k = 0; k < K; ++k) g[k] = inverse_tau * r(k, p);
      else
        for (Index k = 0; k < K; ++k) g[k] = inverse_tau * r(d.expert(k, p), p);
      switch (model_.spec.gate) {
        case Gate::constant: std::fill_n(g, K, Real(1)); break;
        case Gate::sigmoid:
#pragma omp simd
          for (Index k = 0; k < K; ++k) g[k] = logistic(g[k]);
          break;
        case Gate::softmax: {
          const Real largest = *std::max_element(g, g + K);
          Real total = 0;
#pragma omp simd
          for (Index k = 0; k < K; ++k) g[k] = std::exp(g[k] - largest);
          for (Index k = 0; k < K; ++k) total += g[k];
          const Real scale = static_cast<Real>(K) / total;
          for (Index k = 0; k < K; ++k) g[k] *= scale;
          break;
        }
      }
    }
  }

  /// dL/du_ia = G_i phi'(u_ia) dL/d(G v)_ia and dL/dG_i = sum_a v_ia dL/d(G v)_ia, per pair.
  void through_experts(BlockForward<Real>& a, BlockBackward<Real>& g) const {
    const Dispatch& d = a.dispatch;
    const View u = a.u, v = a.v, G = a.G, g_Gv = g.Gv, g_u = g.u, g_G = g.G;
    PointActivation<Real>{model_.spec.activation, real(model_.spec.activation_scale)}.with_derivative([&](auto slope) {
      for_pairs(d, u.rows, [=, &d](Index k, Index p) {
        const Index pair = d.pair(k, p);
        const Real gate = G(k, p), *const pu = &u(0, pair), *const pv = &v(0, pair), *const from = &g_Gv(0, pair);
        Real *const to = &g_u(0, pair), sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Index unit = 0; unit < u.rows; ++unit) {
          sum += from[unit] * pv[unit];
          to[unit] = gate * from[unit] * slope(pu[unit]);
        }
        g_G(k, p) = sum;
      });
    });
  }

  /// dL/dr from dL/dG with the selection held: sigmoid G (1 - G), softmax G_i (dL/dG_i - (1/K) sum_j G_j dL/dG_j).
  void gate_backward(BlockForward<Real>& a, BlockBackward<Real>& g) const {
    const Dispatch& d = a.dispatch;
    const View G = a.G, g_G = g.G, g_r = g.r;
    const Real inverse_tau = real(1 / model_.spec.router_temperature);
    const Index K = d.active();
    if (!d.dense() || model_.spec.gate == Gate::constant) g.r.fill(0);
    if (model_.spec.gate == Gate::constant) return;
    for (Index p = 0; p < d.tokens(); ++p) {
      Real mean = 0;
      if (model_.spec.gate == Gate::softmax) {
        for (Index k = 0; k < K; ++k) mean += G(k, p) * g_G(k, p);
        mean /= static_cast<Real>(K);
      }
      const bool sigmoid = model_.spec.gate == Gate::sigmoid;
      for (Index k = 0; k < K; ++k)
        g_r(d.expert(k, p), p) = inverse_tau * G(k, p) * (sigmoid ? (Real(1) - G(k, p)) * g_G(k, p) : g_G(k, p) - mean);
    }
  }

  /// dL/dr of the balancing loss lambda <load_i mean_mu e_imu>_i, e_i = exp(r_i) / <exp r>, load_i the share of the tokens that choose
  /// expert i over K/M, held: += lambda/(M P) e_i (load_i - <load e>) for all experts.                                 (T31)
  void balance_backward(BlockForward<Real>& a, BlockBackward<Real>& g) const {
    const Dispatch& d = a.dispatch;
    const Index M = d.experts();
    const View r = a.r, g_r = g.r;
    const double fair = static_cast<double>(d.pairs()) / static_cast<double>(M);
    std::vector<Real> load(static_cast<std::size_t>(M)), e(load.size());
    for (Index i = 0; i < M; ++i)
      load[static_cast<std::size_t>(i)] = real(static_cast<double>(d.begin(i + 1) - d.begin(i)) / fair);
    const Real strength = real(model_.spec.balance_loss / static_cast<double>(d.tokens()));
    for (Index p = 0; p < d.tokens(); ++p) {
      const Real largest = *std::max_element(&r(0, p), &r(0, p) + M);
      Real total = 0, overlap = 0;
      for (Index i = 0; i < M; ++i) {
        const auto at = static_cast<std::size_t>(i);
        e[at] = std::exp(r(i, p) - largest);
        total += e[at];
        overlap += e[at] * load[at];
      }
      for (Index i = 0; i < M; ++i) {
        const auto at = static_cast<std::size_t>(i);
        g_r(i, p) += strength * (e[at] / total) * (load[at] - overlap / total);
      }
    }
  }

  static void require_finite(View values, int step, const char* field) {
    // x - x is zero unless x is NaN or infinite.
    const double sum = B::sum(values.size(), 1, [=](Index k, Index) { return values.data[k] - values.data[k]; });
    if (sum == 0) return;
    Index bad = 0;
    for (Index k = 0; k < values.size(); ++k) bad += std::isfinite(values.data[k]) ? 0 : 1;
    throw NumericsError(step, field, fmt::format("{} of {} entries are NaN or infinite", bad, values.size()));
  }

  Model model_;
  double branch_;  ///< L^-alpha
};

}  // namespace moe::trainer
