/// The GPU backend: the operations of support/cpu.hpp on arrays in GPU memory, with kernels of our own around cuBLAS. Sums are split
/// by shape alone and added in a fixed order. Files that nvcc compiles include this, and the test that runs it on the host.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/gpu_matrix.hpp"
#include "support/random.hpp"

namespace moe {
inline namespace MOE_DEVICE_SPACE {

namespace kernels {

inline constexpr unsigned sum_threads = 256;
/// Rows whose sum is one block's work.
inline constexpr Index sum_rows = 8192;

template <class F>
MOE_KERNEL void each_kernel(Index rows, Index cols, Index row_blocks, Index column_blocks, F f) {
  const Place at = place();
  const Index i = at.block % row_blocks * at.threads_x + at.x;
  if (i >= rows) return;
  for (Index j = at.block / row_blocks * at.threads_y + at.y; j < cols; j += column_blocks * at.threads_y) f(i, j);
}

struct Larger {
  template <class Real>
  MOE_DEVICE Real operator()(Real a, Real b) const {
    return b > a ? b : a;
  }
};
struct Plus {
  template <class Real>
  MOE_DEVICE Real operator()(Real a, Real b) const {
    return a + b;
  }
};
/// op over the values of a block's threads, a power of two of them, for all of them.
template <class Real, class Op>
MOE_DEVICE Real of_block(Real value, Op op) {
  MOE_SHARED(values, Real[sum_threads]);
  const unsigned me = place().thread();
  values[me] = value;
  meet();
  for (unsigned half = place().threads() / 2; half > 0; half /= 2) {
    if (me < half) values[me] = op(values[me], values[me + half]);
    meet();
  }
  const Real all = values[0];
  meet();
  return all;
}

/// partial(piece, j) = sum of f(i, j) over piece `piece` of column j's rows.
template <class F>
MOE_KERNEL void column_pieces_kernel(Index rows, Index pieces, F f, double* partial) {
  const Place at = place();
  const Index piece = at.block % pieces, j = at.block / pieces;
  const Index last = (piece + 1) * sum_rows < rows ? (piece + 1) * sum_rows : rows;
  double s = 0;
  for (Index i = piece * sum_rows + at.x; i < last; i += sum_threads) s += static_cast<double>(f(i, j));
  s = of_block(s, Plus());
  if (at.x == 0) partial[piece + j * pieces] = s;
}

/// out[block] = sum of the `count` numbers of this block.
template <class Out>
MOE_KERNEL void sum_kernel(const double* numbers, Index count, Out* out, Index out_step) {
  const Place at = place();
  double s = 0;
  for (Index k = at.x; k < count; k += sum_threads) s += numbers[at.block * count + k];
  s = of_block(s, Plus());
  if (at.x == 0) out[at.block * out_step] = static_cast<Out>(s);
}

template <class Real>
MOE_KERNEL void column_maxima_kernel(GpuView<Real> values, GpuView<Real> out) {
  const Place at = place();
  const Index j = at.block;
  Real mine = values(0, j);
  for (Index i = at.x; i < values.rows; i += sum_threads) mine = Larger()(mine, values(i, j));
  mine = of_block(mine, Larger());
  if (at.x == 0) out(0, j) = mine;
}

/// Unsigned numbers in the order of floating-point ones, -0 = 0.
MOE_DEVICE inline std::uint32_t ordered_bits(float value) {
  union {
    float real;
    std::uint32_t bits;
  } u = {value + 0.0F};
  return u.bits ^ (u.bits >> 31 != 0 ? 0xFFFFFFFFU : 0x80000000U);
}
MOE_DEVICE inline std::uint64_t ordered_bits(double value) {
  union {
    double real;
    std::uint64_t bits;
  } u = {value + 0.0};
  return u.bits ^ (u.bits >> 63 != 0 ? ~std::uint64_t{0} : std::uint64_t{1} << 63);
}

/// The `count` largest of the keys of rows 0 .. rows - 1, ties to the lower row, by one block: the count-th largest key by its bytes
/// from the highest on (radix selection), then who is above it, and of those equal to it as many as are missing, in the order of rows.
/// use(row, place) for every row: its place among the chosen ones, -1 where it is none of them.
template <class KeyOf, class Use>
MOE_DEVICE void select_of_block(Index rows, Index count, const KeyOf& key_of, const Use& use) {
  using Key = decltype(key_of(Index{0}));
  constexpr int bits = static_cast<int>(sizeof(Key)) * 8;
  MOE_SHARED(histogram, unsigned[256]);
  MOE_SHARED(above_to_here, unsigned[sum_threads]);
  MOE_SHARED(equal_to_here, unsigned[sum_threads]);
  MOE_SHARED(found, Key);
  MOE_SHARED(missing, Index);
  MOE_SHARED(above, Index);
  MOE_SHARED(equal, Index);
  const unsigned me = place().thread(), threads = place().threads();
  if (me == 0) {
    found = 0;
    missing = count;
    above = equal = 0;
  }
  for (int shift = bits - 8; shift >= 0; shift -= 8) {
    for (unsigned byte = me; byte < 256; byte += threads) histogram[byte] = 0;
    meet();
    const Key known = shift + 8 == bits ? 0 : found >> (shift + 8);
    for (Index i = me; i < rows; i += threads) {
      const Key key = key_of(i);
      if ((shift + 8 == bits ? Key{0} : static_cast<Key>(key >> (shift + 8))) == known)
        count_one(histogram[static_cast<unsigned>(key >> shift) & 255U]);
    }
    meet();
    if (me == 0) {
      unsigned byte = 255;
      while (byte > 0 && static_cast<Index>(histogram[byte]) < missing) missing -= histogram[byte--];
      found |= static_cast<Key>(byte) << shift;
    }
    meet();
  }
  for (Index first = 0; first < rows; first += threads) {
    const Index i = first + me;
    const Key key = i < rows ? key_of(i) : Key{0};
    const bool is_above = i < rows && key > found, is_equal = i < rows && key == found;
    above_to_here[me] = is_above ? 1 : 0;
    equal_to_here[me] = is_equal ? 1 : 0;
    meet();
    for (unsigned reach = 1; reach < threads; reach *= 2) {
      const unsigned more_above = me >= reach ? above_to_here[me - reach] : 0;
      const unsigned more_equal = me >= reach ? equal_to_here[me - reach] : 0;
      meet();
      above_to_here[me] += more_above;
      equal_to_here[me] += more_equal;
      meet();
    }
    const Index equals = equal + equal_to_here[me];
    const bool chosen = is_above || (is_equal && equals <= missing);
    if (i < rows) use(i, chosen ? above + above_to_here[me] + (equals < missing ? equals : missing) - 1 : Index{-1});
    meet();
    if (me == 0) {
      above += above_to_here[threads - 1];
      equal += equal_to_here[threads - 1];
    }
    meet();
  }
}

template <class Real>
MOE_KERNEL void select_kernel(GpuView<Real> values, Index count, GpuView<Real> mask) {
  const Index j = place().block;
  select_of_block(
      values.rows, count, [&](Index i) { return ordered_bits(values(i, j)); },
      [&](Index i, Index chosen) { mask(i, j) = chosen >= 0 ? Real(1) : Real(0); });
}

/// Threads of a block whose work is a row of so many: a power of two.
inline unsigned threads_for(Index count) {
  unsigned threads = 1;
  while (threads < sum_threads && static_cast<Index>(threads) < count) threads *= 2;
  return threads;
}

/// out(0, j) of several columns a block, each summed by a row of threads.
template <class Real, class F>
MOE_KERNEL void short_columns_kernel(Index rows, Index cols, F f, GpuView<Real> out) {
  MOE_SHARED(values, double[sum_threads]);
  const Place at = place();
  const Index j = at.block * at.threads_y + at.y;
  double s = 0;
  if (j < cols)
    for (Index i = at.x; i < rows; i += at.threads_x) s += static_cast<double>(f(i, j));
  const unsigned me = at.thread();
  values[me] = s;
  meet();
  for (unsigned half = at.threads_x / 2; half > 0; half /= 2) {
    if (at.x < half) values[me] += values[me + half];
    meet();
  }
  if (at.x == 0 && j < cols) out(0, j) = static_cast<Real>(values[me]);
}

/// How the inner dimension of a product is split: `count` pieces of `length`, and what is left.
struct Pieces {
  Index count, length;
};
/// A product with few entries is one long sum for each of few tiles, and would leave most of a card idle; tiles for every multiprocessor are
/// left as they are. Of many pieces nearly as good the number that leaves least over.
inline Pieces pieces_of(Index m, Index n, Index k) {
  constexpr Index tile = 64, tiles_enough = 132, tiles_wanted = 512, shortest = 1024, step = 8;
  const Index tiles = (m + tile - 1) / tile * ((n + tile - 1) / tile);
  const Index most = tiles > tiles_enough ? 1 : std::min(k / shortest, tiles_wanted / tiles);
  Pieces best{1, k};
  for (Index count = most, left = k; count > std::max<Index>(1, most * 3 / 4); --count) {
    const Index length = k / count / step * step;
    if (k - count * length < left) best = {count, length}, left = k - count * length;
  }
  return best;
}

/// C = alpha times the sum of `count` matrices that follow one another, plus beta C, summed in double: neighbouring entries by neighbouring
/// threads, an entry by a column of them.
template <class Real>
MOE_KERNEL void sum_of_pieces_kernel(const Real* pieces, Index count, double alpha, double beta, GpuView<Real> C) {
  MOE_SHARED(values, double[sum_threads]);
  const Place at = place();
  const Index entry = at.block * at.threads_x + at.x;
  double s = 0;
  if (entry < C.size())
    for (Index p = at.y; p < count; p += at.threads_y) s += static_cast<double>(pieces[entry + p * C.size()]);
  const unsigned me = at.thread();
  values[me] = s;
  meet();
  for (unsigned half = at.threads_y / 2; half > 0; half /= 2) {
    if (at.y < half) values[me] += values[me + half * at.threads_x];
    meet();
  }
  if (at.y > 0 || entry >= C.size()) return;
  Real& c = C(entry % C.rows, entry / C.rows);
  c = static_cast<Real>(alpha * values[me] + (beta == 0 ? 0 : beta * static_cast<double>(c)));
}

/// Tiles of z x^T: 4 x 8 neighbouring entries in the registers of each thread.
template <class Real>
struct GpuTile {
  static constexpr unsigned threads_x = 32, threads_y = 8;
  static constexpr int per_x = 4, per_y = 8, depth = 16;
  static constexpr int rows = static_cast<int>(threads_x) * per_x, cols = static_cast<int>(threads_y) * per_y;
  static constexpr int threads = static_cast<int>(threads_x * threads_y);
  static constexpr int resident = sizeof(Real) == 4 ? 3 : 1;  ///< blocks that shall fit on a multiprocessor
};

/// The arrays that an entrywise rule moves, all of one shape; those without data are none of its own.
template <class Real, std::size_t count>
struct MovedArrays {
  GpuView<Real> arrays[count];

  /// rule(g[m], entry of every array) at rows i .. i + 3 of column j: all are on their way before the first is written.
  template <class Rule>
  MOE_DEVICE void move(Real (&g)[4], Index i, Index j, const Rule& rule) const {
    const int left = arrays[0].rows - i < 4 ? static_cast<int>(arrays[0].rows - i) : 4;
    Four<Real> entries[count];
    const auto each = [&](const auto& f) {
      MOE_UNROLL
      for (std::size_t k = 0; k < count; ++k)
        if (arrays[k].data != nullptr) f(entries[k], &arrays[k](i, j), left == 4 && arrays[k].aligned());
    };
    each([&](Four<Real>& four, Real* at, bool whole) { four = whole ? get_four(at) : get_four(at, left); });
    MOE_UNROLL
    for (int m = 0; m < 4; ++m) call(rule, g[m], entries, m, std::make_index_sequence<count>());
    each([&](Four<Real>& four, Real* at, bool whole) {
      if (whole)
        put_four_at_once(four, at);
      else
        put_four(four, at, left);
    });
  }

 private:
  template <class Rule, std::size_t... k>
  MOE_DEVICE static void call(const Rule& rule, Real g, Four<Real> (&entries)[count], int m,
                              std::index_sequence<k...>) {
    rule(g, entries[k].at[m]...);
  }
};

template <class Real, std::size_t count, class Rule>
MOE_KERNEL void MOE_RESIDENT(GpuTile<Real>::threads, GpuTile<Real>::resident)
    entrywise_kernel(GpuView<Real> z, GpuView<Real> x, MovedArrays<Real, count> moved, Index row_tiles, Rule rule) {
  using Tile = GpuTile<Real>;
  constexpr int threads = Tile::threads;
  MOE_SHARED(zs, Four<Real>[Tile::depth][Tile::rows / 4]);
  MOE_SHARED(xs, Four<Real>[Tile::depth][Tile::cols / 4]);
  const Place at = place();
  const int tx = static_cast<int>(at.x), ty = static_cast<int>(at.y), me = static_cast<int>(at.thread());
  const Index i0 = at.block % row_tiles * Tile::rows, j0 = at.block / row_tiles * Tile::cols;
  Real g[Tile::per_y][Tile::per_x] = {};
  for (Index p0 = 0; p0 < z.cols; p0 += Tile::depth) {
    for (int k = me; k < Tile::depth * Tile::rows; k += threads) {
      const int row = k % Tile::rows, p = k / Tile::rows;
      zs[p][row / 4].at[row % 4] = i0 + row < z.rows && p0 + p < z.cols ? z(i0 + row, p0 + p) : Real(0);
    }
    for (int k = me; k < Tile::depth * Tile::cols; k += threads) {
      const int col = k % Tile::cols, p = k / Tile::cols;
      xs[p][col / 4].at[col % 4] = j0 + col < x.rows && p0 + p < z.cols ? x(j0 + col, p0 + p) : Real(0);
    }
    meet();
    for (int p = 0; p < Tile::depth; ++p) {
      const Four<Real> a = zs[p][tx];
      for (int half = 0; half < 2; ++half) {
        const Four<Real> b = xs[p][2 * ty + half];
        for (int n = 0; n < 4; ++n)
          for (int m = 0; m < 4; ++m) g[4 * half + n][m] += a.at[m] * b.at[n];
      }
    }
    meet();
  }
  const Index i = i0 + 4 * tx, j = j0 + Tile::per_y * ty;
  if (i >= z.rows) return;
  MOE_UNROLL
  for (int n = 0; n < Tile::per_y; ++n)
    if (j + n < x.rows) moved.move(g[n], i, j + n, rule);
}

template <class Real>
struct DrawNormals {
  GpuView<Real> out;
  StreamKey key;
  Index pairs;
  MOE_DEVICE void operator()(Index pair, Index j) const {
    Real two[2];
    normal_pair(key, static_cast<std::uint64_t>(pair + j * pairs), two);
    out(2 * pair, j) = two[0];
    if (2 * pair + 1 < out.rows) out(2 * pair + 1, j) = two[1];
  }
};

template <class Real>
struct Widen {
  GpuView<Real> from;
  GpuView<double> to;
  MOE_DEVICE void operator()(Index i, Index j) const { to(i, j) = static_cast<double>(from(i, j)); }
};

/// values *= factor; what is not a number becomes zero too where the factor is.
template <class Real>
struct Scale {
  GpuView<Real> values;
  Real factor;
  MOE_DEVICE void operator()(Index i, Index j) const {
    values(i, j) = factor == Real(0) ? Real(0) : factor * values(i, j);
  }
};

/// Numbers that travel with a launch, which copies its arguments before it returns: at most 4 KiB in all.
template <class Real>
struct Numbers {
  static constexpr Index most = 3584 / static_cast<Index>(sizeof(Real));
  Real at[static_cast<std::size_t>(most)];
};
/// to = those of column-major numbers that begin at `first`.
template <class Real>
MOE_KERNEL void put_kernel(Numbers<Real> numbers, Index first, Index count, GpuView<Real> to) {
  const Place at = place();
  const Index k = at.block * at.threads_x + at.x, entry = first + k;
  if (k < count) to(entry % to.rows, entry / to.rows) = numbers.at[k];
}

}  // namespace kernels

template <class RealT>
struct Cuda {
  using Real = RealT;
  using Matrix = GpuMatrix<Real>;
  using View = GpuView<Real>;

  /// f(i, j) for every element, i fastest. f must not depend on the order.
  template <class F>
  static void each(Index rows, Index cols, const F& f) {
    if (rows == 0 || cols == 0) return;
    Extent block{256, 1};
    while (block.x > 1 && static_cast<Index>(block.x) / 2 >= rows) block = {block.x / 2, block.y * 2};
    const Index row_blocks = (rows + block.x - 1) / block.x;
    const Index column_blocks = std::min<Index>((cols + block.y - 1) / block.y, 65535);
    launch("each", kernels::each_kernel<F>, row_blocks * column_blocks, block, rows, cols, row_blocks, column_blocks,
           f);
  }

  /// Sum of f(i, j) over all elements, in double.
  template <class F>
  static double sum(Index rows, Index cols, const F& f) {
    if (rows == 0 || cols == 0) return 0;
    const Index pieces = (rows + kernels::sum_rows - 1) / kernels::sum_rows;
    auto partial = GpuMatrix<double>::uninitialized(pieces * cols + 1, 1);
    double *numbers = partial.view().data, *total = numbers + pieces * cols;
    launch("sum", kernels::column_pieces_kernel<F>, pieces * cols, {kernels::sum_threads}, rows, pieces, f, numbers);
    launch("sum of sums", kernels::sum_kernel<double>, 1, {kernels::sum_threads}, static_cast<const double*>(numbers),
           pieces * cols, total, Index{1});
    return GpuMatrix<double>::to_host({total, 1, 1, 1})(0, 0);
  }

  /// Columns that are summed in one launch.
  static constexpr Index short_column = 2048;

  /// out(0, j) = sum_i f(i, j), in double inside a column. f is called once for every element.
  template <class F>
  static void column_sums(Index rows, Index cols, const F& f, View out) {
    if (cols == 0) return;
    if (rows <= short_column) {
      Extent block{kernels::threads_for(rows), 1};
      while (block.x * block.y < kernels::sum_threads && static_cast<Index>(block.y) < cols) block.y *= 2;
      return launch("sums of short columns", kernels::short_columns_kernel<Real, F>, (cols + block.y - 1) / block.y,
                    block, rows, cols, f, out);
    }
    const Index pieces = (rows + kernels::sum_rows - 1) / kernels::sum_rows;
    auto partial = GpuMatrix<double>::uninitialized(pieces, cols);
    double* numbers = partial.view().data;
    launch("column sums", kernels::column_pieces_kernel<F>, pieces * cols, {kernels::sum_threads}, rows, pieces, f,
           numbers);
    launch("column sums of sums", kernels::sum_kernel<Real>, cols, {kernels::sum_threads},
           static_cast<const double*>(numbers), pieces, out.data, out.ld);
  }

  /// out(0, j) = max_i values(i, j).
  static void column_maxima(View values, View out) {
    launch("column maxima", kernels::column_maxima_kernel<Real>, values.cols, {kernels::sum_threads}, values, out);
  }

  /// C = alpha op(A) op(B) + beta C. Long sums for few entries are made of pieces, side by side, and these added in double.
  static void gemm(Op a, Op b, double alpha, View A, View B, double beta, View C) {
    const Index m = C.rows, n = C.cols, k = a == Op::plain ? A.cols : A.rows;
    if (m == 0 || n == 0) return;
    if (k == 0) return each(m, n, kernels::Scale<Real>{C, static_cast<Real>(beta)});
    const kernels::Pieces pieces = kernels::pieces_of(m, n, k);
    if (pieces.count > 1) return gemm_in_pieces(a, b, pieces, k, alpha, A, B, beta, C);
    device::gemm(a, b, m, n, k, static_cast<Real>(alpha), A.data, A.ld, B.data, B.ld, static_cast<Real>(beta), C.data,
                 C.ld);
  }

  /// E^T E / rows with double accumulation, on the host: small, (cols, cols).
  static Eigen::MatrixXd gram(View E) {
    const Index P = E.cols;
    GpuMatrix<double> total(P, P);
    const Index rows = std::min(E.rows, std::max<Index>(kernels::sum_rows, (Index{1} << 22) / std::max<Index>(1, P)));
    auto scratch = GpuMatrix<double>::uninitialized(rows, P);
    for (Index first = 0; first < E.rows; first += rows) {
      const Index count = std::min(rows, E.rows - first);
      const GpuView<double> wide = scratch.view().row_range(0, count);
      Cuda<double>::each(count, P, kernels::Widen<Real>{E.row_range(first, count), wide});
      Cuda<double>::gemm(Op::transposed, Op::plain, 1, wide, wide, 1, total);
    }
    return Cuda<double>::download(total) / static_cast<double>(E.rows);
  }

  /// Standard normals: element (i, j) depends on the key and i + j * (rows rounded up to even) only; the CPU's, up to rounding.
  static void normal(View out, const StreamKey& key) {
    const Index pairs = (out.rows + 1) / 2;
    each(pairs, out.cols, kernels::DrawNormals<Real>{out, key, pairs});
  }

  /// mask(i, j) = 1 for the `count` largest values of column j, 0 elsewhere; exact ties go to the lower index.
  static void select_largest(View values, Index count, View mask) {
    launch("select largest", kernels::select_kernel<Real>, values.cols, {kernels::sum_threads}, values, count, mask);
  }

  static void copy(View from, View to) { copy_on_device(from, to); }

  /// Small host matrices to and from the device. The host does not wait for the smallest on their way there.
  static void upload(const Eigen::MatrixXd& from, View to) {
    constexpr Index launches = 5;  // that are cheaper than to wait
    if (to.size() <= launches * kernels::Numbers<Real>::most) return put(from, to);
    auto host = HostMatrix<Real>::uninitialized(to.rows, to.cols);
    for (Index j = 0; j < to.cols; ++j)
      for (Index i = 0; i < to.rows; ++i) host(i, j) = static_cast<Real>(from(i, j));
    copy_on_device(Matrix::from_host(host).view(), to);
  }
  static Eigen::MatrixXd download(View from) {
    const HostMatrix<Real> host = Matrix::to_host(from);
    Eigen::MatrixXd to(from.rows, from.cols);
    for (Index j = 0; j < from.cols; ++j)
      for (Index i = 0; i < from.rows; ++i) to(i, j) = static_cast<double>(host(i, j));
    return to;
  }

  /// rule(g, entry of every array at (i, j)) for every entry g of the outer product z x^T, z (rows, P), x (cols, P), which is never stored
  /// as a whole: the arrays pass once. Arrays without data are zeros that nobody keeps.
  template <std::size_t count, class Rule>
  static void entrywise_update(View z, View x, const View (&arrays)[count], const Rule& rule) {
    using Tile = kernels::GpuTile<Real>;
    const Index row_tiles = (z.rows + Tile::rows - 1) / Tile::rows,
                column_tiles = (x.rows + Tile::cols - 1) / Tile::cols;
    kernels::MovedArrays<Real, count> moved;
    for (std::size_t k = 0; k < count; ++k) moved.arrays[k] = arrays[k];
    launch("entrywise update", kernels::entrywise_kernel<Real, count, Rule>, row_tiles * column_tiles,
           {Tile::threads_x, Tile::threads_y}, z, x, moved, row_tiles, rule);
  }

 private:
  static void put(const Eigen::MatrixXd& from, View to) {
    kernels::Numbers<Real> numbers = {};
    for (Index first = 0; first < to.size(); first += numbers.most) {
      const Index count = std::min(numbers.most, to.size() - first);
      for (Index k = 0; k < count; ++k)
        numbers.at[k] = static_cast<Real>(from((first + k) % to.rows, (first + k) / to.rows));
      const Index blocks = (count + kernels::sum_threads - 1) / kernels::sum_threads;
      launch("small matrix", kernels::put_kernel<Real>, blocks, {kernels::sum_threads}, numbers, first, count, to);
    }
  }

  static void gemm_in_pieces(Op a, Op b, const kernels::Pieces& pieces, Index k, double alpha, View A, View B,
                             double beta, View C) {
    const Index m = C.rows, n = C.cols, left = k - pieces.count * pieces.length;
    const Index A_step = a == Op::plain ? A.ld : 1, B_step = b == Op::plain ? 1 : B.ld;  // along the inner dimension
    auto products = Matrix::uninitialized(m * n, pieces.count + (left > 0 ? 1 : 0));
    device::gemm_of_pieces(a, b, m, n, pieces.length, pieces.count, A.data, A.ld, A_step * pieces.length, B.data, B.ld,
                           B_step * pieces.length, products.view().data);
    if (left > 0)
      device::gemm(a, b, m, n, left, Real(1), A.data + A_step * (k - left), A.ld, B.data + B_step * (k - left), B.ld,
                   Real(0), products.columns(pieces.count, 1).data, m);
    constexpr Extent block{32, kernels::sum_threads / 32};
    launch("sum of pieces", kernels::sum_of_pieces_kernel<Real>, (m * n + block.x - 1) / block.x, block,
           static_cast<const Real*>(products.view().data), products.cols(), alpha, beta, C);
  }
};

}  // namespace MOE_DEVICE_SPACE
}  // namespace moe
