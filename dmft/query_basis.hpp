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

/// Vectors (sites, rank) with <v_k v_l> = delta_kl under the population average. One basis serves all matrices that are asked the
/// same queries (phi for the router and every A; D for every B).
template <class B>
class QueryBasis {
 public:
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  QueryBasis(Index sites, double tolerance) : sites_(sites), tolerance_(tolerance), vectors_(sites, 0) {}

  Index sites() const { return sites_; }
  Index rank() const { return vectors_.cols(); }
  View vectors() { return vectors_; }
  std::size_t bytes() const { return vectors_.bytes(); }

  /// Coefficients (rank, P) of the last stored query.
  View coefficients() { return coefficients_; }

  /// Takes a block of P queries (sites, P): coefficients by block Gram-Schmidt with re-orthogonalisation, and new vectors for what
  /// is left above `tolerance` times the RMS of the block, or above the rounding of the query. Smaller directions are dropped, and so
  /// are queries that are not finite: a flow tries stages that overflow, and goes on without them.
  void ask(View query) {
    if (users_ == 0) return;
    project(query, coefficients_);
    for (bool more = true; more;) {
      auto residual = Matrix::uninitialized(sites_, query.cols);
      B::copy(query, residual);
      subtract(coefficients_, residual);
      const auto [size2, left2] = mean_squares(query, residual);
      if (!(size2 > 0) || !std::isfinite(size2)) return;
      constexpr double rounding = 64 * static_cast<double>(std::numeric_limits<typename B::Real>::epsilon());
      const double threshold = std::max(tolerance_, rounding) * std::sqrt(size2);
      // The largest eigenvalue of the residual's Gram matrix is at most its trace.
      more = left2 * static_cast<double>(query.cols) > threshold * threshold && extend(query, residual, threshold);
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
  }

  /// Matrices that need this basis; without any, queries are no longer stored and the memory is given back.
  void add_user() { ++users_; }
  void release() {
    if (--users_ == 0) {
      vectors_ = Matrix(sites_, 0);
      coefficients_ = Matrix();
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
    Matrix correction;
    project(fresh, correction);
    subtract(correction, fresh);
    auto whiten = Matrix::uninitialized(k, k);
    B::upload(symmetric_power(B::gram(fresh), -0.5), whiten);
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

  /// Over all elements of a and of b, which have one shape; a device waits once.
  static std::pair<double, double> mean_squares(View a, View b) {
    auto of_columns = Matrix::uninitialized(2, a.cols);
    column_sums_of_products<B>(a, a, of_columns.view().row_range(0, 1));
    column_sums_of_products<B>(b, b, of_columns.view().row_range(1, 1));
    const Eigen::MatrixXd sums = B::download(of_columns);
    return {sums.row(0).sum() / static_cast<double>(a.size()), sums.row(1).sum() / static_cast<double>(b.size())};
  }

  Index sites_;
  double tolerance_;
  int users_ = 0;
  Matrix vectors_, coefficients_;
};

}  // namespace moe
