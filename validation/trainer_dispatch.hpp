/// Which experts a token uses (T2), and the order in which fields over (expert, token) pairs are kept, N_e numbers a pair: the pairs
/// of expert 0 by token, then those of expert 1, ...; of an expert with t tokens they are an array (t, N_e), the token fastest. Under
/// soft routing all of them are one array (P, M N_e).
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
#pragma omp parallel for schedule(static) if (r.size() > 2048)
    for (Index p = 0; p < tokens_; ++p) {
      thread_local std::vector<Real> sorted, biased;
      sorted.resize(static_cast<std::size_t>(experts_)), biased.resize(sorted.size());
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
  /// k-th expert of token p (ascending).
  Index expert(Index k, Index p) const { return dense_ ? k : chosen_[at(k, p)]; }
  /// Pairs of expert i are begin(i) .. begin(i + 1), by token.
  Index begin(Index i) const { return dense_ ? i * tokens_ : begin_[static_cast<std::size_t>(i)]; }
  Index tokens_of(Index i) const { return begin(i + 1) - begin(i); }
  /// The j-th token of expert i, and where an array (K, P) has what belongs to the two.
  Index token(Index i, Index j) const { return dense_ ? j : place(i, j) / active_; }
  Index place(Index i, Index j) const {
    return dense_ ? i + j * experts_ : place_[static_cast<std::size_t>(begin(i) + j)];
  }
  /// What expert i has of a field over pairs (N_e, pairs): (its tokens, N_e).
  template <class Real>
  HostView<Real> of_expert(Index i, HostView<Real> field) const {
    return {field.data + begin(i) * field.rows, tokens_of(i), field.rows, tokens_of(i)};
  }

 private:
  std::size_t at(Index k, Index p) const { return static_cast<std::size_t>(k + p * active_); }

  void sort_by_expert() {
    begin_.assign(static_cast<std::size_t>(experts_) + 1, 0);
    for (Index i : chosen_) ++begin_[static_cast<std::size_t>(i) + 1];
    for (std::size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
    next_.assign(begin_.begin(), begin_.end() - 1);
    place_.resize(chosen_.size());
    for (std::size_t k = 0; k < chosen_.size(); ++k)
      place_[static_cast<std::size_t>(next_[static_cast<std::size_t>(chosen_[k])]++)] = static_cast<Index>(k);
  }

  bool dense_ = true;
  Index experts_ = 0, tokens_ = 0, active_ = 0;
  std::vector<Index> chosen_;        ///< (K, P)
  std::vector<Index> begin_, next_;  ///< (M + 1), (M)
  std::vector<Index> place_;         ///< (pairs)
};

}  // namespace moe::trainer
