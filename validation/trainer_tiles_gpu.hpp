/// Tiles of grouped products on the GPU: sums over k of two factors whose columns are found by index, by a block of threads, in registers.
/// Each thread multiplies numbers as they are, or each warp on tensor cores numbers rounded to TF32; the rest is common to both.
#pragma once

#include <type_traits>

#include "support/cuda.hpp"

namespace moe::trainer {
inline namespace MOE_DEVICE_SPACE {
namespace kernels {

/// Tiles of sum_k a(i, k) b(j, k), i < rows, j < cols, k in slabs of `depth`: every thread has per_x by per_y entries in fours, a four
/// threads_x or threads_y fours from the next, and a warp's fours are lanes_x by lanes_y neighbours.
template <int threads_x_, int threads_y_, int per_x_, int per_y_>
struct Tile {
  static constexpr bool tf32 = false;
  static constexpr int threads_x = threads_x_, threads_y = threads_y_, per_x = per_x_, per_y = per_y_, depth = 8;
  static constexpr int rows = threads_x * per_x, cols = threads_y * per_y, threads = threads_x * threads_y;
  static constexpr int lanes_x = threads_x < 8 ? threads_x : 8, lanes_y = 32 / lanes_x, warps_x = threads_x / lanes_x;
  static constexpr Extent block{threads};
  /// How many blocks shall fit on a multiprocessor, of numbers of so many bytes: 168 registers a thread, or 80.
  static constexpr int resident(std::size_t bytes) {
    return (static_cast<std::size_t>(per_x * per_y) * bytes > 64 ? 384 : 768) / threads;
  }
  /// Half the columns, where the others would be empty.
  using Half = Tile<threads_x, threads_y, per_x, per_y == 8 ? 4 : per_y>;

  /// Where the entries of a thread begin, and where its m-th row and n-th column are from there.
  MOE_DEVICE static int row0(int thread) { return 4 * (thread / 2 % lanes_x + thread / 32 % warps_x * lanes_x); }
  MOE_DEVICE static int col0(int thread) {
    return 4 * (thread % 2 + thread % 32 / (2 * lanes_x) * 2 + thread / 32 / warps_x * lanes_y);
  }
  static constexpr int row(int m) { return m % 4 + m / 4 * threads_x * 4; }
  static constexpr int col(int n) { return n % 4 + n / 4 * threads_y * 4; }
};

/// The same on tensor cores: a warp has 4 per_x rows by 8 per_y columns. Its lanes are 4 by 8 neighbours, each with rows in fours as in the
/// other tiles and columns in twos.
template <int warps_x_, int warps_y_, int per_x_, int per_y_>
struct TensorTile {
  static constexpr bool tf32 = true;
  static constexpr int warps_x = warps_x_, warps_y = warps_y_, per_x = per_x_, per_y = per_y_, depth = 8;
  static constexpr int rows = warps_x * 4 * per_x, cols = warps_y * 8 * per_y, threads = 32 * warps_x * warps_y;
  static constexpr Extent block{threads};
  /// As Tile::resident: 128 registers a thread.
  static constexpr int resident(std::size_t) { return 512 / threads; }
  using Half = std::conditional_t<(warps_y > 1 && per_x > 4), TensorTile<2 * warps_x, warps_y / 2, per_x / 2, per_y>,
                                  TensorTile>;

  MOE_DEVICE static int row0(int thread) { return thread % 4 * 4 + thread / 32 % warps_x * 4 * per_x; }
  MOE_DEVICE static int col0(int thread) { return thread / 4 % 8 * 2 + thread / 32 / warps_x * 8 * per_y; }
  static constexpr int row(int m) { return m % 4 + m / 4 * 16; }
  static constexpr int col(int n) { return n % 2 + n / 2 * 16; }
};

/// Which index of a factor is contiguous in memory.
enum class Along { outer, inner };

/// One factor of a tile, f(i, k) = column(k)[i] with Along::outer, column(i)[k] with Along::inner; zero from row `rows` on.
template <Along along_, class Column>
struct Factor {
  static constexpr Along along = along_;
  int rows;
  bool aligned;  ///< as GpuView::aligned
  Column column;
};
template <Along along, class Column>
MOE_DEVICE Factor<along, Column> factor(Index rows, bool aligned, const Column& column) {
  return {static_cast<int>(rows), aligned, column};
}

/// A thread's share of a factor on its way through registers to memory that the block shares, slab after slab, in fours along memory.
/// Where a four comes from is known a slab ahead: columns are looked up in lists that lie in memory too.
template <class T, int rows, class Real, class Factor>
class Supply {
 public:
  MOE_DEVICE Supply(const Factor& factor, int inner, int me) : factor_(factor), inner_(inner), me_(me) {
    MOE_UNROLL
    for (int s = 0; s < count; ++s) look_up(s, 0);
  }
  /// Registers get the slab at k0; calls go from slab to slab. Rows that a factor does not have are those of others: whose sums they
  /// are in is not used.
  MOE_DEVICE void fetch(int k0) {
    const bool whole = factor_.aligned && k0 + T::depth <= inner_;
    MOE_UNROLL
    for (int s = 0; s < count; ++s) {
      if (four(s) >= fours) continue;
      const Real* const from = from_[s] + (along_inner ? k0 : 0);
      if (whole)
        held_[s] = get_four(from);
      else if (along_inner)
        held_[s] = get_four(from, inner_ - k0 - begin(s));
      else
        held_[s] = get_four(from, k0 + across(s) < inner_ ? factor_.rows - begin(s) : 0);
      if (!along_inner) look_up(s, k0 + T::depth);
    }
  }
  template <int length>
  MOE_DEVICE void store(Real (&slab)[T::depth][length]) const {
    MOE_UNROLL
    for (int s = 0; s < count; ++s) {
      if (four(s) >= fours) continue;
      Four<Real> values = held_[s];
      if constexpr (T::tf32) {
        MOE_UNROLL
        for (int m = 0; m < 4; ++m) values.at[m] = round_to_tf32(values.at[m]);
      }
      if constexpr (along_inner) {
        MOE_UNROLL
        for (int m = 0; m < 4; ++m) slab[begin(s) + m][across(s)] = values.at[m];
      } else {
        put_four(values, &slab[across(s)][begin(s)]);
      }
    }
  }

 private:
  static constexpr bool along_inner = Factor::along == Along::inner;
  static constexpr int line = (along_inner ? T::depth : rows) / 4, fours = T::depth * rows / 4;
  static constexpr int count = (fours + T::threads - 1) / T::threads;

  MOE_DEVICE int four(int s) const { return me_ + s * T::threads; }
  MOE_DEVICE int begin(int s) const { return four(s) % line * 4; }
  MOE_DEVICE int across(int s) const { return four(s) / line; }
  MOE_DEVICE void look_up(int s, int k0) {
    const int first = along_inner ? 0 : k0, last = (along_inner ? factor_.rows : inner_) - 1;
    const int column = first + across(s), there = column < last ? column : last;
    const int start = along_inner || begin(s) < factor_.rows ? begin(s) : 0;
    if (last >= 0) from_[s] = factor_.column(there) + start;
  }

  Factor factor_;
  int inner_;
  int me_;
  const Real* from_[count] = {};
  Four<Real> held_[count];
};

/// What a thread has of a tile's sums.
template <class T, class Real>
struct Sums {
  int row0, col0;
  Real at[T::per_y][T::per_x] = {};

  MOE_DEVICE int row(int m) const { return row0 + T::row(m); }
  MOE_DEVICE int col(int n) const { return col0 + T::col(n); }
  /// to = scale sums, of the entries that `to` has.
  MOE_DEVICE void store(Real scale, GpuView<Real> to) const {
    const auto rows = static_cast<int>(to.rows), cols = static_cast<int>(to.cols);
    const auto go = [&](auto whole) {
      MOE_UNROLL
      for (int n = 0; n < T::per_y; ++n) {
        if (col(n) >= cols) continue;
        MOE_UNROLL
        for (int m = 0; m < T::per_x; m += 4) {
          Four<Real> four;
          MOE_UNROLL
          for (int k = 0; k < 4; ++k) four.at[k] = scale * at[n][m + k];
          if constexpr (whole)
            put_four_at_once(four, &to(row(m), col(n)));
          else
            put_four(four, &to(row(m), col(n)), rows - row(m));
        }
      }
    };
    if (to.aligned() && rows >= T::rows)
      go(std::true_type());
    else
      go(std::false_type());
  }
};

/// Slabs of both factors in memory that a block shares: one that it multiplies, one that is being filled. Columns that are four longer than
/// the tile put all that the lanes of a warp read or write at once into different banks.
template <class T, class Real>
struct alignas(16) Slabs {
  Real a[2][T::depth][T::rows + 4], b[2][T::depth][T::cols + 4];
};

/// sums += products of one slab, each thread its own.
template <class T, class Real, int length_a, int length_b>
MOE_DEVICE void add_products(const Real (&a)[T::depth][length_a], const Real (&b)[T::depth][length_b],
                             Sums<T, Real>& sums) requires(!T::tf32) {
  MOE_UNROLL
  for (int k = 0; k < T::depth; ++k) {
    Four<Real> row[T::per_x / 4], col[T::per_y / 4];
    MOE_UNROLL
    for (int m = 0; m < T::per_x; m += 4) row[m / 4] = get_four(&a[k][sums.row(m)]);
    MOE_UNROLL
    for (int n = 0; n < T::per_y; n += 4) col[n / 4] = get_four(&b[k][sums.col(n)]);
    MOE_UNROLL
    for (int n = 0; n < T::per_y; ++n) {
      MOE_UNROLL
      for (int m = 0; m < T::per_x; ++m) sums.at[n][m] += row[m / 4].at[m % 4] * col[n / 4].at[n % 4];
    }
  }
}
/// The same by a warp on its tensor core, all eight k and 16 columns by 8 rows of the tile at a time: its columns are the rows of
/// multiply_add_tf32, so that two of those products give a thread four rows that are neighbours. Which of the tile's k, rows and columns
/// are which of a product's is free: lanes (g, t) read k = 2t and 2t + 1, the columns 2g and 2g + 1 and the rows 2g and 2g + 1, one for
/// each of two products.
template <class T, class Real, int length_a, int length_b>
MOE_DEVICE void add_products(const Real (&a)[T::depth][length_a], const Real (&b)[T::depth][length_b],
                             Sums<T, Real>& sums) requires(T::tf32) {
  const int lane = static_cast<int>(place().thread()) % 32, g = lane / 4, t = lane % 4;
  const int k = 2 * t, row0 = sums.row0 - 4 * t + 2 * g;
  Two<Real> col[T::per_y / 2][2];
  MOE_UNROLL
  for (int n = 0; n < T::per_y; n += 2) {
    col[n / 2][0] = get_two(&b[k][sums.col(n)]);
    col[n / 2][1] = get_two(&b[k + 1][sums.col(n)]);
  }
  MOE_UNROLL
  for (int m = 0; m < T::per_x; m += 4) {
    const Two<Real> row[2] = {get_two(&a[k][row0 + T::row(m)]), get_two(&a[k + 1][row0 + T::row(m)])};
    MOE_UNROLL
    for (int e = 0; e < 2; ++e) {
      MOE_UNROLL
      for (int n = 0; n < T::per_y; n += 2) {
        const auto& c = col[n / 2];
        multiply_add_tf32({c[0].at[0], c[0].at[1], c[1].at[0], c[1].at[1]}, {row[0].at[e], row[1].at[e]},
                          sums.at[n][m + e], sums.at[n][m + 2 + e], sums.at[n + 1][m + e], sums.at[n + 1][m + 2 + e]);
      }
    }
  }
}

/// Sums over k < inner of a(i, k) b(j, k). The whole block comes here. The next slab is on its way to registers while the block
/// multiplies one, and then fills the other of two buffers: those of the tile itself, or of one that is as high and wider.
template <class T, class Real, class A, class B, class Slabs>
MOE_DEVICE Sums<T, Real> multiply_tile(int inner, const A& a, const B& b, Slabs& slabs) {
  const int me = static_cast<int>(place().thread());
  Supply<T, T::rows, Real, A> supply_a(a, inner, me);
  Supply<T, T::cols, Real, B> supply_b(b, inner, me);
  Sums<T, Real> sums{T::row0(me), T::col0(me)};
  int now = 0;
  const auto fetch = [&](int k0) {
    supply_a.fetch(k0);
    supply_b.fetch(k0);
  };
  const auto store = [&] {
    supply_a.store(slabs.a[now]);
    supply_b.store(slabs.b[now]);
    meet();
  };
  fetch(0);
  store();
  for (int next = T::depth;; next += T::depth) {
    if (next < inner) fetch(next);
    add_products(slabs.a[now], slabs.b[now], sums);
    if (next >= inner) return sums;
    now = 1 - now;
    store();
  }
}
/// The same into `to`, whose rows and columns are those that a tile has.
template <class T, class Real, class A, class B>
MOE_DEVICE void multiply_into(int inner, const A& a, const B& b, Real scale, GpuView<Real> to) {
  using Half = typename T::Half;
  MOE_SHARED(slabs, Slabs<T, Real>);
  if (T::cols != Half::cols && to.cols <= Half::cols)
    multiply_tile<Half, Real>(inner, a, b, slabs).store(scale, to);
  else
    multiply_tile<T, Real>(inner, a, b, slabs).store(scale, to);
}

}  // namespace kernels
}  // namespace MOE_DEVICE_SPACE
}  // namespace moe::trainer
