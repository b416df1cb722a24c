/// Size exponents by symbolic signal propagation against those derived by hand (theory sections 2, 4 and 7).
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "regimes/exponents.hpp"
#include "support/observable.hpp"

using namespace moe;

namespace {

constexpr double zero = -1e9;  ///< identically zero, in the tables below

struct Row {
  const char *regime, *param;
  OptimizerKind optimizer;
  const char* name;
  std::array<double, num_stages> at;
};
constexpr auto sgd = OptimizerKind::sgd, adam = OptimizerKind::adam;

RunSpec run(const std::string& regime, const std::string& param, OptimizerKind optimizer, double eps = 0.02) {
  RunSpec spec;
  spec.model.regime = regime;
  spec.model.param = param;
  spec.optimizer.name = optimizer;
  spec.optimizer.eps = eps;
  spec.training.loss = Loss::mse;
  return spec;
}

std::string text(const std::optional<double>& exponent) { return exponent ? fmt::format("{}", *exponent) : "zero"; }

const ObservableExponents& named(const std::vector<ObservableExponents>& list, const std::string& name) {
  for (const auto& e : list)
    if (e.name == name) return e;
  FAIL("no exponent of " << name);
  return list.front();
}

// In the order of theory: what vanishes, what stays by correlation, what is order one by itself.
const std::vector<Row> rows = {
    // II muP: s_chi and s_beta of B vanish as N^-1/2; zeta is learned in one step, everything below waits for it.
    {"II", "mup", sgd, "rms_y_init", {-0.5, -0.5, -0.5}},
    {"II", "mup", sgd, "rms_y_propagating", {zero, -1, -0.5}},
    {"II", "mup", sgd, "rms_y_effective", {zero, 0, 0}},
    {"II", "mup", sgd, "rms_y", {-0.5, 0, 0}},
    {"II", "mup", sgd, "rms_f", {-1, 0, 0}},  // readout and y are independent: N^-1/2 more
    {"II", "mup", sgd, "rms_zeta_init", {-0.5, -0.5, -0.5}},
    {"II", "mup", sgd, "rms_zeta_effective", {zero, 0, 0}},
    {"II", "mup", sgd, "rms_rho", {-0.5, 0, 0}},
    {"II", "mup", sgd, "rms_xi", {-0.5, 0, 0}},
    {"II", "mup", sgd, "change_u", {zero, -0.5, 0}},
    {"II", "mup", sgd, "change_h", {zero, -0.5, 0}},
    {"II", "mup", adam, "change_u", {zero, -0.5, 0}},  // a gradient below eps moves by gradient / eps
    // III muP: one-sided operators. B answers backward only, A forward only; responses bring the other side.
    {"III", "mup", sgd, "rms_y_init", {-0.5, -0.5, -0.5}},
    {"III", "mup", sgd, "rms_y_propagating", {zero, 0, 0}},
    {"III", "mup", sgd, "rms_zeta_init", {0, 0, 0}},
    {"III", "mup", sgd, "rms_xi_A_init", {-0.5, 0, 0}},
    {"III", "mup", sgd, "rms_u_init", {0, 0, 0}},
    {"III", "mup", sgd, "rms_rho", {-0.5, 0, 0}},  // <v zeta>_a: signs average out until zeta follows v
    {"III", "mup", sgd, "rms_xi_Q_init", {-0.5, 0, 0}},
    // I muP: the router's forward answer vanishes, its response does not.
    {"I", "mup", sgd, "rms_r_init", {-0.5, -0.5, 0}},
    {"I", "mup", sgd, "rms_r_effective", {zero, -0.5, 0}},
    {"I", "mup", sgd, "rms_xi_Q_init", {-0.5, 0, 0}},
    {"I", "mup", sgd, "rms_y_init", {0, 0, 0}},
    {"I", "mup", sgd, "rms_zeta_init", {0, 0, 0}},
    {"I", "mup", sgd, "rms_xi_A_init", {0, 0, 0}},
    {"I", "mup", adam, "rms_r", {-0.5, -0.5, 0}},
    // MSSP: every term of the aggregation is of order one at all times; f(0) and, where hidden units grow, rho(0) are sums of
    // independent signs.
    {"I", "mssp", sgd, "rms_r_init", {zero, zero, zero}},
    {"I", "mssp", sgd, "rms_r", {zero, -0.5, 0}},
    {"I", "mssp", sgd, "rms_y_init", {0, 0, 0}},
    {"I", "mssp", sgd, "rms_y_propagating", {zero, 0, 0}},
    {"II", "mssp", sgd, "rms_y_init", {0, 0, 0}},
    {"II", "mssp", sgd, "rms_y_propagating", {zero, 0, 0}},
    {"II", "mssp", sgd, "rms_y_effective", {zero, 0, 0}},
    {"II", "mssp", sgd, "rms_zeta_init", {0, 0, 0}},
    {"II", "mssp", sgd, "rms_xi_A_init", {0, 0, 0}},
    {"II", "mssp", sgd, "rms_xi_Q_init", {0, 0, 0}},
    {"II", "mssp", sgd, "rms_rho", {0, 0, 0}},
    {"II", "mssp", sgd, "rms_f", {-0.5, 0, 0}},
    {"III", "mssp", sgd, "rms_y_init", {0, 0, 0}},
    {"III", "mssp", sgd, "rms_y_propagating", {zero, 0, 0}},
    {"III", "mssp", sgd, "rms_zeta_init", {0, 0, 0}},
    {"III", "mssp", sgd, "rms_xi_A_init", {0, 0, 0}},
    {"III", "mssp", sgd, "rms_rho", {-0.5, 0, 0}},
    {"III", "mssp", adam, "rms_y_init", {0, 0, 0}},
    // Shared experts have the same v and zeta at t = 0, so that rho(0) ~ N^-1/2 is the same for all of them and does not average out.
    {"III", "mssp", sgd, "rms_xi_Q_effective", {zero, -0.5, 0}},
    {"III", "mup", sgd, "rms_xi_Q_effective", {zero, -1, 0}},
    // SP and NTP: N W_out ~ N^1/2, hence D.
    {"II", "sp", sgd, "rms_D", {0.5, 0.5, 0.5}},
    {"III", "ntp", sgd, "rms_D", {0.5, 0.5, 0.5}},
    {"I", "ntp", sgd, "rms_f", {0, 0, 0}},
    // NTP in I is lazy: lr_in D/N D Var.. eta_in xi ~ N^-1 N^1/2.
    {"I", "ntp", sgd, "change_h", {zero, -0.5, -0.5}},
    {"I", "ntp", sgd, "change_f", {zero, 0, 0}},
};

}  // namespace

TEST_CASE("size exponents are those of theory section 7, derived by hand [all regimes, muP, MSSP, SP, NTP]") {
  for (const auto& row : rows) {
    const auto list = observable_exponents(run(row.regime, row.param, row.optimizer));
    const ObservableExponents& e = named(list, row.name);
    for (std::size_t k = 0; k < row.at.size(); ++k) {
      CAPTURE(row.regime);
      CAPTURE(row.param);
      CAPTURE(row.name);
      CAPTURE(stage_names[k]);
      const std::string got = text(e.at[k]), expected = row.at[k] == zero ? "zero" : fmt::format("{}", row.at[k]);
      CHECK(got == expected);
    }
  }
}

// I SP, identity, SGD: N W_out ~ N^1/2, eta_Q = lr N/K ~ N, eta_A ~ eta_B ~ 1, eta_w ~ N, s_beta of Q ~ N^1/2, those of A and B ~ 1.
// t = 0: h, u, v, r, y ~ 1; D ~ zeta ~ ghat ~ N^1/2, so that s = <v zeta>_a ~ N^-1/2 N^1/2 and rho ~ 1; Delta ~ 1 as f ~ N^-1/2 N^1/2.
// t = 1: r = eta_Q rho(0) <phi phi> ~ N; v ~ eta_A ghat(0) ~ N^1/2; y has eta_B D(0) <v(0) v(1)> ~ N^1/2 along the readout and v(0)'s
// answer of order one; wbar ~ eta_w y(0) ~ N, so that f ~ N, Delta ~ N, D ~ zeta ~ N^2; s = <v(1) zeta(1)> ~ N^2 (zeta has
// eta_B <D(0) D(1)> v(0)). Of few experts almost none has a gate with a slope left: a gate of logit ~ N is within reach of zero with
// probability 1/N. It is they that carry the mean square over initialisations: rho ~ N^-1/2 s ~ N^3/2, as over many experts. The learned
// router answers eta_Q phi(0) (1/M) sum_i rho_i(0) rho_i(1), where few experts do not average out: N^5/2.
TEST_CASE("few gates that saturate carry a mean square by the share of them that does not [I, SP, one step, by hand]") {
  RunSpec spec = run("I", "sp", sgd);
  spec.model.activation = Activation::identity;
  const std::vector<std::tuple<const char*, double, double>> derived = {{"rms_r", 0, 1},
                                                                        {"rms_r_init", 0, 0},
                                                                        {"rms_u", 0, 0.5},
                                                                        {"rms_y", 0, 0.5},
                                                                        {"rms_f", 0, 1},
                                                                        {"rms_D", 0.5, 2},
                                                                        {"rms_zeta", 0.5, 2},
                                                                        {"rms_rho", 0, 1.5},
                                                                        {"change_rho", zero, 1.5},
                                                                        {"rms_xi_Q_init", 0.5, 2},
                                                                        {"rms_xi_Q_effective", zero, 2.5}};
  const auto list = observable_exponents(spec);
  for (const auto& [name, start, first_step] : derived) {
    CAPTURE(name);
    const ObservableExponents& e = named(list, name);
    CHECK(text(e.at[0]) == (start == zero ? "zero" : fmt::format("{}", start)));
    CHECK(text(e.at[1]) == fmt::format("{}", first_step));
  }
}

// tanh of h ~ N^1/2 is of order one, and so is all behind it; a share N^-1/2 of its slopes is left: their RMS is N^-1/4. relu
// scales with h, so that r, u, v, y ~ N^1/2, zeta ~ 1, s ~ N^1/2, and gates of slope N^-1/4 give rho ~ N^1/4, which Q brings to xi.
TEST_CASE(
    "an activation that saturates keeps its size, and its slope has the RMS of the share that does not [by hand]") {
  RunSpec spec = run("II", "mssp", sgd);
  Faults faults;
  Parameterization param = load_parameterization(spec, faults);
  REQUIRE(faults.empty());
  param.rule[Tensor::input].std = param.rule[Tensor::input].std * power_law({{"N", 0.5}});
  for (const auto activation : {Activation::tanh, Activation::relu}) {
    spec.model.activation = activation;
    const bool saturates = activation == Activation::tanh;
    const auto observables = observable_exponents(spec, param), atomic = atomic_exponents(spec, param);
    CHECK(text(named(observables, "rms_h").at[0]) == "0.5");
    CHECK(text(named(observables, "rms_phi").at[0]) == (saturates ? "0" : "0.5"));
    CHECK(text(named(observables, "rms_xi").at[0]) == (saturates ? "0" : "0.25"));
    CHECK(text(named(atomic, "gradient_input").at[0]) == (saturates ? "-0.25" : "0.25"));
  }
}

// Shared experts have the same s_i at t = 0, up to rounding: softmax takes what all have in common out, so that nothing is left of rho.
TEST_CASE("under softmax what all experts have in common does not move the logits [III, MSSP, by hand]") {
  RunSpec spec = run("III", "mssp", sgd);
  spec.model.gate = Gate::softmax;
  const auto list = observable_exponents(spec);
  CHECK(text(named(list, "rms_rho").at[0]) == "zero");
  CHECK(text(named(list, "rms_rho").at[1]) == "0");
  CHECK(text(named(list, "rms_r_effective").at[1]) == "zero");
  CHECK(text(named(list, "rms_xi_Q_effective").at[1]) == "zero");
  CHECK(text(named(list, "rms_xi_Q_effective").at[2]) == "0");
}

TEST_CASE("every observable has exponents, and a reason exactly where one is not zero") {
  for (const char* regime : {"I", "II", "III"})
    for (const char* param : {"mup", "mssp", "sp", "ntp"})
      for (const auto optimizer : {sgd, adam}) {
        const auto list = observable_exponents(run(regime, param, optimizer));
        REQUIRE(list.size() == observable_table.size());
        for (std::size_t k = 0; k < list.size(); ++k) {
          CHECK(list[k].name == observable_table[k].name);
          bool off = false;
          for (const auto& exponent : list[k].at) off = off || (exponent && *exponent != 0);
          CHECK_MESSAGE(list[k].reason.empty() != off, list[k].name << ": " << list[k].reason);
        }
      }
}

TEST_CASE("the reason names what averages out and the entry of the table that causes it") {
  const auto y = named(observable_exponents(run("II", "mup", sgd)), "rms_y_init");
  for (const char* part : {"N^-0.5 at all times", "expert_out", "independent experts average out",
                           "expert_out.std = Ne^-0.5", "order one wants N^0.5 times it"})
    CHECK_MESSAGE(y.reason.find(part) != std::string::npos, y.reason);
  const auto D = named(observable_exponents(run("II", "sp", sgd)), "rms_D");
  CHECK_MESSAGE(D.reason.find("readout.std = N^-0.5") != std::string::npos, D.reason);
}

TEST_CASE(
    "eps = 0 in the description lets a vanishing gradient move at full size, as the authors of signSGD limits "
    "analyse") {
  const auto held = named(observable_exponents(run("II", "mup", adam)), "rms_u_effective");
  const auto free = named(observable_exponents(run("II", "mup", adam, 0)), "rms_u_effective");
  CHECK(text(held.at[1]) == "-0.5");
  CHECK(text(free.at[1]) == "0");
}

TEST_CASE("a balancing loss keeps the router's gradient of order one [III MSSP, II muP, I; top-K, by hand]") {
  const auto at = [](const char* regime, const char* param, double balance, const char* name) {
    RunSpec spec = run(regime, param, sgd);
    spec.model.routing = Routing::topk;
    spec.model.balance_loss = balance;
    return text(named(observable_exponents(spec), name).at[0]);
  };
  CHECK(at("III", "mssp", 0, "rms_rho") == "-0.5");
  CHECK(at("III", "mssp", 0.1, "rms_rho") == "0");
  CHECK(at("III", "mssp", 0.1, "rms_xi_Q_init") == "0");
  CHECK(at("II", "mup", 0, "rms_xi") == "-0.5");
  CHECK(at("II", "mup", 0.1, "rms_xi") == "0");
  CHECK(at("I", "mssp", 0, "rms_rho") == "-0.5");
  CHECK(at("I", "mssp", 0.1, "rms_rho") == "0");
  // With soft routing there is nothing to be balanced.
  RunSpec soft = run("III", "mssp", sgd);
  soft.model.balance_loss = 0.1;
  CHECK(text(named(observable_exponents(soft), "rms_rho").at[0]) == "-0.5");
}

TEST_CASE("what is larger with every step has no power of N late, and says so [I, SP]") {
  const auto f = named(observable_exponents(run("I", "sp", sgd)), "rms_f");
  CHECK(text(f.at[1]) == "1");
  REQUIRE(f.at[2].has_value());
  CHECK(*f.at[2] == unbounded);
  CHECK_MESSAGE(f.reason.find("more with every step") != std::string::npos, f.reason);
}

TEST_CASE("the softmax over one active expert is 1, and its router learns nothing [I, by hand]") {
  RunSpec spec = run("I", "mup", sgd);
  spec.model.gate = Gate::softmax;
  spec.model.routing = Routing::topk;
  spec.model.experts = 4;
  for (const double fraction : {0.25, 0.5}) {
    spec.model.active_fraction = fraction;
    const auto list = observable_exponents(spec);
    CHECK((text(named(list, "rms_rho").at[1]) == "zero") == (fraction == 0.25));
    CHECK((text(named(list, "rms_r_effective").at[2]) == "zero") == (fraction == 0.25));
  }
}

// No u at the start, B and zeta smaller by 1/N, and eps of A smaller by N^1/4: A moves as zeta/eps = N^-3/4, B as v/1, zeta with B,
// and A again, N^1/4 more in every second step. After seven u is of order one, and a gradient above its eps moves no more.
TEST_CASE("what grows through a small eps settles, at whichever step that is [II, MSSP, Adam, by hand]") {
  const RunSpec spec = run("II", "mssp", adam);
  Faults faults;
  Parameterization param = load_parameterization(spec, faults);
  REQUIRE(faults.empty());
  TensorRule &A = param.rule[Tensor::expert_in], &B = param.rule[Tensor::expert_out];
  A.std.constant = 0;
  A.eps = A.eps * power_law({{"K", -0.25}});
  B.std = B.std * power_law({{"K", -1}});
  const auto u = named(observable_exponents(spec, param), "rms_u");
  CHECK(text(u.at[0]) == "zero");
  CHECK(text(u.at[1]) == "-0.75");
  CHECK(text(u.at[2]) == "0");
}

namespace {
/// Only one tensor learns, by N^power times its learning rate.
std::pair<RunSpec, Parameterization> one_learns(const char* regime, const char* param, Tensor tensor, double power) {
  RunSpec spec = run(regime, param, sgd);
  spec.optimizer.lr_scale = {{0, 0, 0, 0, 0}};
  spec.optimizer.lr_scale[tensor] = 1;
  Faults faults;
  Parameterization table = load_parameterization(spec, faults);
  REQUIRE(faults.empty());
  table.rule[tensor].lr = table.rule[tensor].lr * power_law({{"N", power}});
  return {spec, table};
}
}  // namespace

// Where the router alone learns, y changes by its gates. Logits that move by N^-1 change gates by as much, and as large a share of the
// experts are chosen anew, by which y changes at full size: a mean square of N^-1.
TEST_CASE("what top-K changes has the root of the share of experts that are chosen anew [II MSSP, by hand]") {
  for (const Routing routing : {Routing::topk, Routing::soft})
    for (const double power : {0.0, -1.0}) {
      auto [spec, table] = one_learns("II", "mssp", Tensor::router, power);
      spec.model.routing = routing;
      const auto y = named(observable_exponents(spec, table), "change_y");
      CHECK(text(y.at[1]) == (power == 0 ? "0" : routing == Routing::topk ? "-0.5" : "-1"));
    }
}

// A change N^-1 of the argument moves as large a share of the slopes of relu by one, and all of those of gelu by N^-1.
TEST_CASE("the slope of relu changes by the root of the share that changes sides [II MSSP, phi and psi, by hand]") {
  for (const auto activation : {Activation::relu, Activation::gelu}) {
    const std::string expected = activation == Activation::relu ? "-0.5" : "-1";
    auto [of_A, table_A] = one_learns("II", "mssp", Tensor::expert_in, -1);
    of_A.model.activation = activation;
    of_A.model.gate = Gate::constant;
    CHECK(text(named(observable_exponents(of_A, table_A), "change_xi").at[1]) == expected);
    auto [of_B, table_B] = one_learns("II", "mssp", Tensor::expert_out, -1);
    of_B.model.post_activation = activation;
    CHECK(text(named(observable_exponents(of_B, table_B), "change_D").at[1]) == expected);
  }
}

TEST_CASE("what goes around, is bounded or is not yet summed [residual, cross entropy, loads, one expert; by hand]") {
  // II muP without B: only the residual brings back that the readout has changed.
  auto [spec, table] = one_learns("II", "mup", Tensor::readout, 0);
  spec.model.residual = true;
  CHECK(text(named(observable_exponents(spec, table), "change_xi").at[1]) == "0");
  // I SP: wbar ~ N after a step, and so is D = wbar Delta, Delta of order one however large f has become.
  RunSpec sp = run("I", "sp", sgd);
  sp.training.loss = Loss::cross_entropy;
  CHECK(text(named(observable_exponents(sp), "change_f").at[1]) == "1");
  CHECK(text(named(observable_exponents(sp), "change_D").at[1]) == "1");
  // Loads change with the logits, and rho of a balancing loss with them.
  auto [balanced, of_balanced] = one_learns("III", "mssp", Tensor::router, 0);
  balanced.model.routing = Routing::topk;
  balanced.model.gate = Gate::constant;
  balanced.model.balance_loss = 0.1;
  CHECK(text(named(observable_exponents(balanced, of_balanced), "change_rho").at[1]) == "0");
  // Each B_i v_i by itself is of order one where their sum vanishes.
  const RunSpec mup = run("II", "mup", sgd);
  Faults faults;
  const auto atomic = atomic_exponents(mup, load_parameterization(mup, faults));
  CHECK(text(named(atomic, "expert_output_init").at[0]) == "0");
  CHECK(text(named(observable_exponents(mup), "rms_y_init").at[0]) == "-0.5");
}

// Only the router of II MSSP learns, by N^-1, from logits of N^-2: r(1) ~ N^-1 chooses all experts anew, so that ghat = G phi' zeta changes by
// as much as it is, and A brings it to xi. Soft gates change by N^-1, ghat with them; f by N^-1/2 of what y does, which D, zeta and ghat have
// as well. What Q sends back, eta_Q phi <rho rho>, is of order N^-1.
TEST_CASE("gates change what experts send back [II MSSP, router of small logits, by hand]") {
  auto [spec, table] = one_learns("II", "mssp", Tensor::router, -1);
  table.rule[Tensor::router].std = table.rule[Tensor::router].std * power_law({{"N", -2}});
  for (const Routing routing : {Routing::topk, Routing::soft}) {
    spec.model.routing = routing;
    const auto list = observable_exponents(spec, table);
    CHECK(text(named(list, "rms_r").at[1]) == "-1");
    CHECK(text(named(list, "change_y").at[1]) == (routing == Routing::topk ? "0" : "-1"));
    CHECK(text(named(list, "change_xi").at[1]) == (routing == Routing::topk ? "0" : "-1"));
  }
}

// Logits of I MSSP begin at zero, and where the router alone learns r(1) = eta_Q rho(0) <phi phi> ~ N^-1/2, as s(0), a mean of independent signs
// over N_e. The slope of a sigmoid is flat there and changes by r^2, that of a softmax by the logits of the other experts: rho changes by
// s times as much. What the gates change of y, N^-1/2, has f change by N^-1, and s with it by N^-3/2.
TEST_CASE("a softmax has slopes that change with the logits of others [I MSSP, router alone, by hand]") {
  for (const Gate gate : {Gate::softmax, Gate::sigmoid}) {
    auto [spec, table] = one_learns("I", "mssp", Tensor::router, 0);
    spec.model.gate = gate;
    const auto list = observable_exponents(spec, table);
    CHECK(text(named(list, "rms_rho").at[0]) == "-0.5");
    CHECK(text(named(list, "rms_r").at[1]) == "-0.5");
    CHECK(text(named(list, "change_rho").at[1]) == (gate == Gate::softmax ? "-1" : "-1.5"));
  }
}

// The first step of I SP as above: y(1) ~ N^1/2, f(1) ~ N, so that Delta(1) ~ N, and the readout's gradient is y Delta.
TEST_CASE("the readout's gradient has the size of what the loss asks [I, SP, one step, by hand]") {
  RunSpec spec = run("I", "sp", sgd);
  spec.model.activation = Activation::identity;
  Faults faults;
  const auto atomic = atomic_exponents(spec, load_parameterization(spec, faults));
  CHECK(text(named(atomic, "gradient_readout").at[0]) == "0");
  CHECK(text(named(atomic, "gradient_readout").at[1]) == "1.5");
}
