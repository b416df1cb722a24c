/// Point formulas, once for host and device: activations (T1), gates (T2) and entrywise optimizer rules (T22).
#pragma once

#include <cmath>

#include "support/host_device.hpp"
#include "support/run_spec.hpp"
#include "support/vector_math.hpp"

namespace moe {

namespace detail {
template <class Real>
struct ScaledTanh {
  Real b;
  MOE_HD Real operator()(Real x) const { return std::tanh(b * x) / b; }
};
template <class Real>
struct ScaledTanhSlope {
  Real b;
  MOE_HD Real operator()(Real x) const {
    const Real t = std::tanh(b * x);
    return Real(1) - t * t;
  }
  MOE_HD Real operator()(Real, Real value) const { return Real(1) - (b * value) * (b * value); }
};
template <class Real>
struct Relu {
  MOE_HD Real operator()(Real x) const { return x > Real(0) ? x : Real(0); }
};
template <class Real>
struct ReluSlope {
  MOE_HD Real operator()(Real x) const { return x > Real(0) ? Real(1) : Real(0); }
  MOE_HD Real operator()(Real x, Real) const { return (*this)(x); }
};
template <class Real>
struct Gelu {
  MOE_HD Real operator()(Real x) const {
    return Real(0.5) * x * (Real(1) + std::erf(x * Real(0.70710678118654752440)));
  }
};
template <class Real>
struct GeluSlope {
  MOE_HD Real operator()(Real x) const {
    const Real cdf = Real(0.5) * (Real(1) + std::erf(x * Real(0.70710678118654752440)));
    return cdf + x * std::exp(Real(-0.5) * x * x) * Real(0.39894228040143267794);
  }
  MOE_HD Real operator()(Real x, Real) const { return (*this)(x); }
};
template <class Real>
struct Identity {
  MOE_HD Real operator()(Real x) const { return x; }
};
template <class Real>
struct One {
  MOE_HD Real operator()(Real) const { return Real(1); }
  MOE_HD Real operator()(Real, Real) const { return Real(1); }
};
}  // namespace detail

/// phi and phi' at one point. tanh takes a scale b: phi(x) = tanh(b x)/b. gelu is the exact x Phi(x), Phi the normal CDF.
template <class Real>
struct PointActivation {
  Activation kind = Activation::tanh;
  Real scale = 1;

  /// Calls f with a functor whose operator()(x) is phi; the branch on the kind stays outside of f's loops.
  template <class F>
  void with_value(F&& f) const {
    switch (kind) {
      case Activation::tanh: return f(detail::ScaledTanh<Real>{scale});
      case Activation::relu: return f(detail::Relu<Real>{});
      case Activation::gelu: return f(detail::Gelu<Real>{});
      case Activation::identity: return f(detail::Identity<Real>{});
    }
  }
  /// The same with the derivative phi', operator()(x) or, where phi(x) is at hand, operator()(x, phi(x)). relu' is 0 at 0.
  template <class F>
  void with_derivative(F&& f) const {
    switch (kind) {
      case Activation::tanh: return f(detail::ScaledTanhSlope<Real>{scale});
      case Activation::relu: return f(detail::ReluSlope<Real>{});
      case Activation::gelu: return f(detail::GeluSlope<Real>{});
      case Activation::identity: return f(detail::One<Real>{});
    }
  }
};

/// Logistic function.
template <class Real>
MOE_HD inline Real logistic(Real r) {
  return Real(1) / (Real(1) + std::exp(-r));
}

/// One entry of Adam: moments updated in place, returns Psi (T22). eps outside the root, after bias correction.
/// first = 1 - beta1^t, second = 1 - beta2^t with t counted from 1.
template <class Real>
struct AdamPoint {
  Real beta1, beta2, eps, inverse_first, inverse_second;
  MOE_HD inline Real operator()(Real g, Real& m, Real& v) const {
    m = beta1 * m + (Real(1) - beta1) * g;
    v = beta2 * v + (Real(1) - beta2) * g * g;
    const Real denominator = std::sqrt(v * inverse_second) + eps;
    return denominator > Real(0) ? m * inverse_first / denominator : Real(0);
  }
};

/// One entry of signSGD: g/(|g| + eps) is its regularised form; with eps = 0 the sign.
template <class Real>
struct SignPoint {
  MOE_HD inline Real operator()(Real g) const { return g > Real(0) ? Real(1) : (g < Real(0) ? Real(-1) : Real(0)); }
};

}  // namespace moe
