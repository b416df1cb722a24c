/// Activations on whole arrays; in and out may be the same.
#pragma once

#include "support/cpu.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// out = phi(in), phi(x) = tanh(b x)/b for tanh
template <class B>
void activate(Activation kind, double b, typename B::View in, typename B::View out) {
  using Real = typename B::Real;
  PointActivation<Real>{kind, static_cast<Real>(b)}.with_value(
      [&](auto phi) { B::each(in.rows, in.cols, [=](Index n, Index p) { out(n, p) = phi(in(n, p)); }); });
}

/// out = phi'(at) * field
template <class B>
void times_slope(Activation kind, double b, typename B::View at, typename B::View field, typename B::View out) {
  using Real = typename B::Real;
  PointActivation<Real>{kind, static_cast<Real>(b)}.with_derivative([&](auto slope) {
    B::each(at.rows, at.cols, [=](Index n, Index p) { out(n, p) = slope(at(n, p)) * field(n, p); });
  });
}

}  // namespace moe
