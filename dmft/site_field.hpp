/// Gaussian fields of single sites in kernel iteration (theory section 6), along time.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dmft/causal_array.hpp"
#include "dmft/pointwise.hpp"
#include "dmft/query_basis.hpp"

namespace moe {

/// One Gaussian field of many sites: g = amplitude Z L^T along (step, sample), with Z white and L the root of the queries' correlation.
/// A step's columns are taken when they are asked for, from the rows of L that are there by then.
///
/// The sites' other part of the same answers is sum_s sent(s) W(s), sent(s) what the matrix was asked on their side and W a response, a mean
/// over `answers` independent products. Its noise gives the field a share rank / answers of its variance along the span of what was sent,
/// and the white numbers are where it has to come from: orthogonalize() takes them out of that span and leaves of their mean square what that
/// share leaves. So fields have the variance of their covariance however many sites there are, and products with white numbers have no noise
/// of all that was known before these (docs/theory.md, 6.2).
template <class B>
class SiteField {
 public:
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  SiteField() = default;
  /// root: L^T, which outlives it. `present` false: the matrix has no such side, and the field is zero. `scale`: how much of the operator's
  /// answer a site sees. `sent`: what these sites send to the matrix; it gets a user.
  SiteField(Index sites, const CausalArray<B>& root, double amplitude, bool present, double scale, double answers,
            QueryBasis<B>& sent, const StreamKey& key)
      : root_(&root), amplitude_(amplitude), scale_(scale), answers_(answers), present_(present) {
    if (!present) return;
    sent.add_user();
    white_ = Matrix::uninitialized(sites, root.shape().n());
    B::normal(white_, key);
  }

  bool present() const { return present_; }
  /// Step t's white numbers against all that was sent by now, before they are first used.
  void orthogonalize(QueryBasis<B>& sent, Index t) {
    if (!present_) return;
    const Index P = root_->shape().P;
    const View now = white_.columns(t * P, P);
    const auto sites = static_cast<double>(now.rows);
    // Only so many directions of what was sent as leave something, and double no mean square where sites are few beside the answers.
    double most = (1 - least_left) * std::min(sites, answers_);
    if (2 / sites > 1 / answers_) most = std::min(most, 1 / (2 / sites - 1 / answers_));
    const Index rank = std::min(sent.rank(), static_cast<Index>(most));
    const double left = 1 - static_cast<double>(rank) / answers_;
    sent.take_out(rank, now);
    moe::scale<B>(now, static_cast<typename B::Real>(std::sqrt(left / (1 - static_cast<double>(rank) / sites))));
    mean_squares_.push_back(left);
    noise_left_ = static_cast<double>(sent.rank() - rank) / answers_;
  }
  /// out (sites, P) += left g of step t, of a matrix of which `left` is left.
  void add_to(View out, Index t, double left) {
    if (!present_) return;
    const auto rows = root_->step(t);
    B::gemm(Op::plain, Op::plain, left * amplitude_, white_.columns(0, rows.view.rows), rows.view, 1, out);
  }
  View white() { return white_; }
  double amplitude() const { return amplitude_; }
  double scale() const { return scale_; }
  /// [step] of the white numbers.
  const std::vector<double>& mean_squares() const { return mean_squares_; }
  /// The share of its variance that noise of responses adds, beyond what white numbers have made room for, at the last step.
  double noise_left() const { return noise_left_; }

 private:
  const CausalArray<B>* root_ = nullptr;
  static constexpr double least_left = 1.0 / 16;
  double amplitude_ = 0, scale_ = 1, answers_ = 0;
  bool present_ = false;
  std::vector<double> mean_squares_;
  double noise_left_ = 0;
  Matrix white_;  ///< (sites, n), Z
};

}  // namespace moe
