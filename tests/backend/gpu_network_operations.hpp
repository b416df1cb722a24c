// One body for the GPU and for the host that stands in for it: what a network's training does on the GPU beside the operations of the
// backend, against the CPU's lists of pairs and against sums written out. Including files define MOE_DEVICE_NAME and on_device(check).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/cuda.hpp"
#include "validation/trainer_dispatch.hpp"
#include "validation/trainer_products_gpu.hpp"

namespace gpu_network_operations {
inline namespace MOE_DEVICE_SPACE {

using Eigen::MatrixXd;
using moe::Index;
using moe::OptimizerKind;
using moe::trainer::Dispatch;
using moe::trainer::GpuDispatch;
using moe::trainer::PairLists;
using moe::trainer::TokenTile;

/// Values in (-1, 1) without a pattern, as Real holds them.
template <class Real>
MatrixXd values(Index rows, Index cols, double seed) {
  MatrixXd m(rows, cols);
  for (Index j = 0; j < cols; ++j)
    for (Index i = 0; i < rows; ++i)
      m(i, j) = double{static_cast<Real>(std::sin(1.0 + seed + 12.9898 * double(i) + 78.233 * double(j) * double(j)))};
  return m;
}
template <class B>
typename B::Matrix on(const MatrixXd& m) {
  auto matrix = B::Matrix::uninitialized(m.rows(), m.cols());
  B::upload(m, matrix);
  return matrix;
}

/// Logits of M experts: different ones, a few values with many ties, all equal in turn; nobody chooses expert 1 where K < M.
template <class Real>
MatrixXd logits(Index M, Index P, Index K) {
  MatrixXd r = values<Real>(M, P, 0.6);
  for (Index p = 0; p < P; ++p)
    for (Index i = 0; i < M; ++i) {
      if (p % 3 == 1) r(i, p) = double((i * 7 + p) % 4) - 1.5;
      if (p % 3 == 2) r(i, p) = -0.25;
      if (i == 1 && K < M) r(i, p) = -100;
    }
  return r;
}

/// Lists of the GPU, in memory that the host reads.
struct HostLists {
  PairLists lists;
  std::vector<moe::HostMatrix<Index>> arrays;
  explicit HostLists(const GpuDispatch& d) : lists(d.lists()) {
    const auto fetch = [&](Index*& data, Index count) {
      arrays.push_back(moe::GpuMatrix<Index>::to_host({data, count, 1, count}));
      data = arrays.back().data();
    };
    const Index M = d.experts();
    fetch(lists.chosen, d.pairs());
    fetch(lists.pairs, d.pairs());
    fetch(lists.begins, M + 1);
    fetch(lists.tokens_of_pairs, d.pairs());
    fetch(lists.first_tiles, 2 * (M + 1));
    fetch(lists.tile_experts, 2 * lists.most_tiles);
  }
};

template <class Real>
void check_dispatch() {
  using B = moe::Cuda<Real>;
  const Index sizes[][3] = {{1, 1, 1}, {5, 3, 2}, {5, 40, 5}, {33, 70, 4}, {300, 3, 7}, {3, 131, 1}};
  for (const auto& [M, P, K] : sizes)
    for (const bool biased : {false, true}) {
      INFO("M ", M, ", P ", P, ", K ", K, ", biased ", biased);
      const MatrixXd r = logits<Real>(M, P, K), b = biased ? 0.5 * values<Real>(M, 1, 3.3) : MatrixXd(M, 0);
      const auto on_host = [](const MatrixXd& from) {
        auto to = moe::HostMatrix<Real>::uninitialized(from.rows(), from.cols());
        for (Index k = 0; k < from.size(); ++k) to.data()[k] = static_cast<Real>(from.data()[k]);
        return to;
      };
      Dispatch expected;
      auto host_r = on_host(r), host_b = on_host(b);
      expected.choose_largest(host_r.view(), K, host_b.view());
      GpuDispatch found;
      found.choose_largest(on<B>(values<Real>(M + 1, 3, 0)).view(), 2);  // of other sizes, before
      found.choose_largest(on<B>(r).view(), K, on<B>(b).view());
      const HostLists host(found);
      const PairLists& d = host.lists;
      Index different = 0;
      for (Index p = 0; p < P; ++p)
        for (Index k = 0; k < K; ++k) different += d.expert(k, p) != expected.expert(k, p) ? 1 : 0;
      std::vector<Index> expert_of(static_cast<std::size_t>(K * P));
      for (Index i = 0; i < M; ++i)
        for (Index pair = expected.begin(i); pair < expected.begin(i + 1); ++pair) {
          const Index j = pair - expected.begin(i);
          expert_of[static_cast<std::size_t>(pair)] = i;
          different += d.tokens_of_pairs[pair] != expected.token(i, j) ? 1 : 0;
          different += d.pairs[expected.place(i, j)] != pair ? 1 : 0;
        }
      for (Index i = 0; i <= M; ++i) different += d.begins[i] != expected.begin(i) ? 1 : 0;
      CHECK(different == 0);
      for (const TokenTile size : {TokenTile::of_64, TokenTile::of_128}) {
        std::vector<Index> seen(static_cast<std::size_t>(K * P), -1);
        Index twice = 0;
        for (Index t = 0; t < d.most_tiles; ++t) {
          const auto tile = tile_of(d, size, t);
          for (Index q = tile.first; q < tile.first + tile.count; ++q) {
            twice += seen[static_cast<std::size_t>(q)] == -1 ? 0 : 1;
            seen[static_cast<std::size_t>(q)] = tile.expert;
          }
        }
        CHECK(twice == 0);
        CHECK(seen == expert_of);
      }
    }
}

/// What may be wrong with a sum of products, relative to the sum of its terms' sizes.
template <class Real>
struct Allowed {
  double of_factors = 0;  ///< of a term, from its factors
  double operator()(Index terms) const {
    return (static_cast<double>(terms) + 4) * double{std::numeric_limits<Real>::epsilon()} + of_factors;
  }
};
/// Largest |found - exact| in units of what is allowed.
struct Deviation {
  double worst = 0;
  void add(const MatrixXd& found, const MatrixXd& exact, const MatrixXd& magnitude, double allowed) {
    REQUIRE(found.rows() == exact.rows());
    REQUIRE(found.cols() == exact.cols());
    for (Index k = 0; k < found.size(); ++k) {
      const double bound = allowed * magnitude.data()[k] + 1e-37;
      const double deviation = std::abs(found.data()[k] - exact.data()[k]) / bound;
      worst = std::isfinite(deviation) ? std::max(worst, deviation) : HUGE_VAL;
    }
  }
};

/// What one update makes of a weight: the formulas of theory section 1, in double. The last, of a factored rule, is not entrywise.
struct Updated {
  MatrixXd w, m, v;
};
inline Updated updated(OptimizerKind kind, const moe::OptimizerSpec& o, double lr, double eps, int t, const MatrixXd& g,
                       Updated s, Index columns) {
  const auto inverse_root = [](double x) { return x > 0 ? 1 / std::sqrt(x) : 0.0; };
  switch (kind) {
    case OptimizerKind::sgd: s.w -= lr * g; break;
    case OptimizerKind::signsgd: s.w -= lr * MatrixXd(g.array().sign()); break;
    case OptimizerKind::momentum:
      s.m = o.momentum * s.m + g;
      s.w -= lr * s.m;
      break;
    case OptimizerKind::adam:
    case OptimizerKind::adamw:
      s.m = o.beta1 * s.m + (1 - o.beta1) * g;
      s.v = o.beta2 * s.v + (1 - o.beta2) * MatrixXd(g.array().square());
      if (kind == OptimizerKind::adamw) s.w *= 1 - o.lr * o.weight_decay;
      s.w.array() -=
          lr * (s.m.array() / (1 - std::pow(o.beta1, t))) / ((s.v.array() / (1 - std::pow(o.beta2, t))).sqrt() + eps);
      break;
    case OptimizerKind::adafactor: {
      const double keep = 1 - std::pow(t, -0.8);
      for (Index e = 0; e < s.m.cols(); ++e) {
        const MatrixXd square = g.middleCols(e * columns, columns).array().square();
        s.m.col(e) = keep * s.m.col(e) + (1 - keep) * MatrixXd((square.rowwise().mean().array() + eps * eps).matrix());
        auto col = s.v.middleCols(e * columns, columns);
        col = (keep * col + (1 - keep) * MatrixXd((square.colwise().mean().array() + eps * eps).matrix())).eval();
        for (Index j = 0; j < columns; ++j)
          for (Index n = 0; n < g.rows(); ++n)
            s.w(n, e * columns + j) -=
                lr * g(n, e * columns + j) * inverse_root(s.m(n, e) / s.m.col(e).mean()) * inverse_root(col(0, j));
      }
      break;
    }
  }
  return s;
}

/// Updates of W from the gradient of factors L (N, P) and C by every rule: learn(rule, slot) against the sums in `exact` with the sizes
/// of their terms. Steps with t = 2, moments of the past in place.
template <class Real, class Learn>
void check_rules(const MatrixXd& W, const MatrixXd& exact, const MatrixXd& magnitude, Index columns,
                 const Allowed<Real>& allowed, Index terms, const Learn& learn) {
  using B = moe::Cuda<Real>;
  for (const OptimizerKind kind : {OptimizerKind::sgd, OptimizerKind::momentum, OptimizerKind::adam,
                                   OptimizerKind::adamw, OptimizerKind::signsgd, OptimizerKind::adafactor}) {
    INFO("optimizer ", static_cast<int>(kind));
    moe::OptimizerSpec o;
    o.name = kind;
    o.lr = 0.1;
    o.weight_decay = 0.5;
    const double lr = 0.05, eps = 0.3;
    const bool factored = kind == OptimizerKind::adafactor;
    const bool moments = kind == OptimizerKind::adam || kind == OptimizerKind::adamw;
    const Index matrices = W.cols() / columns;
    Updated past{W, {}, {}};
    if (moments || kind == OptimizerKind::momentum) past.m = values<Real>(W.rows(), W.cols(), 2.1);
    if (moments) past.v = values<Real>(W.rows(), W.cols(), 4.2).cwiseAbs();
    if (factored) {
      past.m = values<Real>(W.rows(), matrices, 2.1).cwiseAbs();
      past.v = values<Real>(1, W.cols(), 4.2).cwiseAbs();
    }
    auto w = on<B>(past.w), m = on<B>(past.m), v = on<B>(past.v);
    learn(moe::trainer::Rule<Real>::at(o, lr, eps, 2), moe::trainer::Slot<B>{w, m, v});
    // An error dg of the gradient moves a step by at most lr dg / eps times a few, those that are bounded by their rules.
    const Updated want = updated(kind, o, lr, eps, 2, exact, past, columns);
    MatrixXd size = W.cwiseAbs() + lr * magnitude;
    if (moments || factored) size = W.cwiseAbs() + lr * MatrixXd(4 * (magnitude.array() + 1) / (eps * eps));
    if (kind == OptimizerKind::momentum) size += lr * past.m.cwiseAbs();
    MatrixXd found = B::download(w);
    if (kind == OptimizerKind::signsgd)  // where rounding can turn the sign
      for (Index k = 0; k < W.size(); ++k)
        if (std::abs(exact.data()[k]) <= allowed(terms) * magnitude.data()[k]) found.data()[k] = want.w.data()[k];
    Deviation of_weights, of_moments;
    of_weights.add(found, want.w, size, allowed(terms + 8));
    if (past.m.size() > 0) {
      const MatrixXd near =
          factored ? MatrixXd::Constant(past.m.rows(), past.m.cols(), 1 + magnitude.cwiseAbs2().maxCoeff() * 4)
                   : MatrixXd(past.m.cwiseAbs() + magnitude);
      of_moments.add(B::download(m), want.m, near, allowed(terms + 8));
    }
    if (past.v.size() > 0) {
      const MatrixXd near =
          factored ? MatrixXd::Constant(past.v.rows(), past.v.cols(), 1 + magnitude.cwiseAbs2().maxCoeff() * 4)
                   : MatrixXd(past.v + 4 * MatrixXd(magnitude.array().square()));
      of_moments.add(B::download(v), want.v, near, allowed(terms + 8));
    }
    CHECK(of_weights.worst < 1);
    CHECK(of_moments.worst < 1);
    CHECK((found - W).cwiseAbs().maxCoeff() > 0);
  }
}

/// Top-K products and updates of factors as they stand or rounded first, against sums over (expert, token) pairs of rounded(factor).
struct Experts {
  Index N, M, Ne, P, K;
};
template <class Real>
void check_experts(const Experts& size, const Allowed<Real>& allowed, double (*rounded)(double)) {
  using B = moe::Cuda<Real>;
  using Products = moe::trainer::Products<B>;
  const auto& [N, M, Ne, P, K] = size;
  INFO("N ", N, ", M ", M, ", N_e ", Ne, ", P ", P, ", K ", K, ", ", sizeof(Real), " bytes, of factors ",
       allowed.of_factors);
  GpuDispatch d;
  d.choose_largest(on<B>(logits<Real>(M, P, K)).view(), K);
  const HostLists host(d);
  const PairLists& lists = host.lists;
  const MatrixXd W = values<Real>(N, M * Ne, 0.1), X = values<Real>(N, P, 0.3), C = values<Real>(Ne, K * P, 0.5);
  const MatrixXd rounded_W = W.unaryExpr(rounded), rounded_X = X.unaryExpr(rounded), rounded_C = C.unaryExpr(rounded);
  const double scale = 0.75;
  MatrixXd answers(Ne, K * P), answer_sizes = answers, sums = MatrixXd::Zero(N, P), sum_sizes = sums;
  MatrixXd gradient = MatrixXd::Zero(N, M * Ne), gradient_sizes = gradient;
  for (Index q = 0; q < K * P; ++q) {
    const Index i = lists.chosen[q], p = q / K, pair = lists.pairs[q];
    const MatrixXd Wi = rounded_W.middleCols(i * Ne, Ne), c = rounded_C.col(pair), x = rounded_X.col(p);
    answers.col(pair) = scale * Wi.transpose() * x;
    answer_sizes.col(pair) = scale * Wi.transpose().cwiseAbs() * x.cwiseAbs();
    sums.col(p) += scale * Wi * c;
    sum_sizes.col(p) += scale * Wi.cwiseAbs() * c.cwiseAbs();
    gradient.middleCols(i * Ne, Ne) += scale * x * c.transpose();
    gradient_sizes.middleCols(i * Ne, Ne) += scale * x.cwiseAbs() * c.cwiseAbs().transpose();
  }
  auto w = on<B>(W), x = on<B>(X), c = on<B>(C);
  auto out = B::Matrix::uninitialized(Ne, K * P), Y = B::Matrix::uninitialized(N, P);
  Deviation of_answers, of_sums;
  Products::answer(d, w, Real(scale), x, out);
  of_answers.add(B::download(out), answers, answer_sizes, allowed(N));
  Products::collect(d, w, Real(scale), c, Y);
  of_sums.add(B::download(Y), sums, sum_sizes, allowed(K * Ne));
  CHECK(of_answers.worst < 1);
  CHECK(of_sums.worst < 1);
  check_rules<Real>(W, gradient, gradient_sizes, Ne, allowed, P, [&](const auto& rule, const auto& slot) {
    Products::learn(d, {rule, slot}, Real(scale), x, c);
  });
}
inline double as_it_stands(double factor) { return factor; }
/// The nearest number of ten bits behind the leading one, ties away from zero.
inline double in_tf32(double factor) {
  int exponent = 0;
  const double mantissa = std::frexp(factor, &exponent);
  return std::ldexp(std::round(std::ldexp(mantissa, 11)), exponent - 11);
}

/// Updates of whole tensors, by tiles of our own and by the library's product.
template <class Real>
void check_tensors() {
  using B = moe::Cuda<Real>;
  const Index sizes[][3] = {{5, 6, 7}, {3, 4, moe::trainer::Products<B>::worth_the_library}};
  for (const auto& [N, cols, P] : sizes) {
    INFO("N ", N, ", columns ", cols, ", P ", P);
    const MatrixXd W = values<Real>(N, cols, 0.1), L = values<Real>(N, P, 0.3), C = values<Real>(cols, P, 0.5);
    auto l = on<B>(L), c = on<B>(C);
    check_rules<Real>(W, 0.75 * L * C.transpose(), 0.75 * L.cwiseAbs() * C.cwiseAbs().transpose(), 2, {}, P,
                      [&](const auto& rule, const auto& slot) {
                        moe::trainer::Products<B>::learn({rule, slot}, Real(0.75), l, c);
                      });
  }
}

/// Sizes for tiles of 128 x 64 sums in float32, 64 x 64 in float64, and 16 x 128 and 128 x 16.
template <class Real>
void check_products() {
  const Experts sizes[] = {{1, 1, 1, 1, 1},      {5, 3, 2, 1, 2},  // one token
                           {131, 3, 17, 70, 1},   // narrow; rows, units, tokens beyond a tile; columns begin anywhere
                           {20, 3, 65, 9, 2},     // wide units beyond the narrow tiles, whose rows are not full
                           {132, 2, 132, 66, 2},  // columns in fours; all beyond a wide tile; half a slab at the end
                           {7, 2, 133, 33, 2},    // columns begin anywhere; one token beyond half a tile
                           {128, 1, 128, 64, 1},  // wide tiles that are full
                           {3, 2, 16, 129, 1}};   // narrow tiles that are full; tokens beyond one
  for (const Experts& size : sizes) check_experts<Real>(size, {}, as_it_stands);
  check_tensors<Real>();
}

/// In TF32, tiles of 128 x 128 sums (a half where 64 tokens are left) and of updates 128 x 64: against sums of factors that are rounded
/// likewise, within the rounding of float32, and of the factors themselves, each of which rounding moves by 2^-11 at most.
inline void check_tf32() {
  const moe::gpu::Tf32 products(true);
  const Experts sizes[] = {
      {1, 1, 1, 1, 1},       {5, 3, 2, 1, 2},  // one token
      {131, 3, 17, 130, 1},                    // narrow; rows, units, tokens beyond a tile; columns begin anywhere
      {20, 3, 65, 9, 2},                       // units beyond the narrow tiles and beyond a tile of updates
      {132, 2, 132, 68, 2},  // columns in fours; all beyond a tile but the tokens, beyond half of it; half a slab at the end
      {7, 2, 133, 129, 2},    // columns begin anywhere; one token beyond a tile
      {128, 1, 128, 128, 1},  // tiles that are full
      {136, 1, 64, 64, 1},    // half tiles and narrow ones that are full
      {3, 2, 16, 129, 1}};
  for (const Experts& size : sizes) {
    check_experts<float>(size, {}, in_tf32);
    check_experts<float>(size, {std::ldexp(1.0, -10) + std::ldexp(1.0, -22)}, as_it_stands);
  }
  check_experts<double>(sizes[2], {}, as_it_stands);  // float64 stays what it is
}

}  // namespace MOE_DEVICE_SPACE
}  // namespace gpu_network_operations

TEST_CASE(MOE_DEVICE_NAME ": lists of experts, tokens and tiles are the CPU's [ties, bias, experts without tokens]") {
  on_device([] { gpu_network_operations::check_dispatch<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": products and updates of a network are the sums that they stand for [float32]") {
  on_device([] { gpu_network_operations::check_products<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": products and updates of a network are the sums that they stand for [float64]") {
  on_device([] { gpu_network_operations::check_products<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": grouped products and updates in TF32 are the sums of factors rounded to it") {
  on_device(gpu_network_operations::check_tf32);
}
