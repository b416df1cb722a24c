/// Maps and sums over whole arrays, by name: what the time step does between its products. Outputs may be inputs too. Functors that
/// run on a device stand in functions like these and not in members or constructors of classes, which nvcc does not take them from.
#pragma once

#include "support/cpu.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// An array without gaps between columns as one row.
template <class View>
View as_row(View numbers) {
  return {numbers.data, 1, numbers.size(), 1};
}

/// a *= factor
template <class B>
void scale(typename B::View a, typename B::Real factor) {
  B::each(a.rows, a.cols, [=] MOE_HD(Index i, Index j) { a(i, j) *= factor; });
}
/// to += factor * from
template <class B>
void accumulate(typename B::View from, typename B::Real factor, typename B::View to) {
  B::each(to.rows, to.cols, [=] MOE_HD(Index i, Index j) { to(i, j) += factor * from(i, j); });
}
/// total = a + b
template <class B>
void add(typename B::View a, typename B::View b, typename B::View total) {
  B::each(total.rows, total.cols, [=] MOE_HD(Index i, Index j) { total(i, j) = a(i, j) + b(i, j); });
}
/// rest = a - b
template <class B>
void subtract(typename B::View a, typename B::View b, typename B::View rest) {
  B::each(rest.rows, rest.cols, [=] MOE_HD(Index i, Index j) { rest(i, j) = a(i, j) - b(i, j); });
}
/// out = factor * a^T
template <class B>
void scaled_transpose(typename B::View a, typename B::Real factor, typename B::View out) {
  B::each(out.rows, out.cols, [=] MOE_HD(Index i, Index j) { out(i, j) = factor * a(j, i); });
}

template <class B>
double sum(typename B::View a) {
  return B::sum(a.rows, a.cols, [=] MOE_HD(Index i, Index j) { return a(i, j); });
}
template <class B>
double sum_of_squares(typename B::View a) {
  return B::sum(a.rows, a.cols, [=] MOE_HD(Index i, Index j) { return a(i, j) * a(i, j); });
}
template <class B>
double sum_of_squared_differences(typename B::View a, typename B::View b) {
  return B::sum(a.rows, a.cols, [=] MOE_HD(Index i, Index j) { return (a(i, j) - b(i, j)) * (a(i, j) - b(i, j)); });
}
/// out (1, cols) = column sums of a; of a times b.
template <class B>
void column_sums(typename B::View a, typename B::View out) {
  B::column_sums(
      a.rows, a.cols, [=] MOE_HD(Index i, Index j) { return a(i, j); }, out);
}
template <class B>
void column_sums_of_products(typename B::View a, typename B::View b, typename B::View out) {
  B::column_sums(
      a.rows, a.cols, [=] MOE_HD(Index i, Index j) { return a(i, j) * b(i, j); }, out);
}

namespace detail {
template <class View, class Point>
struct MapPoints {
  View in, out;
  Point point;
  MOE_HD void operator()(Index n, Index p) const { out(n, p) = point(in(n, p)); }
};
template <class View, class Point>
struct MapPointsTimes {
  View at, field, out;
  Point point;
  MOE_HD void operator()(Index n, Index p) const { out(n, p) = point(at(n, p)) * field(n, p); }
};
}  // namespace detail

/// out = phi(in), phi(x) = tanh(b x)/b for tanh
template <class B>
void activate(Activation kind, double b, typename B::View in, typename B::View out) {
  using Real = typename B::Real;
  PointActivation<Real>{kind, static_cast<Real>(b)}.with_value([&](auto phi) {
    B::each(in.rows, in.cols, detail::MapPoints<typename B::View, decltype(phi)>{in, out, phi});
  });
}

/// out = phi'(at) * field
template <class B>
void times_slope(Activation kind, double b, typename B::View at, typename B::View field, typename B::View out) {
  using Real = typename B::Real;
  PointActivation<Real>{kind, static_cast<Real>(b)}.with_derivative([&](auto slope) {
    B::each(at.rows, at.cols, detail::MapPointsTimes<typename B::View, decltype(slope)>{at, field, out, slope});
  });
}

}  // namespace moe
