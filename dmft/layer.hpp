/// A block on the residual stream (T28): norm, block, post-activation, branch multiplier. A layer does not know how many there are.
#pragma once

#include <cmath>
#include <type_traits>

#include "dmft/block.hpp"
#include "dmft/limit_spec.hpp"
#include "dmft/pointwise.hpp"

namespace moe {

namespace detail {
/// z_mu = x_mu / q_mu, q (1, P) with q_mu = <x_mu^2>^(1/2).
template <class B>
void normalise(typename B::View x, typename B::View z, typename B::View q) {
  using Real = typename B::Real;
  column_sums_of_products<B>(x, x, q);
  const Real per_site = Real(1) / static_cast<Real>(x.rows);
  B::each(1, q.cols, [=] MOE_HD(Index, Index p) { q(0, p) = std::sqrt(per_site * q(0, p)); });
  B::each(x.rows, x.cols, [=] MOE_HD(Index n, Index p) { z(n, p) = x(n, p) / q(0, p); });
}
/// g becomes (g - z <z g>) / q.
template <class B>
void norm_backward(typename B::View z, typename B::View q, typename B::View g) {
  using Real = typename B::Real;
  auto overlaps = B::Matrix::uninitialized(1, g.cols);
  const typename B::View overlap = overlaps;
  column_sums_of_products<B>(z, g, overlap);
  const Real per_site = Real(1) / static_cast<Real>(g.rows);
  B::each(g.rows, g.cols,
          [=] MOE_HD(Index n, Index p) { g(n, p) = (g(n, p) - z(n, p) * (per_site * overlap(0, p))) / q(0, p); });
}
/// branch * psi(y) [+ x]
template <class View, class Point>
struct Join {
  using Real = std::remove_reference_t<decltype(*View::data)>;
  View y, x, out;
  Point psi;
  Real branch;
  bool residual;
  MOE_HD void operator()(Index n, Index p) const { out(n, p) = branch * psi(y(n, p)) + (residual ? x(n, p) : Real(0)); }
};
}  // namespace detail

/// out = L^-alpha psi(y) [+ x], b of psi                                                                          (T5), (T28)
template <class B>
void join(const LayerSpec& spec, double b, typename B::View y, typename B::View x, typename B::View out) {
  using Real = typename B::Real;
  PointActivation<Real>{spec.post_activation, static_cast<Real>(b)}.with_value([&](auto psi) {
    B::each(
        out.rows, out.cols,
        detail::Join<typename B::View, decltype(psi)>{y, x, out, psi, static_cast<Real>(spec.branch), spec.residual});
  });
}

/// The identity, or z_mu = x_mu / q_mu with q_mu = <x_mu^2>^(1/2) over neurons.
template <class B>
class StreamNorm {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// S neurons, P samples of a step.
  StreamNorm(Norm kind, Index S, Index P)
      : kind_(kind), z_(kind == Norm::none ? 0 : S, P), q_(kind == Norm::none ? 0 : 1, P) {}

  /// z (S, P) of x (S, P): x itself, or an array that stands until the next call.
  View forward(View x) {
    if (kind_ == Norm::none) return x;
    detail::normalise<B>(x, z_, q_);
    return z_;
  }

  /// dL/dz becomes dL/dx = (g - z <z g>) / q, in place, of the last forward().
  void backward(View g) {
    if (kind_ == Norm::none) return;
    detail::norm_backward<B>(z_, q_, g);
  }

  /// z of other samples, in place.
  void evaluate(View x) const {
    if (kind_ == Norm::none) return;
    auto q = Matrix::uninitialized(1, x.cols);
    detail::normalise<B>(x, x, q);
  }

 private:
  Norm kind_;
  Matrix z_, q_;
};

template <class B>
class Layer {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// P: samples of a stored step. Experts are the layer's own, neurons those of the stream.
  Layer(const LayerSpec& spec, const BlockSpec& block, Population<B> neurons, StreamNumbers& streams, Index P)
      : spec_(spec),
        scale_(block.activation_scale),
        norm_(spec.norm, neurons.sites(), P),
        y_(neurons.sites(), P),
        x_(neurons.sites(), P),
        D_(neurons.sites(), P),
        g_(neurons.sites(), P),
        block_(block, std::move(neurons), streams, P) {}

  /// x^l (S, P) of x^{l-1} (S, P), which must stand until the step's gradients have been used.
  View forward(View x) {
    z_ = norm_.forward(x);
    block_.forward(z_, y_);
    join<B>(spec_, scale_, y_, x, x_);
    return x_;
  }

  /// g^{l-1} (S, P) of g^l (S, P), g = -N dL/dx.
  View backward(View g) {
    times_slope<B>(spec_.post_activation, scale_, y_, g, D_);
    if (spec_.branch != 1) scale<B>(D_, static_cast<Real>(spec_.branch));
    block_.backward(D_, g_);
    norm_.backward(g_);
    if (spec_.residual) accumulate<B>(g, Real(1), g_);
    return g_;
  }

  /// x^l of other x^{l-1} (S, E), in place: evaluation-only queries, of the weights of now or of the initial ones.
  void evaluate(View x, Weights weights) {
    auto z = Matrix::uninitialized(x.rows, x.cols);
    auto y = Matrix::uninitialized(x.rows, x.cols);
    B::copy(x, z);
    norm_.evaluate(z);
    block_.evaluate(z, y, weights);
    join<B>(spec_, scale_, y, x, x);
  }
  /// Hidden features v(0) (sites, E) of x^{l-1} (S, E) at initialisation; x is normalised in place.
  void initial_features(View x, View v0) {
    norm_.evaluate(x);
    block_.initial_features(x, v0);
  }

  void transfer(Archive& a) { a("block", block_); }

  Block<B>& block() { return block_; }
  View z() { return z_; }  ///< what the block reads, (S, P)
  View y() { return y_; }
  View D() { return D_; }

 private:
  LayerSpec spec_;
  double scale_;  ///< of the activation
  StreamNorm<B> norm_;
  Matrix y_, x_, D_, g_;
  Block<B> block_;
  View z_;
};

}  // namespace moe
