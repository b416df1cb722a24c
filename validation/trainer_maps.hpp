/// Maps over whole arrays between the products of a network, for every backend B. Arrays are contiguous; outputs may be inputs too.
#pragma once

#include <cmath>

#include "support/host_device.hpp"
#include "support/matrix.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe::trainer {

namespace maps {
template <class View, class Point>
struct Apply {
  View x, out;
  Point point;
  MOE_HD void operator()(Index k, Index) const { out.data[k] = point(x.data[k]); }
};
template <class View, class Point>
struct ApplyTimes {
  View x, g, out;
  Point point;
  MOE_HD void operator()(Index k, Index) const { out.data[k] = g.data[k] * point(x.data[k]); }
};
}  // namespace maps

/// out = phi(x), phi(x) = tanh(b x)/b for tanh
template <class B>
void activate(const PointActivation<typename B::Real>& activation, typename B::View x, typename B::View out) {
  activation.with_value([&](auto phi) {
    B::each(x.size(), 1, maps::Apply<typename B::View, decltype(phi)>{x, out, phi});
  });
}
/// out = g phi'(x)
template <class B>
void times_slope(const PointActivation<typename B::Real>& activation, typename B::View x, typename B::View g,
                 typename B::View out) {
  activation.with_derivative([&](auto slope) {
    B::each(x.size(), 1, maps::ApplyTimes<typename B::View, decltype(slope)>{x, g, out, slope});
  });
}
template <class B>
void add(typename B::View from, typename B::View to) {
  B::each(from.size(), 1, [=] MOE_HD(Index k, Index) { to.data[k] += from.data[k]; });
}
template <class B>
void scale(typename B::Real factor, typename B::View x) {
  B::each(x.size(), 1, [=] MOE_HD(Index k, Index) { x.data[k] *= factor; });
}
/// w = start + unit * moved
template <class B>
void displace(typename B::View start, typename B::Real unit, typename B::View moved, typename B::View w) {
  B::each(w.rows, w.cols, [=] MOE_HD(Index i, Index j) { w(i, j) = start(i, j) + unit * moved(i, j); });
}

/// z_mu = x_mu / q_mu, q_mu the root mean square of x_mu over its rows: z (N, P), q (1, P).                               (T28)
template <class B>
void normalise(typename B::View x, typename B::View z, typename B::View q) {
  using Real = typename B::Real;
  B::column_sums(
      x.rows, x.cols, [=] MOE_HD(Index n, Index p) { return x(n, p) * x(n, p); }, q);
  const Real per_unit = Real(1) / static_cast<Real>(x.rows);
  B::each(1, x.cols, [=] MOE_HD(Index, Index p) { q(0, p) = std::sqrt(per_unit * q(0, p)); });
  B::each(x.rows, x.cols, [=] MOE_HD(Index n, Index p) { z(n, p) = x(n, p) / q(0, p); });
}
/// dL/dz becomes dL/dx = (dL/dz - z <z dL/dz>) / q, in place.
template <class B>
void normalise_backward(typename B::View z, typename B::View q, typename B::View g) {
  using Real = typename B::Real;
  auto overlaps = B::Matrix::uninitialized(1, g.cols);
  const typename B::View overlap = overlaps;
  B::column_sums(
      g.rows, g.cols, [=] MOE_HD(Index n, Index p) { return z(n, p) * g(n, p); }, overlap);
  const Real per_unit = Real(1) / static_cast<Real>(g.rows);
  B::each(g.rows, g.cols,
          [=] MOE_HD(Index n, Index p) { g(n, p) = (g(n, p) - per_unit * overlap(0, p) * z(n, p)) / q(0, p); });
}

/// Sum of squares of x, and of x - from, in double.
template <class B>
double sum_squares(typename B::View x) {
  return B::sum(x.size(), 1, [=] MOE_HD(Index k, Index) {
    const auto value = static_cast<double>(x.data[k]);
    return value * value;
  });
}
template <class B>
double sum_squared_differences(typename B::View x, typename B::View from) {
  return B::sum(x.size(), 1, [=] MOE_HD(Index k, Index) {
    const double value = static_cast<double>(x.data[k]) - static_cast<double>(from.data[k]);
    return value * value;
  });
}

}  // namespace moe::trainer
