/// What an optimizer does to one tensor, in the units of theory section 3, and arrays that it acts on entry by entry (T22).
#pragma once

#include <algorithm>
#include <cmath>

#include "dmft/limit_spec.hpp"
#include "dmft/pointwise.hpp"
#include "dmft/small_linear_algebra.hpp"
#include "support/archive.hpp"
#include "support/cpu.hpp"
#include "support/point.hpp"

namespace moe {

namespace detail {

/// out (rows, 1): mean over columns of (sum_mu z_mu x_mu^T)^2, as |R^T z|^2 with R R^T = <x x>, which no rounding makes negative; R
/// has as many columns as samples, or as there are columns of x^T where these are fewer.
template <class B>
void mean_squares_of_rows(typename B::View z, typename B::View x, typename B::View out) {
  using Real = typename B::Real;
  const Index P = z.cols, rank = x.rows < P ? x.rows : P;
  auto along = B::Matrix::uninitialized(z.rows, rank);
  if (x.rows < P) {
    B::gemm(Op::plain, Op::transposed, 1 / std::sqrt(static_cast<double>(x.rows)), z, x, 0, along);
  } else {
    auto root = B::Matrix::uninitialized(P, P);
    B::upload(semidefinite_root(B::gram(x)), root);
    B::gemm(Op::plain, Op::plain, 1, z, root, 0, along);
  }
  const typename B::View a = along;
  B::each(z.rows, 1, [=] MOE_HD(Index i, Index) {
    double s = 0;
    for (Index p = 0; p < rank; ++p) s += static_cast<double>(a(i, p)) * static_cast<double>(a(i, p));
    out(i, 0) = static_cast<Real>(s);
  });
}
/// out (matrices, cols), without gaps between columns: mean over the rows of each matrix of g^2; matrices stand one above another.
template <class B>
void mean_squares_of_columns(typename B::View g, typename B::View out) {
  const Index matrices = out.rows, rows = g.rows / matrices;
  const double per_row = 1 / static_cast<double>(rows);
  B::column_sums(
      rows, out.size(),
      [=] MOE_HD(Index i, Index k) {
        const double entry = static_cast<double>(g(k % matrices * rows + i, k / matrices));
        return entry * entry * per_row;
      },
      as_row(out));
}
/// mean = keep * mean + (1 - keep) * (now + eps^2)
template <class B>
void run_mean(typename B::View now, double keep, double eps, typename B::View mean) {
  using Real = typename B::Real;
  B::each(mean.rows, mean.cols, [=] MOE_HD(Index i, Index j) {
    mean(i, j) = static_cast<Real>(keep * static_cast<double>(mean(i, j)) +
                                   (1 - keep) * (static_cast<double>(now(i, j)) + eps * eps));
  });
}
/// out (rows, 1) = (row / mean over the matrix of row)^-1/2, 0 where there has been no gradient.
template <class B>
void inverse_root_shares(typename B::View row, Index matrices, typename B::View out) {
  using Real = typename B::Real;
  const Index rows = row.rows / matrices;
  auto means = B::Matrix::uninitialized(1, matrices);
  const typename B::View mean = means;
  B::column_sums(
      rows, matrices,
      [=] MOE_HD(Index i, Index e) { return static_cast<double>(row(e * rows + i, 0)) / static_cast<double>(rows); },
      mean);
  B::each(rows, matrices, [=] MOE_HD(Index a, Index e) {
    const Index i = e * rows + a;
    out(i, 0) = row(i, 0) > Real(0)
                    ? static_cast<Real>(std::sqrt(static_cast<double>(mean(0, e)) / static_cast<double>(row(i, 0))))
                    : Real(0);
  });
}
/// value += lr * g / sqrt(row col / mean(row)), of the row given the root of its share.
template <class B>
void factored_step(typename B::View g, typename B::View inverse_row, typename B::View col, typename B::Real lr,
                   typename B::View value) {
  using Real = typename B::Real;
  const Index matrices = col.rows, rows = g.rows / matrices;
  B::each(rows, matrices * g.cols, [=] MOE_HD(Index a, Index k) {
    const Index e = k % matrices, j = k / matrices, i = e * rows + a;
    const Real mean = col(e, j);
    value(i, j) += mean > Real(0) ? lr * g(i, j) * inverse_row(i, 0) / std::sqrt(mean) : Real(0);
  });
}

}  // namespace detail

/// The matrices of equal size that Adafactor treats each by itself: one above another in an array's rows, or side by side in its columns.
struct ArrayMatrices {
  Index of_rows = 1, of_cols = 1;
};

/// An array with its optimizer state. Gradients arrive as outer products sum_mu z_mu x_mu^T and are never stored.
template <class B>
class LearnedArray {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  LearnedArray() = default;
  /// `scale` multiplies the learning rate: 1/D for W_in, whose inputs are coordinates and not a population (T21).
  LearnedArray(Index rows, Index cols, const UpdateRule& rule, double scale = 1, ArrayMatrices matrices = {})
      : rule_(rule), scale_(scale), value_(rows, cols) {
    if (rule.has_velocity() || rule.has_moments()) first_ = Matrix(rows, cols);
    if (rule.has_moments()) second_ = Matrix(rows, cols);
    if (rule.kind == OptimizerKind::adafactor) {
      first_ = Matrix(rows, matrices.of_cols);
      second_ = Matrix(matrices.of_rows, cols);
    }
  }

  bool empty() const { return value_.empty(); }
  View value() { return value_; }
  View velocity() { return first_; }
  /// out (rows, P) += factor value with; with (cols, P)
  void act(double factor, View with, View out) {
    if (!empty()) B::gemm(Op::plain, Op::plain, factor, value_, with, 1, out);
  }
  std::size_t bytes() const { return value_.bytes() + first_.bytes() + second_.bytes(); }

  void transfer(Archive& a) {
    a("steps", steps_);
    a("value", value_);
    a("first", first_);
    a("second", second_);
  }

  /// What learns, for a flow: d value/dt = scale * lr * sum_mu z_mu x_mu^T, SGD only.
  void learned(Matrix& out) {
    out = Matrix::uninitialized(value_.rows(), value_.cols());
    B::copy(value_, out);
  }
  void set_learned(View from) { B::copy(from, value_); }
  void derivative(View z, View x, Matrix& out) const {
    out = Matrix::uninitialized(z.rows, x.rows);
    add_gradient(z, x, 0, out);
  }

  /// value = decay * value + scale * lr * rule(sum_mu z_mu x_mu^T);  z (rows, P), x (cols, P).
  void update(View z, View x) {
    if (empty()) return;
    ++steps_;
    const View value = value_, first = first_, second = second_;
    const Real lr = static_cast<Real>(scale_ * rule_.lr), decay = static_cast<Real>(rule_.decay);
    switch (rule_.kind) {
      case OptimizerKind::sgd: add_gradient(z, x, 1, value); return;
      case OptimizerKind::momentum: {
        const Real momentum = static_cast<Real>(rule_.momentum);
        B::entrywise_update(z, x, {value, first}, [=] MOE_HD(Real g, Real & w, Real & velocity) {
          velocity = momentum * velocity + g;
          w += lr * velocity;
        });
        return;
      }
      case OptimizerKind::adam:
      case OptimizerKind::adamw: {
        const AdamPoint<Real> adam{static_cast<Real>(rule_.beta1), static_cast<Real>(rule_.beta2),
                                   static_cast<Real>(rule_.eps),
                                   static_cast<Real>(1 / (1 - std::pow(rule_.beta1, steps_))),
                                   static_cast<Real>(1 / (1 - std::pow(rule_.beta2, steps_)))};
        B::entrywise_update(z, x, {value, first, second},
                            [=] MOE_HD(Real g, Real & w, Real & m, Real & v) { w = decay * w + lr * adam(g, m, v); });
        return;
      }
      case OptimizerKind::signsgd: {
        const SignPoint<Real> sign;
        B::entrywise_update(z, x, {value}, [=] MOE_HD(Real g, Real & w) { w += lr * sign(g); });
        return;
      }
      case OptimizerKind::adafactor: factored(z, x, lr); return;
    }
  }

 private:
  /// Adafactor without first moment and clipping: Psi = g / sqrt(row col / mean(row)).                                (T30)
  /// row, col: running means over the columns and the rows of a matrix of g^2 + eps^2, with weight 1 - t^-0.8.
  void factored(View z, View x, Real lr) {
    const Index cols = first_.cols() > 0 ? value_.cols() / first_.cols() : 0;
    for (Index q = 0; q < first_.cols(); ++q)
      factored(z, x.row_range(q * cols, cols), lr, first_.columns(q, 1), second_.columns(q * cols, cols),
               value_.columns(q * cols, cols));
  }
  void factored(View z, View x, Real lr, View row, View col, View value) {
    const double keep = 1 - std::pow(steps_, -0.8);
    auto row_now = Matrix::uninitialized(row.rows, 1), share = Matrix::uninitialized(row.rows, 1);
    detail::mean_squares_of_rows<B>(z, x, row_now);
    detail::run_mean<B>(row_now, keep, rule_.eps, row);
    detail::inverse_root_shares<B>(row, col.rows, share);
    // Gradients of a few columns at a time, every row of which is there.
    const Index piece =
        std::clamp<Index>((Index{1} << 18) / std::max<Index>(1, value.rows), 1, std::max<Index>(1, value.cols));
    auto gradient = Matrix::uninitialized(value.rows, piece), col_now = Matrix::uninitialized(col.rows, piece);
    for (Index first = 0; first < value.cols; first += piece) {
      const Index count = std::min(piece, value.cols - first);
      const View g = gradient.columns(0, count), now = col_now.columns(0, count), mean = col.columns(first, count);
      B::gemm(Op::plain, Op::transposed, 1, z, x.row_range(first, count), 0, g);
      detail::mean_squares_of_columns<B>(g, now);
      detail::run_mean<B>(now, keep, rule_.eps, mean);
      detail::factored_step<B>(g, share, mean, lr, value.columns(first, count));
    }
  }

  /// to = keep * to + scale * lr * sum_mu z_mu x_mu^T
  void add_gradient(View z, View x, double keep, View to) const {
    B::gemm(Op::plain, Op::transposed, scale_ * rule_.lr, z, x, keep, to);
  }

  UpdateRule rule_;
  double scale_ = 1;
  int steps_ = 0;
  /// (rows, cols): value, velocity or first moment, second moment. Of Adafactor first_ (rows, matrices of the columns) and second_
  /// (matrices of the rows, cols) are the running means of squares, row and col.
  Matrix value_, first_, second_;
};

}  // namespace moe
