/// The products of a network on the GPU. Whole tensors are cuBLAS's, with soft routing all experts as one product of the stacked tensor.
/// With top-K every expert multiplies the columns of its own tokens: all experts in one launch of tiles of our own, tokens gathered by
/// index, nothing padded beyond a tile; what an update needs of its gradient is made, used and forgotten in registers.
#pragma once

#include <algorithm>
#include <vector>

#include "support/cuda.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_dispatch_gpu.hpp"
#include "validation/trainer_rule.hpp"

namespace moe::trainer {
inline namespace MOE_DEVICE_SPACE {
namespace kernels {

/// Tiles of sum_k a(i, k) b(j, k): i over 32 threads with 4 rows each, 32 apart so that neighbours touch neighbours, j over 8 threads with
/// `per_y` columns each.
template <int per_y_>
struct Tile {
  static constexpr int threads_x = 32, threads_y = 8, per_x = 4, per_y = per_y_, depth = 16;
  static constexpr int rows = threads_x * per_x, cols = threads_y * per_y, threads = threads_x * threads_y;
  static constexpr Extent block{threads_x, threads_y};
};
using Wide = Tile<8>;    ///< 128 x 64
using Narrow = Tile<2>;  ///< 128 x 16

/// Which index of a factor is contiguous in memory: neighbouring threads load along it.
enum class Along { outer, inner };

/// One factor's part of a step, rows x depth, to memory that the block shares; use(row, k) loads.
template <class T, int rows, Along along, class Real, class Load>
MOE_DEVICE void load_part(Real (&part)[T::depth][rows + 4], int me, Index k0, Index inner, const Load& load) {
  for (int e = me; e < T::depth * rows; e += T::threads) {
    const int row = along == Along::outer ? e % rows : e / T::depth;
    const int k = along == Along::outer ? e / rows : e % T::depth;
    part[k][row] = k0 + k < inner ? load(row, k0 + k) : Real(0);
  }
}

/// use(sum, i, j) for every entry of a tile. a(i, k) and b(j, k), k < inner, are zero outside of their arrays. The whole block comes here.
template <class T, Along a_along, Along b_along, class Real, class A, class B, class Use>
MOE_DEVICE void multiply_tile(Index inner, const A& a, const B& b, const Use& use) {
  MOE_SHARED Real as[T::depth][T::rows + 4], bs[T::depth][T::cols + 4];
  const Place at = place();
  const int tx = static_cast<int>(at.x), ty = static_cast<int>(at.y), me = static_cast<int>(at.thread());
  Real sum[T::per_y][T::per_x] = {};
  for (Index k0 = 0; k0 < inner; k0 += T::depth) {
    load_part<T, T::rows, a_along>(as, me, k0, inner, a);
    load_part<T, T::cols, b_along>(bs, me, k0, inner, b);
    meet();
    for (int k = 0; k < T::depth; ++k) {
      Real row[T::per_x];
      for (int m = 0; m < T::per_x; ++m) row[m] = as[k][tx + m * T::threads_x];
      for (int n = 0; n < T::per_y; ++n) {
        const Real factor = bs[k][ty * T::per_y + n];
        for (int m = 0; m < T::per_x; ++m) sum[n][m] += row[m] * factor;
      }
    }
    meet();
  }
  for (int n = 0; n < T::per_y; ++n)
    for (int m = 0; m < T::per_x; ++m)
      use(sum[n][m], static_cast<Index>(tx + m * T::threads_x), static_cast<Index>(ty * T::per_y + n));
}

/// out_ia(pair) = scale sum_n W(n, ia) X(n, token), units by tokens.
template <class Real>
MOE_KERNEL void answer_kernel(PairLists d, Index unit_tiles, GpuView<Real> W, Real scale, GpuView<Real> X,
                              GpuView<Real> out) {
  const Index block = place().block, Ne = out.rows, a0 = block % unit_tiles * Wide::rows;
  const PairTile tile = tile_of(d, TokenTile::of_64, block / unit_tiles);
  if (tile.count == 0) return;
  const Index units = Ne - a0;
  multiply_tile<Wide, Along::inner, Along::inner, Real>(
      W.rows, [&](Index a, Index n) { return a < units ? W(n, tile.expert * Ne + a0 + a) : Real(0); },
      [&](Index t, Index n) { return t < tile.count ? X(n, d.tokens_of_pairs[tile.first + t]) : Real(0); },
      [&](Real sum, Index a, Index t) {
        if (a < units && t < tile.count) out(a0 + a, tile.first + t) = scale * sum;
      });
}
/// The same for narrow experts, tokens by units.
template <class Real>
MOE_KERNEL void narrow_answer_kernel(PairLists d, Index unit_tiles, GpuView<Real> W, Real scale, GpuView<Real> X,
                                     GpuView<Real> out) {
  const Index block = place().block, Ne = out.rows, a0 = block % unit_tiles * Narrow::cols;
  const PairTile tile = tile_of(d, TokenTile::of_128, block / unit_tiles);
  if (tile.count == 0) return;
  const Index units = Ne - a0;
  multiply_tile<Narrow, Along::inner, Along::inner, Real>(
      W.rows, [&](Index t, Index n) { return t < tile.count ? X(n, d.tokens_of_pairs[tile.first + t]) : Real(0); },
      [&](Index a, Index n) { return a < units ? W(n, tile.expert * Ne + a0 + a) : Real(0); },
      [&](Real sum, Index t, Index a) {
        if (a < units && t < tile.count) out(a0 + a, tile.first + t) = scale * sum;
      });
}

/// parts(n, pair) = sum_a W(n, ia) C_ia(pair), neurons by tokens; W and parts some of the neurons.
template <class Real>
MOE_KERNEL void collect_kernel(PairLists d, Index row_tiles, GpuView<Real> W, GpuView<Real> C, GpuView<Real> parts) {
  const Index block = place().block, Ne = C.rows, n0 = block % row_tiles * Wide::rows, rows = W.rows - n0;
  const PairTile tile = tile_of(d, TokenTile::of_64, block / row_tiles);
  if (tile.count == 0) return;
  multiply_tile<Wide, Along::outer, Along::inner, Real>(
      Ne, [&](Index n, Index a) { return n < rows ? W(n0 + n, tile.expert * Ne + a) : Real(0); },
      [&](Index t, Index a) { return t < tile.count ? C(a, tile.first + t) : Real(0); },
      [&](Real sum, Index n, Index t) {
        if (n < rows && t < tile.count) parts(n0 + n, tile.first + t) = sum;
      });
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

/// use(g, n, j) for the entries of expert matrices' gradients g = scale sum_token L(n, token) C_ia(pair), j = (i - first) N_e + a, of the
/// experts from `first` on. Experts without tokens have none, or, with `all`, zeros.
template <class T, class Real, class Use>
MOE_KERNEL void gradient_kernel(PairLists d, Index first, bool all, Index row_tiles, Index unit_tiles, Real scale,
                                GpuView<Real> L, GpuView<Real> C, Use use) {
  const Index block = place().block, Ne = C.rows, n0 = block % row_tiles * T::rows, rows = L.rows - n0;
  const Index a0 = block / row_tiles % unit_tiles * T::cols, units = Ne - a0, e = block / row_tiles / unit_tiles;
  const Index begin = d.begins[first + e], tokens = d.begins[first + e + 1] - begin;
  if (tokens == 0 && !all) return;
  multiply_tile<T, Along::outer, Along::outer, Real>(
      tokens, [&](Index n, Index t) { return n < rows ? L(n0 + n, d.tokens_of_pairs[begin + t]) : Real(0); },
      [&](Index a, Index t) { return a < units ? C(a0 + a, begin + t) : Real(0); },
      [&](Real sum, Index n, Index a) {
        if (n < rows && a < units) use(scale * sum, n0 + n, e * Ne + a0 + a);
      });
}

/// One weight's update by its rule, chosen at run time: branches are free beside the memory.
template <class Real>
struct UpdateEntry {
  OptimizerKind kind;
  entry::Descent<Real> descent;
  entry::Momentum<Real> momentum;
  entry::Adam<Real> adam;
  entry::Sign<Real> sign;
  Real scale;
  GpuView<Real> w, m, v;
  MOE_DEVICE void operator()(Real g, Index i, Index j) const {
    g *= scale;
    switch (kind) {
      case OptimizerKind::sgd: return descent(g, w(i, j), w(i, j), w(i, j));
      case OptimizerKind::momentum: return momentum(g, w(i, j), m(i, j), m(i, j));
      case OptimizerKind::adam:
      case OptimizerKind::adamw: return adam(g, w(i, j), m(i, j), v(i, j));
      case OptimizerKind::signsgd: return sign(g, w(i, j), w(i, j), w(i, j));
      case OptimizerKind::adafactor: return;
    }
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
  MOE_DEVICE void operator()(Real g, Index i, Index j) const { gradient(i, j) = g; }
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
  static void columns_at(View x, const std::vector<int>& list, View out) {
    auto host = HostMatrix<int>::uninitialized(static_cast<Index>(list.size()), 1);
    std::copy(list.begin(), list.end(), host.data());
    B::each(out.rows, out.cols, kernels::Gather<Real>{x, GpuMatrix<int>::from_host(host.view()), out});
  }

  /// out = scale W^T X; W (N, cols), X (N, P), out (cols, P).
  static void answer(View W, Real scale, View X, View out) { B::gemm(Op::transposed, Op::plain, scale, W, X, 0, out); }
  /// Y = scale W C + keep Y; C (cols, P), Y (N, P).
  static void collect(View W, Real scale, View C, Real keep, View Y) {
    B::gemm(Op::plain, Op::plain, scale, W, C, keep, Y);
  }
  /// One update of a tensor from its gradient scale L C^T; L (N, P), C (cols, P).
  static void learn(const Rule<Real>& rule, const Slot<B>& slot, Real scale, View L, View C) {
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
    const bool narrow = out.rows <= narrow_answers;
    const Index units = narrow ? kernels::Narrow::cols : kernels::Wide::rows, tiles = (out.rows + units - 1) / units;
    launch("answers of experts", narrow ? kernels::narrow_answer_kernel<Real> : kernels::answer_kernel<Real>,
           d.lists().most_tiles * tiles, kernels::Wide::block, d.lists(), tiles, W, scale, X, out);
  }
  /// Y(n, token) = scale sum_ia W(n, ia) C_ia(pair).
  static void collect(const Dispatch& d, View W, Real scale, View C, View Y) {
    if (d.dense()) return collect(W, scale, stacked(d, C), 0, Y);
    const Index strip =
        std::min(Y.rows, std::max<Index>(1, parts_piece / std::max<Index>(1, d.pairs()) / kernels::Wide::rows) *
                             kernels::Wide::rows);
    auto parts = B::Matrix::uninitialized(strip, d.pairs());
    for (Index first = 0; first < Y.rows; first += strip) {
      const Index rows = std::min(strip, Y.rows - first),
                  tiles = (rows + kernels::Wide::rows - 1) / kernels::Wide::rows;
      const View of_strip = parts.view().row_range(0, rows);
      launch("what experts make together", kernels::collect_kernel<Real>, d.lists().most_tiles * tiles,
             kernels::Wide::block, d.lists(), tiles, W.row_range(first, rows), C, of_strip);
      B::each(rows, Y.cols, kernels::SumParts<Real>{d.lists(), scale, of_strip, Y.row_range(first, rows)});
    }
  }
  /// One update of an expert matrix from its gradient scale sum_token L(n, token) C_ia(pair).
  static void learn(const Dispatch& d, const Rule<Real>& rule, const Slot<B>& slot, Real scale, View L, View C) {
    if (d.dense()) return learn(rule, slot, scale, L, stacked(d, C));
    if (rule.factored())
      return factored(rule, slot, [&](Index first, View to) {
        gradients(d, first / C.rows, to.cols / C.rows, true, scale, L, C, kernels::StoreGradient<Real>{to});
      });
    gradients(d, 0, d.experts(), rule.moves_without_gradient(), scale, L, C, update_of(rule, slot, 1));
  }

  /// Fields over all pairs as (M N_e, P).
  static View stacked(const Dispatch& d, View field) {
    const Index rows = d.experts() * field.rows;
    return {field.data, rows, d.tokens(), rows};
  }

 private:
  static kernels::UpdateEntry<Real> update_of(const Rule<Real>& r, const Slot<B>& slot, Real scale) {
    return {r.kind,     {r.lr},     {r.lr, r.momentum}, {r.lr, r.decay, r.adam}, {r.lr}, scale,
            slot.value, slot.first, slot.second};
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
    const auto with = [&](auto tile, auto kernel) {
      using T = decltype(tile);
      const Index row_tiles = (L.rows + T::rows - 1) / T::rows, unit_tiles = (C.rows + T::cols - 1) / T::cols;
      launch("updates of experts", kernel, experts * row_tiles * unit_tiles, T::block, d.lists(), first, all, row_tiles,
             unit_tiles, scale, L, C, use);
    };
    if (C.rows <= narrow_gradients)
      with(kernels::Narrow{}, kernels::gradient_kernel<kernels::Narrow, Real, Use>);
    else
      with(kernels::Wide{}, kernels::gradient_kernel<kernels::Wide, Real, Use>);
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
