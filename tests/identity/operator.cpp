// Identities of one Gaussian operator, (T24), (T25), (T27): adjointness, linearity, stored answers, the dense form.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/operator_fixture.hpp"

namespace {

using Eigen::MatrixXd;
using moe::OptimizerKind;
using operator_fixture::Asked;
using operator_fixture::gaussian;
using operator_fixture::Index;
using operator_fixture::rule;

constexpr Index SX = 60, SY = 90, P = 3;
/// Float64 rounding of ~100 operations of size S, amplified by the smallest direction that the bases keep (1e-9 of a query, in practice
/// 1e-3 here): 1e-16 * 100 * 1e3.
constexpr double rounding = 1e-11;

struct Case {
  const char* name;
  moe::GaussianConstants constants;
};
const std::vector<Case> structures = {
    {"two-sided", {1.0, 1.5}}, {"only s_chi", {1.3, 0.0}}, {"only s_beta", {0.0, 0.7}}, {"absent", {0.0, 0.0}}};

/// Where the optimizer has one.
moe::UpdateRule with_decay(OptimizerKind kind) {
  moe::UpdateRule r = rule(kind, 0.3);
  r.decay = kind == OptimizerKind::adamw ? 0.97 : 1.0;
  return r;
}

double relative(const MatrixXd& a, const MatrixXd& b) {
  return (a - b).norm() / std::max(1e-300, std::max(a.norm(), b.norm()));
}

/// A few steps of training in which queries depend on past answers; returns the queries and answers of each step.
struct History {
  std::vector<MatrixXd> x, z, Wx, Wz;
};
History train(Asked& W, int steps) {
  History h;
  MatrixXd x = gaussian(SY, P, 5, 1), z = gaussian(SX, P, 5, 2);
  for (int t = 0; t < steps; ++t) {
    h.x.push_back(x);
    h.Wx.push_back(W.forward(x));
    z = (z + 0.5 * h.Wx.back()).array().tanh();
    h.z.push_back(z);
    h.Wz.push_back(W.backward(z));
    W.update();
    x = (gaussian(SY, P, 6, static_cast<std::uint32_t>(t)) + h.Wz.back()).array().tanh();
  }
  return h;
}

/// Float32 whose averages over sites have the rounding of sums over a million of them.
struct LongSums : moe::Cpu<float> {
  static void gemm(moe::Op a, moe::Op b, double alpha, View A, View B, double beta, View C) {
    moe::Cpu<float>::gemm(a, b, alpha, A, B, beta, C);
    if (a == moe::Op::plain) return;
    for (Index p = 0; p < C.cols; ++p)
      for (Index k = 0; k < C.rows; ++k) C(k, p) *= 1 + 3e-5F * std::sin(static_cast<float>(7 * k + 3 * p));
  }
};

}  // namespace

TEST_CASE(
    "operator: <z, W x> = <W^T z, x> for any evaluation query within what was asked [every structure, learned part "
    "included]") {
  for (const auto& c : structures)
    for (const auto kind : {OptimizerKind::sgd, OptimizerKind::momentum, OptimizerKind::adam}) {
      INFO(std::string(c.name));
      Asked W(SX, SY, c.constants, rule(kind, 0.3), 1e-9, false, 11);
      const History h = train(W, 4);
      // Combinations of past queries: nothing new is asked, so both directions are fixed by the past.
      MatrixXd x = h.x[0] + 0.3 * h.x[3], z = 0.7 * h.z[1] - h.z[2];
      const MatrixXd left = z.transpose() * W.evaluate_forward(x) / SX,
                     right = W.evaluate_backward(z).transpose() * x / SY;
      const double scale = std::max(left.cwiseAbs().maxCoeff(), 1e-3);
      CHECK((left - right).cwiseAbs().maxCoeff() <= 1e-9 * scale);
    }
}

TEST_CASE("operator: adjointness is exact for stored queries that are new to it as well") {
  for (const auto& c : structures) {
    INFO(std::string(c.name));
    Asked W(SX, SY, c.constants, rule(OptimizerKind::sgd, 0.3), 1e-9, false, 12);
    train(W, 3);
    const MatrixXd x = gaussian(SY, P, 8, 1), z = gaussian(SX, P, 8, 2);
    const MatrixXd Wx = W.forward(x), Wz = W.backward(z);
    const MatrixXd left = z.transpose() * Wx / SX, right = Wz.transpose() * x / SY;
    CHECK((left - right).cwiseAbs().maxCoeff() <= 1e-12);
  }
}

TEST_CASE("operator: linear in its queries, and asking again gives the same answer") {
  for (const auto& c : structures) {
    INFO(std::string(c.name));
    Asked W(SX, SY, c.constants, rule(OptimizerKind::sgd, 0.2), 1e-9, false, 13);
    const History h = train(W, 3);
    const MatrixXd a = W.forward(h.x[0]), b = W.forward(h.x[2]), sum = W.forward(2.0 * h.x[0] - 3.0 * h.x[2]);
    CHECK((sum - (2.0 * a - 3.0 * b)).norm() <= 1e-10 * (1 + sum.norm()));
    CHECK((W.forward(h.x[0]) - a).norm() <= 1e-10 * (1 + a.norm()));
    CHECK((W.evaluate_forward(h.x[0]) - a).norm() <= 1e-9 * (1 + a.norm()));
  }
}

TEST_CASE("operator: the dense form reproduces all stored answers and continues the same training [(T27)]") {
  for (const auto& c : structures)
    for (const auto kind : {OptimizerKind::sgd, OptimizerKind::momentum, OptimizerKind::adam, OptimizerKind::adamw}) {
      INFO(std::string(c.name));
      CAPTURE(static_cast<int>(kind));
      const moe::UpdateRule r = with_decay(kind);
      Asked W(SX, SY, c.constants, r, 1e-9, false, 14), V(SX, SY, c.constants, r, 1e-9, false, 14);
      const History h = train(W, 4);
      train(V, 4);
      REQUIRE(V.op().can_become_dense());
      V.become_dense();
      for (std::size_t t = 0; t < h.x.size(); ++t) {
        CHECK((V.evaluate_forward(h.x[t]) - W.evaluate_forward(h.x[t])).norm() <= rounding * (1 + h.Wx[t].norm()));
        CHECK((V.evaluate_backward(h.z[t]) - W.evaluate_backward(h.z[t])).norm() <= rounding * (1 + h.Wz[t].norm()));
      }
      // One more update inside the known directions: velocity and moments must have come along.
      for (Asked* o : {&W, &V}) {
        o->forward(h.x[1]);
        o->backward(h.z[2]);
        o->update();
      }
      CHECK(relative(V.evaluate_forward(h.x[0]) + MatrixXd::Ones(SX, P),
                     W.evaluate_forward(h.x[0]) + MatrixXd::Ones(SX, P)) <= 1e-11);
    }
}

TEST_CASE(
    "operator: the parts of an answer are those of W(0) and of what was learned, in either form [every structure, "
    "AdamW "
    "included]") {
  using moe::Part;
  for (const auto& c : structures)
    for (const auto kind : {OptimizerKind::sgd, OptimizerKind::momentum, OptimizerKind::adam, OptimizerKind::adamw}) {
      INFO(std::string(c.name));
      CAPTURE(static_cast<int>(kind));
      const moe::UpdateRule r = with_decay(kind);
      Asked W(SX, SY, c.constants, r, 1e-9, false, 17);
      const bool initial = c.constants.chi2 > 0 || c.constants.beta2 > 0;
      const History h = train(W, 3);
      for (const bool dense : {false, true}) {
        CAPTURE(dense);
        if (dense) W.become_dense();
        const MatrixXd x = dense ? h.x[1] : gaussian(SY, P, 8, 1), z = dense ? h.z[2] : gaussian(SX, P, 8, 2);
        const MatrixXd Wx = W.forward(x), Wz = W.backward(z);
        const MatrixXd init_x = W.forward_part(Part::init), learned_x = W.forward_part(Part::learned),
                       init_z = W.backward_part(Part::init), learned_z = W.backward_part(Part::learned);
        CHECK(relative(init_x + learned_x, Wx) <= rounding);
        CHECK(relative(init_z + learned_z, Wz) <= rounding);
        CHECK(learned_x.norm() > 0.01 * Wx.norm());
        CHECK((init_x.norm() > 0.01 * Wx.norm()) == initial);
        // Each part is a matrix of its own, asked from both sides.
        const double scale = rounding * z.norm() * x.norm();
        CHECK((z.transpose() * init_x / SX - init_z.transpose() * x / SY).norm() <= scale);
        CHECK((z.transpose() * learned_x / SX - learned_z.transpose() * x / SY).norm() <= scale);
        // W(0) does not learn: after an update it answers what is in the bases as before.
        W.update();
        CHECK((W.evaluate_forward(x, moe::Weights::initial) - init_x).norm() <= rounding * (1 + init_x.norm()));
        CHECK((W.evaluate_backward(z, moe::Weights::initial) - init_z).norm() <= rounding * (1 + init_z.norm()));
      }
    }
}

TEST_CASE("operator: what is at hand and what is left are the parts, and an answer is added to what is there") {
  for (const auto& c : structures)
    for (const bool dense : {false, true}) {
      INFO(std::string(c.name));
      Asked W(SX, SY, c.constants, rule(OptimizerKind::adam, 0.3), 1e-9, false, 18);
      const History h = train(W, 3);
      if (dense) W.become_dense();
      const MatrixXd Wx = W.forward(h.x[1]), init = W.forward_part(moe::Part::init),
                     learned = W.forward_part(moe::Part::learned);
      operator_fixture::Matrix x(SY, P), out(SX, P), whole(SX, P);
      operator_fixture::B::upload(h.x[1], x);
      operator_fixture::B::upload(Wx, whole);
      const moe::Part at_hand = W.op().part_at_hand();
      auto parts =
          moe::split<operator_fixture::B>(whole, at_hand, [&](auto to) { W.op().forward_part(at_hand, x, to); });
      CHECK((operator_fixture::B::download(parts.init) - init).norm() <= rounding * (1 + Wx.norm()));
      CHECK((operator_fixture::B::download(parts.learned) - learned).norm() <= rounding * (1 + Wx.norm()));
      const MatrixXd there = gaussian(SX, P, 9, 1);
      operator_fixture::B::upload(there, out);
      W.op().forward(x, out, {0.5, -2});
      CHECK((operator_fixture::B::download(out) - (0.5 * Wx - 2 * there)).norm() <= rounding * (1 + Wx.norm()));
    }
}

TEST_CASE(
    "operator: learned part is the sum of outer products of stored queries, (T15)-(T19), momentum and decay included") {
  for (const auto kind : {OptimizerKind::sgd, OptimizerKind::momentum}) {
    Asked W(SX, SY, {0.0, 0.0}, rule(kind, 0.25), 1e-10, false, 15);
    const History h = train(W, 5);
    MatrixXd velocity = MatrixXd::Zero(SX, SY), learned = velocity;
    for (std::size_t t = 0; t < h.x.size(); ++t) {
      velocity = (kind == OptimizerKind::momentum ? 0.8 : 0.0) * velocity + h.z[t] * h.x[t].transpose();
      learned += 0.25 * velocity;
    }
    const MatrixXd x = gaussian(SY, P, 3, 3), z = gaussian(SX, P, 3, 4);
    CHECK(relative(W.evaluate_forward(x), learned * x / SY) <= 1e-9);
    CHECK(relative(W.evaluate_backward(z), learned.transpose() * z / SX) <= 1e-9);
  }
}

TEST_CASE("operator: Adam and AdamW on pairs equal the optimizer on an explicit array, (T22), (T23)") {
  for (const double decay : {1.0, 0.9}) {
    moe::UpdateRule r = rule(decay == 1.0 ? OptimizerKind::adam : OptimizerKind::adamw, 0.25);
    r.decay = decay;
    Asked W(SX, SY, {0.0, 0.0}, r, 1e-10, false, 16);
    const History h = train(W, 5);
    MatrixXd m = MatrixXd::Zero(SX, SY), v = m, learned = m;
    for (std::size_t t = 0; t < h.x.size(); ++t) {
      const MatrixXd g = h.z[t] * h.x[t].transpose();
      m = 0.9 * m + 0.1 * g;
      v = 0.95 * v + 0.05 * g.cwiseProduct(g);
      const double k = static_cast<double>(t + 1);
      const Eigen::ArrayXXd step =
          (m.array() / (1 - std::pow(0.9, k))) / ((v.array() / (1 - std::pow(0.95, k))).sqrt() + 0.1);
      learned = decay * learned + 0.25 * step.matrix();
    }
    const MatrixXd x = gaussian(SY, P, 3, 3);
    CHECK(relative(W.evaluate_forward(x), learned * x / SY) <= 1e-12);
  }
}

TEST_CASE(
    "operator: evaluation-only answers decay with the matrix, what is new in them too, and W(0) does not [AdamW]") {
  for (const auto& c : structures) {
    INFO(std::string(c.name));
    moe::UpdateRule whole = rule(OptimizerKind::adamw, 0), decays = whole;
    decays.decay = 0.7;
    Asked W(SX, SY, c.constants, whole, 1e-9, false, 19), V(SX, SY, c.constants, decays, 1e-9, false, 19);
    for (Asked* o : {&W, &V})
      for (std::uint32_t t = 0; t < 2; ++t) {
        o->forward(gaussian(SY, P, 7, t));
        o->backward(gaussian(SX, P, 7, 10 + t));
        o->update();
      }
    const MatrixXd x = gaussian(SY, P, 8, 1), z = gaussian(SX, P, 8, 2);
    const double left = 0.7 * 0.7;
    CHECK((V.evaluate_forward(x) - left * W.evaluate_forward(x)).norm() <= rounding);
    CHECK((V.evaluate_backward(z) - left * W.evaluate_backward(z)).norm() <= rounding);
    const MatrixXd first = W.evaluate_forward(x, moe::Weights::initial);
    CHECK((V.evaluate_forward(x, moe::Weights::initial) - first).norm() <= rounding);
    CHECK((first.norm() > 1) == (c.constants.chi2 > 0 || c.constants.beta2 > 0));
  }
}

TEST_CASE("operator: what is new in evaluation-only answers is drawn anew for each, and once in the dense form") {
  Asked W(SX, SY, {1.0, 1.5}, rule(OptimizerKind::sgd, 0.1), 1e-9, false, 20);
  const MatrixXd x = gaussian(SY, P, 8, 1);
  const auto correlation = [&] {
    const MatrixXd a = W.evaluate_forward(x), b = W.evaluate_forward(x);
    return a.cwiseProduct(b).sum() / a.norm() / b.norm();
  };
  CHECK(std::abs(correlation()) <= 4 / std::sqrt(1.0 * SX * P));  // nothing was asked: all is new
  W.become_dense();
  CHECK(correlation() == doctest::Approx(1).epsilon(1e-12));
}

TEST_CASE("operator: tolerance drops small directions, rank stays at the dimension of what is asked") {
  Asked W(SX, SY, {1.0, 1.5}, rule(OptimizerKind::sgd, 0.1), 0.05, false, 17);
  const MatrixXd directions = gaussian(SY, 2, 4, 1);
  for (std::uint32_t t = 0; t < 6; ++t) {
    const MatrixXd mix = gaussian(2, P, 4, 10 + t), noise = 1e-3 * gaussian(SY, P, 4, 20 + t);
    W.forward(directions * mix + noise);
    CHECK(W.rank_x() == P);  // all of the first block
  }
  Asked fine(SX, SY, {1.0, 1.5}, rule(OptimizerKind::sgd, 0.1), 1e-6, false, 17);
  for (std::uint32_t t = 0; t < 6; ++t)
    fine.forward(directions * gaussian(2, P, 4, 10 + t) + 1e-3 * gaussian(SY, P, 4, 20 + t));
  CHECK(fine.rank_x() > 12);
}

TEST_CASE(
    "operator: answers change as their queries do, however small the change is, and what it is small beside is "
    "dropped") {
  constexpr Index S = 4000;
  constexpr double tolerance = 0.01;
  // Two blocks of one direction each, the second much larger, so that the smallest part of the first is no longer seen beside it.
  const MatrixXd first = gaussian(S, P, 4, 1), change = gaussian(S, P, 4, 2), beside = gaussian(S, P, 4, 3);
  for (const double size : {1e-1, 1e-3, 1e-6}) {
    INFO("relative change ", size);
    Asked W(S, S, {1.0, 1.0}, rule(OptimizerKind::sgd, 0.1), tolerance, false, 23);
    const MatrixXd before = W.forward(first);
    CHECK(W.rank_x() == P);
    const MatrixXd after = W.forward(first + size * (change + 0.1 * tolerance * beside));
    CHECK(W.rank_x() == 2 * P);
    CHECK((after - before).norm() ==
          doctest::Approx(size * change.norm()).epsilon(4 / std::sqrt(2.0 * S * P)).scale(0));
    // Half as much again in the same direction, and back: nothing new.
    W.forward(first + 1.5 * size * change);
    CHECK(relative(W.forward(first), before) <= rounding / size);
    CHECK(W.rank_x() == 2 * P);
    // A query that has changed altogether is resolved to the tolerance of itself.
    W.forward(beside + 0.1 * tolerance * gaussian(S, P, 4, 4));
    CHECK(W.rank_x() == 3 * P);
  }
}

TEST_CASE("basis: the rounding of averages over many sites adds no directions") {
  constexpr Index S = 1000;
  moe::QueryBasis<LongSums> basis(S, 0.01);
  basis.add_user();
  const MatrixXd first = gaussian(S, P, 4, 1), change = gaussian(S, P, 4, 2);
  const auto ask = [&](const MatrixXd& query) {
    LongSums::Matrix x(S, P);
    LongSums::upload(query, x);
    basis.ask(x);
    return basis.rank();
  };
  for (int t = 0; t < 5; ++t) CHECK(ask(first) == P);
  for (int t = 1; t < 5; ++t) CHECK(ask(first + 1e-4 * t * change) == 2 * P);
}

TEST_CASE("operator: counts out of the network's ratio are reported and refuse the dense form") {
  Asked in_ratio(SX, SY, {1.0, 1.5}, rule(OptimizerKind::sgd, 0.1), 1e-9, false, 18);
  Asked out_of_ratio(SX, SY, {1.0, 3.0}, rule(OptimizerKind::sgd, 0.1), 1e-9, false, 18);
  train(in_ratio, 4);
  train(out_of_ratio, 4);
  CHECK(in_ratio.op().sample_ratio_defect() <= 1e-12);
  // q (s_beta^2/SY - s_chi^2/SX) with q = 9 when the fourth block is asked forward; backward r = 12 relative to s_beta^2.
  CHECK(out_of_ratio.op().sample_ratio_defect() == doctest::Approx(9 * (3.0 / SY - 1.0 / SX)).epsilon(1e-9));
  CHECK(in_ratio.op().can_become_dense());
  CHECK_FALSE(out_of_ratio.op().can_become_dense());
  // Counts are whole numbers: two per cent pass for in ratio.
  const auto dense_with = [](double beta2) {
    return Asked(SX, SY, {1.0, beta2}, rule(OptimizerKind::sgd, 0.1), 1e-9, false, 18).op().can_become_dense();
  };
  CHECK(dense_with(1.01 * 1.5));
  CHECK_FALSE(dense_with(1.05 * 1.5));
  CHECK_FALSE(dense_with(0.95 * 1.5));
}

TEST_CASE("population: drawn vectors are exactly orthonormal with matching, up to half the sites, and plain without") {
  using operator_fixture::B;
  for (const bool matching : {true, false}) {
    moe::Population<B> population(200, {3, 0, 1, 0}, matching);
    population.add_user();
    MatrixXd all(200, 0);
    for (const Index k : {7, 40, 53, 20}) {  // the last draw would pass 100 = 200/2
      B::Matrix drawn(200, k);
      population.draw(drawn);
      MatrixXd joined(200, all.cols() + k);
      joined << all, B::download(drawn);
      all = joined;
    }
    const MatrixXd gram = all.leftCols(100).transpose() * all.leftCols(100) / 200.0;
    const double off = (gram - MatrixXd::Identity(100, 100)).cwiseAbs().maxCoeff();
    if (matching)
      CHECK(off <= 1e-12);
    else
      CHECK(off > 0.05);
    // The plain draw behind the list is not orthogonal to it.
    CHECK((all.leftCols(100).transpose() * all.rightCols(20) / 200.0).cwiseAbs().maxCoeff() > 0.05);
  }
}

TEST_CASE(
    "population: forks draw orthogonal to what they began with and not to each other; with the same numbers a fork "
    "goes "
    "on as its origin would, bit for bit") {
  using operator_fixture::B;
  const auto draw = [](moe::Population<B>& from, Index k) {
    B::Matrix drawn(200, k);
    from.draw(drawn);
    return B::download(drawn);
  };
  const auto overlap = [](const MatrixXd& a, const MatrixXd& b) {
    return (a.transpose() * b / 200.0).cwiseAbs().maxCoeff();
  };
  moe::Population<B> origin(200, {3, 0, 1, 0}, true);
  const MatrixXd begun = draw(origin, 30);
  moe::Population<B> first = origin.fork(origin.key()), second = origin.fork({3, 0, 2, 0});
  const MatrixXd of_first = draw(first, 20), of_second = draw(second, 60);
  CHECK(overlap(begun, of_first) <= 1e-12);
  CHECK(overlap(begun, of_second) <= 1e-12);
  CHECK(overlap(of_first, of_second) > 0.05);  // 200^-1/2 = 0.07
  CHECK(overlap(of_first, of_second) < 0.4);   // 1200 pairs of independent vectors
  CHECK((draw(origin, 20) == of_first));
  CHECK(overlap(of_second, draw(second, 10)) <= 1e-12);  // 100 vectors: the list is full
  CHECK(overlap(of_second, draw(second, 10)) > 0.05);
}

TEST_CASE("directions of a block do not depend on rounding errors of its averages, their signs included") {
  Eigen::MatrixXd targets = Eigen::MatrixXd::Constant(1, 3, -1);
  targets(0, 0) = 1;  // rank one: three in ten of the eigensolver's signs are the noise's
  const Eigen::MatrixXd gram = targets.transpose() * targets;
  const Eigen::MatrixXd first = moe::new_directions(gram, 1e-6, 10);
  REQUIRE(first.cols() == 1);
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    const Eigen::MatrixXd noise = 1e-16 * gram.norm() * operator_fixture::gaussian(3, 3, seed, 3);
    const Eigen::MatrixXd again = moe::new_directions(gram + noise + noise.transpose(), 1e-6, 10);
    REQUIRE(again.cols() == 1);
    CHECK((again - first).norm() <= 1e-14 * first.norm());
  }
}
