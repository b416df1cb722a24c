/// Which experts a token uses (T2), and the order in which fields over (expert, token) pairs are kept: arrays (N_e, pairs), a column
/// per active pair. Soft routing: pair (i, p) is column p M + i, so that the array is (M N_e, P) as it stands. top-K: the pairs of
/// expert 0 by token, then those of expert 1, ...
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "support/matrix.hpp"

namespace moe::trainer {

class Dispatch {
 public:
  /// Soft routing: every expert for every token.
  void choose_all(Index experts, Index tokens) {
    dense_ = true;
    experts_ = active_ = experts, tokens_ = tokens;
  }

  /// top-K: the K largest of each column of r (M, P), ties to the lower index; with a bias (M, 1) those of r + bias. r must not hold
  /// NaN.
  template <class Real>
  void choose_largest(HostView<Real> r, Index K, HostView<Real> bias = {}) {
    dense_ = false;
    experts_ = r.rows, tokens_ = r.cols, active_ = K;
    chosen_.resize(static_cast<std::size_t>(K * tokens_));
    std::vector<Real> sorted(static_cast<std::size_t>(experts_)), biased(sorted.size());
    for (Index p = 0; p < tokens_; ++p) {
      const Real* logits = &r(0, p);
      if (bias.cols > 0) {
        for (Index i = 0; i < experts_; ++i) biased[static_cast<std::size_t>(i)] = logits[i] + bias(i, 0);
        logits = biased.data();
      }
      std::copy_n(logits, experts_, sorted.begin());
      std::nth_element(sorted.begin(), sorted.begin() + (K - 1), sorted.end(), std::greater<>());
      const Real last = sorted[static_cast<std::size_t>(K - 1)];
      Index ties = K;
      for (Index i = 0; i < experts_; ++i) ties -= logits[i] > last ? 1 : 0;
      Index* out = chosen_.data() + p * K;
      for (Index i = 0; i < experts_; ++i) {
        const bool tied = logits[i] == last && ties > 0;
        if (!tied && !(logits[i] > last)) continue;
        if (tied) --ties;
        *out++ = i;
      }
    }
    sort_by_expert();
  }

  bool dense() const { return dense_; }
  Index experts() const { return experts_; }
  Index tokens() const { return tokens_; }
  Index active() const { return active_; }  ///< K
  Index pairs() const { return active_ * tokens_; }
  /// k-th expert of token p (ascending), and the pair that the two make.
  Index expert(Index k, Index p) const { return dense_ ? k : chosen_[at(k, p)]; }
  Index pair(Index k, Index p) const { return dense_ ? p * experts_ + k : pair_[at(k, p)]; }
  /// top-K only: pairs of expert i are begin(i) .. begin(i + 1), of the tokens token(pair).
  Index begin(Index i) const { return begin_[static_cast<std::size_t>(i)]; }
  Index token(Index pair) const { return token_[static_cast<std::size_t>(pair)]; }

 private:
  std::size_t at(Index k, Index p) const { return static_cast<std::size_t>(k + p * active_); }

  void sort_by_expert() {
    begin_.assign(static_cast<std::size_t>(experts_) + 1, 0);
    for (Index i : chosen_) ++begin_[static_cast<std::size_t>(i) + 1];
    for (std::size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
    next_.assign(begin_.begin(), begin_.end() - 1);
    pair_.resize(chosen_.size());
    token_.resize(chosen_.size());
    for (std::size_t k = 0; k < chosen_.size(); ++k) {
      pair_[k] = next_[static_cast<std::size_t>(chosen_[k])]++;
      token_[static_cast<std::size_t>(pair_[k])] = static_cast<Index>(k) / active_;
    }
  }

  bool dense_ = true;
  Index experts_ = 0, tokens_ = 0, active_ = 0;
  std::vector<Index> chosen_, pair_;  ///< (K, P)
  std::vector<Index> begin_, next_;   ///< (M + 1), (M)
  std::vector<Index> token_;          ///< (pairs)
};

}  // namespace moe::trainer
