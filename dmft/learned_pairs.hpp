/// Arrays of sites x partners that learn along a path of kernel iteration (T20)-(T22), with derivatives along the sites' directions.
#pragma once

#include <algorithm>
#include <cmath>

#include "dmft/site_field.hpp"
#include "dmft/update_rule.hpp"

namespace moe {

namespace detail {
/// Derivative of AdamPoint's Psi and moments along that of g, after the moments themselves have moved.
template <class Real>
struct AdamPointTangent {
  AdamPoint<Real> rule;
  MOE_HD Real operator()(Dual<Real> g, Dual<Real>& m, Dual<Real>& v) const {
    m.tangent = rule.beta1 * m.tangent + (Real(1) - rule.beta1) * g.tangent;
    v.tangent = rule.beta2 * v.tangent + Real(2) * (Real(1) - rule.beta2) * g.value * g.tangent;
    const Real root = std::sqrt(v.value * rule.inverse_second), denominator = root + rule.eps;
    if (!(denominator > Real(0))) return Real(0);
    const Real of_root = root > Real(0) ? v.tangent * rule.inverse_second / (Real(2) * root) : Real(0);
    return rule.inverse_first * (m.tangent - m.value * of_root / denominator) / denominator;
  }
};
}  // namespace detail

/// W (sites, partners). Partners are coordinates or stored paths of other sites: they do not move with a site.
template <class B>
class LearnedPairs {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  LearnedPairs() = default;
  /// Zero at first. Rules: SGD, momentum, Adam, AdamW. `scale` multiplies the learning rate, as of LearnedArray.
  LearnedPairs(Index sites, Index partners, const UpdateRule& rule, double scale = 1)
      : rule_(rule), scale_(scale), value_(sites, partners) {
    if (rule.has_velocity() || rule.has_moments()) first_ = DualMatrix<B>(sites, partners);
    if (rule.has_moments()) second_ = DualMatrix<B>(sites, partners);
  }

  bool empty() const { return value_.value.empty(); }
  DualView<B> view() { return value_.view(); }

  /// out (sites, P) += factor W with; with (partners, P)
  void act(double factor, View with, DualView<B> out) {
    if (!empty()) times_constant<B>(view(), Op::plain, factor, with, 1, out);
  }

  /// W = decay W + scale lr rule(sum_mu z_mu x_mu^T); z (sites, P), x (partners, P).                                     (T22)
  void update(DualView<B> z, View x) {
    if (empty()) return;
    ++steps_;
    const double lr = scale_ * rule_.lr;
    if (rule_.kind == OptimizerKind::sgd) return times_constant<B>(z, Op::transposed, lr, x, 1, view());
    if (rule_.has_velocity()) {
      times_constant<B>(z, Op::transposed, 1, x, rule_.momentum, first_.view());
      accumulate<B>(first_.value, static_cast<Real>(lr), value_.value);
      accumulate<B>(first_.tangent, static_cast<Real>(lr), value_.tangent);
      return;
    }
    constexpr Index columns = 64;  // of gradients at once
    DualMatrix<B> gradients(z.rows(), std::min(columns, x.rows));
    for (Index first = 0; first < x.rows; first += columns) {
      const Index count = std::min(columns, x.rows - first);
      const DualView<B> g = gradients.columns(0, count);
      times_constant<B>(z, Op::transposed, 1, x.row_range(first, count), 0, g);
      move_entrywise(g, first, static_cast<Real>(lr));
    }
  }

 private:
  /// Columns first .. by gradients g: Adam and AdamW.
  void move_entrywise(DualView<B> g, Index first, Real lr) {
    const Real decay = static_cast<Real>(rule_.decay);
    const DualView<B> w = value_.columns(first, g.cols()), m = first_.columns(first, g.cols()),
                      v = second_.columns(first, g.cols());
    const AdamPoint<Real> adam{static_cast<Real>(rule_.beta1), static_cast<Real>(rule_.beta2),
                               static_cast<Real>(rule_.eps), static_cast<Real>(1 / (1 - std::pow(rule_.beta1, steps_))),
                               static_cast<Real>(1 / (1 - std::pow(rule_.beta2, steps_)))};
    const detail::AdamPointTangent<Real> tangent{adam};
    B::each(g.rows(), g.cols(), [=] MOE_HD(Index i, Index j) {
      Dual<Real> now = w(i, j), mean = m(i, j), square = v(i, j);
      now.value = decay * now.value + lr * adam(g.value(i, j), mean.value, square.value);
      now.tangent = decay * now.tangent + lr * tangent(g(i, j), mean, square);
      w.set(i, j, now);
      m.set(i, j, mean);
      v.set(i, j, square);
    });
  }

  UpdateRule rule_;
  double scale_ = 1;
  int steps_ = 0;
  DualMatrix<B> value_, first_, second_;  ///< (sites, partners): W, velocity or first moment, second moment
};

}  // namespace moe
