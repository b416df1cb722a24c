// Finite networks under gradient flow: the law of the limit's flow on as many samples (check (9)), and the approach to the limit.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/limit_fixture.hpp"
#include "tests/statistics.hpp"
#include "validation/network.hpp"

namespace {

moe::RunSpec flow(const std::string& regime, const std::string& param) {
  moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, 0.5, 3);
  s.training.dynamics = moe::Dynamics::flow;
  s.training.time = 6;
  s.training.stepper = moe::Stepper::rk4;
  s.training.step_size = 0.5;
  s.output.observables = {"none"};
  return s;
}

}  // namespace

TEST_CASE(
    "flow: networks of N = neurons have its law, mean and variance over seeds, dense from t = 0 and in bases with "
    "every direction "
    "kept [check (9), regime x parameterization] [slow]") {
  const moe::Dataset d = limit_fixture::data(4, 5, 1);
  for (const auto& [regime, param, form] :
       {std::tuple{"I", "mup", moe::Form::dense}, std::tuple{"II", "mssp", moe::Form::dense},
        std::tuple{"III", "mssp", moe::Form::dense}, std::tuple{"II", "mssp", moe::Form::bases},
        std::tuple{"III", "mup", moe::Form::bases}}) {
    const int N = std::string(regime) == "III" ? 16 : 32;
    moe::RunSpec s = limit_fixture::as_network(flow(regime, param), N);
    s.sampling.form = form;
    s.sampling.replicas = s.network.seeds = 240;
    s.network.widths = {N};
    const moe::LimitResult limit = moe::solve_limit(s, d);
    const auto networks = moe::train_networks(s, d, 0).at(0);
    REQUIRE(limit.loss_per_replica.size() == networks.size());
    for (const std::size_t t : {std::size_t{1}, std::size_t{3}}) {
      std::vector<double> a, b;
      for (const auto& run : networks) a.push_back(run.loss.at(t));
      for (const auto& row : limit.loss_per_replica) b.push_back(row.at(t));
      const double zm = statistics::mean_z(a, b), zv = statistics::variance_z(a, b);
      const statistics::Moments x = statistics::moments(a), y = statistics::moments(b);
      INFO("regime ", regime, " ", param, form == moe::Form::dense ? " dense" : " bases", ", state ", t, ": networks ",
           x.mean, " +- ", x.mean_error, ", sd ", std::sqrt(x.variance), "; limit ", y.mean, " +- ", y.mean_error,
           ", sd ", std::sqrt(y.variance));
      CHECK(std::abs(zm) < 4.2);
      CHECK(std::abs(zv) < 4.2);
      if (t == 3) CHECK(x.mean < 0.6 * networks[0].loss[0]);
    }
  }
}

TEST_CASE("flow: networks approach the limit's flow as they grow [II mssp, mean loss over seeds] [slow]") {
  const moe::Dataset d = limit_fixture::data(6, 5, 1);
  moe::RunSpec s = flow("II", "mssp");
  s.sampling.neurons = 1024;
  s.sampling.replicas = 8;
  s.network.widths = {16, 64, 256};
  s.network.seeds = 48;
  const moe::LimitResult limit = moe::solve_limit(s, d);
  std::vector<double> deviation, error;
  for (const auto& runs : moe::train_networks(s, d, 0)) {
    std::vector<double> losses;
    for (const auto& run : runs) losses.push_back(run.loss.back());
    const statistics::Moments m = statistics::moments(losses);
    deviation.push_back(std::abs(m.mean - limit.loss.mean.back()));
    error.push_back(std::hypot(m.mean_error, limit.loss.sem.back()));
    MESSAGE("N = " << runs[0].shape.N << ": deviation " << deviation.back() << " +- " << error.back());
  }
  CHECK(deviation[0] > 3 * error[0]);                       // there is something to vanish
  CHECK(deviation[1] < 0.6 * deviation[0] + 2 * error[1]);  // a power of 1/N: a quarter at four times N
  CHECK(deviation[2] <= deviation[0] / 16 + 4 * error[2]);
}
