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
  static void columns_at(View x, const std::vector<int>& list, View out) {
    for (Index j = 0; j < out.cols; ++j) std::copy_n(&x(0, list[static_cast<std::size_t>(j)]), x.rows, &out(0, j));
  }

  /// out = scale W^T X; W (N, cols), X (N, P), out (cols, P).
  static void answer(View W, Real scale, View X, View out) {
    thread_local columns::Scratch<Real> scratch;
    const View by_token{scratch.of(X.cols * W.cols), X.cols, W.cols, X.cols};
    answer_by_token(W, scale, X, by_token);
    columns::transpose(by_token.data, by_token.ld, by_token.rows, by_token.cols, out.data, out.ld);
  }
  /// Y = scale W C + keep Y; C (cols, P), Y (N, P).
  static void collect(View W, Real scale, View C, Real keep, View Y) {
    collect_by_token(W, scale, token_fastest(C), keep, Y);
  }
  /// One update of a tensor from its gradient scale L C^T; L (N, P), C (cols, P).
  static void learn(const Rule<Real>& rule, const Slot<B>& slot, Real scale, View L, View C) {
    learn_by_token(rule, slot, scale, L, token_fastest(C));
  }

  // The same for expert matrices W (N, M N_e) and fields over pairs (N_e, pairs).

  /// out_ia(pair) = scale sum_n W(n, ia) X(n, token).
  static void answer(const Dispatch& d, View W, Real scale, View X, View out) {
    if (d.dense()) return answer_by_token(W, scale, X, of_all(d, out));
    const Index Ne = out.rows;
    for_pieces(d.experts(), Ne, [&](Index i, Index a, Index count) {
      const View of_expert = d.of_expert(i, out);
      const Index tokens = of_expert.rows;
      if (tokens == 0) return;
      const Real *const w = &W(0, i * Ne + a), *const *const x = tokens_of(d, i, X).data();
      Real* const to = &of_expert(0, a);
      if (count < worth_packing) return columns::dots(W.rows, scale, w, W.ld, count, x, tokens, to, tokens);
      thread_local columns::Scratch<Real> scratch;
      Real* const packed = scratch.of(columns::token_panels_size<Real>(W.rows, tokens));
      columns::pack_tokens(W.rows, 0, W.rows, x, tokens, packed);
      columns::answers(W.rows, scale, w, W.ld, count, packed, tokens, to, tokens);
    });
  }
  /// Y(n, token) = scale sum_ia W(n, ia) C_ia(pair).
  static void collect(const Dispatch& d, View W, Real scale, View C, View Y) {
    if (d.dense()) return collect_by_token(W, scale, of_all(d, C), 0, Y);
    const Index Ne = C.rows, strip = strip_of(Y.rows);
#pragma omp parallel for schedule(static)
    for (Index first = 0; first < Y.rows; first += strip) {
      const Index last = std::min(Y.rows, first + strip);
      start_from(0, first, last, Y);
      for (Index i = 0; i < d.experts(); ++i) {
        const View c = d.of_expert(i, C);
        if (c.rows > 0)
          columns::collect(first, last, &W(0, i * Ne), W.ld, Ne, scale, c.data, c.ld, c.rows,
                           tokens_of(d, i, Y).data());
      }
    }
  }
  /// One update of an expert matrix from its gradient scale sum_token L(n, token) C_ia(pair).
  static void learn(const Dispatch& d, const Rule<Real>& rule, const Slot<B>& slot, Real scale, View L, View C) {
    if (d.dense()) return learn_by_token(rule, slot, scale, L, of_all(d, C));
    const Index Ne = C.rows;
    if (rule.factored()) {
#pragma omp parallel for schedule(dynamic)
      for (Index i = 0; i < d.experts(); ++i) {
        const View c = d.of_expert(i, C);
        HostMatrix<Real> gradient(L.rows, Ne);
        const View g = gradient;
        if (c.rows > 0) {
          thread_local columns::Scratch<Real> scratch;
          Real* const packed = scratch.of(columns::row_panels_size<Real>(L.rows, c.rows));
          columns::pack_rows(0, L.rows, tokens_of(d, i, L).data(), c.rows, packed);
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
      const View c = d.of_expert(i, C);
      if (c.rows == 0 && !rule.moves_without_gradient()) return;
      thread_local columns::Scratch<Real> scratch;
      Real* const packed = scratch.of(columns::row_panels_size<Real>(L.rows, c.rows));
      columns::pack_rows(0, L.rows, tokens_of(d, i, L).data(), c.rows, packed);
      entrywise(rule, slot, i * Ne + a, scale, packed, c.columns(a, count));
    });
  }

 private:
  // Fields over units with the token fastest: (P, cols).
  static void answer_by_token(View W, Real scale, View X, View out) {
    const std::vector<Real*> x = columns_of(X);
    thread_local columns::Scratch<Real> scratch;
    Real* const packed = scratch.of(columns::token_panels_size<Real>(X.rows, X.cols));
    const Index strip = 64;
#pragma omp parallel if (worth_a_team(W, X.cols))
    {
#pragma omp for schedule(static)
      for (Index n = 0; n < X.rows; n += strip)
        columns::pack_tokens(X.rows, n, std::min(X.rows, n + strip), x.data(), X.cols, packed);
#pragma omp for schedule(static)
      for (Index j = 0; j < W.cols; j += piece)
        columns::answers(W.rows, scale, &W(0, j), W.ld, std::min(piece, W.cols - j), packed, X.cols, &out(0, j),
                         out.ld);
    }
  }
  static void collect_by_token(View W, Real scale, View C, Real keep, View Y) {
    const std::vector<Real*> y = columns_of(Y);
    const Index strip = strip_of(Y.rows);
#pragma omp parallel for schedule(static) if (worth_a_team(W, C.rows))
    for (Index first = 0; first < Y.rows; first += strip) {
      const Index last = std::min(Y.rows, first + strip);
      start_from(keep, first, last, Y);
      columns::collect(first, last, W.data, W.ld, W.cols, scale, C.data, C.ld, C.rows, y.data());
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
    const std::vector<Real*> x = columns_of(L);
    thread_local columns::Scratch<Real> scratch;
    Real* const packed = scratch.of(columns::row_panels_size<Real>(L.rows, L.cols));
    const Index panel = columns::panel_rows<Real>;
#pragma omp parallel if (worth_a_team(slot.value, L.cols))
    {
#pragma omp for schedule(static)
      for (Index row = 0; row < L.rows; row += panel)
        columns::pack_rows(row, std::min(L.rows, row + panel), x.data(), L.cols, packed + row * L.cols);
#pragma omp for schedule(static)
      for (Index j = 0; j < C.cols; j += piece)
        entrywise(rule, slot, j, scale, packed, C.columns(j, std::min(piece, C.cols - j)));
    }
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

  /// Matrix e of those that stand side by side in a tensor, from its gradient.
  static void factored(const Rule<Real>& rule, const Slot<B>& slot, Index e, View gradient) {
    const auto part = [&](View all) { return all.columns(e * gradient.cols, gradient.cols); };
    rule.factored_step(gradient, part(slot.value), slot.first.columns(e, 1), part(slot.second));
  }

  /// Columns that one thread takes at a time, and how many of an expert's are worth packing its tokens for.
  static constexpr Index piece = 16 * columns::panel_columns, worth_packing = 32;

  /// Rows that one thread takes at a time: a share, and no more than leave their part of Y in the second cache. Sums are those of a
  /// row and do not depend on it.
  static Index strip_of(Index rows) {
    const Index panel = columns::panel_rows<Real>, threads = omp_get_max_threads();
    return std::min<Index>((rows + threads * panel - 1) / (threads * panel) * panel, 128);
  }
  static bool worth_a_team(View W, Index samples) { return W.size() * samples > (Index{1} << 20); }

  static void start_from(Real keep, Index first, Index last, View Y) {
    for (Index p = 0; p < Y.cols; ++p)
      for (Index n = first; n < last; ++n) Y(n, p) = keep == 0 ? Real(0) : keep * Y(n, p);
  }

  /// f(expert, first, count) on pieces of the units of every expert, side by side.
  template <class F>
  static void for_pieces(Index experts, Index units, const F& f) {
    const Index pieces = (units + 2 * piece - 1) / (2 * piece);
    const Index together = std::clamp<Index>(experts * pieces / (8 * omp_get_max_threads()), 1, 4);
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
  static const std::vector<Real*>& tokens_of(const Dispatch& d, Index expert, View X) {
    thread_local std::vector<Real*> pointers;
    pointers.clear();
    for (Index j = 0; j < d.tokens_of(expert); ++j) pointers.push_back(&X(0, d.token(expert, j)));
    return pointers;
  }

  /// Asks for the lines of a panel of a column, which will be written.
  static void fetch(View w, Index row, Index j) {
    for (Index n = row; n < row + columns::panel_rows<Real>; n += columns::line<Real>) __builtin_prefetch(&w(n, j), 1);
  }

  /// Columns j0, j0 + 1, ... of a tensor: their gradients scale sum_k x_k c(k, j) are made, used and forgotten in cache. x packed by
  /// pack_rows(), c (terms, columns).
  static void entrywise(const Rule<Real>& rule, const Slot<B>& slot, Index j0, Real scale, const Real* packed, View c) {
    const View w = slot.value, m = slot.first.data ? slot.first : w, v = slot.second.data ? slot.second : w;
    const auto fetch_all = [&](Index j, Index row) {
      fetch(w, row, j0 + j);
      if (slot.first.data) fetch(m, row, j0 + j);
      if (slot.second.data) fetch(v, row, j0 + j);
    };
    rule.with_entry([&](const auto& entry) {
      columns::combine(w.rows, packed, c.rows, c.data, c.ld, c.cols, fetch_all,
                       [&](Index j, Index row, const Real* g, Index n) {
                         Real *const wj = &w(row, j0 + j), *const mj = &m(row, j0 + j), *const vj = &v(row, j0 + j);
#pragma omp simd
                         for (Index k = 0; k < n; ++k) entry(scale * g[k], wj[k], mj[k], vj[k]);
                       });
    });
  }
};

}  // namespace moe::trainer
