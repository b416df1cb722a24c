/// Orthonormal basis of everything that matrices were asked on one population: xt or zt of theory section 6.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "dmft/pointwise.hpp"
#include "dmft/small_linear_algebra.hpp"
#include "support/archive.hpp"
#include "support/cpu.hpp"

namespace moe {

/// What the tolerance of a basis is a share of: what the query has changed since the first one was asked (never more than the query
/// itself), so that answers change as they should however slowly a network learns; or the query.
enum class ToleranceOf { change, query };

/// Vectors (sites, rank) with <v_k v_l> = delta_kl under the population average. One basis serves all matrices that are asked the
/// same queries (phi for the router and every A; D for every B).
template <class B>
class QueryBasis {
 public:
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  QueryBasis(Index sites, double tolerance, ToleranceOf what = ToleranceOf::change)
      : sites_(sites), tolerance_(tolerance), what_(what), vectors_(sites, 0) {}

  Index sites() const { return sites_; }
  Index rank() const { return vectors_.cols(); }
  View vectors() { return vectors_; }
  std::size_t bytes() const { return vectors_.bytes() + first_.bytes(); }

  /// Coefficients (rank, P) of the last stored query.
  View coefficients() { return coefficients_; }

  /// Takes a block of P queries (sites, P): coefficients by block Gram-Schmidt with re-orthogonalisation, and new vectors for what
  /// is left above `tolerance` times the RMS that the block has changed by, or above the rounding of the query: all of the first block.
  /// Smaller directions are dropped, and so are queries that are not finite: a flow tries stages that overflow, and goes on without them.
  void ask(View query) {
    if (users_ == 0) return;
    project(query, coefficients_);
    for (bool more = true; more;) {
      auto residual = Matrix::uninitialized(sites_, query.cols);
      B::copy(query, residual);
      subtract(coefficients_, residual);
      MeanSquares of = mean_squares(query, residual);
      if (!(of.query > 0) || !std::isfinite(of.query)) return;
      const auto counts = [&] {  // the largest eigenvalue of the residual's Gram matrix is at most its trace
        return of.residual * static_cast<double>(query.cols) > square(threshold(of));
      };
      if (counts() && of.residual < square(1e-3) * of.query) {
        // Beside so little the rounding of <vectors, query>, long sums, may be what is left.
        Matrix correction;
        project(residual, correction);
        accumulate<B>(correction, 1, coefficients_);
        subtract(correction, residual);
        of = mean_squares(query, residual);
      }
      more = counts() && extend(query, residual, threshold(of));
    }
    if (first_.empty() && what_ == ToleranceOf::change) {
      first_ = Matrix::uninitialized(rank(), query.cols);
      B::copy(coefficients_, first_);
    }
  }

  /// out (rank, P) = <vectors, query>.
  void project(View query, Matrix& out) {
    out = Matrix::uninitialized(rank(), query.cols);
    B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(sites_), vectors_, query, 0, out);
  }

  /// field -= vectors * coefficients.
  void subtract(View coefficients, View field) { B::gemm(Op::plain, Op::plain, -1, vectors_, coefficients, 1, field); }

  /// field less what it has of the first `rank` vectors.
  void take_out(Index rank, View field) {
    if (rank == 0) return;
    auto of_field = Matrix::uninitialized(rank, field.cols);
    B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(sites_), vectors_.columns(0, rank), field, 0,
            of_field);
    B::gemm(Op::plain, Op::plain, -1, vectors_.columns(0, rank), of_field, 1, field);
  }

  /// Between steps; the last query's coefficients belong to its step.
  void transfer(Archive& a) {
    a("users", users_);
    a("vectors", vectors_);
    a("first", first_);
  }

  /// Matrices that need this basis; without any, queries are no longer stored and the memory is given back.
  void add_user() { ++users_; }
  void release() {
    if (--users_ == 0) {
      vectors_ = Matrix(sites_, 0);
      coefficients_ = Matrix();
      first_ = Matrix();
    }
  }

 private:
  /// Adds what the residual of the query has above the threshold, as far as its Gram matrix tells; true if more may be left below.
  bool extend(View query, View residual, double threshold) {
    const Eigen::MatrixXd gram = B::gram(residual);
    const double resolved = resolution(gram), least = std::max(threshold * threshold, resolved);
    const Eigen::MatrixXd combine = new_directions(gram, std::sqrt(least), sites_ - rank());
    const Index k = combine.cols(), old = rank();
    if (k == 0) return false;
    auto weights = Matrix::uninitialized(query.cols, k);
    B::upload(combine, weights);
    auto fresh = Matrix::uninitialized(sites_, k);
    auto whitened = Matrix::uninitialized(sites_, k);
    B::gemm(Op::plain, Op::plain, 1, residual, weights, 0, fresh);
    // A residual at the tolerance carries the rounding of the query 1/tolerance times enlarged: clean the new vectors once more, against
    // the basis and each other.
    take_out(old, fresh);
    auto whiten = Matrix::uninitialized(k, k);
    B::upload(whitening(B::gram(fresh)), whiten);
    B::gemm(Op::plain, Op::plain, 1, fresh, whiten, 0, whitened);
    vectors_.set_columns(old + k);
    B::copy(whitened, vectors_.columns(old, k));
    auto grown = Matrix::uninitialized(old + k, query.cols);
    B::copy(coefficients_, grown.view().row_range(0, old));
    B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(sites_), whitened, query, 0,
            grown.view().row_range(old, k));
    coefficients_ = std::move(grown);
    return resolved > threshold * threshold;
  }

  struct MeanSquares {
    double query, residual, change;
  };
  static double square(double a) { return a * a; }
  /// Least root eigenvalue of what enters.
  double threshold(const MeanSquares& of) const {
    constexpr double rounding = 64 * static_cast<double>(std::numeric_limits<typename B::Real>::epsilon());
    return std::max(tolerance_ * std::sqrt(std::min(of.query, of.change)), rounding * std::sqrt(of.query));
  }
  /// Over sites and samples: of a query, of what the basis leaves of it, and of what it has changed since the first (of which nothing
  /// is left). A device waits once.
  MeanSquares mean_squares(View query, View residual) {
    const bool has_first = !first_.empty();
    auto of_columns = Matrix::uninitialized(has_first ? 3 : 2, query.cols);
    const View squares = of_columns;
    column_sums_of_products<B>(query, query, squares.row_range(0, 1));
    column_sums_of_products<B>(residual, residual, squares.row_range(1, 1));
    if (has_first) {
      auto moved = Matrix::uninitialized(rank(), query.cols);
      B::copy(coefficients_, moved);
      accumulate<B>(first_, -1, moved.view().row_range(0, first_.rows()));
      column_sums_of_products<B>(moved, moved, squares.row_range(2, 1));
    }
    const Eigen::VectorXd mean = B::download(of_columns).rowwise().mean();
    const double size = mean(0) / static_cast<double>(sites_), left = mean(1) / static_cast<double>(sites_);
    if (what_ == ToleranceOf::query) return {size, left, size};
    return {size, left, has_first ? mean(2) + left : 0};
  }

  Index sites_;
  double tolerance_;
  ToleranceOf what_;
  int users_ = 0;
  Matrix vectors_, coefficients_;
  Matrix first_;  ///< coefficients of the first query, (rank after it, P)
};

}  // namespace moe
