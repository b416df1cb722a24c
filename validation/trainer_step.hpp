/// One training step of a finite network: (T1)-(T5) forward, their derivatives backward, the update. Arrays (units, P), the unit
/// fastest; fields over (expert, token) pairs (N_e, pairs), see trainer_dispatch.hpp.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <utility>

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

/// Fields of one forward pass on P samples.
template <class Real>
struct Forward {
  HostMatrix<Real> h, phi;    ///< (N, P) (T1)
  HostMatrix<Real> r;         ///< (M, P) (T2)
  Dispatch dispatch;          ///< which experts the tokens use
  HostMatrix<Real> G;         ///< (K, P): gates of the active experts of each token (T2)
  HostMatrix<Real> u, v, Gv;  ///< (N_e, pairs) (T3)
  HostMatrix<Real> y, s;      ///< (N, P) before psi, and psi(y) [+ phi] (T4)
  HostMatrix<Real> f;         ///< (C, P) (T5)

  Forward(const NetworkShape& z, Index P)
      : h(z.N, P),
        phi(z.N, P),
        r(z.M, P),
        G(z.K, P),
        u(z.Ne, z.K * P),
        v(z.Ne, z.K * P),
        Gv(z.Ne, z.K * P),
        y(z.N, P),
        s(z.N, P),
        f(z.C, P) {}
  /// For other numbers of samples, at most as many as at construction.
  void set_samples(Index P) {
    for (auto* field : {&h, &phi, &r, &G, &y, &s, &f}) field->set_columns(P);
    for (auto* field : {&u, &v, &Gv}) field->set_columns(G.rows() * P);
  }
};

/// dL/df, dL/ds, ...: plain derivatives of the loss, no normalisation.
template <class Real>
struct Backward {
  HostMatrix<Real> f;       ///< (C, P)
  HostMatrix<Real> s, y;    ///< (N, P)
  HostMatrix<Real> Gv, u;   ///< (N_e, pairs)
  HostMatrix<Real> G;       ///< (K, P)
  HostMatrix<Real> r;       ///< (M, P), zero where not active
  HostMatrix<Real> phi, h;  ///< (N, P), dL/dphi with the residual part

  Backward(const NetworkShape& z, Index P)
      : f(z.C, P),
        s(z.N, P),
        y(z.N, P),
        Gv(z.Ne, z.K * P),
        u(z.Ne, z.K * P),
        G(z.K, P),
        r(z.M, P),
        phi(z.N, P),
        h(z.N, P) {}
};

template <class Real>
class Step {
 public:
  using B = Cpu<Real>;
  using View = HostView<Real>;
  using P = Products<Real>;

  explicit Step(Model model) : model_(std::move(model)) {}

  /// (T1)-(T5). Throws NumericsError naming `step` and the first field that is not finite.
  void forward(Tensors<Real>& W, View x, int step, Forward<Real>& a) const {
    P::collect(W[Tensor::input], 1, x, 0, a.h);
    require_finite(a.h, step, "h");
    activate(model_.spec.activation, a.h, a.phi);
    P::answer(W[Tensor::router], 1, a.phi, a.r);
    require_finite(a.r, step, "r");
    if (model_.spec.routing == Routing::soft)
      a.dispatch.choose_all(a.r.rows(), a.r.cols());
    else
      a.dispatch.choose_largest(a.r.view(), model_.shape.K);
    gate(a);
    P::answer(a.dispatch, W[Tensor::expert_in], 1, a.phi, a.u);
    require_finite(a.u, step, "u");
    activate(model_.spec.activation, a.u, a.v);
    times_gate(a.dispatch, a.G, a.v, a.Gv);
    P::collect(a.dispatch, W[Tensor::expert_out], real(model_.aggregation), a.Gv, a.y);
    require_finite(a.y, step, "y");
    activate(model_.spec.post_activation, a.y, a.s);
    if (model_.spec.residual) add(a.phi, a.s);
    P::answer(W[Tensor::readout], real(model_.spec.output_scale), a.s, a.f);
    require_finite(a.f, step, "f");
  }

  /// Derivatives of the loss whose derivative with respect to f is `dL_df`. Throws as forward.
  void backward(Tensors<Real>& W, Forward<Real>& a, const Eigen::MatrixXd& dL_df, int step, Backward<Real>& g) const {
    B::upload(dL_df, g.f);
    P::collect(W[Tensor::readout], real(model_.spec.output_scale), g.f, 0, g.s);
    times_derivative(model_.spec.post_activation, a.y, g.s, g.y);
    require_finite(g.y, step, "dL/dy");
    P::answer(a.dispatch, W[Tensor::expert_out], real(model_.aggregation), g.y, g.Gv);
    through_experts(a, g);
    gate_backward(a, g);
    require_finite(g.r, step, "dL/dr");
    P::collect(a.dispatch, W[Tensor::expert_in], 1, g.u, g.phi);
    P::collect(W[Tensor::router], 1, g.r, 1, g.phi);
    if (model_.spec.residual) add(g.s, g.phi);
    times_derivative(model_.spec.activation, a.h, g.phi, g.h);
    require_finite(g.h, step, "dL/dh");
  }

  /// One update of all five tensors, slot(tensor) by rule(tensor).
  template <class SlotOf, class RuleOf>
  void update(const SlotOf& slot, View x, Forward<Real>& a, Backward<Real>& g, const RuleOf& rule) const {
    P::learn(rule(Tensor::input), slot(Tensor::input), 1, g.h, x);
    P::learn(rule(Tensor::router), slot(Tensor::router), 1, a.phi, g.r);
    P::learn(a.dispatch, rule(Tensor::expert_in), slot(Tensor::expert_in), 1, a.phi, g.u);
    P::learn(a.dispatch, rule(Tensor::expert_out), slot(Tensor::expert_out), real(model_.aggregation), g.y, a.Gv);
    P::learn(rule(Tensor::readout), slot(Tensor::readout), real(model_.spec.output_scale), a.s, g.f);
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

  /// f(k, p) for the k-th active expert of every token p.
  template <class F>
  static void for_pairs(const Dispatch& d, Index units, const F& f) {
#pragma omp parallel for schedule(static) if (d.pairs() * units > moe::detail::parallel_threshold)
    for (Index p = 0; p < d.tokens(); ++p)
      for (Index k = 0; k < d.active(); ++k) f(k, p);
  }

  /// Gates of the active experts: sigmoid, exp(r) / ((1/K) sum_active exp(r)), or 1; the gate sees r/temperature. (T2)
  void gate(Forward<Real>& a) const {
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
  void through_experts(Forward<Real>& a, Backward<Real>& g) const {
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
  void gate_backward(Forward<Real>& a, Backward<Real>& g) const {
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

  static void require_finite(View values, int step, const char* field) {
    // x - x is zero unless x is NaN or infinite.
    const double sum = B::sum(values.size(), 1, [=](Index k, Index) { return values.data[k] - values.data[k]; });
    if (sum == 0) return;
    Index bad = 0;
    for (Index k = 0; k < values.size(); ++k) bad += std::isfinite(values.data[k]) ? 0 : 1;
    throw NumericsError(
        step, field,
        fmt::format("{} of {} entries are NaN or infinite; a smaller optimizer.lr usually helps", bad, values.size()));
  }

  Model model_;
};

}  // namespace moe::trainer
