/// The products of a network on the GPU. Whole tensors are cuBLAS's, with soft routing all experts as one product of the stacked tensor.
/// With top-K every expert multiplies the columns of its own tokens: all experts in one launch of tiles of our own (trainer_tiles_gpu.hpp),
/// tokens gathered by index, nothing padded beyond a tile; what an update needs of its gradient is made, used and forgotten in registers.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "support/cuda.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_dispatch_gpu.hpp"
#include "validation/trainer_rule.hpp"
#include "validation/trainer_tiles_gpu.hpp"

namespace moe::trainer {
inline namespace MOE_DEVICE_SPACE {
namespace kernels {

/// The tiles of the grouped products: answers and what experts make together, answers of narrow experts; updates, and those of narrow ones.
template <class Real>
struct Tiles {
  Tile<16, 8, sizeof(Real) == 4 ? 8 : 4, 8> wide;  ///< 128 x 64; float64 64 x 64
  Tile<4, 32, 4, 4> low;                           ///< 16 x 128
  Tile<16, 8, sizeof(Real) == 4 ? 8 : 4, 8> update;
  Tile<32, 4, 4, 4> slim;  ///< 128 x 16
};
struct Tf32Tiles {
  TensorTile<2, 4, 16, 4> wide;   ///< 128 x 128: the faster the products, the less they may read
  TensorTile<1, 4, 4, 4> low;     ///< 16 x 128
  TensorTile<4, 2, 8, 4> update;  ///< 128 x 64: registers are left for what a rule reads
  TensorTile<4, 1, 8, 2> slim;    ///< 128 x 16
};
/// Tokens of a tile of which they are the columns.
template <class T>
inline constexpr TokenTile tokens_of = T::cols == 64 ? TokenTile::of_64 : TokenTile::of_128;

/// out_ia(pair) = scale sum_n W(n, ia) X(n, token), units by tokens.
template <class T, class Real>
MOE_KERNEL void MOE_RESIDENT(T::threads, T::resident(sizeof(Real)))
    answer_kernel(PairLists d, Index unit_tiles, GpuView<Real> W, Real scale, GpuView<Real> X, GpuView<Real> out) {
  const Index block = place().block, Ne = out.rows, a0 = block % unit_tiles * T::rows;
  const PairTile tile = tile_of(d, tokens_of<T>, block / unit_tiles);
  if (tile.count == 0) return;
  const GpuView<Real> weights = W.columns(tile.expert * Ne + a0, Ne - a0);
  multiply_into<T>(
      static_cast<int>(W.rows), factor<Along::inner>(weights.cols, W.aligned(), [&](int a) { return &weights(0, a); }),
      factor<Along::inner>(tile.count, X.aligned(), [&](int t) { return &X(0, d.tokens_of_pairs[tile.first + t]); }),
      scale, out.columns(tile.first, tile.count).row_range(a0, Ne - a0));
}

/// parts(n, pair) = sum_a W(n, ia) C_ia(pair), neurons by tokens; W and parts some of the neurons.
template <class T, class Real>
MOE_KERNEL void MOE_RESIDENT(T::threads, T::resident(sizeof(Real)))
    collect_kernel(PairLists d, Index row_tiles, GpuView<Real> W, GpuView<Real> C, GpuView<Real> parts) {
  const Index block = place().block, Ne = C.rows, n0 = block % row_tiles * T::rows;
  const PairTile tile = tile_of(d, tokens_of<T>, block / row_tiles);
  if (tile.count == 0) return;
  const GpuView<Real> weights = W.columns(tile.expert * Ne, Ne).row_range(n0, W.rows - n0);
  multiply_into<T>(static_cast<int>(Ne),
                   factor<Along::outer>(weights.rows, W.aligned(), [&](int a) { return &weights(0, a); }),
                   factor<Along::inner>(tile.count, C.aligned(), [&](int t) { return &C(0, tile.first + t); }), Real(1),
                   parts.columns(tile.first, tile.count).row_range(n0, weights.rows));
}
/// Y(n, p) = scale sum of the parts of p's experts, in their order.
template <class Real>
struct SumParts {
  PairLists d;
  Real scale;
  GpuView<Real> parts, Y;
  MOE_DEVICE void operator()(Index n, Index p) const {
    Real sum = 0;
    for (Index k = 0; k < d.active; ++k) sum += parts(n, d.pairs[k + p * d.active]);
    Y(n, p) = scale * sum;
  }
};

/// use(sums, scale, n0, j0, rows, units) for the tiles of expert matrices' gradients g = scale sum_token L(n, token) C_ia(pair), from
/// (n0, j0) on, columns j = (i - first) N_e + a of the experts from `first` on. Experts without tokens have none, or, with `all`, zeros.
template <class T, class Real, class Use>
MOE_KERNEL void MOE_RESIDENT(T::threads, T::resident(sizeof(Real)))
    gradient_kernel(PairLists d, Index first, bool all, int row_tiles, int unit_tiles, Real scale, GpuView<Real> L,
                    GpuView<Real> C, Use use) {
  const auto block = static_cast<int>(place().block), Ne = static_cast<int>(C.rows);
  const int n0 = block % row_tiles * T::rows, a0 = block / row_tiles % unit_tiles * T::cols;
  const int e = block / row_tiles / unit_tiles, rows = static_cast<int>(L.rows) - n0, units = Ne - a0;
  const Index begin = d.begins[first + e];
  const auto tokens = static_cast<int>(d.begins[first + e + 1] - begin);
  if (tokens == 0 && !all) return;
  MOE_SHARED(slabs, Slabs<T, Real>);
  const auto sums = multiply_tile<T, Real>(
      tokens, factor<Along::outer>(rows, L.aligned(), [&](int t) { return &L(n0, d.tokens_of_pairs[begin + t]); }),
      factor<Along::outer>(units, C.aligned(), [&](int t) { return &C(a0, begin + t); }), slabs);
  use(sums, scale, n0, static_cast<Index>(e) * Ne + a0, rows, units);
}

/// Updates of weights by their rule, chosen at run time: branches are free beside the memory.
template <class Real>
struct UpdateEntry {
  OptimizerKind kind;
  entry::Descent<Real> descent;
  entry::Momentum<Real> momentum;
  entry::Adam<Real> adam;
  entry::Sign<Real> sign;
  Real scale;
  GpuView<Real> arrays[3];  ///< w, m, v

  /// f(rule, a number for each array that it reads and writes).
  template <class F>
  MOE_DEVICE void with_rule(const F& f) const {
    switch (kind) {
      case OptimizerKind::sgd: return f(descent, std::integral_constant<int, 1>());
      case OptimizerKind::momentum: return f(momentum, std::integral_constant<int, 2>());
      case OptimizerKind::adam:
      case OptimizerKind::adamw: return f(adam, std::integral_constant<int, 3>());
      case OptimizerKind::signsgd: return f(sign, std::integral_constant<int, 1>());
      case OptimizerKind::adafactor: return;
    }
  }
  MOE_DEVICE void operator()(Real g, Real& w, Real& m, Real& v) const {
    with_rule([&](const auto& rule, auto) { rule(scale * g, w, m, v); });
  }
  MOE_DEVICE void operator()(Real g, Index i, Index j) const {
    with_rule([&](const auto& rule, auto count) {
      Real values[3] = {};
      MOE_UNROLL
      for (int a = 0; a < count; ++a) values[a] = arrays[a](i, j);
      rule(scale * g, values[0], values[1], values[2]);
      MOE_UNROLL
      for (int a = 0; a < count; ++a) arrays[a](i, j) = values[a];
    });
  }
  /// A thread's part of a tile of gradients, some columns at a time: all that they read is on its way before the first is written.
  template <class T>
  MOE_DEVICE void operator()(const Sums<T, Real>& sums, Real scale_here, int i0, Index j0, int rows, int cols) const {
    const bool aligned = arrays[0].aligned() && arrays[1].aligned() && arrays[2].aligned();
    const Real factor = scale * scale_here;
    const auto go = [&](const auto& rule, auto count, auto whole) {
      constexpr int together = 2, strips = T::per_x / 4;
      MOE_UNROLL
      for (int n0 = 0; n0 < T::per_y; n0 += together) {
        Four<Real> values[together][strips][3];
        const auto each = [&](const auto& f) {
          MOE_UNROLL
          for (int q = 0; q < together * strips; ++q) {
            const int n = n0 + q / strips, m = q % strips * 4, i = sums.row(m), j = sums.col(n);
            if (whole || (i < rows && j < cols))
              f(values[q / strips][q % strips], sums.at[n] + m, i0 + i + (j0 + j) * arrays[0].ld, rows - i);
          }
        };
        each([&](auto& four, const Real*, Index at, int left) {
          MOE_UNROLL
          for (int a = 0; a < count; ++a)
            four[a] = whole ? get_four(arrays[a].data + at) : get_four(arrays[a].data + at, left);
        });
        each([&](auto& four, const Real* g, Index at, int left) {
          MOE_UNROLL
          for (int k = 0; k < 4; ++k) rule(factor * g[k], four[0].at[k], four[1].at[k], four[2].at[k]);
          MOE_UNROLL
          for (int a = 0; a < count; ++a) {
            if constexpr (whole)
              put_four_at_once(four[a], arrays[a].data + at);
            else
              put_four(four[a], arrays[a].data + at, left);
          }
        });
      }
    };
    with_rule([&](const auto& rule, auto count) {
      if (aligned && rows >= T::rows && cols >= T::cols)
        go(rule, count, std::true_type());
      else
        go(rule, count, std::false_type());
    });
  }
};
/// The same with gradients that are there.
template <class Real>
struct UpdateFrom {
  UpdateEntry<Real> update;
  GpuView<Real> gradient;
  MOE_DEVICE void operator()(Index i, Index j) const { update(gradient(i, j), i, j); }
};
template <class Real>
struct StoreGradient {
  GpuView<Real> gradient;
  template <class T>
  MOE_DEVICE void operator()(const Sums<T, Real>& sums, Real scale, int i0, Index j0, int rows, int cols) const {
    sums.store(scale, gradient.columns(j0, cols).row_range(i0, rows));
  }
};

template <class Real>
struct Gather {
  GpuView<Real> x;
  GpuView<int> list;
  GpuView<Real> out;
  MOE_DEVICE void operator()(Index n, Index j) const { out(n, j) = x(n, list(j, 0)); }
};

// Adafactor (T30), as Rule::factored_step: running means of squares along columns and rows, then the step.
template <class Real>
struct SquareOver {
  GpuView<Real> g;
  double over;
  MOE_DEVICE double operator()(Index n, Index j) const {
    const auto x = static_cast<double>(g(n, j));
    return x * x / over;
  }
};
template <class Real>
MOE_DEVICE void run_mean(Real& mean, double now, double keep, double eps) {
  mean = static_cast<Real>(keep * static_cast<double>(mean) + (1 - keep) * (now + eps * eps));
}
template <class Real>
struct RunColumnMeans {
  GpuView<double> now;
  double keep, eps;
  GpuView<Real> col;
  MOE_DEVICE void operator()(Index, Index j) const { run_mean(col(0, j), now(0, j), keep, eps); }
};
template <class Real>
struct RunRowMeans {
  GpuView<Real> g;
  Index columns;  ///< of a matrix
  double keep, eps;
  GpuView<Real> row;
  MOE_DEVICE void operator()(Index n, Index e) const {
    double sum = 0;
    for (Index j = e * columns; j < (e + 1) * columns; ++j)
      sum += static_cast<double>(g(n, j)) * static_cast<double>(g(n, j));
    run_mean(row(n, e), sum / static_cast<double>(columns), keep, eps);
  }
};
template <class Real>
struct ShareOfRow {
  GpuView<Real> row;
  MOE_DEVICE double operator()(Index n, Index e) const {
    return static_cast<double>(row(n, e)) / static_cast<double>(row.rows);
  }
};
template <class Real>
struct FactoredStep {
  GpuView<Real> g, row, col;
  GpuView<double> mean;
  Index columns;
  double lr;
  GpuView<Real> w;
  MOE_DEVICE static double inverse_root(double x) { return x > 0 ? 1 / std::sqrt(x) : 0.0; }
  MOE_DEVICE void operator()(Index n, Index j) const {
    const Index e = j / columns;
    const Real of_row = static_cast<Real>(inverse_root(static_cast<double>(row(n, e)) / mean(0, e)));
    const Real step = static_cast<Real>(lr * inverse_root(static_cast<double>(col(0, j))));
    w(n, j) -= step * of_row * g(n, j);
  }
};

}  // namespace kernels
}  // namespace MOE_DEVICE_SPACE

template <class Real>
struct Products<Cuda<Real>> {
  using B = Cuda<Real>;
  using View = GpuView<Real>;
  using Dispatch = GpuDispatch;

  /// Samples of one pass when a whole set is evaluated.
  static constexpr Index evaluation_piece = 1024;
  /// From so many samples on the library's product and a gradient in the second cache beat our own tiles.
  static constexpr Index worth_the_library = 256;
  /// Widest experts that narrow tiles serve: answers, and gradients.
  static constexpr Index narrow_answers = 64, narrow_gradients = 32;
  /// Numbers of a gradient that stay in the second cache, and of parts of the experts' sums at a time.
  static constexpr Index gradient_piece = Index{1} << 22, parts_piece = Index{1} << 26;

  /// out_j = x_(list_j), columns.
  static void columns_at(View x, GpuView<int> list, View out) {
    B::each(out.rows, out.cols, kernels::Gather<Real>{x, list, out});
  }

  /// out = scale W^T X; W (N, cols), X (N, P), out (cols, P).
  static void answer(View W, Real scale, View X, View out) { B::gemm(Op::transposed, Op::plain, scale, W, X, 0, out); }
  /// Y = scale W C + keep Y; C (cols, P), Y (N, P).
  static void collect(View W, Real scale, View C, Real keep, View Y) {
    B::gemm(Op::plain, Op::plain, scale, W, C, keep, Y);
  }
  /// One update of a tensor from its gradient scale L C^T; L (N, P), C (cols, P).
  static void learn(const Update<B>& update, Real scale, View L, View C) {
    const Rule<Real>& rule = update.rule;
    const Slot<B>& slot = update.slot;
    const auto gradient = [&](Index first, View to) {
      B::gemm(Op::plain, Op::transposed, scale, L, C.row_range(first, to.cols), 0, to);
    };
    if (rule.factored()) return factored(rule, slot, gradient);
    if (rule.kind == OptimizerKind::sgd)
      return B::gemm(Op::plain, Op::transposed, -static_cast<double>(rule.lr) * static_cast<double>(scale), L, C, 1,
                     slot.value);
    if (L.cols < worth_the_library)
      return B::entrywise_update(L, C, {slot.value, slot.first, slot.second}, update_of(rule, slot, scale));
    in_pieces(slot.value, 1, [&](Index first, Index count) {
      auto g = B::Matrix::uninitialized(L.rows, count);
      gradient(first, g);
      const auto part = [&](View all) { return all.data == nullptr ? all : all.columns(first, count); };
      const Slot<B> there{part(slot.value), part(slot.first), part(slot.second)};
      B::each(L.rows, count, kernels::UpdateFrom<Real>{update_of(rule, there, 1), g});
    });
  }

  // The same for expert matrices W (N, M N_e) and fields over pairs (N_e, pairs).

  /// out_ia(pair) = scale sum_n W(n, ia) X(n, token).
  static void answer(const Dispatch& d, View W, Real scale, View X, View out) {
    if (d.dense()) return answer(W, scale, X, stacked(d, out));
    with_tiles([&](auto tiles) {
      const auto with = [&](auto tile) {
        using T = decltype(tile);
        const Index unit_tiles = (out.rows + T::rows - 1) / T::rows;
        launch("answers of experts", kernels::answer_kernel<T, Real>, d.lists().most_tiles * unit_tiles, T::block,
               d.lists(), unit_tiles, W, scale, X, out);
      };
      if (out.rows <= narrow_answers)
        with(tiles.low);
      else
        with(tiles.wide);
    });
  }
  /// Y(n, token) = scale sum_ia W(n, ia) C_ia(pair).
  static void collect(const Dispatch& d, View W, Real scale, View C, View Y) {
    if (d.dense()) return collect(W, scale, stacked(d, C), 0, Y);
    with_tiles([&](auto tiles) {
      using T = decltype(tiles.wide);
      const Index strip =
          std::min(Y.rows, std::max<Index>(1, parts_piece / std::max<Index>(1, d.pairs()) / T::rows) * T::rows);
      auto parts = B::Matrix::uninitialized(strip, d.pairs());
      for (Index first = 0; first < Y.rows; first += strip) {
        const Index rows = std::min(strip, Y.rows - first), row_tiles = (rows + T::rows - 1) / T::rows;
        const View of_strip = parts.view().row_range(0, rows);
        launch("what experts make together", kernels::collect_kernel<T, Real>, d.lists().most_tiles * row_tiles,
               T::block, d.lists(), row_tiles, W.row_range(first, rows), C, of_strip);
        B::each(rows, Y.cols, kernels::SumParts<Real>{d.lists(), scale, of_strip, Y.row_range(first, rows)});
      }
    });
  }
  /// One update of an expert matrix from its gradient scale sum_token L(n, token) C_ia(pair).
  static void learn(const Dispatch& d, const Update<B>& update, Real scale, View L, View C) {
    if (d.dense()) return learn(update, scale, L, stacked(d, C));
    const Rule<Real>& rule = update.rule;
    const Slot<B>& slot = update.slot;
    if (rule.factored())
      return factored(rule, slot, [&](Index first, View to) {
        gradients(d, first / C.rows, to.cols / C.rows, true, scale, L, C, kernels::StoreGradient<Real>{to});
      });
    gradients(d, 0, d.experts(), rule.moves_without_gradient(), scale, L, C, update_of(rule, slot, 1));
  }

  /// Here experts learn after the backward pass: a product leaves nothing in the caches that an update could use.
  static constexpr bool learns_on_the_way = false;

  /// Fields over all pairs as (M N_e, P).
  static View stacked(const Dispatch& d, View field) {
    const Index rows = d.experts() * field.rows;
    return {field.data, rows, d.tokens(), rows};
  }

 private:
  /// f(tiles of the grouped products), which TF32 has where it stands.
  template <class F>
  static void with_tiles(const F& f) {
    if constexpr (std::is_same_v<Real, float>)
      if (gpu::Tf32::stands()) return f(kernels::Tf32Tiles{});
    f(kernels::Tiles<Real>{});
  }

  static kernels::UpdateEntry<Real> update_of(const Rule<Real>& r, const Slot<B>& slot, Real scale) {
    return {r.kind,
            {r.lr},
            {r.lr, r.momentum},
            {r.lr, r.decay, r.adam},
            {r.lr},
            scale,
            {slot.value, slot.first, slot.second}};
  }

  /// f(first, count) on columns of w, whole matrices of `columns` each, as many as gradient_piece holds.
  template <class F>
  static void in_pieces(View w, Index columns, const F& f) {
    const Index most = std::max<Index>(1, gradient_piece / std::max<Index>(1, w.rows) / columns) * columns;
    for (Index first = 0; first < w.cols; first += most) f(first, std::min(most, w.cols - first));
  }

  template <class Use>
  static void gradients(const Dispatch& d, Index first, Index experts, bool all, Real scale, View L, View C,
                        const Use& use) {
    with_tiles([&](auto tiles) {
      const auto with = [&](auto tile) {
        using T = decltype(tile);
        const Index row_tiles = (L.rows + T::rows - 1) / T::rows, unit_tiles = (C.rows + T::cols - 1) / T::cols;
        launch("updates of experts", kernels::gradient_kernel<T, Real, Use>, experts * row_tiles * unit_tiles, T::block,
               d.lists(), first, all, static_cast<int>(row_tiles), static_cast<int>(unit_tiles), scale, L, C, use);
      };
      if (C.rows <= narrow_gradients)
        with(tiles.slim);
      else
        with(tiles.update);
    });
  }

  /// Adafactor: gradient(first, to) makes the gradients of the columns from `first` on.
  template <class Gradient>
  static void factored(const Rule<Real>& rule, const Slot<B>& slot, const Gradient& gradient) {
    using D = Cuda<double>;
    const Index N = slot.value.rows, columns = slot.value.cols / slot.first.cols;
    in_pieces(slot.value, columns, [&](Index first, Index count) {
      const Index matrices = count / columns;
      auto gradients_here = B::Matrix::uninitialized(N, count);
      auto now_here = D::Matrix::uninitialized(1, count), means = D::Matrix::uninitialized(1, matrices);
      const View g = gradients_here, row = slot.first.columns(first / columns, matrices),
                 col = slot.second.columns(first, count);
      gradient(first, g);
      D::column_sums(N, count, kernels::SquareOver<Real>{g, static_cast<double>(N)}, now_here);
      B::each(1, count, kernels::RunColumnMeans<Real>{now_here, rule.keep, rule.eps, col});
      B::each(N, matrices, kernels::RunRowMeans<Real>{g, columns, rule.keep, rule.eps, row});
      D::column_sums(N, matrices, kernels::ShareOfRow<Real>{row}, means);
      B::each(N, count,
              kernels::FactoredStep<Real>{g, row, col, means, columns, static_cast<double>(rule.lr),
                                          slot.value.columns(first, count)});
    });
  }
};

}  // namespace moe::trainer
