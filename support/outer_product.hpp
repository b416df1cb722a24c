/// Outer products whose entries are used once and forgotten: tiles made in registers, and what is done with one tile runs between
/// the multiply-adds of the next, so that memory and divisions do not wait for products nor products for them.
#pragma once

#include <algorithm>

#include "support/matrix.hpp"

namespace moe {

/// A tile of sum_mu z_mu x_mu^T, as large as the registers of this processor carry.
template <class Real>
struct OuterTile {
#if defined(__AVX512F__)
  static constexpr int vector_bytes = 64, cols = 8;
#elif defined(__AVX__)
  static constexpr int vector_bytes = 32, cols = 4;
#else
  static constexpr int vector_bytes = 16, cols = 4;
#endif
  static constexpr int vectors = 3, lanes = vector_bytes / static_cast<int>(sizeof(Real)), rows = vectors * lanes;
  typedef Real Vector __attribute__((vector_size(vector_bytes)));  // NOLINT(modernize-use-using): the attribute

  /// out (rows, cols) = sum_p z(:, p) x(:, p)^T; z (rows, P) and x (cols, P) packed, z and out aligned to a vector. Calls
  /// between(q) for q = 0 .. vectors * cols - 1, spread evenly over the products.
  template <class Between>
  static inline void multiply(Index P, const Real* z, const Real* x, Real* out, const Between& between) {
    Vector sum[cols][vectors] = {};
    Index p = 0;
    for (int q = 0; q < vectors * cols; ++q) {
      between(q);
      for (const Index end = (q + 1) * P / (Index{vectors} * cols); p < end; ++p) {
        Vector zp[vectors];
        for (int m = 0; m < vectors; ++m) zp[m] = *reinterpret_cast<const Vector*>(z + p * rows + m * lanes);
#pragma GCC unroll 8
        for (int n = 0; n < cols; ++n) {
          const Real xp = x[p * cols + n];
#pragma GCC unroll 3
          for (int m = 0; m < vectors; ++m) sum[n][m] += zp[m] * xp;
        }
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < cols; ++n)
#pragma GCC unroll 3
      for (int m = 0; m < vectors; ++m) *reinterpret_cast<Vector*>(out + n * rows + m * lanes) = sum[n][m];
  }
};

/// use(g, i, j) for every entry g of z x^T in the window [i0, i0 + ni) x [j0, j0 + nj); z (rows, P), x (cols, P). `arrays` are
/// those that use() touches at (i, j): their lines are fetched a tile ahead.
template <class Real, std::size_t count, class Use>
void for_each_outer_entry(HostView<Real> z, HostView<Real> x, const HostView<Real> (&arrays)[count], Index i0, Index ni,
                          Index j0, Index nj, const Use& use) {
  using Tile = OuterTile<Real>;
  struct Place {
    Index i, j, rows, cols;
  };
  const Index P = z.cols;
  const auto place = [&](Index i, Index j) {
    return Place{i0 + i, j0 + j, std::min<Index>(Tile::rows, ni - i), std::min<Index>(Tile::cols, nj - j)};
  };
  auto zs = HostMatrix<Real>::uninitialized(Tile::rows * P, (ni + Tile::rows - 1) / Tile::rows);
  auto xs = HostMatrix<Real>::uninitialized(Tile::cols, P);
  auto tiles = HostMatrix<Real>(Tile::rows * Tile::cols, 2);
  for (Index i = 0; i < ni; i += Tile::rows)
    for (Index p = 0; p < P; ++p)
      for (Index k = 0; k < Tile::rows; ++k)
        zs(p * Tile::rows + k, i / Tile::rows) = i + k < ni ? z(i0 + i + k, p) : Real(0);

  Place previous{0, 0, 0, 0}, next{0, 0, 0, 0};
  int current = 0;
  // One vector of the previous tile, and the lines of the same vector of the next one.
  const auto between = [&](int q) {
    const Index row = q % Tile::vectors * Tile::lanes, col = q / Tile::vectors;
    if (col < next.cols && row < next.rows)
      for (const HostView<Real>& a : arrays)
        __builtin_prefetch(&a(next.i + row, next.j + col), 0, 2);  // into the second cache
    if (col >= previous.cols) return;
    const Real* g = tiles.data() + (1 - current) * tiles.rows() + q * Tile::lanes;
    const Index i = previous.i + row, j = previous.j + col;
    if (row + Tile::lanes <= previous.rows) {
#pragma omp simd
      for (int k = 0; k < Tile::lanes; ++k) use(g[k], i + k, j);
    } else {
      for (Index k = 0; k < previous.rows - row; ++k) use(g[k], i + k, j);
    }
  };
  for (Index j = 0; j < nj; j += Tile::cols) {
    for (Index p = 0; p < P; ++p)
      for (Index k = 0; k < Tile::cols; ++k) xs(k, p) = j + k < nj ? x(j0 + j + k, p) : Real(0);
    for (Index i = 0; i < ni; i += Tile::rows) {
      next = i + Tile::rows < ni ? place(i + Tile::rows, j) : j + Tile::cols < nj ? place(0, j + Tile::cols) : Place{};
      Tile::multiply(P, zs.data() + i / Tile::rows * zs.rows(), xs.data(), tiles.data() + current * tiles.rows(),
                     between);
      previous = place(i, j);
      current = 1 - current;
    }
  }
  next = Place{};
  for (int q = 0; q < Tile::vectors * Tile::cols; ++q) between(q);
}

}  // namespace moe
