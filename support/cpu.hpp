/// The CPU backend: the handful of array operations on which the limit solver is written. Every operation splits its work into
/// pieces that depend on the shapes alone, and adds in a fixed order: results are equal, bit for bit, for any number of threads.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "support/matrix.hpp"
#include "support/op.hpp"
#include "support/outer_product.hpp"
#include "support/random.hpp"
#include "support/vector_math.hpp"

namespace moe {

/// Threads that array operations of the calling thread may use (an OpenMP team of that size).
void set_operation_threads(int threads);

namespace detail {
/// One piece of C = alpha op(A) op(B) + beta C, column-major: oneDNN's sgemm for float, Eigen for double.
void gemm_piece(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B,
                Index ldb, float beta, float* C, Index ldc);
void gemm_piece(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B,
                Index ldb, double beta, double* C, Index ldc);
/// Below this many elements an operation stays on the calling thread.
inline constexpr Index parallel_threshold = 1 << 14;
/// Rows per piece of maps and sums.
inline constexpr Index row_block = 4096;

/// Sum of f(i) for i in [first, last), in double. A function of its own, with f by value: in the body of a parallel loop g++ 12 makes
/// no vectors of it, and the sum takes ten times as long.
template <class F>
double sum_over(Index first, Index last, F f) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (Index i = first; i < last; ++i) s += static_cast<double>(f(i));
  return s;
}
}  // namespace detail

template <class RealT>
struct Cpu {
  using Real = RealT;
  using Matrix = HostMatrix<Real>;
  using View = HostView<Real>;

  /// f(i, j) for every element, i fastest. f must not depend on the order.
  template <class F>
  static void each(Index rows, Index cols, const F& f) {
    const Index blocks = (rows + detail::row_block - 1) / detail::row_block, pieces = blocks * cols;
#pragma omp parallel for schedule(static) if (rows * cols > detail::parallel_threshold)
    for (Index piece = 0; piece < pieces; ++piece) {
      const Index j = piece / blocks, first = (piece % blocks) * detail::row_block;
      const Index last = std::min(rows, first + detail::row_block);
#pragma omp simd
      for (Index i = first; i < last; ++i) f(i, j);
    }
  }

  /// Sum of f(i, j) over all elements, in double.
  template <class F>
  static double sum(Index rows, Index cols, const F& f) {
    const Index blocks = (rows + detail::row_block - 1) / detail::row_block, pieces = blocks * cols;
    std::vector<double> partial(static_cast<std::size_t>(pieces));
#pragma omp parallel for schedule(static) if (rows * cols > detail::parallel_threshold)
    for (Index piece = 0; piece < pieces; ++piece) {
      const Index j = piece / blocks, first = (piece % blocks) * detail::row_block;
      const Index last = std::min(rows, first + detail::row_block);
      partial[static_cast<std::size_t>(piece)] = detail::sum_over(first, last, [f, j](Index i) { return f(i, j); });
    }
    double total = 0;
    for (double s : partial) total += s;
    return total;
  }

  /// out(0, j) = sum_i f(i, j), in double inside a column.
  template <class F>
  static void column_sums(Index rows, Index cols, const F& f, View out) {
#pragma omp parallel for schedule(static) if (rows * cols > detail::parallel_threshold)
    for (Index j = 0; j < cols; ++j) {
      out(0, j) = static_cast<Real>(detail::sum_over(0, rows, [f, j](Index i) { return f(i, j); }));
    }
  }

  /// out(0, j) = max_i values(i, j).
  static void column_maxima(View values, View out) {
    for (Index j = 0; j < values.cols; ++j) {
      Real largest = values(0, j);
      for (Index i = 1; i < values.rows; ++i) largest = std::max(largest, values(i, j));
      out(0, j) = largest;
    }
  }

  /// C = alpha op(A) op(B) + beta C. Never split along the inner dimension.
  static void gemm(Op a, Op b, double alpha, View A, View B, double beta, View C) {
    const Index m = C.rows, n = C.cols, k = a == Op::plain ? A.cols : A.rows;
    if (m == 0 || n == 0) return;
    if (k == 0) {
      each(m, n, [=](Index i, Index j) { C(i, j) = static_cast<Real>(beta) * (beta == 0 ? Real(0) : C(i, j)); });
      return;
    }
    const bool by_rows = m >= n;
    const Index extent = by_rows ? m : n;
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    const auto most = static_cast<std::size_t>(
        std::clamp<Index>(std::min<Index>(static_cast<Index>(flops / 4e6), extent / 128), 1, 16));
    const auto pieces = static_cast<Index>(std::bit_floor(most));  // equal shares for 2, 4, ... threads
    const Index step = ((extent + pieces - 1) / pieces + 15) / 16 * 16;
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (Index first = 0; first < extent; first += step) {
      const Index count = std::min(step, extent - first);
      const Real* Ap = A.data + (by_rows ? (a == Op::plain ? first : first * A.ld) : 0);
      const Real* Bp = B.data + (by_rows ? 0 : (b == Op::plain ? first * B.ld : first));
      Real* Cp = C.data + (by_rows ? first : first * C.ld);
      detail::gemm_piece(a, b, by_rows ? count : m, by_rows ? n : count, k, static_cast<Real>(alpha), Ap, A.ld, Bp,
                         B.ld, static_cast<Real>(beta), Cp, C.ld);
    }
  }

  /// E^T E / rows with double accumulation, on the host: small, (cols, cols).
  static Eigen::MatrixXd gram(View E) {
    const Index P = E.cols, block = 256, blocks = (E.rows + block - 1) / block;
    const Index lanes = std::min<Index>(blocks, 8);  // partial sums, whatever the number of threads
    std::vector<Eigen::MatrixXd> partial(static_cast<std::size_t>(lanes));
    Eigen::MatrixXd total(P, P);
#pragma omp parallel if (E.size() > detail::parallel_threshold)
    {
#pragma omp for schedule(static, 1)
      for (Index lane = 0; lane < lanes; ++lane) {
        Eigen::MatrixXd& sum = partial[static_cast<std::size_t>(lane)];
        sum = Eigen::MatrixXd::Zero(P, P);
        for (Index b = lane; b < blocks; b += lanes) {
          const Index first = b * block, count = std::min(block, E.rows - first);
          const Eigen::Map<const Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>, 0, Eigen::OuterStride<>> piece(
              E.data + first, count, P, Eigen::OuterStride<>(E.ld));
          const Eigen::MatrixXd wide = piece.template cast<double>();
          sum.template selfadjointView<Eigen::Lower>().rankUpdate(wide.transpose());
        }
      }
#pragma omp for schedule(static)
      for (Index j = 0; j < P; ++j) {
        total.col(j).setZero();
        for (const Eigen::MatrixXd& sum : partial) total.col(j).tail(P - j) += sum.col(j).tail(P - j);
      }
    }
    total = total.template selfadjointView<Eigen::Lower>();
    return total / static_cast<double>(E.rows);
  }

  /// Standard normals: element (i, j) depends on the key and i + j * (rows rounded up to even) only.
  static void normal(View out, const StreamKey& key) {
    const Index pairs_per_column = (out.rows + 1) / 2;
    constexpr Index piece = 256;
#pragma omp parallel for schedule(static) if (out.size() > detail::parallel_threshold)
    for (Index j = 0; j < out.cols; ++j)
      for (Index first = 0; first < pairs_per_column; first += piece) {
        const Index count = std::min(piece, pairs_per_column - first);
        Real radius[piece], angle[piece], even[piece], odd[piece];
        for (Index p = 0; p < count; ++p) {
          const NormalBits<Real> bits =
              normal_bits<Real>(key, static_cast<std::uint64_t>(first + p + j * pairs_per_column));
          radius[p] = bits.radius;
          angle[p] = bits.angle;
        }
        // Box-Muller as in normal_from_bits, in loops of one function each: g++ merges sin and cos into a call it cannot vectorise.
#pragma omp simd
        for (Index p = 0; p < count; ++p) radius[p] = std::sqrt(Real(-2) * std::log(radius[p]));
#pragma omp simd
        for (Index p = 0; p < count; ++p) even[p] = radius[p] * std::cos(angle[p]);
#pragma omp simd
        for (Index p = 0; p < count; ++p) odd[p] = radius[p] * std::sin(angle[p]);
        for (Index p = 0; p < count; ++p) {
          out(2 * (first + p), j) = even[p];
          if (2 * (first + p) + 1 < out.rows) out(2 * (first + p) + 1, j) = odd[p];
        }
      }
  }

  /// mask(i, j) = 1 for the `count` largest values of column j, 0 elsewhere; exact ties go to the lower index.
  static void select_largest(View values, Index count, View mask) {
    const Index rows = values.rows;
#pragma omp parallel for schedule(static) if (values.size() > detail::parallel_threshold)
    for (Index j = 0; j < values.cols; ++j) {
      std::vector<Index> order(static_cast<std::size_t>(rows));
      for (Index i = 0; i < rows; ++i) order[static_cast<std::size_t>(i)] = i;
      const Real* v = values.data + j * values.ld;
      if (count < rows)
        std::nth_element(order.begin(), order.begin() + count, order.end(),
                         [v](Index p, Index q) { return v[p] > v[q] || (v[p] == v[q] && p < q); });
      for (Index i = 0; i < rows; ++i) mask(i, j) = Real(0);
      for (Index k = 0; k < count; ++k) mask(order[static_cast<std::size_t>(k)], j) = Real(1);
    }
  }

  static void copy(View from, View to) {
    each(from.rows, from.cols, [=](Index i, Index j) { to(i, j) = from(i, j); });
  }

  /// Small host matrices to and from the device.
  static void upload(const Eigen::MatrixXd& from, View to) {
    for (Index j = 0; j < to.cols; ++j)
      for (Index i = 0; i < to.rows; ++i) to(i, j) = static_cast<Real>(from(i, j));
  }
  static Eigen::MatrixXd download(View from) {
    Eigen::MatrixXd to(from.rows, from.cols);
    for (Index j = 0; j < from.cols; ++j)
      for (Index i = 0; i < from.rows; ++i) to(i, j) = static_cast<double>(from(i, j));
    return to;
  }

  /// rule(g, entry of every array at (i, j)) for every entry g of the outer product z x^T, z (rows, P), x (cols, P), which is never stored
  /// as a whole: the arrays (rows, cols) pass once.
  template <std::size_t count, class Rule>
  static void entrywise_update(View z, View x, const View (&arrays)[count], const Rule& rule) {
    const auto use = [&]<std::size_t... k>(std::index_sequence<k...>) {
      return [arrays, rule](Real g, Index i, Index j) { rule(g, arrays[k](i, j)...); };
    }
    (std::make_index_sequence<count>());
    const Index rows = z.rows, cols = x.rows;
    // z's part of a piece stays in the second cache, and there is a piece for every core.
    const Index piece_rows = 21 * OuterTile<Real>::rows, piece_cols = 32 * OuterTile<Real>::cols;
    const Index row_pieces = (rows + piece_rows - 1) / piece_rows, col_pieces = (cols + piece_cols - 1) / piece_cols;
#pragma omp parallel for schedule(static) if (rows * cols > detail::parallel_threshold)
    for (Index piece = 0; piece < row_pieces * col_pieces; ++piece) {
      const Index i0 = (piece % row_pieces) * piece_rows, j0 = (piece / row_pieces) * piece_cols;
      for_each_outer_entry(z, x, arrays, i0, std::min(piece_rows, rows - i0), j0, std::min(piece_cols, cols - j0), use);
    }
  }
};

}  // namespace moe
