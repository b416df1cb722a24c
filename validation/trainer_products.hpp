/// The products of a network, all on tensors whose rows are the N neurons. With soft routing the experts are stacked into one product;
/// with top-K every expert multiplies the columns of its own tokens, and experts without tokens do nothing.
#pragma once

#include <algorithm>
#include <vector>

#include "support/cpu.hpp"
#include "validation/trainer_columns.hpp"
#include "validation/trainer_dispatch.hpp"
#include "validation/trainer_rule.hpp"

namespace moe::trainer {

template <class Real>
struct Products {
  using B = Cpu<Real>;
  using View = HostView<Real>;

  /// out = scale W^T X; W (N, cols), X (N, P), out (cols, P).
  static void answer(View W, Real scale, View X, View out) { B::gemm(Op::transposed, Op::plain, scale, W, X, 0, out); }
  /// Y = scale W C + keep Y; C (cols, P), Y (N, P).
  static void collect(View W, Real scale, View C, Real keep, View Y) {
    B::gemm(Op::plain, Op::plain, scale, W, C, keep, Y);
  }
  /// One update of a tensor from its gradient scale L C^T; L (N, P), C (cols, P).
  static void learn(const Rule<Real>& rule, const Slot<Real>& slot, Real scale, View L, View C) {
    switch (rule.kind) {
      case OptimizerKind::sgd: B::gemm(Op::plain, Op::transposed, -rule.lr * scale, L, C, 1, slot.value); return;
      case OptimizerKind::momentum: {
        B::gemm(Op::plain, Op::transposed, scale, L, C, rule.momentum, slot.first);
        const View w = slot.value, velocity = slot.first;
        B::each(w.rows, w.cols, [=](Index n, Index j) { w(n, j) -= rule.lr * velocity(n, j); });
        return;
      }
      default: break;
    }
    const std::vector<Real*> tokens = columns_of(L);
    for_chunks(1, slot.value.cols, chunk_of(L.rows), [&](Index, Index j, Index count) {
      entrywise(rule, slot, j, count, tokens.data(), L.cols, scale, C.data + j, C.ld, 1);
    });
  }

  // The same for expert matrices W (N, M N_e) and fields over pairs (N_e, pairs).

  /// out_ia(pair) = scale sum_n W(n, ia) X(n, token).
  static void answer(const Dispatch& d, View W, Real scale, View X, View out) {
    if (d.dense()) return answer(W, scale, X, stacked(d, out));
    const Index Ne = out.rows;
    for_chunks(d.experts(), Ne, chunk_of(W.rows), [&](Index i, Index a, Index count) {
      const Index begin = d.begin(i), tokens = d.begin(i + 1) - begin;
      columns::dots(W.rows, scale, &W(0, i * Ne + a), W.ld, count, tokens_of(d, i, X).data(), tokens,
                    out.data + begin * out.ld + a, out.ld);
    });
  }
  /// Y(n, token) = scale sum_ia W(n, ia) C_ia(pair).
  static void collect(const Dispatch& d, View W, Real scale, View C, View Y) {
    if (d.dense()) return collect(W, scale, stacked(d, C), 0, Y);
    const Index Ne = C.rows, panel = 128, most_terms = 256;
#pragma omp parallel for schedule(static) if (Y.size() > moe::detail::parallel_threshold)
    for (Index first = 0; first < Y.rows; first += panel) {
      const Index last = std::min(Y.rows, first + panel);
      for (Index p = 0; p < Y.cols; ++p) std::fill(&Y(first, p), &Y(first, p) + (last - first), Real(0));
      for (Index i = 0; i < d.experts(); ++i) {
        const Index begin = d.begin(i), tokens = d.begin(i + 1) - begin;
        if (tokens == 0) continue;
        const auto add = [&](Index j, Index row, const Real* values, auto n) {
          Real* const y = &Y(row, d.token(begin + j));
          for (Index k = 0; k < n; ++k) y[k] += values[k];
        };
        for (Index a = 0; a < Ne; a += most_terms) {
          const Index terms = std::min(most_terms, Ne - a);
          columns::combine(first, last, columns_of({&W(0, i * Ne + a), W.rows, terms, W.ld}).data(), terms, scale,
                           C.data + begin * C.ld + a, 1, C.ld, tokens, add);
        }
      }
    }
  }
  /// One update of an expert matrix from its gradient scale sum_token L(n, token) C_ia(pair).
  static void learn(const Dispatch& d, const Rule<Real>& rule, const Slot<Real>& slot, Real scale, View L, View C) {
    if (d.dense()) return learn(rule, slot, scale, L, stacked(d, C));
    const Index Ne = C.rows;
    for_chunks(d.experts(), Ne, chunk_of(L.rows), [&](Index i, Index a, Index count) {
      const Index begin = d.begin(i), tokens = d.begin(i + 1) - begin;
      if (tokens == 0 && !rule.moves_without_gradient()) return;
      entrywise(rule, slot, i * Ne + a, count, tokens_of(d, i, L).data(), tokens, scale, C.data + begin * C.ld + a,
                C.ld, 1);
    });
  }

  /// Fields over all pairs as (M N_e, P).
  static View stacked(const Dispatch& d, View field) {
    const Index rows = d.experts() * field.rows;
    return {field.data, rows, d.tokens(), rows};
  }

 private:
  /// Columns of N numbers that stay in the second-level cache together.
  static Index chunk_of(Index N) { return std::max<Index>(6, (Index{1} << 16) / N); }

  /// f(expert, first, count) on pieces of the units of every expert, side by side.
  template <class F>
  static void for_chunks(Index experts, Index units, Index chunk, const F& f) {
    const Index pieces = (units + chunk - 1) / chunk;
#pragma omp parallel for schedule(dynamic, 4)
    for (Index k = 0; k < experts * pieces; ++k) {
      const Index i = k / pieces, first = (k % pieces) * chunk;
      f(i, first, std::min(chunk, units - first));
    }
  }

  static const std::vector<Real*>& columns_of(View X) {
    thread_local std::vector<Real*> pointers;
    pointers.resize(static_cast<std::size_t>(X.cols));
    for (Index j = 0; j < X.cols; ++j) pointers[static_cast<std::size_t>(j)] = X.data + j * X.ld;
    return pointers;
  }
  static const std::vector<Real*>& tokens_of(const Dispatch& d, Index expert, View X) {
    thread_local std::vector<Real*> pointers;
    pointers.clear();
    for (Index pair = d.begin(expert); pair < d.begin(expert + 1); ++pair) pointers.push_back(&X(0, d.token(pair)));
    return pointers;
  }

  /// Columns j .. j + count of a tensor: their gradients are made, used and forgotten in cache.
  static void entrywise(const Rule<Real>& rule, const Slot<Real>& slot, Index j0, Index count, const Real* const* x,
                        Index terms, Real scale, const Real* c, Index by_term, Index by_column) {
    const View w = slot.value, m = slot.first.data ? slot.first : w, v = slot.second.data ? slot.second : w;
    rule.with_entry([&](const auto& entry) {
      columns::combine(0, w.rows, x, terms, scale, c, by_term, by_column, count,
                       [&](Index j, Index row, const Real* g, auto n) {
                         Real *const wj = &w(row, j0 + j), *const mj = &m(row, j0 + j), *const vj = &v(row, j0 + j);
#pragma omp simd
                         for (Index k = 0; k < n(); ++k) entry(g[k], wj[k], mj[k], vj[k]);
                       });
    });
  }
};

}  // namespace moe::trainer
