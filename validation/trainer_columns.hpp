/// Small products on columns of equal length, without packing: what experts that see a few tokens each are made of. Columns are given
/// by pointers, so that the tokens of an expert are neither gathered nor scattered. Sums run in an order that depends on the lengths
/// alone.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/matrix.hpp"

namespace moe::trainer::columns {

#ifdef __AVX512F__
inline constexpr int vector_bytes = 64;
#elif defined __AVX__
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

template <class Real>
struct Simd;
template <>
struct Simd<float> {
  using Vector [[gnu::vector_size(vector_bytes), gnu::aligned(alignof(float)), gnu::may_alias]] = float;
};
template <>
struct Simd<double> {
  using Vector [[gnu::vector_size(vector_bytes), gnu::aligned(alignof(double)), gnu::may_alias]] = double;
};
template <class Real>
using Vector = typename Simd<Real>::Vector;
template <class Real>
inline constexpr Index lanes = vector_bytes / sizeof(Real);

template <class Real>
Vector<Real> load(const Real* p) {
  return *reinterpret_cast<const Vector<Real>*>(p);
}
template <class Real>
void store(Real* p, Vector<Real> v) {
  *reinterpret_cast<Vector<Real>*>(p) = v;
}

/// Calls f with n, 1 <= n <= Max, as a constant.
template <int Max, class F>
void with_constant(Index n, F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (void)((n == I + 1 && (f(std::integral_constant<int, I + 1>{}), true)) || ...);
  }
  (std::make_integer_sequence<int, Max>{});
}

/// Calls f(first, count) on pieces of nearly equal size, none above `most`.
template <class F>
void in_pieces(Index total, Index most, F&& f) {
  const Index pieces = (total + most - 1) / most;
  for (Index k = 0; k < pieces; ++k) f(k * total / pieces, (k + 1) * total / pieces - k * total / pieces);
}

namespace detail {

template <int Q, int T, class Real>
void dot_tile(Index n, Real scale, const Real* w, Index ldw, const Real* const* x, Real* out, Index ldo) {
  constexpr Index L = lanes<Real>;
  Vector<Real> sum[Q][T] = {};
  Index k = 0;
  for (; k + L <= n; k += L) {
    Vector<Real> a[Q];
    for (int q = 0; q < Q; ++q) a[q] = load(w + q * ldw + k);
    for (int t = 0; t < T; ++t) {
      const Vector<Real> b = load(x[t] + k);
      for (int q = 0; q < Q; ++q) sum[q][t] += a[q] * b;
    }
  }
  for (int t = 0; t < T; ++t)
    for (int q = 0; q < Q; ++q) {
      Real lane[L];
      store(lane, sum[q][t]);
      for (Index half = L / 2; half > 0; half /= 2)
        for (Index l = 0; l < half; ++l) lane[l] += lane[l + half];
      Real total = lane[0];
      for (Index rest = k; rest < n; ++rest) total += w[q * ldw + rest] * x[t][rest];
      out[q + t * ldo] = scale * total;
    }
}

/// The V vectors of rows from `row` on of sum_k x_k c_kj, for J columns; c packed with j fastest.
template <int V, int J, class Real, class Finish>
void combine_tile(Index terms, const Real* const* x, Index row, const Real* c, const Finish& finish) {
  constexpr Index L = lanes<Real>;
  Vector<Real> sum[V][J] = {};
  for (Index k = 0; k < terms; ++k) {
    Vector<Real> a[V];
    for (int v = 0; v < V; ++v) a[v] = load(x[k] + row + v * L);
    for (int j = 0; j < J; ++j)
      for (int v = 0; v < V; ++v) sum[v][j] += a[v] * c[k * J + j];
  }
  for (int j = 0; j < J; ++j) {
    Real values[V * L];
    for (int v = 0; v < V; ++v) store(values + v * L, sum[v][j]);
    finish(j, row, values, std::integral_constant<Index, V * L>{});
  }
}

}  // namespace detail

/// out(q, t) = scale sum_n W(n, q) x_t(n), all q < count. W (n, count), leading dimensions ldw and ldo.
template <class Real>
void dots(Index n, Real scale, const Real* w, Index ldw, Index count, const Real* const* x, Index tokens, Real* out,
          Index ldo) {
  in_pieces(count, 4, [&](Index q, Index Q) {
    in_pieces(tokens, 6, [&](Index t, Index T) {
      with_constant<4>(Q, [&](auto Qc) {
        with_constant<6>(T, [&](auto Tc) {
          detail::dot_tile<Qc(), Tc()>(n, scale, w + q * ldw, ldw, x + t, out + q + t * ldo, ldo);
        });
      });
    });
  });
}

/// Rows [first, last) of sum_k scale x_k(n) c(k, j), for j < count: finish(j, row, values, n) takes n of them from `row` on.
/// c(k, j) = c[k * by_term + j * by_column].
template <class Real, class Finish>
void combine(Index first, Index last, const Real* const* x, Index terms, Real scale, const Real* c, Index by_term,
             Index by_column, Index count, const Finish& finish) {
  constexpr Index L = lanes<Real>;
  thread_local std::vector<Real> packed;
  in_pieces(count, 6, [&](Index j0, Index J) {
    packed.resize(static_cast<std::size_t>(terms * J));
    for (Index k = 0; k < terms; ++k)
      for (Index j = 0; j < J; ++j)
        packed[static_cast<std::size_t>(k * J + j)] = scale * c[k * by_term + (j0 + j) * by_column];
    const auto shifted = [&](Index j, Index row, Real* values, auto n) { finish(j0 + j, row, values, n); };
    with_constant<6>(J, [&](auto Jc) {
      Index row = first;
      for (; row + 4 * L <= last; row += 4 * L) detail::combine_tile<4, Jc()>(terms, x, row, packed.data(), shifted);
      for (; row + L <= last; row += L) detail::combine_tile<1, Jc()>(terms, x, row, packed.data(), shifted);
      for (; row < last; ++row)
        for (Index j = 0; j < J; ++j) {
          Real value = 0;
          for (Index k = 0; k < terms; ++k) value += x[k][row] * packed[static_cast<std::size_t>(k * J + j)];
          shifted(j, row, &value, std::integral_constant<Index, 1>{});
        }
    });
  });
}

}  // namespace moe::trainer::columns
