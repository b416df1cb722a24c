// The products of the fast trainer against sums written out, at sizes that fill no tile, cross every block and leave experts empty.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/cpu.hpp"
#include "validation/trainer_products.hpp"
#include "validation/trainer_state.hpp"

namespace {

using moe::HostMatrix;
using moe::HostView;
using moe::Index;
using moe::trainer::Dispatch;

template <class Real>
HostMatrix<Real> normal(Index rows, Index cols, std::uint64_t stream) {
  HostMatrix<Real> m(rows, cols);
  moe::Cpu<Real>::normal(m, moe::StreamKey{stream, 0});
  return m;
}

/// Tokens choose K of M experts, always leaving out expert 1 if there are enough others.
template <class Real>
Dispatch choices(Index M, Index tokens, Index K, bool soft) {
  Dispatch d;
  if (soft) {
    d.choose_all(M, tokens);
  } else {
    HostMatrix<Real> r = normal<Real>(M, tokens, 9);
    for (Index p = 0; p < tokens && K < M; ++p) r(1, p) = -100;
    d.choose_largest(r.view(), K);
  }
  return d;
}

/// Largest |sum - exact| in units of the bound on its rounding: terms * epsilon * sum |products|, both sides rounded.
struct Deviation {
  double worst = 0;
  template <class Real>
  void add(Real ours, double exact, double magnitude, Index terms) {
    const double unit = static_cast<double>(std::numeric_limits<Real>::epsilon());
    const double bound = (static_cast<double>(terms) + 4) * unit * magnitude + std::numeric_limits<Real>::min();
    const double deviation = std::abs(static_cast<double>(ours) - exact) / bound;
    worst = std::isfinite(deviation) ? std::max(worst, deviation) : std::numeric_limits<double>::infinity();
  }
};

template <class Real>
void compare(Index N, Index M, Index Ne, Index tokens, Index K, bool soft) {
  using P = moe::trainer::Products<moe::Cpu<Real>>;
  INFO(fmt::format("N {}, M {}, N_e {}, tokens {}, K {}, {}, {} bytes", N, M, Ne, tokens, K, soft ? "soft" : "top-K",
                   sizeof(Real)));
  const Dispatch d = choices<Real>(M, tokens, K, soft);
  const Index pairs = d.pairs();
  HostMatrix<Real> W = normal<Real>(N, M * Ne, 1), X = normal<Real>(N, tokens, 2), C = normal<Real>(Ne, pairs, 3);
  const Real scale = Real(0.7);

  // The plain loops go over (expert, token) pairs in double: token p = token(i, j) of expert i.
  const auto for_pairs = [&](const auto& f) {
    for (Index i = 0; i < M; ++i)
      for (Index j = 0; j < d.tokens_of(i); ++j) f(i, j, d.token(i, j));
  };

  Deviation answers, collected, learned;
  HostMatrix<Real> out(Ne, pairs), Y(N, tokens);
  P::answer(d, W, scale, X, out);
  for_pairs([&](Index i, Index j, Index p) {
    for (Index a = 0; a < Ne; ++a) {
      double sum = 0, size = 0;
      for (Index n = 0; n < N; ++n) {
        const double term = double{scale} * double{W(n, i * Ne + a)} * double{X(n, p)};
        sum += term, size += std::abs(term);
      }
      answers.add(d.of_expert(i, out.view())(j, a), sum, size, N);
    }
  });
  P::collect(d, W, scale, C, Y);
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(N, tokens), size = sum;
  for_pairs([&](Index i, Index j, Index p) {
    for (Index a = 0; a < Ne; ++a)
      for (Index n = 0; n < N; ++n) {
        const double term = double{scale} * double{W(n, i * Ne + a)} * double{d.of_expert(i, C.view())(j, a)};
        sum(n, p) += term, size(n, p) += std::abs(term);
      }
  });
  for (Index p = 0; p < tokens; ++p)
    for (Index n = 0; n < N; ++n) collected.add(Y(n, p), sum(n, p), size(n, p), d.active() * Ne);

  moe::trainer::Rule<Real> descent;
  descent.lr = Real(0.5);
  HostMatrix<Real> moved = moe::trainer::copy_of<moe::Cpu<Real>>(W.view());
  P::learn(d, {descent, {moved, {}, {}}}, scale, X, C);
  sum = Eigen::MatrixXd::Zero(N, M * Ne), size = sum;
  for_pairs([&](Index i, Index j, Index p) {
    for (Index a = 0; a < Ne; ++a)
      for (Index n = 0; n < N; ++n) {
        const double term = -0.5 * double{scale} * double{X(n, p)} * double{d.of_expert(i, C.view())(j, a)};
        sum(n, i * Ne + a) += term, size(n, i * Ne + a) += std::abs(term);
      }
  });
  for (Index j = 0; j < M * Ne; ++j)
    for (Index n = 0; n < N; ++n)
      learned.add(moved(n, j), double{W(n, j)} + sum(n, j), std::abs(double{W(n, j)}) + size(n, j), tokens);

  CHECK(answers.worst < 1);
  CHECK(collected.worst < 1);
  CHECK(learned.worst < 1);
  CHECK(answers.worst + collected.worst + learned.worst > 0);  // rounding is there, so all that was compared is
}

template <class Real>
void compare_transposed(Index rows, Index cols) {
  const HostMatrix<Real> from = normal<Real>(rows + 3, cols, 1);
  HostMatrix<Real> to(cols + 2, rows);
  moe::trainer::columns::transpose(from.data(), rows + 3, rows, cols, to.data(), cols + 2);
  Index wrong = 0;
  for (Index j = 0; j < cols; ++j)
    for (Index i = 0; i < rows; ++i) wrong += to(j, i) != from(i, j) ? 1 : 0;
  for (Index i = 0; i < rows; ++i)
    for (Index j = cols; j < cols + 2; ++j) wrong += to(j, i) != 0 ? 1 : 0;
  INFO(fmt::format("{} x {}, {} bytes", rows, cols, sizeof(Real)));
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("fields of the fast trainer are turned round entry by entry [whole blocks and what is left of them]") {
  for (const Index rows : {1, 16, 37, 64})
    for (const Index cols : {1, 15, 32, 70}) {
      compare_transposed<float>(rows, cols);
      compare_transposed<double>(rows, cols);
    }
}

TEST_CASE("products of the fast trainer are the sums they stand for, within rounding [soft and top-K, odd sizes]") {
  for (bool soft : {true, false}) {
    compare<float>(1, 1, 1, 1, 1, soft);
    compare<double>(7, 3, 2, 5, 2, soft);
    compare<float>(67, 5, 33, 21, 2, soft);     // packed tokens, a vector that is not full
    compare<float>(64, 3, 250, 9, 2, soft);     // more columns than a piece, more terms than a block
    compare<double>(33, 4, 101, 150, 3, soft);  // more tokens than a block
    compare<float>(1031, 3, 40, 18, 2, soft);   // more neurons than a block
    compare<double>(1100, 2, 9, 140, 1, soft);  // both, few columns
    compare<float>(300, 40, 8, 64, 10, soft);
  }
}

TEST_CASE(
    "an answer or a sum with the update on the way is the two after each other, bit for bit [soft and top-K; descent, "
    "Adam, Adafactor; experts without tokens, pieces that are not full]") {
  using B = moe::Cpu<float>;
  using P = moe::trainer::Products<B>;
  struct Sizes {
    Index N, M, Ne, tokens, K;
  };
  for (const Sizes& z :
       {Sizes{67, 5, 33, 21, 2}, Sizes{256, 3, 250, 64, 1}, Sizes{1031, 6, 130, 70, 3}, Sizes{6000, 3, 101, 9, 2}})
    for (const bool soft : {true, false})
      for (const auto kind : {moe::OptimizerKind::sgd, moe::OptimizerKind::adam, moe::OptimizerKind::adafactor}) {
        INFO(fmt::format("N {}, M {}, N_e {}, {}, rule {}", z.N, z.M, z.Ne, soft ? "soft" : "top-K",
                         static_cast<int>(kind)));
        const Dispatch d = choices<float>(z.M, z.tokens, z.K, soft);
        moe::OptimizerSpec spec;
        spec.name = kind;
        const auto rule = moe::trainer::Rule<float>::at(spec, 0.1, 1e-3, 2);
        const Index units = z.M * z.Ne, matrices = rule.factored() ? z.M : units, rows = rule.factored() ? 1 : z.N;
        HostMatrix<float> X = normal<float>(z.N, z.tokens, 2), C = normal<float>(z.Ne, d.pairs(), 3);
        struct Tensor {
          HostMatrix<float> w, m, v;
          moe::trainer::Slot<B> slot() { return {w, m, v}; }
          bool operator==(const Tensor& other) const {
            const auto same = [](const auto& a, const auto& b) {
              return std::equal(a.data(), a.data() + a.size(), b.data());
            };
            return same(w, other.w) && same(m, other.m) && same(v, other.v);
          }
        };
        const auto tensor = [&] {
          Tensor t{normal<float>(z.N, units, 1), normal<float>(z.N, matrices, 4), normal<float>(rows, units, 5)};
          for (Index k = 0; k < t.v.size(); ++k) t.v.data()[k] = std::abs(t.v.data()[k]);
          for (Index k = 0; rule.factored() && k < t.m.size(); ++k) t.m.data()[k] = std::abs(t.m.data()[k]);
          return t;
        };
        Tensor start = tensor(), after = tensor(), on_the_way = tensor();
        HostMatrix<float> out(z.Ne, d.pairs()), out_too(z.Ne, d.pairs()), Y(z.N, z.tokens), Y_too(z.N, z.tokens);
        const auto equal = [](const auto& a, const auto& b) {
          return std::equal(a.data(), a.data() + a.size(), b.data());
        };

        P::answer(d, after.w, 0.7F, X, out);
        P::learn(d, {rule, after.slot()}, 0.7F, X, C);
        P::answer_and_learn(d, {rule, on_the_way.slot()}, 0.7F, X, C, out_too);
        CHECK(equal(out, out_too));
        CHECK(after == on_the_way);
        CHECK_FALSE(after == start);

        P::collect(d, after.w, 0.7F, C, Y);
        P::learn(d, {rule, after.slot()}, 0.7F, X, C);
        P::collect_and_learn(d, {rule, on_the_way.slot()}, 0.7F, C, X, Y_too);
        CHECK(equal(Y, Y_too));
        CHECK(after == on_the_way);
      }
}

TEST_CASE("products of the fast trainer are the same, bit for bit, with one, two and three threads") {
  const auto products = [](int threads, bool soft) {
    moe::set_operation_threads(threads);
    using P = moe::trainer::Products<moe::Cpu<float>>;
    const Dispatch d = choices<float>(9, 70, 3, soft);
    HostMatrix<float> W = normal<float>(290, 9 * 45, 1), X = normal<float>(290, 70, 2),
                      C = normal<float>(45, d.pairs(), 3);
    HostMatrix<float> out(45, d.pairs()), Y(290, 70);
    P::answer(d, W, 1, X, out);
    P::collect(d, W, 1, C, Y);
    moe::trainer::Rule<float> descent;
    descent.lr = 1;
    P::learn(d, {descent, {W, {}, {}}}, 1, X, C);
    P::answer_and_learn(d, {descent, {W, {}, {}}}, 1, X, C, out);
    P::collect_and_learn(d, {descent, {W, {}, {}}}, 1, C, X, Y);
    std::vector<float> all;
    for (auto* m : {&out, &Y, &W}) all.insert(all.end(), m->data(), m->data() + m->size());
    return all;
  };
  const int before = omp_get_max_threads();
  for (bool soft : {true, false}) {
    const auto one = products(1, soft);
    CHECK(one == products(2, soft));
    CHECK(one == products(3, soft));
  }
  moe::set_operation_threads(before);
}
