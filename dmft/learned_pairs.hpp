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
/// Of Adafactor's Psi = g (mean / (own partner))^1/2 (T30).
template <class Real>
MOE_HD inline Dual<Real> factored_point(Dual<Real> g, Dual<Real> own, Dual<Real> partner, Dual<Real> mean) {
  if (!(own.value > Real(0) && partner.value > Real(0) && mean.value > Real(0))) return {0, 0};
  const Real factor = std::sqrt(mean.value / own.value) / std::sqrt(partner.value);
  const Real relative =
      Real(0.5) * (mean.tangent / mean.value - own.tangent / own.value - partner.tangent / partner.value);
  return {factor * g.value, factor * (g.tangent + g.value * relative)};
}

/// Adam and AdamW: W = decay W + lr Psi(g).
template <class B>
void move_by_adam(DualView<B> g, AdamPoint<typename B::Real> adam, typename B::Real decay, typename B::Real lr,
                  DualView<B> m, DualView<B> v, DualView<B> w) {
  using Real = typename B::Real;
  const AdamPointTangent<Real> tangent{adam};
  B::each(g.rows(), g.cols(), [=] MOE_HD(Index i, Index j) {
    Dual<Real> now = w(i, j), mean = m(i, j), square = v(i, j);
    now.value = decay * now.value + lr * adam(g.value(i, j), mean.value, square.value);
    now.tangent = decay * now.tangent + lr * tangent(g(i, j), mean, square);
    w.set(i, j, now);
    m.set(i, j, mean);
    v.set(i, j, square);
  });
}

/// W += lr sign(g), whose derivative is none.
template <class B>
void move_by_sign(typename B::View g, typename B::Real lr, typename B::View w) {
  B::each(g.rows, g.cols, [=] MOE_HD(Index i, Index j) { w(i, j) += lr * SignPoint<typename B::Real>()(g(i, j)); });
}

/// a = keep a + constant
template <class B>
void keep_share(typename B::Real keep, typename B::Real constant, DualView<B> a) {
  B::each(a.rows(), a.cols(), [=] MOE_HD(Index i, Index q) {
    a.set(i, q, {keep * a.value(i, q) + constant, keep * a.tangent(i, q)});
  });
}
/// own(i, q) += weight * sum of g(i, j)^2 over the columns j of matrix q, `in_matrix` of each, g's first column being column `first`.
template <class B>
void add_squares_of_rows(DualView<B> g, Index first, Index in_matrix, typename B::Real weight, DualView<B> own) {
  using Real = typename B::Real;
  const Index matrix = first / in_matrix, last = (first + g.cols() - 1) / in_matrix;
  B::each(own.rows(), last - matrix + 1, [=] MOE_HD(Index i, Index k) {
    const Index q = matrix + k, begin = q * in_matrix - first, end = begin + in_matrix;
    Dual<Real> sum{0, 0};
    for (Index j = begin > 0 ? begin : 0; j < end && j < g.cols(); ++j) sum = sum + g(i, j) * g(i, j);
    own.set(i, q, own(i, q) + weight * sum);
  });
}
/// out(e, j) += weight * sum of g(i, j)^2 over the rows i of matrix e; tangents times `moves`.
template <class B>
void add_squares_of_columns(DualView<B> g, typename B::Real weight, typename B::Real moves, DualView<B> out) {
  using Real = typename B::Real;
  const Index rows = g.rows() / out.rows();
  B::each(out.rows(), g.cols(), [=] MOE_HD(Index e, Index j) {
    Dual<Real> sum{0, 0};
    for (Index i = e * rows; i < (e + 1) * rows; ++i) sum = sum + g(i, j) * g(i, j);
    out.set(e, j, out(e, j) + Dual<Real>{weight * sum.value, moves * weight * sum.tangent});
  });
}
/// mean(e, q): of own(i, q) over the rows i of matrix e; tangents times `moves`.
template <class B>
void mean_of_rows(DualView<B> own, typename B::Real moves, DualView<B> mean) {
  using Real = typename B::Real;
  const Index rows = own.rows() / mean.rows();
  B::each(mean.rows(), mean.cols(), [=] MOE_HD(Index e, Index q) {
    Dual<Real> sum{0, 0};
    for (Index i = e * rows; i < (e + 1) * rows; ++i) sum = sum + own(i, q);
    const Real weight = Real(1) / static_cast<Real>(rows);
    mean.set(e, q, {weight * sum.value, moves * weight * sum.tangent});
  });
}
/// w += lr Psi(g) (T30), g's first column being column `first` of partners that come in matrices of `in_matrix`.
template <class B>
void move_by_factors(DualView<B> g, Index first, Index in_matrix, DualView<B> own, DualView<B> partner,
                     DualView<B> mean, typename B::Real lr, DualView<B> w) {
  using Real = typename B::Real;
  const Index rows = own.rows() / mean.rows();
  B::each(g.rows(), g.cols(), [=] MOE_HD(Index i, Index j) {
    const Index q = (first + j) / in_matrix, e = i / rows;
    const Dual<Real> step = factored_point(g(i, j), own(i, q), partner(e, j), mean(e, q));
    w.set(i, j, w(i, j) + lr * step);
  });
}
}  // namespace detail

/// The matrices that Adafactor treats each by itself: one above another in the sites, or side by side in the partners.
struct PairMatrices {
  Index of_sites = 1, of_partners = 1;
  bool sites_together =
      false;  ///< the sites of one matrix are one site's: averages over them move with it, and are closed otherwise
};

/// W (sites, partners). Partners are coordinates or stored paths of other sites: they do not move with a site.
template <class B>
class LearnedPairs {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  LearnedPairs() = default;
  /// Zero at first. Tangents of signSGD are none. `scale` multiplies the learning rate, as of LearnedArray.
  LearnedPairs(Index sites, Index partners, const UpdateRule& rule, double scale = 1, PairMatrices matrices = {})
      : rule_(rule), scale_(scale), matrices_(matrices), value_(sites, partners) {
    if (rule.kind == OptimizerKind::adafactor) {
      first_ = DualMatrix<B>(sites, matrices.of_partners);
      second_ = DualMatrix<B>(matrices.of_sites, partners);
    }
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
    if (rule_.kind == OptimizerKind::adafactor) return move_factored(z, x, static_cast<Real>(lr));
    if (rule_.kind == OptimizerKind::signsgd)
      return for_gradients(z, x, [&](DualView<B> g, Index first) {
        detail::move_by_sign<B>(g.value, static_cast<Real>(lr), value_.value.columns(first, g.cols()));
      });
    for_gradients(z, x, [&](DualView<B> g, Index first) { move_entrywise(g, first, static_cast<Real>(lr)); });
  }

 private:
  /// f(gradients of some columns, the first of them)
  template <class F>
  void for_gradients(DualView<B> z, View x, const F& f) {
    constexpr Index columns = 64;  // at once
    DualMatrix<B> gradients(z.rows(), std::min(columns, x.rows));
    for (Index first = 0; first < x.rows; first += columns) {
      const Index count = std::min(columns, x.rows - first);
      const DualView<B> g = gradients.columns(0, count);
      times_constant<B>(z, Op::transposed, 1, x.row_range(first, count), 0, g);
      f(g, first);
    }
  }

  /// Adafactor (T30). A site's own mean squares of gradients, over the partners of each matrix, move with it.
  void move_factored(DualView<B> z, View x, Real lr) {
    const Real now = static_cast<Real>(std::pow(steps_, -0.8)), keep = Real(1) - now;  // weights of the running means
    const Real eps2 = static_cast<Real>(rule_.eps * rule_.eps);
    const Index in_site = z.rows() / matrices_.of_sites, in_partner = x.rows / matrices_.of_partners;
    const Real moves = matrices_.sites_together ? Real(1) : Real(0);
    const DualView<B> own = first_.view(), partner = second_.view();
    detail::keep_share<B>(keep, now * eps2, own);
    detail::keep_share<B>(keep, now * eps2, partner);
    for_gradients(z, x, [&](DualView<B> g, Index first) {
      detail::add_squares_of_rows<B>(g, first, in_partner, now / static_cast<Real>(in_partner), own);
      detail::add_squares_of_columns<B>(g, now / static_cast<Real>(in_site), moves, partner.columns(first, g.cols()));
    });
    DualMatrix<B> mean(partner.rows(), own.cols());
    detail::mean_of_rows<B>(own, moves, mean.view());
    for_gradients(z, x, [&](DualView<B> g, Index first) {
      detail::move_by_factors<B>(g, first, in_partner, own, partner.columns(first, g.cols()), mean.view(), lr,
                                 value_.columns(first, g.cols()));
    });
  }

  /// Columns first .. by gradients g: Adam and AdamW.
  void move_entrywise(DualView<B> g, Index first, Real lr) {
    const Index count = g.cols();
    const AdamPoint<Real> adam{static_cast<Real>(rule_.beta1), static_cast<Real>(rule_.beta2),
                               static_cast<Real>(rule_.eps), static_cast<Real>(1 / (1 - std::pow(rule_.beta1, steps_))),
                               static_cast<Real>(1 / (1 - std::pow(rule_.beta2, steps_)))};
    detail::move_by_adam<B>(g, adam, static_cast<Real>(rule_.decay), lr, first_.columns(first, count),
                            second_.columns(first, count), value_.columns(first, count));
  }

  UpdateRule rule_;
  double scale_ = 1;
  PairMatrices matrices_;
  int steps_ = 0;
  /// (sites, partners): W, velocity or first moment, second moment. Of Adafactor first_ (sites, matrices) and second_ (matrices, partners)
  /// are running means of squares over a matrix's partners and over its sites.
  DualMatrix<B> value_, first_, second_;
};

}  // namespace moe
