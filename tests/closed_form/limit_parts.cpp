// Small parts of the limit's solver by hand: losses and their derivatives, accuracy, standard errors over replicas, what the optimizer does
// to a tensor, sums that cancel, what lists of draws hold.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "dmft/expert_measures.hpp"
#include "dmft/loss.hpp"
#include "dmft/matched_draws.hpp"
#include "dmft/solve.hpp"
#include "tests/limit_fixture.hpp"

using Eigen::MatrixXd;

namespace {
moe::LimitSpec limit_of(const moe::RunSpec& s) {
  moe::Faults faults;
  std::vector<std::string> warnings;
  moe::LimitSpec limit = moe::limit_spec(s, {6, 1, 4}, faults, warnings);
  faults.throw_if_any();
  return limit;
}
}  // namespace

TEST_CASE("limit: losses by hand, targets that do not sum to one as they stand, and delta is minus their derivative") {
  // log(e^0 + e^log 3) = log 4.
  const MatrixXd f = (MatrixXd(2, 2) << 0, 1, std::log(3.0), 1).finished();
  const MatrixXd y = (MatrixXd(2, 2) << 0.5, 2, 1, 0).finished();
  CHECK(moe::loss_value(moe::Loss::mse, f, y) ==
        doctest::Approx((0.25 + std::pow(std::log(3.0) - 1, 2) + 1 + 1) / 4).epsilon(1e-14));
  const double of_first = 1.5 * std::log(4.0) - std::log(3.0), of_second = 2 * std::log(2.0);
  CHECK(moe::loss_value(moe::Loss::cross_entropy, f, y) == doctest::Approx((of_first + of_second) / 2).epsilon(1e-14));
  constexpr double h = 1e-4;  // differences err by h^2, and by rounding over h
  for (const moe::Loss loss : {moe::Loss::mse, moe::Loss::cross_entropy}) {
    const MatrixXd delta = moe::loss_delta(loss, f, y);
    for (Eigen::Index k = 0; k < f.size(); ++k) {
      MatrixXd above = f, below = f;
      above.data()[k] += h, below.data()[k] -= h;
      const double slope = (moe::loss_value(loss, above, y) - moe::loss_value(loss, below, y)) / (2 * h);
      CHECK(std::abs(delta.data()[k] + slope) <= h * h + 1e-15 / h);
    }
  }
}

TEST_CASE("limit: accuracy by hand [several outputs, one output]") {
  const MatrixXd f = (MatrixXd(3, 2) << 1, 0, 3, 5, 2, -1).finished();
  const MatrixXd y = (MatrixXd(3, 2) << 0, 0, 1, 0, 0, 1).finished();
  CHECK(moe::accuracy(f, y) == 0.5);
  const MatrixXd one = (MatrixXd(1, 4) << 0.1, -2, 3, -0.5).finished(),
                 sign = (MatrixXd(1, 4) << 1, -1, -1, -1).finished();
  CHECK(moe::accuracy(one, sign) == 0.75);
}

TEST_CASE("limit: mean over replicas and its standard error, by hand") {
  const moe::Curve c = moe::curve_of({{1, 0, 9}, {2, 0}, {6, 0}}, 2);
  REQUIRE(c.mean.size() == 2);
  CHECK(c.mean[0] == doctest::Approx(3).epsilon(1e-15));
  CHECK(c.sem[0] == doctest::Approx(std::sqrt((4.0 + 1 + 9) / 2 / 3)).epsilon(1e-15));
  CHECK(c.sem[1] == 0);
  CHECK(std::isnan(moe::curve_of({{1}}, 1).sem[0]));
}

TEST_CASE("limit: weights decay under adamw alone, every tensor by optimizer.lr and not by its own rate") {
  for (const auto optimizer : {moe::OptimizerKind::adam, moe::OptimizerKind::adamw, moe::OptimizerKind::sgd}) {
    moe::RunSpec s = limit_fixture::spec("II", "mssp", optimizer, 0.2, 1);
    s.optimizer.weight_decay = 0.5;
    s.optimizer.lr_scale = {{2, 3, 0, 0.5, 4}};
    const moe::LimitSpec limit = limit_of(s);
    const double decay = optimizer == moe::OptimizerKind::adamw ? 0.9 : 1;
    for (const moe::UpdateRule& rule :
         {limit.input, limit.readout, limit.block.router, limit.block.expert_in, limit.block.expert_out})
      CHECK(rule.decay == decay);
    CHECK(limit.input.lr == doctest::Approx(0.4).epsilon(1e-14));
  }
}

TEST_CASE("limit: logits that vanish keep an order and nothing else, their variances in ratio [III jiang, topk]") {
  moe::RunSpec s = limit_fixture::spec("III", "jiang", moe::OptimizerKind::adam, 0.1, 1);
  s.optimizer.eps = 0;
  s.model.experts_per_width = 0.25;
  CHECK(limit_of(s).block.constants.router.chi2 == 0);
  s.model.routing = moe::Routing::topk;
  const moe::GaussianConstants router = limit_of(s).block.constants.router;
  CHECK(router.chi2 > 0);
  CHECK(router.chi2 < 1e-9);
  CHECK(router.beta2 / router.chi2 == doctest::Approx(4).epsilon(1e-14));
}

TEST_CASE(
    "limit: s of an expert whose terms cancel to their rounding is zero, another keeps its value [few and many "
    "units]") {
  using B = moe::Cpu<double>;
  for (const moe::Index copies : {1, 30}) {  // 3 and 90 units
    const moe::Index hidden = 3 * copies;
    B::Matrix v(2 * hidden, 1), zeta(2 * hidden, 1), s(2, 1);
    for (moe::Index a = 0; a < hidden; ++a) {
      const double terms[] = {0.1, 0.2, -0.3};  // sums to 6e-17, and many of them to more
      v.view()(a, 0) = terms[a % 3], zeta.view()(a, 0) = 1;
      v.view()(hidden + a, 0) = a == 0 ? 1e-9 : terms[a % 3], zeta.view()(hidden + a, 0) = 1;
    }
    moe::detail::mean_products_over_hidden<B>(v, zeta, s);
    CHECK(s.view()(0, 0) == 0);
    CHECK(s.view()(1, 0) == doctest::Approx((1e-9 - 0.1) / static_cast<double>(hidden)).epsilon(1e-12));
  }
}

TEST_CASE("limit: lists of draws hold what the first step draws, counted by hand [II mssp, one and two blocks]") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.1, 1);
  const moe::StepShape step{8, 20, 7};
  const moe::LimitConstants constants = limit_of(s).block.constants;
  const auto hold = [&](int neurons, int experts) {
    return moe::lists_hold_first_step(s, constants, {neurons, experts, 4, experts}, step);
  };
  // On neurons 8 columns of W_in, 20 outputs and 7 images of B: 35 of half as many sites.
  CHECK(hold(70, 400));
  CHECK_FALSE(hold(69, 400));
  // On experts 7 images of Q.
  CHECK(hold(400, 14));
  CHECK_FALSE(hold(400, 13));
  // On the way back to the first block the second one draws for A^T and for Q^T.
  s.model.depth = 2;
  CHECK(hold(98, 400));
  CHECK_FALSE(hold(97, 400));
}
