/// Which experts a token uses, and the order of (expert, token) pairs, as in trainer_dispatch.hpp but made and kept in GPU memory: no
/// step waits for the host.
#pragma once

#include <algorithm>

#include "support/cuda.hpp"

namespace moe::trainer {
inline namespace MOE_DEVICE_SPACE {

/// Tokens of one expert that a tile of a product takes together: of wide experts, and of narrow ones.
enum class TokenTile { of_64, of_128 };

/// What kernels read of a GpuDispatch. Of soft routing the sizes alone.
struct PairLists {
  bool dense = true;
  Index experts = 0, tokens = 0, active = 0;
  Index *chosen = nullptr, *pairs = nullptr;  ///< (K, P)
  Index* begins = nullptr;                    ///< (M + 1)
  Index* tokens_of_pairs = nullptr;           ///< (pairs)
  Index* first_tiles = nullptr;               ///< (M + 1, 2): tiles before those of an expert, by TokenTile
  Index* tile_experts = nullptr;              ///< (most_tiles, 2): whose a tile is, -1 behind the last
  Index most_tiles = 0;

  MOE_HD Index expert(Index k, Index p) const { return dense ? k : chosen[k + p * active]; }
  /// q = k + p K counts the pairs token by token.
  MOE_HD Index expert_at(Index q) const { return dense ? q % experts : chosen[q]; }
  MOE_HD Index pair_at(Index q) const { return dense ? q : pairs[q]; }
};

/// Pairs of one expert that a block of threads works on, `count` of them; none: nothing to do.
struct PairTile {
  Index expert, first, count;
};
MOE_HD inline PairTile tile_of(const PairLists& d, TokenTile size, Index number) {
  const Index of_size = static_cast<Index>(size), tokens = size == TokenTile::of_64 ? 64 : 128;
  const Index expert = d.tile_experts[number + of_size * d.most_tiles];
  if (expert < 0) return {0, 0, 0};
  const Index first = d.begins[expert] + (number - d.first_tiles[expert + of_size * (d.experts + 1)]) * tokens;
  const Index left = d.begins[expert + 1] - first;
  return {expert, first, left < tokens ? left : tokens};
}

namespace kernels {

using moe::kernels::ordered_bits;
using moe::kernels::select_of_block;
using moe::kernels::sum_threads;
using moe::kernels::threads_for;

/// Tokens that one word of the membership lists holds.
inline constexpr Index word_bits = 32;

/// One token a block: its K largest of r (+ bias) in ascending order, and a bit for each in the expert's list of members.
template <class Real>
MOE_KERNEL void choose_kernel(GpuView<Real> r, GpuView<Real> bias, Index K, Index* chosen, GpuView<unsigned> members) {
  const Index p = place().block;
  const bool biased = bias.cols > 0;
  select_of_block(
      r.rows, K, [&](Index i) { return ordered_bits(biased ? r(i, p) + bias(i, 0) : r(i, p)); },
      [&](Index i, Index at) {
        if (at < 0) return;
        chosen[at + p * K] = i;
        set_bit(members(i, p / word_bits), static_cast<unsigned>(p % word_bits));
      });
}

/// before(i, w): pairs of expert i in words before w; the last column all of them.
struct CountMembers {
  GpuView<unsigned> members;
  GpuView<Index> before;
  MOE_DEVICE void operator()(Index i, Index) const {
    Index sum = 0;
    for (Index w = 0; w < members.cols; ++w) {
      before(i, w) = sum;
      sum += ones(members(i, w));
    }
    before(i, members.cols) = sum;
  }
};

/// One block: begins of the experts among the pairs, and among the tiles of both sizes.
MOE_KERNEL inline void begin_kernel(GpuView<Index> before, PairLists d) {
  MOE_SHARED(sums, Index[3][sum_threads]);
  const unsigned me = place().thread(), threads = place().threads();
  const Index share = (d.experts + threads - 1) / threads, from = me * share;
  const Index to = from + share < d.experts ? from + share : d.experts;
  const auto count = [&](Index i) { return before(i, before.cols - 1); };
  Index mine[3] = {};
  for (Index i = from; i < to; ++i) {
    mine[0] += count(i);
    mine[1] += (count(i) + 63) / 64;
    mine[2] += (count(i) + 127) / 128;
  }
  for (int k = 0; k < 3; ++k) sums[k][me] = mine[k];
  meet();
  for (unsigned reach = 1; reach < threads; reach *= 2) {
    Index more[3] = {};
    for (int k = 0; k < 3; ++k) more[k] = me >= reach ? sums[k][me - reach] : 0;
    meet();
    for (int k = 0; k < 3; ++k) sums[k][me] += more[k];
    meet();
  }
  Index at[3];
  for (int k = 0; k < 3; ++k) at[k] = sums[k][me] - mine[k];
  for (Index i = from; i < to; ++i) {
    d.begins[i] = at[0];
    d.first_tiles[i] = at[1];
    d.first_tiles[i + d.experts + 1] = at[2];
    at[0] += count(i);
    at[1] += (count(i) + 63) / 64;
    at[2] += (count(i) + 127) / 128;
  }
  if (me == threads - 1) {
    d.begins[d.experts] = sums[0][me];
    d.first_tiles[d.experts] = sums[1][me];
    d.first_tiles[2 * d.experts + 1] = sums[2][me];
  }
}

/// Pair (k, p) stands behind those of its expert and earlier tokens.
struct PlacePairs {
  PairLists d;
  GpuView<unsigned> members;
  GpuView<Index> before;
  MOE_DEVICE void operator()(Index k, Index p) const {
    const Index i = d.expert(k, p), w = p / word_bits;
    const unsigned earlier = members(i, w) & ((1U << (p % word_bits)) - 1U);
    const Index pair = d.begins[i] + before(i, w) + ones(earlier);
    d.pairs[k + p * d.active] = pair;
    d.tokens_of_pairs[pair] = p;
  }
};

/// Column `size` of tile_experts: the last expert whose tiles begin at or before this one.
struct PlaceTiles {
  PairLists d;
  MOE_DEVICE void operator()(Index tile, Index size) const {
    const Index* const first = d.first_tiles + size * (d.experts + 1);
    Index expert = -1;
    if (tile < first[d.experts]) {
      Index low = 0, high = d.experts;  // first[low] <= tile < first[high]
      while (high - low > 1) {
        const Index middle = (low + high) / 2;
        if (first[middle] <= tile)
          low = middle;
        else
          high = middle;
      }
      expert = low;
    }
    d.tile_experts[tile + size * d.most_tiles] = expert;
  }
};

}  // namespace kernels

class GpuDispatch {
 public:
  void choose_all(Index experts, Index tokens) {
    lists_ = {};
    lists_.experts = lists_.active = experts;
    lists_.tokens = tokens;
  }

  /// As Dispatch::choose_largest. Values that are not finite have an order too, if not one to be relied on.
  template <class Real>
  void choose_largest(GpuView<Real> r, Index K, GpuView<Real> bias = {}) {
    using B = Cuda<Real>;
    const Index M = r.rows, P = r.cols, words = (P + kernels::word_bits - 1) / kernels::word_bits;
    const Index most_tiles = K * P / 64 + std::min(M, K * P);  // an expert fills all but its last
    const auto room = [](GpuMatrix<Index>& m, Index rows, Index cols) {
      if (m.rows() != rows || m.cols() != cols) m = GpuMatrix<Index>::uninitialized(rows, cols);
      return m.view().data;
    };
    lists_ = {false,
              M,
              P,
              K,
              room(chosen_, K, P),
              room(pairs_, K, P),
              room(begins_, M + 1, 1),
              room(tokens_of_pairs_, K * P, 1),
              room(first_tiles_, M + 1, 2),
              room(tile_experts_, most_tiles, 2),
              most_tiles};
    GpuMatrix<unsigned> members(M, words);
    auto before = GpuMatrix<Index>::uninitialized(M, words + 1);
    const unsigned threads = kernels::threads_for(M);
    launch("choose experts", kernels::choose_kernel<Real>, P, {threads}, r, bias, K, lists_.chosen, members.view());
    B::each(M, 1, kernels::CountMembers{members, before});
    launch("begins of experts", kernels::begin_kernel, Index{1}, {threads}, before.view(), lists_);
    B::each(K, P, kernels::PlacePairs{lists_, members, before});
    B::each(most_tiles, 2, kernels::PlaceTiles{lists_});
  }

  bool dense() const { return lists_.dense; }
  Index experts() const { return lists_.experts; }
  Index tokens() const { return lists_.tokens; }
  Index active() const { return lists_.active; }  ///< K
  Index pairs() const { return lists_.active * lists_.tokens; }
  const PairLists& lists() const { return lists_; }

 private:
  PairLists lists_;
  GpuMatrix<Index> chosen_, pairs_, begins_, tokens_of_pairs_, first_tiles_, tile_experts_;
};

}  // namespace MOE_DEVICE_SPACE
}  // namespace moe::trainer
