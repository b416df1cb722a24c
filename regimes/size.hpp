/// Sizes as powers of N. Written with these numbers, the formulas of signal propagation compute exponents: a product adds them, a
/// sum keeps the larger one (nothing cancels by accident), and a sum over n independent signs multiplies by n^(1/2).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "support/run_spec.hpp"

namespace moe {

inline constexpr double no_exponent = -std::numeric_limits<double>::infinity();  ///< of what is identically zero
inline constexpr double unbounded = std::numeric_limits<double>::infinity();     ///< of what grows with every step
/// Of a quotient by what is identically zero: finite, so that zero times it is zero.
inline constexpr double over_zero = 1e6;

/// What an exponent can come from: the count of a population (its independent directions average out), or an entry of the table.
enum class Cause {
  neurons,
  experts,
  hidden,
  input_std,
  readout_std,
  router_chi,
  router_beta,
  expert_in_chi,
  expert_in_beta,
  expert_out_chi,
  expert_out_beta,
  lr,  ///< of tensor t: lr + t
  eps = lr + num_tensors,
  count = eps + num_tensors
};
inline constexpr Cause cause_of(Cause first, Tensor t) {
  return static_cast<Cause>(static_cast<int>(first) + static_cast<int>(t));
}

/// N^exponent.
struct Size {
  double exponent = no_exponent;

  static Size of(double exponent, Cause) { return {exponent}; }
  static Size one() { return {0}; }
  bool is_zero() const { return exponent == no_exponent; }
};
inline Size operator*(Size a, Size b) { return {a.exponent + b.exponent}; }
/// 0/0 = 0: what is not there has no share of anything.
inline Size operator/(Size a, Size b) {
  if (a.is_zero()) return {};
  return {b.is_zero() ? over_zero : a.exponent - b.exponent};
}
inline Size operator+(Size a, Size b) { return {std::max(a.exponent, b.exponent)}; }
inline Size smaller(Size a, Size b) { return {std::min(a.exponent, b.exponent)}; }
inline Size sqrt(Size a) { return {a.exponent / 2}; }

/// A Size that knows which causes its exponent is the sum of.
struct TracedSize {
  double exponent = no_exponent;
  std::array<double, static_cast<std::size_t>(Cause::count)> from{};

  static TracedSize of(double exponent, Cause cause) {
    TracedSize s{exponent, {}};
    if (std::isfinite(exponent)) s.from[static_cast<std::size_t>(cause)] = exponent;
    return s;
  }
  static TracedSize one() { return {0, {}}; }
  bool is_zero() const { return exponent == no_exponent; }
  /// Number of causes: of two equal sizes the one with the shorter story is told.
  int causes() const {
    return static_cast<int>(std::count_if(from.begin(), from.end(), [](double x) { return x != 0; }));
  }
};
namespace detail {
inline TracedSize combined(const TracedSize& a, const TracedSize& b, double sign) {
  TracedSize c{a.exponent + sign * b.exponent, {}};
  for (std::size_t k = 0; k < c.from.size(); ++k) c.from[k] = a.from[k] + sign * b.from[k];
  return c;
}
}  // namespace detail
inline TracedSize operator*(const TracedSize& a, const TracedSize& b) {
  return a.is_zero() || b.is_zero() ? TracedSize{} : detail::combined(a, b, 1);
}
inline TracedSize operator/(const TracedSize& a, const TracedSize& b) {
  if (a.is_zero()) return {};
  return b.is_zero() ? TracedSize{over_zero, {}} : detail::combined(a, b, -1);
}
inline TracedSize operator+(const TracedSize& a, const TracedSize& b) {
  if (a.exponent != b.exponent) return a.exponent > b.exponent ? a : b;
  return b.causes() < a.causes() ? b : a;
}
inline TracedSize smaller(const TracedSize& a, const TracedSize& b) { return b.exponent < a.exponent ? b : a; }
inline TracedSize sqrt(TracedSize a) {
  a.exponent /= 2;
  for (double& x : a.from) x /= 2;
  return a;
}

/// All sizes between two: for tables of which only some entries are known.
struct SizeInterval {
  Size low, high;

  static SizeInterval of(double exponent, Cause) { return {{exponent}, {exponent}}; }
  static SizeInterval one() { return {Size::one(), Size::one()}; }
  bool is_zero() const { return high.is_zero(); }
};
inline SizeInterval operator*(SizeInterval a, SizeInterval b) { return {a.low * b.low, a.high * b.high}; }
inline SizeInterval operator/(SizeInterval a, SizeInterval b) { return {a.low / b.high, a.high / b.low}; }
inline SizeInterval operator+(SizeInterval a, SizeInterval b) { return {a.low + b.low, a.high + b.high}; }
inline SizeInterval smaller(SizeInterval a, SizeInterval b) { return {smaller(a.low, b.low), smaller(a.high, b.high)}; }
inline SizeInterval sqrt(SizeInterval a) { return {sqrt(a.low), sqrt(a.high)}; }

/// Keeps an interval below N^exponent; a size that is known stays what it is.
template <class S>
void cap(S&, double) {}
inline void cap(SizeInterval& x, double exponent) { x.high.exponent = std::min(x.high.exponent, exponent); }

/// The same from below.
template <class S>
void raise(S&, double) {}
inline void raise(SizeInterval& x, double exponent) { x.low.exponent = std::max(x.low.exponent, exponent); }

/// min(1, x).
template <class S>
S bounded(const S& x) {
  return smaller(S::one(), x);
}
/// x / whole for a part x of a whole: at most one.
template <class S>
S share(const S& x, const S& whole) {
  return bounded(x / whole);
}

}  // namespace moe
