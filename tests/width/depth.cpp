// Theory section 11: with the branch multiplier L^-alpha and the learning rates of (T29) a stack has a limit as L grows, which the limit at
// finite L reaches as 1/L. What other exponents do.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "dmft/solve.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/statistics.hpp"

namespace {

/// L blocks with norm and residual; the learning rate of router and experts is that of (T29) times L^surplus.
moe::RunSpec stack(int L, double alpha, double surplus, int replicas) {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.5, 1);
  s.model.depth = L;
  s.model.branch_exponent = alpha;
  s.model.norm = moe::Norm::rms;
  s.model.residual = true;
  for (const moe::Tensor t : {moe::Tensor::router, moe::Tensor::expert_in, moe::Tensor::expert_out})
    s.optimizer.lr_scale[t] = std::pow(L, surplus);
  s.sampling.neurons = 512;
  s.sampling.replicas = replicas;
  s.sampling.precision = moe::Precision::float32;
  s.output.observables = {"none"};
  return s;
}

struct Change {
  double early = 0, early_error = 0;  ///< of the loss from L = 1 to 4
  double late = 0, late_error = 0;    ///< from 4 to 16: a quarter of it in a limit that is reached as 1/L
};

/// Of the loss after one step. Replicas share the random numbers of input and readout whatever L.
Change change(double alpha, double surplus, int replicas = 32) {
  const moe::Dataset data = limit_fixture::data(8, 12, 1, 3);
  std::vector<std::vector<double>> loss;
  for (const int L : {1, 4, 16}) {
    const moe::LimitResult r = moe::solve_limit(stack(L, alpha, surplus, replicas), data);
    REQUIRE_FALSE(r.failure);
    loss.emplace_back();
    for (const auto& replica : r.loss_per_replica) loss.back().push_back(replica.back());
  }
  std::vector<double> early, late;
  for (std::size_t k = 0; k < loss[0].size(); ++k)
    early.push_back(loss[1][k] - loss[0][k]), late.push_back(loss[2][k] - loss[1][k]);
  const auto e = moe::statistics::moments(early), l = moe::statistics::moments(late);
  return {e.mean, e.mean_error, l.mean, l.mean_error};
}

/// What |late| is beyond half of |early|, in errors: below it where the limit settles, above where it does not.
double beyond_half(const Change& c) {
  return (std::abs(c.late) - std::abs(c.early) / 2) / std::hypot(c.late_error, c.early_error / 2);
}

}  // namespace

TEST_CASE(
    "the limit of a stack settles as L grows with the learning rates of (T29), and with no others [II mssp sgd; alpha "
    "= 1, 1/2; no multiplier; an L too much, one too little; L = 1, 4, 16]") {
  Change settled;
  for (const auto& [alpha, surplus, settles] :
       {std::tuple{0.5, 0.0, true}, {1.0, 0.0, true}, {0.0, 0.0, false}, {0.5, 1.0, false}}) {
    // With alpha = 1/2 a quarter and a half of the early change are four errors of 32 replicas apart.
    const Change c = change(alpha, surplus, settles && alpha == 0.5 ? 128 : 32);
    INFO("alpha ", alpha, ", learning rate by L^", surplus, ": from L = 1 to 4 ", c.early, " +- ", c.early_error,
         ", to 16 ", c.late, " +- ", c.late_error);
    CHECK(std::abs(c.early) > 6 * c.early_error);
    if (settles)
      CHECK(beyond_half(c) < -4);
    else
      CHECK(beyond_half(c) > 4);
    if (alpha == 1) settled = c;
  }
  // Blocks whose steps fall by one L too much learn the less the deeper the stack: it settles where they stand still.
  const Change stands = change(1, -1);
  INFO("from L = 4 to 16 ", stands.late, " +- ", stands.late_error, "; with (T29) ", settled.late, " +- ",
       settled.late_error);
  CHECK(stands.late - 5 * std::abs(settled.late) > 4 * std::hypot(stands.late_error, 5 * settled.late_error));
}
