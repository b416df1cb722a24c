// Check (9) of theory section 10, the sharpest there is: the plain sweep with counts in ratio and every direction kept has the law of
// finite networks of N = neurons, mean and variance over seeds, without extrapolation, in every regime. And check (2): without response
// terms it has not.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "dmft/march.hpp"
#include "support/cpu.hpp"
#include "support/observable.hpp"
#include "support/schedule.hpp"
#include "tests/folders.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/network.hpp"
#include "validation/statistics.hpp"

namespace {

struct Law {
  std::string regime, param;
  moe::OptimizerKind optimizer;
  moe::Routing routing;
  moe::Gate gate;
  int N;
  double lr;
};

moe::RunSpec describe(const Law& law, int seeds) {
  constexpr int T = 6;
  moe::RunSpec s =
      limit_fixture::as_network(limit_fixture::spec(law.regime, law.param, law.optimizer, law.lr, T), law.N);
  s.model.routing = law.routing;
  s.model.gate = law.gate;
  s.sampling.replicas = seeds;
  s.network.widths = {law.N};
  s.network.seeds = seeds;
  s.output.observables = {"rms_r", "rms_u", "rms_y_init", "rms_y_propagating", "rms_y_effective", "rms_zeta", "rms_xi"};
  return s;
}

using Samples = std::map<std::string, std::vector<double>>;  ///< "loss 3" -> one value per seed

Samples of_networks(const moe::RunSpec& s, const moe::Dataset& d) {
  Samples samples;
  const auto runs = moe::train_networks(s, d, 0);
  for (const auto& run : runs.at(0)) {
    for (int t : {1, 3, 6}) samples["loss " + std::to_string(t)].push_back(run.loss[static_cast<std::size_t>(t)]);
    for (const auto& [name, values] : run.observables) samples[name + " 6"].push_back(values.back());
  }
  return samples;
}

Samples of_limit(const moe::RunSpec& s, const moe::Dataset& d, bool drop_responses) {
  moe::Faults faults;
  std::vector<std::string> warnings;
  moe::Plan plan{&s, &d, moe::limit_spec(s, moe::step_shape(s, d), faults, warnings), {}, {}, {}, {}, {}, false};
  faults.throw_if_any();
  plan.limit.block.matching = false;
  if (drop_responses) {  // the backward Gaussian of A and its response in u go together
    plan.limit.block.constants.expert_in.beta2 = 0;
  }
  plan.eval_steps = moe::eval_steps(s.training);
  plan.observe_steps = moe::observe_steps(s);
  plan.observables = s.output.observables;
  Samples samples;
  for (int k = 0; k < s.sampling.replicas; ++k) {
    moe::Record record;
    moe::march<moe::Cpu<double>>(plan, k, {}, std::atomic<bool>{false}, record);
    for (int t : {1, 3, 6}) samples["loss " + std::to_string(t)].push_back(record.loss[static_cast<std::size_t>(t)]);
    const auto observed = moe::recorded_all(plan.observables, plan.limit.depth);
    for (std::size_t o = 0; o < observed.size(); ++o)
      samples[observed[o].key + " 6"].push_back(record.observables.back()[o]);
  }
  return samples;
}

/// Largest |z| over means and variances of all samples; checks each below 4.2 (20 comparisons of 8 laws: one false alarm in 250 choices of
/// the seeds, which are fixed).
double compare(const Law& law, const moe::RunSpec& s, const moe::Dataset& d, bool drop_responses = false) {
  const Samples networks = of_networks(s, d), limit = of_limit(s, d, drop_responses);
  double worst = 0;
  REQUIRE(networks.size() == limit.size());
  for (const auto& [name, values] : networks) {
    const double zm = moe::statistics::mean_z(values, limit.at(name)),
                 zv = moe::statistics::variance_z(values, limit.at(name));
    worst = std::max({worst, std::abs(zm), std::abs(zv)});
    if (drop_responses) continue;
    const moe::statistics::Moments a = moe::statistics::moments(values), b = moe::statistics::moments(limit.at(name));
    INFO("regime ", law.regime, " ", law.param, ", N = ", law.N, ", ", name, ": networks mean ", a.mean, " +- ",
         a.mean_error, ", sd ", std::sqrt(a.variance), "; sweep mean ", b.mean, " +- ", b.mean_error, ", sd ",
         std::sqrt(b.variance), "; z ", zm, ", ", zv);
    CHECK(std::abs(zm) < 4.2);
    CHECK(std::abs(zv) < 4.2);
  }
  return worst;
}

double compare(const Law& law, int seeds, bool drop_responses = false) {
  return compare(law, describe(law, seeds), limit_fixture::data(4, 5, 1), drop_responses);
}

/// Every parameter away from its neutral value: multipliers, prefactors, scales, post-activation, residual, decay, several outputs.
void compare_far_from_neutral(const Law& law, moe::Activation activation, int seeds) {
  moe::RunSpec s = describe(law, seeds);
  s.model.activation = activation;
  s.model.activation_scale = activation == moe::Activation::tanh ? 1.4 : 1.0;
  s.model.post_activation = moe::Activation::tanh;
  s.model.active_fraction = 0.5;
  s.model.experts_per_width = 0.75;
  s.model.expert_width_per_width = 1.25;
  s.model.experts = 4;
  s.model.expert_width = 3;
  s.model.residual = true;
  s.model.aggregation = {{"const", 0.8}, {"K", -1.0}};
  s.model.output_scale = 1.3;
  s.model.init_scale = {{0.9, 1.2, 1.1, 0.8, 1.25}};
  s.optimizer.lr_scale = {{0.8, 1.5, 0.9, 1.2, 0.7}};
  s.optimizer.weight_decay = 0.5;
  s.training.loss = moe::Loss::cross_entropy;
  compare(law, s, limit_fixture::data(4, 5, 3));
}

using enum moe::OptimizerKind;
using moe::Gate;
using moe::Routing;

}  // namespace

TEST_CASE("plain sweep has the law of finite networks of N = neurons [I mssp sgd soft, N=24]") {
  compare({"I", "mssp", sgd, Routing::soft, Gate::sigmoid, 24, 0.7}, 500);
}
TEST_CASE("plain sweep has the law of finite networks of N = neurons [I mup sgd topk softmax, N=24]") {
  compare({"I", "mup", sgd, Routing::topk, Gate::softmax, 24, 0.7}, 500);
}
TEST_CASE("plain sweep has the law of finite networks of N = neurons [II mssp sgd soft, N=24]") {
  compare({"II", "mssp", sgd, Routing::soft, Gate::sigmoid, 24, 0.5}, 500);
}
TEST_CASE("plain sweep has the law of finite networks of N = neurons [II mssp adam topk softmax, N=24]") {
  compare({"II", "mssp", adam, Routing::topk, Gate::softmax, 24, 0.1}, 400);
}
TEST_CASE("plain sweep has the law of finite networks of N = neurons [II mssp momentum topk, N=24]") {
  compare({"II", "mssp", momentum, Routing::topk, Gate::sigmoid, 24, 0.2}, 400);
}
TEST_CASE("plain sweep has the law of finite networks of N = neurons [III mssp sgd soft, N=16]") {
  compare({"III", "mssp", sgd, Routing::soft, Gate::sigmoid, 16, 0.5}, 400);
}
TEST_CASE("plain sweep has the law of finite networks of N = neurons [III mssp adam soft, N=16]") {
  compare({"III", "mssp", adam, Routing::soft, Gate::sigmoid, 16, 0.1}, 300);
}
TEST_CASE(
    "plain sweep has the law of finite networks, every parameter away from neutral [I mup momentum topk, gelu, N=20]") {
  compare_far_from_neutral({"I", "mup", momentum, Routing::topk, Gate::sigmoid, 20, 0.2}, moe::Activation::gelu, 400);
}
TEST_CASE(
    "plain sweep has the law of finite networks, every parameter away from neutral [II mssp adamw topk, tanh, N=20]") {
  compare_far_from_neutral({"II", "mssp", adamw, Routing::topk, Gate::softmax, 20, 0.1}, moe::Activation::tanh, 400);
}
TEST_CASE(
    "plain sweep has the law of finite networks, every parameter away from neutral [II mssp sgd soft, relu, N=20]") {
  compare_far_from_neutral({"II", "mssp", sgd, Routing::soft, Gate::softmax, 20, 0.3}, moe::Activation::relu, 400);
}
TEST_CASE(
    "plain sweep has the law of finite networks, every parameter away from neutral [III mssp adamw topk, gelu, N=12]") {
  compare_far_from_neutral({"III", "mssp", adamw, Routing::topk, Gate::sigmoid, 12, 0.1}, moe::Activation::gelu, 300);
}
TEST_CASE("plain sweep has the law of finite networks with shared experts in regime I [sgd topk, N=24]") {
  compare({"I", source_folder() + "/tests/data/tables/shared_in_every_regime.toml", sgd, Routing::topk, Gate::sigmoid,
           24, 0.7},
          500);
}
TEST_CASE("plain sweep has the law of finite networks with a zero readout [II mssp sgd, residual, N=24]") {
  const Law law{"II", "mssp", sgd, Routing::soft, Gate::sigmoid, 24, 0.7};
  moe::RunSpec s = describe(law, 500);
  s.model.readout_init = moe::ReadoutInit::zero;
  s.model.residual = true;
  compare(law, s, limit_fixture::data(4, 5, 1));
}
TEST_CASE("plain sweep has the law of finite networks under signSGD, where no gradient vanishes [II mssp, N=24]") {
  compare({"II", "mssp", signsgd, Routing::soft, Gate::sigmoid, 24, 0.03}, 500);
}
// (T30): means over the rows and columns of a matrix are those of the network of that size.
TEST_CASE("plain sweep has the law of finite networks under Adafactor [II mssp topk softmax, N=24]") {
  compare({"II", "mssp", adafactor, Routing::topk, Gate::softmax, 24, 0.05}, 400);
}
TEST_CASE("plain sweep has the law of finite networks under Adafactor [I mup soft, N=20]") {
  compare({"I", "mup", adafactor, Routing::soft, Gate::sigmoid, 20, 0.05}, 400);
}
/// Three blocks on one stream, each compared by itself.
void compare_stack(const Law& law, double alpha, moe::Norm norm, bool residual, double temperature) {
  moe::RunSpec s = describe(law, 400);
  s.model.depth = 3;
  s.model.branch_exponent = alpha;
  s.model.norm = norm;
  s.model.residual = residual;
  s.model.router_temperature = temperature;
  s.output.observables = {"rms_r", "rms_u", "rms_y_propagating", "rms_zeta", "rms_xi"};
  compare(law, s, limit_fixture::data(4, 5, 1));
}
TEST_CASE("plain sweep has the law of finite networks of three blocks [II mssp sgd soft, norm, alpha 1, N=20]") {
  compare_stack({"II", "mssp", sgd, Routing::soft, Gate::sigmoid, 20, 0.5}, 1, moe::Norm::rms, true, 0.7);
}
TEST_CASE("plain sweep has the law of finite networks of three blocks [II mssp adam topk softmax, alpha 1/2, N=20]") {
  compare_stack({"II", "mssp", adam, Routing::topk, Gate::softmax, 20, 0.1}, 0.5, moe::Norm::none, true, 1.5);
}
TEST_CASE("plain sweep has the law of finite networks of three blocks [I mup sgd soft, norm, no residual, N=16]") {
  compare_stack({"I", "mup", sgd, Routing::soft, Gate::softmax, 16, 0.3}, 0.5, moe::Norm::rms, false, 1);
}
TEST_CASE("plain sweep has the law of finite networks of three blocks [III mssp momentum soft, norm, N=12]") {
  compare_stack({"III", "mssp", momentum, Routing::soft, Gate::softmax, 12, 0.2}, 1, moe::Norm::rms, true, 1);
}
TEST_CASE("plain sweep has the law of finite networks of three blocks under Adafactor [III mssp soft, norm, N=12]") {
  compare_stack({"III", "mssp", adafactor, Routing::soft, Gate::softmax, 12, 0.05}, 0.5, moe::Norm::rms, true, 1);
}
/// Balancing loss and bias (T31), (T32) with top-K: loads too.
moe::RunSpec balanced(const Law& law, double balance_loss, double balance_bias, int depth = 1) {
  moe::RunSpec s = describe(law, 400);
  s.model.balance_loss = balance_loss;
  s.model.balance_bias = balance_bias;
  s.model.depth = depth;
  s.model.residual = depth > 1;
  s.output.observables = {"rms_r", "rms_u", "rms_rho", "rms_xi", "rms_xi_Q_effective", "load_q99", "router_entropy"};
  return s;
}
void compare_balanced(const Law& law, double balance_loss, double balance_bias, int depth = 1) {
  compare(law, balanced(law, balance_loss, balance_bias, depth), limit_fixture::data(6, 5, 1));
}
TEST_CASE("plain sweep has the law of finite networks with a balancing loss [II mssp sgd topk softmax, N=24]") {
  compare_balanced({"II", "mssp", sgd, Routing::topk, Gate::softmax, 24, 0.5}, 0.7, 0);
}
// Not muP: networks have its B(0), which is absent from the limit (0, 0), so that their laws differ by O(N^-1/2).
TEST_CASE("plain sweep has the law of finite networks with loss and bias [II mssp adam topk, two blocks, N=20]") {
  compare_balanced({"II", "mssp", adam, Routing::topk, Gate::sigmoid, 20, 0.1}, 0.3, 0.2, 2);
}
TEST_CASE("balancing lowers large loads in networks and limit, in every block [loss, bias; II mssp sgd topk, N=24]") {
  const Law law{"II", "mssp", sgd, Routing::topk, Gate::sigmoid, 24, 0.5};
  const moe::Dataset data = limit_fixture::data(6, 5, 1);
  const auto samples = [&](double loss, double bias) {
    moe::RunSpec s = balanced(law, loss, bias, 2);
    s.sampling.replicas = s.network.seeds = 150;
    return std::pair{of_networks(s, data), of_limit(s, data, false)};
  };
  const auto free = samples(0, 0);
  for (const auto& [loss, bias] : {std::pair{4.0, 0.0}, {0.0, 0.1}}) {
    const auto kept = samples(loss, bias);
    for (const char* name : {"load_q99.1 6", "load_q99.2 6"}) {
      INFO("loss ", loss, ", bias ", bias, ": ", std::string(name));
      CHECK(moe::statistics::mean_z(free.first.at(name), kept.first.at(name)) > 4.2);
      CHECK(moe::statistics::mean_z(free.second.at(name), kept.second.at(name)) > 4.2);
    }
  }
}
TEST_CASE("plain sweep has the law of finite networks with a balancing bias [III mssp sgd topk, N=16]") {
  compare_balanced({"III", "mssp", sgd, Routing::topk, Gate::sigmoid, 16, 0.5}, 0, 0.3);
}
TEST_CASE("plain sweep has the law of finite networks with loss and bias [I mup sgd topk, N=24]") {
  compare_balanced({"I", "mup", sgd, Routing::topk, Gate::sigmoid, 24, 0.5}, 0.7, 0.1);
}
TEST_CASE("logits that vanish with size choose the top K of every token by itself, as networks' do [III jiang, N=24]") {
  moe::RunSpec s = describe({"III", "jiang", adam, Routing::topk, Gate::constant, 24, 0.1}, 200);
  s.model.active_fraction = 0.25;
  s.output.observables = {"load_max"};
  s.training.steps = 0;
  const moe::Dataset data = limit_fixture::data(8, 5, 1);
  std::vector<double> loads;
  const auto runs = moe::train_networks(s, data, 0);
  for (const auto& run : runs.at(0)) loads.push_back(run.observables.at("load_max").at(0));
  const moe::statistics::Moments networks = moe::statistics::moments(loads);
  const moe::LimitResult limit = moe::solve_limit(s, data);
  const auto& load = limit.observables.at("load_max");
  INFO("networks ", networks.mean, " +- ", networks.mean_error, ", limit ", load.mean[0], " +- ", load.sem[0]);
  CHECK(std::abs(load.mean[0] - networks.mean) < 4 * std::hypot(load.sem[0], networks.mean_error));
}
TEST_CASE("without its response terms the sweep does not have the law of networks [II mssp sgd soft, N=24]") {
  CHECK(compare({"II", "mssp", sgd, Routing::soft, Gate::sigmoid, 24, 0.5}, 500, true) > 8);
}
