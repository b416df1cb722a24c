/// Paths of single sites in kernel iteration (theory section 6): values along time, and beside each value its derivative along one
/// random direction of the site's Gaussian fields. Formulas are written once, on dual numbers.
#pragma once

#include <utility>

#include "dmft/kernel_set.hpp"
#include "dmft/pointwise.hpp"
#include "support/cpu.hpp"
#include "support/point.hpp"

namespace moe {

/// A value and its derivative along the direction in which the site's fields are perturbed.
template <class Real>
struct Dual {
  Real value, tangent;
};
template <class Real>
MOE_HD inline Dual<Real> operator+(Dual<Real> a, Dual<Real> b) {
  return {a.value + b.value, a.tangent + b.tangent};
}
template <class Real>
MOE_HD inline Dual<Real> operator*(Dual<Real> a, Dual<Real> b) {
  return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
}
template <class Real>
MOE_HD inline Dual<Real> operator*(Real a, Dual<Real> b) {
  return {a * b.value, a * b.tangent};
}

template <class B>
struct DualView {
  using Real = typename B::Real;
  typename B::View value, tangent;

  MOE_HD Dual<Real> operator()(Index i, Index j) const { return {value(i, j), tangent(i, j)}; }
  MOE_HD void set(Index i, Index j, Dual<Real> to) const {
    value(i, j) = to.value;
    tangent(i, j) = to.tangent;
  }
  MOE_HD Index rows() const { return value.rows; }
  MOE_HD Index cols() const { return value.cols; }
  DualView columns(Index first, Index count) const {
    return {value.columns(first, count), tangent.columns(first, count)};
  }
};

/// (sites, columns) of dual numbers, zero at first.
template <class B>
struct DualMatrix {
  typename B::Matrix value, tangent;

  DualMatrix() = default;
  DualMatrix(Index rows, Index cols) : value(rows, cols), tangent(rows, cols) {}
  DualView<B> view() { return {value, tangent}; }
  DualView<B> columns(Index first, Index count) { return view().columns(first, count); }
};

/// out = alpha a op(constant) + beta out, values and tangents.
template <class B>
void times_constant(DualView<B> a, Op op, double alpha, typename B::View constant, double beta, DualView<B> out) {
  B::gemm(Op::plain, op, alpha, a.value, constant, beta, out.value);
  B::gemm(Op::plain, op, alpha, a.tangent, constant, beta, out.tangent);
}

namespace detail {
template <class Real>
struct ScaledTanhCurvature {
  Real b;
  MOE_HD Real operator()(Real x) const {
    const Real t = std::tanh(b * x);
    return Real(-2) * b * t * (Real(1) - t * t);
  }
};
template <class Real>
struct GeluCurvature {
  MOE_HD Real operator()(Real x) const {
    return (Real(2) - x * x) * std::exp(Real(-0.5) * x * x) * Real(0.39894228040143267794);
  }
};
template <class Real>
struct Zero {
  MOE_HD Real operator()(Real) const { return Real(0); }
};
}  // namespace detail

/// A point mass delta(x - at), as steps have it for a derivative, spread over a width by a kernel whose second moment is zero: an
/// average over sites is off by the fourth power of the width. Values keep the step; sites on both of its sides carry the mass alike, so
/// that products of things that jump together come out right to second order in the jumps.
template <class Real>
struct PointMass {
  Real at = 0, inverse_width = 0;  ///< 0: no site has another value than `at`, and nothing is spread

  MOE_HD Real operator()(Real x) const {
    const Real z = (x - at) * inverse_width;
    return inverse_width * Real(0.5) * (Real(3) - z * z) * std::exp(Real(-0.5) * z * z) * Real(0.39894228040143267794);
  }
};
/// Width of a point mass in units of the standard deviation over sites (docs/theory.md, 6.2).
inline constexpr double point_mass_width = 0.1;

/// True where phi'' is a function: relu's is a point mass (docs/theory.md, 6.2, on why it is not spread as a threshold's is).
inline bool has_curvature(Activation kind) { return kind != Activation::relu; }

/// out = phi''(at) * field
template <class B>
void times_curvature(Activation kind, double b, typename B::View at, typename B::View field, typename B::View out) {
  using Real = typename B::Real;
  const auto apply = [&](auto curvature) {
    B::each(at.rows, at.cols, detail::MapPointsTimes<typename B::View, decltype(curvature)>{at, field, out, curvature});
  };
  switch (kind) {
    case Activation::tanh: return apply(detail::ScaledTanhCurvature<Real>{static_cast<Real>(b)});
    case Activation::gelu: return apply(detail::GeluCurvature<Real>{});
    case Activation::relu:
    case Activation::identity: return apply(detail::Zero<Real>{});
  }
}

/// out = phi(in); not in place.
template <class B>
void activate(Activation kind, double b, DualView<B> in, DualView<B> out) {
  activate<B>(kind, b, in.value, out.value);
  times_slope<B>(kind, b, in.value, in.tangent, out.tangent);
}

/// out = phi'(at) * field
template <class B>
void times_slope(Activation kind, double b, DualView<B> at, DualView<B> field, DualView<B> out) {
  auto slopes = B::Matrix::uninitialized(at.rows(), at.cols());
  auto curvatures = B::Matrix::uninitialized(at.rows(), at.cols());
  const DualView<B> slope{slopes, curvatures};
  B::each(at.rows(), at.cols(), [=] MOE_HD(Index i, Index j) { slope.value(i, j) = typename B::Real(1); });
  times_slope<B>(kind, b, at.value, slope.value, slope.value);
  times_curvature<B>(kind, b, at.value, at.tangent, slope.tangent);
  B::each(at.rows(), at.cols(), [=] MOE_HD(Index i, Index j) { out.set(i, j, slope(i, j) * field(i, j)); });
}

namespace detail {
/// out += left g, d out += left scale p
template <class B>
void add_field(typename B::View g, typename B::View p, typename B::Real left, typename B::Real scale, DualView<B> out) {
  const typename B::Real of_probe = left * scale;
  B::each(out.rows(), out.cols(), [=] MOE_HD(Index i, Index j) {
    out.value(i, j) += left * g(i, j);
    out.tangent(i, j) += of_probe * p(i, j);
  });
}
}  // namespace detail

/// One Gaussian field of many sites: paths g along (step, sample), and the probe p ~ N(0, 1) along which the operator's answer is
/// perturbed; the site sees scale times that answer.
template <class B>
class SiteField {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;

  SiteField() = default;
  /// root: L (n, n), g = amplitude Z L^T. `present` false: the matrix has no such side, the field is zero and is not perturbed.
  /// `growing`: rows of L are made on the way, and g is taken when it is asked for. By parts there is no probe.
  SiteField(Index sites, typename B::View root, double amplitude, bool present, double scale, const StreamKey& key,
            bool growing = false, Responses responses = Responses::tangents)
      : root_(root),
        amplitude_(amplitude),
        scale_(static_cast<Real>(scale)),
        present_(present),
        growing_(growing),
        responses_(responses) {
    if (!present) return;
    gaussian_ = Matrix::uninitialized(sites, root.rows);
    white_ = Matrix::uninitialized(sites, root.rows);
    StreamKey draw = key;
    B::normal(white_, draw);
    if (!growing) B::gemm(Op::plain, Op::transposed, amplitude, white_, root, 0, gaussian_);
    if (responses == Responses::by_parts) return;
    if (growing)
      probe_ = Matrix::uninitialized(sites, root.rows);
    else
      std::swap(probe_, white_);
    ++draw.draw;
    B::normal(probe_, draw);
  }

  bool present() const { return present_; }
  Responses responses() const { return responses_; }
  /// Adds the field at columns first .. of its path, of a matrix of which `left` is left, to out (sites, P): out += left g,
  /// d out += left scale p, by parts nothing.
  void add_to(DualView<B> out, Index first, double left) {
    if (!present_) return;
    const typename B::View g = gaussian_.columns(first, out.cols());
    if (growing_) {
      const Index known = first + out.cols();
      B::gemm(Op::plain, Op::transposed, amplitude_, white_.columns(0, known),
              root_.row_range(first, out.cols()).columns(0, known), 0, g);
    }
    if (responses_ == Responses::by_parts)
      accumulate<B>(g, static_cast<Real>(left), out.value);
    else
      detail::add_field<B>(g, probe_.columns(first, out.cols()), static_cast<Real>(left), scale_, out);
  }
  typename B::View gaussian() { return gaussian_; }
  typename B::View probe() { return probe_; }
  typename B::View white() { return white_; }
  double amplitude() const { return amplitude_; }
  Real scale() const { return scale_; }

 private:
  typename B::View root_;
  double amplitude_ = 0;
  Real scale_ = 1;
  bool present_ = false, growing_ = false;
  Responses responses_ = Responses::tangents;
  Matrix gaussian_, probe_;  ///< (sites, n)
  Matrix white_;             ///< (sites, n), Z of a field whose root grows, or by parts
};

}  // namespace moe
