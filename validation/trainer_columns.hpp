/// The three products of a tensor W whose columns are the units and whose rows are the N neurons: what units answer to the columns
/// of a field, what they make of a field together, and what they learn. Columns of a field over neurons are given by pointers, so that
/// the tokens of an expert are neither gathered nor scattered; fields over units have the token fastest, as tiles make and read them.
/// Tiles of sums stay in registers, and lines of W are fetched ahead. Sums run in an order that depends on the shapes alone.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/matrix.hpp"

namespace moe::trainer::columns {

// A tile is panel_vectors vectors of rows by panel_columns columns, as many sums as the registers carry: 32 of them with AVX-512,
// else 16.
#ifdef __AVX512F__
inline constexpr int vector_bytes = 64, panel_vectors = 4, panel_columns = 6, dot_columns = 4, dot_tokens = 6;
#elif defined __AVX__
inline constexpr int vector_bytes = 32, panel_vectors = 2, panel_columns = 6, dot_columns = 4, dot_tokens = 2;
#else
inline constexpr int vector_bytes = 16, panel_vectors = 2, panel_columns = 6, dot_columns = 4, dot_tokens = 2;
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
/// Rows of a whole panel.
template <class Real>
inline constexpr Index panel_rows = panel_vectors* lanes<Real>;
/// Numbers in a line of the caches.
template <class Real>
inline constexpr Index line = 64 / sizeof(Real);

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

/// Memory that grows, for operands packed again and again.
template <class Real>
class Scratch {
 public:
  Real* of(Index count) {
    if (values_.size() < count) values_ = HostMatrix<Real>::uninitialized(count, 1);
    return values_.data();
  }

 private:
  HostMatrix<Real> values_;
};

/// Copies `there` of `width` numbers, whole vectors, and fills the rest with zeros.
template <class Real>
void copy_padded(const Real* from, Index there, Index width, Real* to) {
  if (there == width) {
    for (Index n = 0; n < width; n += lanes<Real>) store(to + n, load(from + n));
  } else {
    std::fill(std::copy_n(from, there, to), to + width, Real(0));
  }
}

/// Vectors of the panel that begins `rows` rows before the end.
template <class Real>
Index vectors_of(Index rows) {
  return std::min<Index>(panel_vectors, (rows + lanes<Real> - 1) / lanes<Real>);
}

namespace detail {

/// a and b with the lanes of one whose number has the bit `bit` exchanged for those of the other that have it not.
template <std::size_t bit, bool second, class Real, std::size_t... l>
Vector<Real> exchanged(Vector<Real> a, Vector<Real> b, std::index_sequence<l...>) {
  constexpr std::size_t L = sizeof...(l);
  if constexpr (second)
    return __builtin_shufflevector(a, b, ((l & bit) != 0 ? L + l : l + bit)...);
  else
    return __builtin_shufflevector(a, b, ((l & bit) != 0 ? L + l - bit : l)...);
}
template <std::size_t bit, class Real>
void exchange(Vector<Real>* row) {
  constexpr std::size_t L = lanes<Real>;
  if constexpr (bit < L) {
#pragma GCC unroll 16
    for (std::size_t i = 0; i < L; ++i)
      if ((i & bit) == 0) {
        const Vector<Real> a = row[i], b = row[i + bit];
        row[i] = exchanged<bit, false, Real>(a, b, std::make_index_sequence<L>{});
        row[i + bit] = exchanged<bit, true, Real>(a, b, std::make_index_sequence<L>{});
      }
    exchange<2 * bit, Real>(row);
  }
}
/// to[j + i ldt] = column(j)[i] for i, j < lanes, bit after bit of the two.
template <class Real, class Column>
void transpose_block(const Column& column, Real* to, Index ldt) {
  Vector<Real> row[lanes<Real>];
#pragma GCC unroll 16
  for (Index j = 0; j < lanes<Real>; ++j) row[j] = load<Real>(column(j));
  exchange<1, Real>(row);
#pragma GCC unroll 16
  for (Index i = 0; i < lanes<Real>; ++i) store(to + i * ldt, row[i]);
}

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
      out[t + q * ldo] = scale * total;
    }
}

/// Hands sum_k a(:, k) c(k, j) to finish(j, v, sum), v < V vectors, j < J. a (V vectors, terms), leading dimension lda;
/// c(k, j) = c[k + j ldc] where terms are adjacent, else c[k ldc + j]. On the way, before every line of terms: fetch(first term), for
/// what will be needed later.
template <int V, int J, bool adjacent_terms, class Real, class Fetch, class Finish>
void tile(Index terms, const Real* a, Index lda, const Real* c, Index ldc, const Fetch& fetch, const Finish& finish) {
  constexpr Index L = lanes<Real>;
  Vector<Real> sum[J][V] = {};
  for (Index first = 0; first < terms; first += line<Real>) {
    fetch(first);
    for (Index k = first, last = std::min(terms, first + line<Real>); k < last; ++k) {
      Vector<Real> row[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) row[v] = load(a + k * lda + v * L);
#pragma GCC unroll 6
      for (int j = 0; j < J; ++j) {
        const Real factor = adjacent_terms ? c[k + j * ldc] : c[k * ldc + j];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[j][v] += row[v] * factor;
      }
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) finish(j, v, sum[j][v]);
}

/// Into out (vectors, columns).
template <bool adjacent_terms, class Real, class Fetch>
void any_tile(Index vectors, Index columns, Index terms, const Real* a, Index lda, const Real* c, Index ldc,
              const Fetch& fetch, Real* out) {
  with_constant<panel_vectors>(vectors, [&](auto V) {
    with_constant<panel_columns>(columns, [&](auto J) {
      tile<V(), J(), adjacent_terms>(terms, a, lda, c, ldc, fetch, [=](int j, int v, Vector<Real> sum) {
        store(out + (j * V() + v) * lanes<Real>, sum);
      });
    });
  });
}
/// Of a whole panel.
template <bool adjacent_terms, class Real, class Fetch, class Finish>
void whole_tile(Index columns, Index terms, const Real* a, Index lda, const Real* c, Index ldc, const Fetch& fetch,
                const Finish& finish) {
  with_constant<panel_columns>(
      columns, [&](auto J) { tile<panel_vectors, J(), adjacent_terms>(terms, a, lda, c, ldc, fetch, finish); });
}

template <class Real>
using TileValues = std::array<Real, static_cast<std::size_t>(panel_rows<Real>* panel_columns)>;

}  // namespace detail

/// out(t, q) = scale sum_n W(n, q) x_t(n), all q < count. W (n, count), leading dimensions ldw and ldo. For a few columns and tokens:
/// nothing is packed.
template <class Real>
void dots(Index n, Real scale, const Real* w, Index ldw, Index count, const Real* const* x, Index tokens, Real* out,
          Index ldo) {
  in_pieces(count, dot_columns, [&](Index q, Index Q) {
    in_pieces(tokens, dot_tokens, [&](Index t, Index T) {
      with_constant<dot_columns>(Q, [&](auto Qc) {
        with_constant<dot_tokens>(T, [&](auto Tc) {
          detail::dot_tile<Qc(), Tc()>(n, scale, w + q * ldw, ldw, x + t, out + t + q * ldo, ldo);
        });
      });
    });
  });
}

/// Numbers of x_t(n) packed for answers(): panels of tokens, in each the tokens of one n beside each other.
template <class Real>
Index token_panels_size(Index n, Index tokens) {
  return n * ((tokens + lanes<Real> - 1) / lanes<Real>)*lanes<Real>;
}
/// Packs rows [first, last) of n.
template <class Real>
void pack_tokens(Index n, Index first, Index last, const Real* const* x, Index tokens, Real* packed) {
  constexpr Index L = lanes<Real>;
  for (Index t = 0; t < tokens; t += panel_rows<Real>) {
    const Index width = vectors_of<Real>(tokens - t) * L, there = std::min(width, tokens - t);
    Real* const panel = packed + t * n;
    for (Index j0 = 0; j0 < width; j0 += L) {
      static constexpr Real nothing[L] = {};
      const auto column = [&](Index j, Index k) { return j0 + j < there ? x[t + j0 + j] + k : nothing; };
      Index k = first;
      for (; k + L <= last; k += L)
        detail::transpose_block([&](Index j) { return column(j, k); }, panel + k * width + j0, width);
      for (; k < last; ++k)
        for (Index j = 0; j < L; ++j) panel[k * width + j0 + j] = *column(j, k);
    }
  }
}

/// out(t, q) = scale sum_n W(n, q) x_t(n), all q < count; x packed by pack_tokens().
template <class Real>
void answers(Index n, Real scale, const Real* w, Index ldw, Index count, const Real* packed, Index tokens, Real* out,
             Index ldo) {
  constexpr Index block = 512, most_tokens = 128 / panel_rows<Real> * panel_rows<Real>;  // stay in the second cache
  detail::TileValues<Real> values;
  for (Index t0 = 0; t0 < tokens; t0 += most_tokens) {
    const Index t1 = std::min(tokens, t0 + most_tokens);
    for (Index n0 = 0; n0 < n; n0 += block) {
      const Index terms = std::min(block, n - n0);
      in_pieces(count, panel_columns, [&](Index q, Index J) {
        const Real* const columns = w + q * ldw + n0;
        Index ahead = t0 == 0 ? std::min(J, count - q - J) : 0;
        const auto fetch = [&](Index first) {
          for (Index j = 0; j < ahead; ++j) __builtin_prefetch(columns + first + (J + j) * ldw);
        };
        for (Index t = t0; t < t1; t += panel_rows<Real>, ahead = 0) {
          const Index vectors = vectors_of<Real>(tokens - t), width = vectors * lanes<Real>;
          const Real* const panel = packed + t * n + n0 * width;
          if (t + panel_rows<Real> <= tokens) {
            Real* const to = out + q * ldo + t;
            const bool adds = n0 > 0;
            detail::whole_tile<true>(J, terms, panel, width, columns, ldw, fetch, [=](int j, int v, Vector<Real> sum) {
              Real* const at = to + j * ldo + v * lanes<Real>;
              store(at, adds ? load(at) + scale * sum : scale * sum);
            });
            continue;
          }
          detail::any_tile<true>(vectors, J, terms, panel, width, columns, ldw, fetch, values.data());
          for (Index j = 0; j < J; ++j) {
            Real* const to = out + (q + j) * ldo + t;
            const Real* const sum = values.data() + j * width;
            const Index there = std::min(width, tokens - t);
#pragma omp simd
            for (Index k = 0; k < there; ++k) to[k] = n0 == 0 ? scale * sum[k] : to[k] + scale * sum[k];
          }
        }
      });
    }
  }
}

/// Rows [first, last) of the columns x_k packed for combine(): panels of rows, in each the terms one after another. Room for
/// `terms` columns of last - first rows rounded up to a vector.
template <class Real>
void pack_rows(Index first, Index last, const Real* const* x, Index terms, Real* packed) {
  for (Index row = first; row < last; row += panel_rows<Real>) {
    const Index width = vectors_of<Real>(last - row) * lanes<Real>, there = std::min(width, last - row);
    Real* panel = packed + (row - first) * terms;
    for (Index k = 0; k < terms; ++k, panel += width) copy_padded(x[k] + row, there, width, panel);
  }
}
template <class Real>
Index row_panels_size(Index rows, Index terms) {
  return (rows + lanes<Real> - 1) / lanes<Real> * lanes<Real> * terms;
}

/// y_t(n) = scale sum_k W(n, k) c(t, k) + (adds ? y_t(n) : 0), all n < rows; W (rows, terms), c (tokens, terms), leading dimensions
/// ldw and ldc. Columns of W should be few enough to stay in the second cache; the `ahead` columns that follow are fetched into it.
template <class Real>
void collect(Index rows, Real scale, const Real* w, Index ldw, Index terms, const Real* c, Index ldc, Index tokens,
             bool adds, Real* const* y, Index ahead) {
  constexpr Index L = lanes<Real>;
  const Index pieces = (tokens + panel_columns - 1) / panel_columns;
  for (Index row = 0; row < rows; row += panel_rows<Real>) {
    const Index there = std::min(rows - row, panel_rows<Real>), lines = (there + line<Real> - 1) / line<Real>;
    Index piece = 0;
    const auto fetch = [&](Index first) {
      for (Index n = piece * lines / pieces; n < (piece + 1) * lines / pieces; ++n)
        for (Index k = terms + first, last = terms + std::min(ahead, first + line<Real>); k < last; ++k)
          __builtin_prefetch(w + k * ldw + row + n * line<Real>, 0, 2);
    };
    if (there == panel_rows<Real>) {
      in_pieces(tokens, panel_columns, [&](Index t, Index J) {
        const auto tile = [&](const auto& finish) {
          detail::whole_tile<false>(J, terms, w + row, ldw, c + t, ldc, fetch, finish);
        };
        if (adds)
          tile([=](int j, int v, Vector<Real> sum) {
            Real* const to = y[t + j] + row + v * L;
            store(to, load(to) + scale * sum);
          });
        else
          tile([=](int j, int v, Vector<Real> sum) { store(y[t + j] + row + v * L, scale * sum); });
        ++piece;
      });
    } else {
      const Index vectors = vectors_of<Real>(there), width = vectors * L;
      thread_local Scratch<Real> scratch;
      Real* const packed = scratch.of(width * terms);
      for (Index k = 0; k < terms; ++k) copy_padded(w + k * ldw + row, there, width, packed + k * width);
      detail::TileValues<Real> values;
      in_pieces(tokens, panel_columns, [&](Index t, Index J) {
        detail::any_tile<false>(vectors, J, terms, packed, width, c + t, ldc, fetch, values.data());
        for (Index j = 0; j < J; ++j) {
          Real* const to = y[t + j] + row;
          const Real* const sum = values.data() + j * width;
          for (Index k = 0; k < there; ++k) to[k] = scale * sum[k] + (adds ? to[k] : Real(0));
        }
        ++piece;
      });
    }
  }
}

/// Columns of sum_k x_k(n) c(k, j), made, used and forgotten in cache: finish(j, row, values, n) takes n of them from `row` on,
/// fetch(j, row) may ask for what column j, one of the next, needs in the line of `row`. x of `rows` rows packed by pack_rows(),
/// c (terms, columns).
template <class Real, class Fetch, class Finish>
void combine(Index rows, const Real* packed, Index terms, const Real* c, Index ldc, Index columns, const Fetch& fetch,
             const Finish& finish) {
  const Index groups = (terms + line<Real> - 1) / line<Real>;
  detail::TileValues<Real> values;
  in_pieces(columns, panel_columns, [&](Index j0, Index J) {
    const Index ahead = std::min(J, columns - j0 - J);
    for (Index row = 0; row < rows; row += panel_rows<Real>) {
      const Index vectors = vectors_of<Real>(rows - row), width = vectors * lanes<Real>;
      const auto fetch_some = [&](Index first) {
        constexpr Index lines = panel_rows<Real> / line<Real>;
        const Index group = first / line<Real>;
        for (Index j = j0 + J; j < j0 + J + ahead; ++j)
          for (Index k = group * lines / groups; k < (group + 1) * lines / groups; ++k) fetch(j, row + k * line<Real>);
      };
      detail::any_tile<true>(vectors, J, terms, packed + row * terms, width, c + j0 * ldc, ldc, fetch_some,
                             values.data());
      for (Index j = 0; j < J; ++j) finish(j0 + j, row, values.data() + j * width, std::min(width, rows - row));
    }
  });
}

/// to(j, i) = from(i, j), from (rows, cols) with leading dimension ldf.
template <class Real>
void transpose(const Real* from, Index ldf, Index rows, Index cols, Real* to, Index ldt) {
  constexpr Index L = lanes<Real>;
  for (Index j0 = 0; j0 < cols; j0 += L)
    for (Index i0 = 0; i0 < rows; i0 += L) {
      const Real* const block = from + i0 + j0 * ldf;
      if (j0 + L <= cols && i0 + L <= rows)
        detail::transpose_block([&](Index j) { return block + j * ldf; }, to + j0 + i0 * ldt, ldt);
      else
        for (Index j = j0; j < std::min(cols, j0 + L); ++j)
          for (Index i = i0; i < std::min(rows, i0 + L); ++i) to[j + i * ldt] = from[i + j * ldf];
    }
}

}  // namespace moe::trainer::columns
