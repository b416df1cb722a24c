/// Exponents are of powers alone: constants do not change them, nor does the abc-symmetry, nor where a limit exists the way of writing a
/// power in sizes that grow together; the dense network's are those of published muP.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <rapidcheck.h>

#include <cmath>
#include <string>
#include <vector>

#include "regimes/derive.hpp"
#include "regimes/exponents.hpp"
#include "regimes/transfer.hpp"

using namespace moe;

namespace {

const std::vector<const char*> regimes = {"I", "II", "III"};

RunSpec run(const std::string& regime, OptimizerKind optimizer) {
  RunSpec spec;
  spec.model.regime = regime;
  spec.optimizer.name = optimizer;
  spec.optimizer.eps = 0.02;
  return spec;
}

double half_integer(int low, int high) { return *rc::gen::inRange(low, high + 1) / 2.0; }

/// A table of random powers of the sizes that the regime's path makes grow.
Parameterization random_table(const Regime& regime) {
  Parameterization param;
  const auto law = [&](double total) {
    // Split at random over the sizes that grow.
    PowerLaw result;
    const double to_M = regime.growth.M > 0 ? half_integer(-2, 2) : 0,
                 to_Ne = regime.growth.Ne > 0 ? half_integer(-2, 2) : 0;
    result.exponents.M = to_M;
    result.exponents.Ne = to_Ne;
    result.exponents.N = total - to_M - to_Ne;
    return result;
  };
  for (auto& rule : param.rule.values) {
    rule.std = *rc::gen::inRange(0, 6) == 0 ? power_law({{"const", 0}}) : law(half_integer(-3, 1));
    rule.lr = law(half_integer(-3, 3));
    rule.eps = law(half_integer(-4, 1));
  }
  param.rule[Tensor::expert_in].shared = *rc::gen::inRange(0, 2) == 1;
  param.rule[Tensor::expert_out].shared = *rc::gen::inRange(0, 2) == 1;
  return param;
}

RunSpec random_run() {
  RunSpec spec = run(*rc::gen::elementOf(regimes), *rc::gen::elementOf(std::vector<OptimizerKind>{
                                                       OptimizerKind::sgd, OptimizerKind::adam, OptimizerKind::adamw}));
  spec.model.gate = *rc::gen::elementOf(std::vector<Gate>{Gate::sigmoid, Gate::softmax, Gate::constant});
  spec.model.routing = *rc::gen::elementOf(std::vector<Routing>{Routing::soft, Routing::topk});
  spec.model.residual = *rc::gen::inRange(0, 2) == 1;
  spec.training.loss = *rc::gen::elementOf(std::vector<Loss>{Loss::mse, Loss::cross_entropy});
  return spec;
}

/// Everything that exponents say, without the sentences.
std::string numbers(const RunSpec& spec, const Parameterization& param) {
  std::string text;
  auto list = observable_exponents(spec, param);
  for (auto& e : atomic_exponents(spec, param)) list.push_back(std::move(e));
  for (const auto& e : list) {
    text += e.name;
    for (const auto& x : e.at) text += x ? fmt::format(" {:.9g}", *x == 0 ? 0.0 : *x) : " -";
    text += "\n";
  }
  return text;
}

}  // namespace

TEST_CASE("constants of a table, learning rate and scales do not change exponents [property]") {
  CHECK(rc::check([] {
    RunSpec spec = random_run();
    const Parameterization param = random_table(regime_named(spec.model.regime));
    Parameterization scaled = param;
    RunSpec with = spec;
    const auto factor = [] { return *rc::gen::inRange(1, 1000) / 37.0; };
    for (auto& rule : scaled.rule.values) {
      rule.std.constant *= factor();
      rule.lr.constant *= factor();
      rule.eps.constant *= factor();
    }
    with.optimizer.lr *= factor();
    with.optimizer.eps *= factor();
    with.model.output_scale = factor();
    for (double& s : with.model.init_scale.values) s = factor();
    for (double& s : with.optimizer.lr_scale.values) s = factor();
    RC_ASSERT(numbers(spec, param) == numbers(with, scaled));
  }));
}

TEST_CASE("abc-symmetry: a multiplier taken out of expert_out into the aggregation leaves all exponents [property]") {
  CHECK(rc::check([] {
    RunSpec spec = random_run();
    const Parameterization param = random_table(regime_named(spec.model.regime));
    const double theta = half_integer(-4, 4);
    // c -> c N^theta, B -> B N^-theta: std, lr and eps follow (theory section 2).
    RunSpec moved = spec;
    moved.model.aggregation = {{"K", -1}, {"N", theta}};
    Parameterization other = param;
    TensorRule& rule = other.rule[Tensor::expert_out];
    rule.std = rule.std * power_law({{"N", -theta}});
    rule.lr = rule.lr * power_law({{"N", is_linear(spec.optimizer.name) ? -2 * theta : -theta}});
    rule.eps = rule.eps * power_law({{"N", theta}});
    RC_ASSERT(numbers(spec, param) == numbers(moved, other));
    if (theta != 0 && rule.std.constant != 0) RC_ASSERT(numbers(spec, param) != numbers(spec, other));
  }));
}

TEST_CASE("along a path only the total power of the sizes that grow together counts [property]") {
  CHECK(rc::check([] {
    RunSpec spec = random_run();
    const Regime& regime = regime_named(spec.model.regime);
    const Parameterization param = random_table(regime);
    Parameterization collected = param;
    for (auto& rule : collected.rule.values)
      for (PowerLaw TensorRule::*law : {&TensorRule::std, &TensorRule::lr, &TensorRule::eps})
        if ((rule.*law).constant != 0) rule.*law = power_law({{"N", (rule.*law).exponent_along(regime.growth)}});
    RC_ASSERT(numbers(spec, param) == numbers(spec, collected));
  }));
}

TEST_CASE(
    "one expert behind a constant gate is a dense network: muP's table is the published one, and all its fields keep "
    "their size") {
  // Yang et al., arXiv:2203.03466, table 8 in the form without multipliers: input fan_in = D, hidden N to N_e and N_e to N, output.
  for (const auto optimizer : {OptimizerKind::sgd, OptimizerKind::adam}) {
    RunSpec spec = run("I", optimizer);
    spec.model.param = "mup";
    spec.model.experts = 1;
    spec.model.gate = Gate::constant;
    Faults faults;
    const Parameterization param = load_parameterization(spec, faults);
    REQUIRE(faults.empty());
    const bool linear = optimizer == OptimizerKind::sgd;
    const Sizes s{4096, 1, 1024, 1, 10, 1};
    const auto near = [](double a, double b) { return std::abs(a / b - 1) < 1e-12; };
    struct Published {
      Tensor tensor;
      double fan_in, fan_out, std, sgd, adam;
    };
    const double N = s.N, Ne = s.Ne, D = s.D;
    for (const Published& p : {Published{Tensor::input, D, N, 1 / std::sqrt(D), N, 1},
                               Published{Tensor::expert_in, N, Ne, 1 / std::sqrt(N), Ne / N, 1 / N},
                               Published{Tensor::expert_out, Ne, N, 1 / std::sqrt(Ne), N / Ne, 1 / Ne},
                               Published{Tensor::readout, N, 1, 1 / N, 1 / N, 1 / N}}) {
      const TensorRule& rule = param.rule[p.tensor];
      CHECK(near(rule.std.at(s), p.std));
      // D is fixed: the table carries it along in the learning rate of the input.
      const double input = p.tensor == Tensor::input ? 1 / D : 1;
      CHECK(near(rule.lr.at(s), (linear ? p.sgd : p.adam) * input));
    }
    for (const auto& e : observable_exponents(spec, param)) {
      const bool of_router = e.name.find("_r") == e.name.size() - 2 || e.name.find("_r_") != std::string::npos ||
                             e.name.find("rho") != std::string::npos || e.name.find("xi_Q") != std::string::npos;
      if (of_router) continue;
      CAPTURE(e.name);
      CHECK(e.at[2] == std::optional<double>(0));
      if (e.name == "rms_f") CHECK(e.at[0] == std::optional<double>(-0.5));
      if (e.name.find("change_") == 0) CHECK(e.at[1] == std::optional<double>(0));
    }
  }
}
