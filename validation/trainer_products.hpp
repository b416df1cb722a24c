/// The products of a network on the CPU. With soft routing the experts are stacked into one product; with top-K every expert multiplies the columns of its own tokens, and experts without tokens do nothing.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "support/cpu.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_columns.hpp"
#include "validation/trainer_dispatch.hpp"
#include "validation/trainer_rule.hpp"

namespace moe::trainer {

template <class Real>
struct Products<Cpu<Real>> {
  using B = Cpu<Real>;
  using View = HostView<Real>;

  /// Samples of one pass when a whole set is evaluated.
  static constexpr Index evaluation_piece = 256;

  /// out_j = x_(list_j), columns.
  static void columns_at(View x, HostView<int> list, View out) {
    for (Index j = 0; j < out.cols; ++j) std::copy_n(&x(0, list(j, 0)), x.rows, &out(0, j));
  }

  /// out = scale W^T X; W (N, cols), X (N, P), out (cols, P).
  static void answer(View W, Real scale, View X, View out) {
    thread_local columns::Scratch<Real> scratch;
    const View by_token{scratch.of(X.cols * W.cols), X.cols, W.cols, X.cols};
    answer_by_token(W, scale, X, by_token, nothing);
    columns::transpose(by_token.data, by_token.ld, by_token.rows, by_token.cols, out.data, out.ld);
  }
  /// Y = scale W C + keep Y; C (cols, P), Y (N, P).
  static void collect(View W, Real scale, View C, Real keep, View Y) {
    collect_by_token(W, scale, token_fastest(C), keep, Y, nothing);
  }
  /// One update of a tensor from its gradient scale L C^T; L (N, P), C (cols, P).
  static void learn(const Update<B>& update, Real scale, View L, View C) {
    learn_by_token(update.rule, update.slot, scale, L, token_fastest(C));
  }

  // The same for expert matrices W (N, M N_e) and fields over pairs (N_e, pairs).

  /// out_ia(pair) = scale sum_n W(n, ia) X(n, token).
  static void answer(const Dispatch& d, View W, Real scale, View X, View out) {
    answer_then(d, W, scale, X, out, nothing);
  }
  /// Y(n, token) = scale sum_ia W(n, ia) C_ia(pair).
  static void collect(const Dispatch& d, View W, Real scale, View C, View Y) {
    collect_then(d, W, scale, C, Y, nothing);
  }
  /// One update of an expert matrix from its gradient scale sum_token L(n, token) C_ia(pair).
  static void learn(const Dispatch& d, const Update<B>& update, Real scale, View L, View C) {
    const Rule<Real>& rule = update.rule;
    const Slot<B>& slot = update.slot;
    if (d.dense()) return learn_by_token(rule, slot, scale, L, of_all(d, C));
    const Index Ne = C.rows;
    if (rule.factored()) {
#pragma omp parallel for schedule(dynamic)
      for (Index i = 0; i < d.experts(); ++i) {
        const View c = d.of_expert(i, C);
        HostMatrix<Real> gradient(L.rows, Ne);
        const View g = gradient;
        if (c.rows > 0) {
          thread_local std::vector<Real*> pointers;
          thread_local columns::Scratch<Real> scratch;
          Real* const packed = scratch.of(columns::row_panels_size<Real>(L.rows, c.rows));
          columns::pack_rows(0, L.rows, tokens_of(d, i, L, pointers), c.rows, packed);
          columns::combine(
              L.rows, packed, c.rows, c.data, c.ld, Ne, [&](Index j, Index row) { fetch(slot.value, row, i * Ne + j); },
              [&](Index j, Index row, const Real* values, Index n) {
                for (Index k = 0; k < n; ++k) g(row + k, j) = scale * values[k];
              });
        }
        factored(rule, slot, i, g);
      }
      return;
    }
    for_pieces(d.experts(), Ne, [&](Index i, Index a, Index count) {
      learn_part(d, update, scale, L, C, {i, a, count});
    });
  }

  // An answer to X, or what is collected of C, and at once the update from the gradient scale X C^T: every weight is read from memory
  // once for both. Bit for bit what answer() or collect() and then learn() make.
  static constexpr bool learns_on_the_way = true;
  static void answer_and_learn(const Dispatch& d, const Update<B>& update, Real scale, View X, View C, View out) {
    if (!update.rule.factored())
      return answer_then(d, update.slot.value, scale, X, out, learner(d, update, scale, X, C));
    answer(d, update.slot.value, scale, X, out);
    learn(d, update, scale, X, C);
  }
  static void collect_and_learn(const Dispatch& d, const Update<B>& update, Real scale, View C, View X, View Y) {
    if (!update.rule.factored())
      return collect_then(d, update.slot.value, scale, C, Y, learner(d, update, scale, X, C));
    collect(d, update.slot.value, scale, C, Y);
    learn(d, update, scale, X, C);
  }

 private:
  /// Columns that a product has just read, of an expert's matrix or with soft routing of the one of all experts.
  struct Part {
    Index expert, first, count;
  };
  static constexpr auto nothing = [](const Part&) {};

  template <class Then>
  static void answer_then(const Dispatch& d, View W, Real scale, View X, View out, const Then& then) {
    if (d.dense())
      answer_by_token(W, scale, X, of_all(d, out), then);
    else
      answer_by_expert(d, W, scale, X, out, then);
  }
  template <class Then>
  static void collect_then(const Dispatch& d, View W, Real scale, View C, View Y, const Then& then) {
    if (d.dense())
      collect_by_token(W, scale, of_all(d, C), 0, Y, then);
    else
      collect_by_expert(d, W, scale, C, Y, then);
  }
  /// Updates the part that it is given, entry by entry.
  static auto learner(const Dispatch& d, const Update<B>& update, Real scale, View X, View C) {
    const Real* const packed = d.dense() ? packed_rows(X, update.slot.value) : nullptr;
    return [&d, &update, scale, X, C, packed](const Part& part) {
      if (packed != nullptr)
        entrywise(update.rule, update.slot, scale, packed, of_all(d, C), part);
      else
        learn_part(d, update, scale, X, C, part);
    };
  }

  template <class Then>
  static void answer_by_expert(const Dispatch& d, View W, Real scale, View X, View out, const Then& then) {
    const Index Ne = out.rows;
    for_pieces(d.experts(), Ne, [&](Index i, Index a, Index count) {
      const View of_expert = d.of_expert(i, out);
      const Index tokens = of_expert.rows;
      if (tokens == 0) return then({i, a, count});
      thread_local std::vector<Real*> pointers;
      const Real* const* const x = tokens_of(d, i, X, pointers);
      thread_local columns::Scratch<Real> scratch;
      Real* const packed = scratch.of(columns::token_panels_size<Real>(W.rows, tokens));
      const bool packs = count >= worth_packing;
      if (packs) columns::pack_tokens(W.rows, 0, W.rows, x, tokens, packed);
      columns::in_pieces(count, in_cache(W.rows), [&](Index q, Index Q) {
        const Real* const w = &W(0, i * Ne + a + q);
        Real* const to = &of_expert(0, a + q);
        if (packs)
          columns::answers(W.rows, scale, w, W.ld, Q, packed, tokens, to, tokens);
        else
          columns::dots(W.rows, scale, w, W.ld, Q, x, tokens, to, tokens);
        then({i, a + q, Q});
      });
    });
  }
  template <class Then>
  static void collect_by_expert(const Dispatch& d, View W, Real scale, View C, View Y, const Then& then) {
    const Index Ne = C.rows, most = in_cache(W.rows), pieces = std::max<Index>(1, (Ne + most / 2) / most);
    collect_in_lanes(W.size(), d.experts() * pieces, 0, Y, [&](Index first, Index last, View to) {
      start_from(0, to);
      for (Index k = first; k < last; ++k) {
        const Index i = k / pieces, a = k % pieces * Ne / pieces, count = (k % pieces + 1) * Ne / pieces - a;
        const View c = d.of_expert(i, C);
        if (c.rows > 0) {
          thread_local std::vector<Real*> pointers;
          columns::collect(W.rows, scale, &W(0, i * Ne + a), W.ld, count, &c(0, a), c.ld, c.rows, true,
                           tokens_of(d, i, to, pointers), k + 1 < last ? count : 0);
        }
        then({i, a, count});
      }
    });
  }
  static void learn_part(const Dispatch& d, const Update<B>& update, Real scale, View L, View C, const Part& part) {
    const Rule<Real>& rule = update.rule;
    const Slot<B>& slot = update.slot;
    const View c = d.of_expert(part.expert, C);
    if (c.rows == 0 && !rule.moves_without_gradient()) return;
    thread_local std::vector<Real*> pointers;
    thread_local columns::Scratch<Real> scratch;
    Real* const packed = scratch.of(columns::row_panels_size<Real>(L.rows, c.rows));
    columns::pack_rows(0, L.rows, tokens_of(d, part.expert, L, pointers), c.rows, packed);
    entrywise(rule, of_expert(slot, part.expert, C.rows), scale, packed, c, part);
  }

  // Fields over units with the token fastest: (P, cols).
  template <class Then>
  static void answer_by_token(View W, Real scale, View X, View out, const Then& then) {
    const std::vector<Real*> x = columns_of(X);
    thread_local columns::Scratch<Real> scratch;
    Real* const packed = scratch.of(columns::token_panels_size<Real>(X.rows, X.cols));
    const Index strip = 64, most = in_cache(W.rows);
#pragma omp parallel if (worth_a_team(W, X.cols))
    {
#pragma omp for schedule(static)
      for (Index n = 0; n < X.rows; n += strip)
        columns::pack_tokens(X.rows, n, std::min(X.rows, n + strip), x.data(), X.cols, packed);
#pragma omp for schedule(static)
      for (Index j = 0; j < W.cols; j += most) {
        const Index count = std::min(most, W.cols - j);
        columns::answers(W.rows, scale, &W(0, j), W.ld, count, packed, X.cols, &out(0, j), out.ld);
        then({0, j, count});
      }
    }
  }
  template <class Then>
  static void collect_by_token(View W, Real scale, View C, Real keep, View Y, const Then& then) {
    const Index most = in_cache(W.rows), pieces = (W.cols + most - 1) / most;
    collect_in_lanes(W.size(), pieces, keep, Y, [&](Index first, Index last, View to) {
      const std::vector<Real*> y = columns_of(to);
      const bool adds = to.data == Y.data && keep != 0;
      for (Index k = first; k < last; ++k) {
        const Index j = k * most, count = std::min(most, W.cols - j);
        columns::collect(W.rows, scale, &W(0, j), W.ld, count, &C(0, j), C.ld, C.rows, adds || k > first, y.data(),
                         k + 1 < last ? std::min(most, W.cols - j - count) : 0);
        then({0, j, count});
      }
    });
  }
  /// Y = keep Y + sum over lanes of what add(first, last, to) makes of pieces first .. last of W's columns. How many lanes there are,
  /// each a thread's, depends on the shapes alone. With one lane `to` is keep Y, else of unknown content.
  template <class Add>
  static void collect_in_lanes(Index weights, Index pieces, Real keep, View Y, const Add& add) {
    const Index most =
        std::clamp<Index>((Index{1} << 23) / std::max<Index>(1, Y.size()), 4, 16);  // 32 MiB, or 4 times Y
    const Index lanes = std::min(pieces, std::clamp<Index>(weights >> 17, 1, most));
    if (lanes == 1) {
      if (keep != 0) start_from(keep, Y);
      return add(0, pieces, Y);
    }
    thread_local columns::Scratch<Real> scratch;
    const View parts{scratch.of(lanes * Y.size()), Y.size(), lanes, Y.size()};
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
      for (Index lane = 0; lane < lanes; ++lane)
        add(lane * pieces / lanes, (lane + 1) * pieces / lanes, View{&parts(0, lane), Y.rows, Y.cols, Y.rows});
#pragma omp for schedule(static)
      for (Index p = 0; p < Y.cols; ++p) {
        start_from(keep, Y.columns(p, 1));
        for (Index lane = 0; lane < lanes; ++lane) {
          const Real* const from = &parts(p * Y.rows, lane);
          Real* const to = &Y(0, p);
#pragma omp simd
          for (Index n = 0; n < Y.rows; ++n) to[n] += from[n];
        }
      }
    }
  }
  static void learn_by_token(const Rule<Real>& rule, const Slot<B>& slot, Real scale, View L, View C) {
    if (rule.factored()) {
      const Index matrices = slot.first.cols, columns = slot.value.cols / matrices;
      const auto learn_matrix = [&](Index e) {
        auto gradient = HostMatrix<Real>::uninitialized(L.rows, columns);
        B::gemm(Op::plain, Op::plain, scale, L, C.columns(e * columns, columns), 0, gradient);
        factored(rule, slot, e, gradient);
      };
#pragma omp parallel for schedule(dynamic) if (matrices > 1)
      for (Index e = 0; e < matrices; ++e) learn_matrix(e);
      return;
    }
    const Real* const packed = packed_rows(L, slot.value);
#pragma omp parallel for schedule(static) if (worth_a_team(slot.value, L.cols))
    for (Index j = 0; j < C.cols; j += piece)
      entrywise(rule, slot, scale, packed, C, {0, j, std::min(piece, C.cols - j)});
  }
  /// All rows of all columns of L for an update of W, until the next call on this thread.
  static const Real* packed_rows(View L, View W) {
    const std::vector<Real*> x = columns_of(L);
    thread_local columns::Scratch<Real> scratch;
    Real* const packed = scratch.of(columns::row_panels_size<Real>(L.rows, L.cols));
    const Index panel = columns::panel_rows<Real>;
#pragma omp parallel for schedule(static) if (worth_a_team(W, L.cols))
    for (Index row = 0; row < L.rows; row += panel)
      columns::pack_rows(row, std::min(L.rows, row + panel), x.data(), L.cols, packed + row * L.cols);
    return packed;
  }
  /// C (cols, P) with the token fastest, until the next call on this thread.
  static View token_fastest(View C) {
    thread_local columns::Scratch<Real> scratch;
    const View out{scratch.of(C.size()), C.cols, C.rows, C.cols};
    columns::transpose(C.data, C.ld, C.rows, C.cols, out.data, out.ld);
    return out;
  }
  /// Fields over all pairs as (P, M N_e).
  static View of_all(const Dispatch& d, View field) {
    return {field.data, d.tokens(), d.experts() * field.rows, d.tokens()};
  }

  static Slot<B> of_expert(const Slot<B>& slot, Index expert, Index units) {
    const auto of = [&](View all) { return all.data ? all.columns(expert * units, units) : all; };
    return {of(slot.value), of(slot.first), of(slot.second)};
  }
  /// Matrix e of those that stand side by side in a tensor, from its gradient.
  static void factored(const Rule<Real>& rule, const Slot<B>& slot, Index e, View gradient) {
    const auto part = [&](View all) { return all.columns(e * gradient.cols, gradient.cols); };
    rule.factored_step(gradient, part(slot.value), slot.first.columns(e, 1), part(slot.second));
  }

  /// Columns that one thread takes at a time, at most, and how many of an expert's are worth packing its tokens for.
  static constexpr Index piece = Index{16} * columns::panel_columns, worth_packing = 32;

  /// Columns of N neurons that one thread takes at a time so that they stay in the second cache, whole tiles of them.
  static Index in_cache(Index N) {
    return std::clamp<Index>((Index{1} << 18) / (N * columns::panel_columns), 1, piece / columns::panel_columns) *
           columns::panel_columns;
  }

  static bool worth_a_team(View W, Index samples) { return W.size() * samples > (Index{1} << 20); }

  static void start_from(Real keep, View Y) {
    for (Index p = 0; p < Y.cols; ++p)
      for (Index n = 0; n < Y.rows; ++n) Y(n, p) = keep == 0 ? Real(0) : keep * Y(n, p);
  }

  /// f(expert, first, count) on pieces of the units of every expert, side by side.
  template <class F>
  static void for_pieces(Index experts, Index units, const F& f) {
    const Index pieces = (units + 2 * piece - 1) / (2 * piece);
    const Index together = std::clamp<Index>(experts * pieces / (Index{8} * omp_get_max_threads()), 1, 4);
#pragma omp parallel for schedule(dynamic, together)
    for (Index k = 0; k < experts * pieces; ++k) {
      const Index i = k / pieces, first = (k % pieces) * units / pieces;
      f(i, first, (k % pieces + 1) * units / pieces - first);
    }
  }

  static std::vector<Real*> columns_of(View X) {
    std::vector<Real*> pointers(static_cast<std::size_t>(X.cols));
    for (Index j = 0; j < X.cols; ++j) pointers[static_cast<std::size_t>(j)] = X.data + j * X.ld;
    return pointers;
  }
  static Real* const* tokens_of(const Dispatch& d, Index expert, View X, std::vector<Real*>& pointers) {
    pointers.clear();
    for (Index j = 0; j < d.tokens_of(expert); ++j) pointers.push_back(&X(0, d.token(expert, j)));
    return pointers.data();
  }

  /// Asks for a line of a column, which will be written.
  static void fetch(View w, Index row, Index j) { __builtin_prefetch(&w(row, j), 1); }

  /// Columns of a tensor: their gradients scale sum_k x_k c(k, j) are made, used and forgotten in cache. x packed by pack_rows(), c
  /// (terms, columns of the tensor).
  static void entrywise(const Rule<Real>& rule, const Slot<B>& slot, Real scale, const Real* packed, View c,
                        const Part& part) {
    const auto of = [&](View all) { return all.columns(part.first, part.count); };
    const View w = of(slot.value), m = slot.first.data ? of(slot.first) : w, v = slot.second.data ? of(slot.second) : w;
    const auto fetch_all = [&](Index j, Index row) {
      fetch(w, row, j);
      if (slot.first.data) fetch(m, row, j);
      if (slot.second.data) fetch(v, row, j);
    };
    rule.with_entry([&](const auto& entry) {
      columns::combine(w.rows, packed, c.rows, &c(0, part.first), c.ld, part.count, fetch_all,
                       [&](Index j, Index row, const Real* g, Index n) {
                         Real *const wj = &w(row, j), *const mj = &m(row, j), *const vj = &v(row, j);
#pragma omp simd
                         for (Index k = 0; k < n; ++k) entry(scale * g[k], wj[k], mj[k], vj[k]);
                       });
    });
  }
};

}  // namespace moe::trainer
