/// One population of Monte Carlo sites (neurons, experts, hidden units, or product sites) and the Gaussian vectors drawn on it.
#pragma once

#include "dmft/small_linear_algebra.hpp"
#include "support/archive.hpp"
#include "support/cpu.hpp"

namespace moe {

/// Draws independent unit Gaussian vectors over `sites` sites. With moment matching, vectors that are independent in the limit are
/// made exactly orthogonal with covariance one on the samples when they are drawn (theory section 6): new ones are orthogonalised
/// to every listed raw draw and whitened among themselves. A draw that would take the list beyond sites/2 stays plain, unlisted.
template <class B>
class Population {
 public:
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  Population(Index sites, const StreamKey& key, bool matching) : sites_(sites), key_(key), matching_(matching) {}

  /// A population on the same sites that has this one's list and goes on by itself, with numbers of `key`.
  Population fork(const StreamKey& key) {
    Population own(sites_, key, matching_);
    own.draws_ = draws_;
    own.drawn_ = Matrix::uninitialized(drawn_.rows(), drawn_.cols());
    B::copy(drawn_, own.drawn_);
    return own;
  }

  Index sites() const { return sites_; }
  const StreamKey& key() const { return key_; }
  bool matching() const { return matching_; }
  std::size_t bytes() const { return drawn_.bytes(); }

  /// Fills out (sites, k) with k new unit Gaussian vectors; says whether they are listed. `plain` keeps this draw out of the list
  /// whatever the setting.
  bool draw(View out, bool plain = false) {
    StreamKey key = key_;
    key.draw = draws_++;
    B::normal(out, key);
    const Index k = out.cols, listed = drawn_.cols();
    if (!matching_ || plain || listed + k > sites_ / 2) return false;
    if (drawn_.rows() == 0) drawn_ = Matrix(sites_, 0);
    for (int pass = 0; pass < 2 && listed > 0; ++pass) {
      auto overlap = Matrix::uninitialized(listed, k);
      B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(sites_), drawn_, out, 0, overlap);
      B::gemm(Op::plain, Op::plain, -1, drawn_, overlap, 1, out);
    }
    auto whiten = Matrix::uninitialized(k, k);
    auto raw = Matrix::uninitialized(sites_, k);
    B::upload(whitening(B::gram(out)), whiten);
    B::copy(out, raw);
    B::gemm(Op::plain, Op::plain, 1, raw, whiten, 0, out);
    drawn_.set_columns(listed + k);
    B::copy(out, drawn_.columns(listed, k));
    return true;
  }

  /// (listed, k): components of vectors (sites, k) along the listed draws, averages over sites.
  Matrix list_overlap(View vectors) {
    auto overlap = Matrix::uninitialized(drawn_.cols(), vectors.cols);
    B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(sites_), drawn_, vectors, 0, overlap);
    return overlap;
  }

  void transfer(Archive& a) {
    a("matching", matching_);
    a("users", users_);
    a("draws", draws_);
    a("drawn", drawn_);
  }

  /// An operator that will draw on this population registers, and says when it never will again: the list is then freed.
  void add_user() { ++users_; }
  void release() {
    if (--users_ == 0) {
      drawn_ = Matrix();
      matching_ = false;
    }
  }

 private:
  Index sites_;
  StreamKey key_;
  bool matching_;
  int users_ = 0;
  std::uint32_t draws_ = 0;
  Matrix drawn_;  ///< (sites, listed) raw draws
};

}  // namespace moe
