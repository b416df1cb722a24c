/// Gaussian fields of single sites in kernel iteration (theory section 6), along time.
#pragma once

#include "dmft/causal_array.hpp"

namespace moe {

/// One Gaussian field of many sites: g = amplitude Z L^T along (step, sample), with Z white and L the root of the queries' correlation.
/// A step's columns are taken when they are asked for, from the rows of L that are there by then.
template <class B>
class SiteField {
 public:
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  SiteField() = default;
  /// root: L^T, which outlives it. `present` false: the matrix has no such side, and the field is zero. `scale`: how much of the operator's
  /// answer a site sees.
  SiteField(Index sites, const CausalArray<B>& root, double amplitude, bool present, double scale, const StreamKey& key)
      : root_(&root), amplitude_(amplitude), scale_(scale), present_(present) {
    if (!present) return;
    white_ = Matrix::uninitialized(sites, root.shape().n());
    B::normal(white_, key);
  }

  bool present() const { return present_; }
  /// out (sites, P) += left g of step t, of a matrix of which `left` is left.
  void add_to(View out, Index t, double left) {
    if (!present_) return;
    const auto rows = root_->step(t);
    B::gemm(Op::plain, Op::plain, left * amplitude_, white_.columns(0, rows.view.rows), rows.view, 1, out);
  }
  View white() { return white_; }
  double amplitude() const { return amplitude_; }
  double scale() const { return scale_; }

 private:
  const CausalArray<B>* root_ = nullptr;
  double amplitude_ = 0, scale_ = 1;
  bool present_ = false;
  Matrix white_;  ///< (sites, n), Z
};

}  // namespace moe
