// Kernel iteration: derivatives that sites carry beside their fields, against finite differences of whole paths.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "dmft/kernel_iteration.hpp"
#include "dmft/site_batch_template.hpp"
#include "tests/limit_fixture.hpp"

namespace {

using B = moe::Cpu<double>;
using moe::Index;

constexpr Index T = 4, P = 3;
constexpr double eps = 3e-5;

struct Case {
  const char* name;
  const char* regime;
  const char* param;
  moe::Activation activation, post;
  moe::Gate gate;
  double temperature;
  bool residual;
  moe::OptimizerKind optimizer = moe::OptimizerKind::sgd;
};
using enum moe::Activation;
using enum moe::Gate;
const std::vector<Case> cases = {
    {"I mssp", "I", "mssp", tanh, identity, sigmoid, 1, false},
    {"I mup softmax", "I", "mup", gelu, tanh, softmax, 0.5, true},
    {"II mssp", "II", "mssp", tanh, tanh, sigmoid, 1, false},
    {"II mup softmax", "II", "mup", tanh, identity, softmax, 0.5, true},
    {"II mssp constant gate", "II", "mssp", gelu, identity, constant, 1, false},
    {"III mup softmax", "III", "mup", gelu, tanh, softmax, 0.5, true},
    {"III mssp", "III", "mssp", tanh, gelu, sigmoid, 2, true},
    {"I mup momentum", "I", "mup", tanh, tanh, sigmoid, 1, true, moe::OptimizerKind::momentum},
    {"II mssp momentum", "II", "mssp", tanh, gelu, softmax, 1, false, moe::OptimizerKind::momentum},
    {"III mssp momentum", "III", "mssp", tanh, identity, sigmoid, 1, false, moe::OptimizerKind::momentum},
    {"I mup adam", "I", "mup", tanh, identity, sigmoid, 1, true, moe::OptimizerKind::adam},
    {"II mssp adamw", "II", "mssp", tanh, gelu, softmax, 1, false, moe::OptimizerKind::adamw},
    {"I mup adafactor", "I", "mup", tanh, identity, sigmoid, 1, true, moe::OptimizerKind::adafactor},
    {"II mssp adafactor", "II", "mssp", tanh, gelu, softmax, 1, false, moe::OptimizerKind::adafactor},
    {"III mup adafactor", "III", "mup", tanh, identity, sigmoid, 1, false, moe::OptimizerKind::adafactor},
    {"III mssp adam", "III", "mssp", gelu, identity, sigmoid, 1, false, moe::OptimizerKind::adam},
};

/// Sites whose values move together: averages that are closed then move at second order only, as they do in the limit.
enum class Partners { none, next_row, next_expert };

/// Moves a field by +eps along its probe, partners by -eps from the same values. `sign` exchanges the two.
void perturb(moe::SiteField<B>& field, Partners partners, Index hidden, double sign) {
  if (!field.present()) return;
  const auto g = field.gaussian(), p = field.probe();
  const Index apart = partners == Partners::next_expert ? hidden : 1;
  for (Index j = 0; j < g.cols; ++j)
    for (Index i = 0; i < g.rows; ++i) {
      const bool second = partners != Partners::none && (i / apart) % 2 == 1;
      if (second) {
        p(i, j) = p(i - apart, j);
        g(i, j) = g(i - apart, j) - sign * eps * field.scale() * p(i, j) - sign * eps * field.scale() * p(i, j);
      } else {
        g(i, j) += sign * eps * field.scale() * p(i, j);
      }
    }
}
void pair_rows(moe::HostView<double> a) {
  for (Index j = 0; j < a.cols; ++j)
    for (Index i = 1; i < a.rows; i += 2) a(i, j) = a(i - 1, j);
}

struct Sampled {
  moe::NeuronBatch<B> neurons;
  moe::ExpertBatch<B> experts;

  Sampled(const moe::SiteProblem& problem, moe::SiteKernels<B>& kernels, double sign, moe::StreamNumbers streams)
      : neurons(problem, kernels, 40, streams),
        experts(problem, kernels, problem.limit->block.experts_sampled ? 6 : problem.limit->block.counts.experts,
                problem.limit->block.experts_sampled ? 4 : 6, streams) {
    const moe::BlockSpec& block = problem.limit->block;
    const bool shared = block.constants.expert_in_shared;
    for (auto* field : {&neurons.chi_B, &neurons.beta_A, &neurons.beta_Q}) perturb(*field, Partners::next_row, 1, sign);
    for (auto* state : {&neurons.W_in, &neurons.w_bar, &neurons.q}) pair_rows(state->view().value);
    // Averages over a, s_i, are an expert's own where experts are sampled, and closed where they are explicit.
    const Partners of_experts = shared ? Partners::none : block.experts_sampled ? Partners::next_row : Partners::none;
    const Partners of_sites = shared                  ? Partners::none
                              : block.experts_sampled ? Partners::next_expert
                                                      : Partners::next_row;
    perturb(experts.chi_Q, of_experts, 1, sign);
    perturb(experts.chi_A, of_sites, 4, sign);
    perturb(experts.beta_B, of_sites, 4, sign);
    moe::HostMatrix<double> r(experts.rho.value.rows(), P);
    for (Index t = 0; t < problem.steps; ++t) {
      neurons.features(t);
      if (!block.experts_sampled) neurons.logits(t, r);
      experts.forward(t, r);
      neurons.outputs(t);
      experts.backward(t);
      neurons.backward(t, experts.rho_now());
    }
  }
};

/// Largest deviation over first partners, relative to the largest derivative.
double deviation(moe::DualMatrix<B>& plus, moe::DualMatrix<B>& minus, Index apart) {
  double worst = 0, largest = 0;
  for (Index j = 0; j < plus.value.cols(); ++j)
    for (Index i = 0; i < plus.value.rows(); ++i) {
      if ((i / apart) % 2 == 1) continue;
      const double difference = (plus.value(i, j) - minus.value(i, j)) / (2 * eps);
      const double tangent = (plus.tangent(i, j) + minus.tangent(i, j)) / 2;
      worst = std::max(worst, std::abs(difference - tangent));
      largest = std::max(largest, std::abs(tangent));
    }
  return largest > 0 ? worst / largest : worst;
}

}  // namespace

TEST_CASE(
    "kernel iteration: tangents are the derivatives of sites' paths [regime x parameterization x gate x psi x rule]") {
  for (const Case& c : cases) {
    moe::RunSpec s =
        limit_fixture::spec(c.regime, c.param, c.optimizer, moe::is_linear(c.optimizer) ? 0.7 : 0.15, T - 1);
    s.model.activation = c.activation;
    s.model.post_activation = c.post;
    s.model.gate = c.gate;
    s.model.router_temperature = c.temperature;
    s.model.residual = c.residual;
    s.optimizer.weight_decay = 0.1;  // of AdamW
    const moe::Dataset data = limit_fixture::data(P, 4, 2);
    moe::IterationOptions options;
    options.batch = {200, 20, 10};
    options.replicas = 3;
    options.responses = moe::Responses::tangents;
    options.draws = 1;
    const moe::IterationResult solved = moe::iterate_kernels(s, data, options);
    moe::Faults faults;
    std::vector<std::string> warnings;
    const moe::LimitSpec limit = moe::limit_spec(s, moe::step_shape(s, data), faults, warnings);
    const moe::SiteProblem problem{&limit, data.x, data.y, T, {}, moe::Responses::tangents};
    moe::SiteKernels<B> given(problem, solved.kernels, solved.paths);
    const moe::StreamNumbers streams(5, 0);
    Sampled plus(problem, given, 1, streams), minus(problem, given, -1, streams);
    const bool shared = limit.block.constants.expert_in_shared, sampled = limit.block.experts_sampled;
    const Index apart = sampled ? 4 : 1;
    // Errors are eps^2 times third derivatives of a path, some ten times its size, and 1e-16/eps of rounding. Adam's change within
    // its own eps = 0.05 and, at the root of v, within less.
    const double allowed = moe::is_linear(c.optimizer) ? 1e-5 : 1e-4;
    INFO(std::string(c.name));
    CHECK((plus.neurons.f - minus.neurons.f).cwiseAbs().maxCoeff() <= 1e-10);
    CHECK(deviation(plus.neurons.phi, minus.neurons.phi, 1) <= allowed);
    CHECK(deviation(plus.neurons.D, minus.neurons.D, 1) <= allowed);
    CHECK(deviation(plus.experts.Gv, minus.experts.Gv, shared ? 1000 : apart) <= allowed);
    CHECK(deviation(plus.experts.ghat, minus.experts.ghat, shared ? 1000 : apart) <= allowed);
    if (sampled) CHECK(deviation(plus.experts.rho, minus.experts.rho, shared ? 1000 : 1) <= allowed);
    if (shared) {
      CHECK(deviation(plus.experts.shared_Gv, minus.experts.shared_Gv, 1000) <= allowed);
      CHECK(deviation(plus.experts.shared_ghat, minus.experts.shared_ghat, 1000) <= allowed);
    }
    // Something moves: D and ghat do by the readout's and the gates' way at the latest.
    CHECK(plus.neurons.phi.tangent(0, (T - 1) * P) != 0);
    CHECK(plus.experts.ghat.tangent(0, (T - 1) * P) != 0);
  }
}

TEST_CASE(
    "kernel iteration: under linear rules learned parts by pairs of paths are those by the paths' correlations "
    "[regime; "
    "momentum]") {
  for (const Case& c : cases) {
    if (!moe::is_linear(c.optimizer)) continue;
    moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, 0.7, T - 1);
    s.model.activation = c.activation;
    s.model.post_activation = c.post;
    s.model.gate = c.gate;
    s.model.residual = c.residual;
    const moe::Dataset data = limit_fixture::data(P, 4, 2);
    moe::Faults faults;
    std::vector<std::string> warnings;
    const moe::LimitSpec limit = moe::limit_spec(s, moe::step_shape(s, data), faults, warnings);
    const moe::SiteProblem problem{&limit, data.x, data.y, T, {}, moe::Responses::tangents};
    moe::BatchMeans means{moe::zero_kernels(limit, problem.n()), {}, {}, {}};
    moe::SiteKernels<B> zero(problem, means.kernels, {});
    const moe::StreamNumbers streams(5, 0);
    Sampled first(problem, zero, 0, streams);
    for (const moe::Stage stage : moe::all_stages) {
      first.neurons.add_columns(stage, 0, problem.n(), 1, means.kernels);
      first.experts.add_columns(stage, 0, problem.n(), 1, means.kernels);
    }
    const moe::SitePaths paths{B::download(first.neurons.phi.value), B::download(first.neurons.D.value),
                               B::download(first.experts.rho.value), B::download(first.experts.ghat.value),
                               B::download(first.experts.Gv.value)};
    moe::SiteKernels<B> of_kernels(problem, means.kernels, {}), of_paths(problem, means.kernels, paths);
    Sampled by_kernels(problem, of_kernels, 0, streams), by_pairs(problem, of_paths, 0, streams);
    const auto same = [&](moe::DualMatrix<B>& a, moe::DualMatrix<B>& b) {
      const Eigen::MatrixXd values = B::download(a.value), tangents = B::download(a.tangent);
      CHECK((values - B::download(b.value)).norm() <= 1e-12 * values.norm());
      CHECK((tangents - B::download(b.tangent)).norm() <= 1e-12 * tangents.norm());
      CHECK(tangents.norm() > 0);
    };
    INFO(std::string(c.name));
    same(by_kernels.neurons.phi, by_pairs.neurons.phi);
    same(by_kernels.neurons.D, by_pairs.neurons.D);
    same(by_kernels.experts.ghat, by_pairs.experts.ghat);
    same(by_kernels.experts.Gv, by_pairs.experts.Gv);
    if (limit.block.experts_sampled && c.gate != constant) same(by_kernels.experts.rho, by_pairs.experts.rho);
  }
}

TEST_CASE("kernel iteration: pairs learn as arrays do [rule]") {
  constexpr Index sites = 7, partners = 130, steps = 3;
  moe::HostMatrix<double> z(sites, P), x(partners, P);
  using enum moe::OptimizerKind;
  for (const moe::OptimizerKind kind : {sgd, momentum, adam, adamw, signsgd}) {
    const moe::UpdateRule rule{kind, 0.3, 0.02, 0.7, 0.8, 0.9, kind == adamw ? 0.9 : 1};
    moe::LearnedArray<B> array(sites, partners, rule, 0.5);
    moe::LearnedPairs<B> pairs(sites, partners, rule, 0.5);
    for (Index t = 0; t < steps; ++t) {
      B::normal(z, {1, 0, static_cast<std::uint32_t>(t), 0});
      B::normal(x, {2, 0, static_cast<std::uint32_t>(t), 0});
      array.update(z, x);
      pairs.update({z, z}, x);
    }
    double worst = 0;
    for (Index j = 0; j < partners; ++j)
      for (Index i = 0; i < sites; ++i)
        worst = std::max(worst, std::abs(array.value()(i, j) - pairs.view().value(i, j)));
    INFO("rule ", static_cast<int>(kind));
    CHECK(worst <= 1e-13);
  }
  // Adafactor's matrices: seven in the sites; or in the partners, where the array has them among its rows.
  for (const auto& [in_sites, in_partners] : {std::pair<Index, Index>{7, 1}, {1, 13}, {1, 1}}) {
    const moe::UpdateRule rule{adafactor, 0.3, 0.02, 0, 0, 0, 1};
    const bool turned = in_partners > 1;
    moe::LearnedArray<B> array(turned ? partners : sites, turned ? sites : partners, rule, 0.5, in_sites * in_partners);
    moe::LearnedPairs<B> pairs(sites, partners, rule, 0.5, {in_sites, in_partners});
    for (Index t = 0; t < steps; ++t) {
      B::normal(z, {1, 0, static_cast<std::uint32_t>(t), 0});
      B::normal(x, {2, 0, static_cast<std::uint32_t>(t), 0});
      if (turned)
        array.update(x, z);
      else
        array.update(z, x);
      pairs.update({z, z}, x);
    }
    double worst = 0;
    for (Index j = 0; j < partners; ++j)
      for (Index i = 0; i < sites; ++i)
        worst =
            std::max(worst, std::abs((turned ? array.value()(j, i) : array.value()(i, j)) - pairs.view().value(i, j)));
    INFO("matrices ", in_sites, " x ", in_partners);
    CHECK(worst <= 1e-13);
  }
}

TEST_CASE("kernel iteration: responses look back only, at equal times at their own sample") {
  Eigen::MatrixXd strict = Eigen::MatrixXd::Constant(T * P, T * P, 2.0), with_now = strict;
  moe::keep_causal(strict, 0, P, false);
  moe::keep_causal(with_now, 0, P, true);
  for (Index i = 0; i < T * P; ++i)
    for (Index j = 0; j < T * P; ++j) {
      CHECK(strict(i, j) == (i / P < j / P ? 2 : 0));
      CHECK(with_now(i, j) == (i / P < j / P || i == j ? 2 : 0));
    }
}

TEST_CASE(
    "kernel iteration: gates of top-K move with the logit as Stein's formula says, the jump at the threshold included "
    "[gate x share]") {
  constexpr Index experts = 40000, tokens = 2;
  for (const moe::Gate gate : {sigmoid, softmax, constant})
    for (const double share : {0.2, 0.7}) {
      moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.7, 0);
      s.model.routing = moe::Routing::topk;
      s.model.active_fraction = share;
      s.model.gate = gate;
      s.model.activation = identity;
      s.model.expert_width = 1;
      s.sampling.experts = 100;
      const moe::Dataset data = limit_fixture::data(tokens, 4, 1);
      moe::Faults faults;
      std::vector<std::string> warnings;
      const moe::LimitSpec limit = moe::limit_spec(s, moe::step_shape(s, data), faults, warnings);
      const moe::SiteProblem problem{&limit, data.x, data.y, 1, {}, moe::Responses::tangents};
      moe::KernelSet kernels = moe::zero_kernels(limit, tokens);
      kernels[moe::Kernel::phi].diagonal().setConstant(0.6);
      moe::SiteKernels<B> given(problem, kernels, {});
      moe::StreamNumbers streams(3, 0);
      moe::ExpertBatch<B> batch(problem, given, experts, 1, streams);
      batch.forward(0);
      // G v = G(r) u with u independent of r: <u dG/dr u> = <u G u r>/<r r>, u taken from its own field.
      for (Index p = 0; p < tokens; ++p) {
        double derivative = 0, derivatives = 0, product = 0, products = 0, square = 0;
        for (Index i = 0; i < experts; ++i) {
          const double r = batch.chi_Q.gaussian()(i, p), u = batch.chi_A.gaussian()(i, p);
          const double G = batch.Gv.value(i, p) / u;
          const double dG = (batch.Gv.tangent(i, p) - G * batch.chi_A.probe()(i, p)) / u / batch.chi_Q.probe()(i, p);
          const double x = G * r;
          derivative += dG, derivatives += dG * dG, product += x, products += x * x, square += r * r;
        }
        const double n = experts, from_stein = product / square;
        const double error = std::hypot(std::sqrt(derivatives / n - std::pow(derivative / n, 2)) / std::sqrt(n),
                                        std::sqrt(products / n) / (square / n) / std::sqrt(n));
        INFO("gate ", static_cast<int>(gate), ", share ", share, ": <dG/dr> is ", derivative / n, ", by Stein ",
             from_stein, ", error ", error);
        CHECK(std::abs(derivative / n - from_stein) <= 4 * error);
        CHECK(4 * error <= 0.2 * from_stein);
      }
    }
}

TEST_CASE(
    "kernel iteration: responses by parts come back from their products, what was left out of the root is nobody's") {
  constexpr Index n = T * P;
  const auto number = [](Index i, Index j) { return std::sin(1.0 + 2.3 * double(i) + 5.1 * double(j)); };
  for (const bool equal_times : {false, true}) {
    Eigen::MatrixXd L = Eigen::MatrixXd::NullaryExpr(n, n, number).triangularView<Eigen::Lower>();
    L.diagonal().array() += 2;
    Eigen::MatrixXd R = Eigen::MatrixXd::NullaryExpr(n, n, [&](Index i, Index j) { return number(j, i); });
    for (Index j = 0; j < n; ++j) R.col(j).tail(n - (j / P + (equal_times ? 1 : 0)) * P).setZero();
    for (const Index left_out : {Index{2}, Index{4}}) L.col(left_out).setZero(), R.row(left_out).setZero();
    Eigen::MatrixXd products = L.transpose() * R;
    // x of a sample stays what it is but for what R says: numbers meet all of it alike, and what they meet before they can move it, and
    // what those that were left out meet, is noise.
    const Eigen::MatrixXd correlation = Eigen::MatrixXd::Constant(n, n, 0.5);
    for (Index j = 0; j < n; ++j)
      for (Index k = 0; k < n; ++k)
        if (L(j, j) == 0 || j / P >= (equal_times ? 1 : 0)) products(j, k) += number(3 * j, k % P);
    for (Index t = 0; t < T; ++t) {
      const Index known = (equal_times ? t + 1 : t) * P;
      const Eigen::MatrixXd is =
          moe::detail::response_by_parts(products, L.topLeftCorner(known, known), correlation, t, P, equal_times);
      INFO("equal times ", equal_times, ", step ", t, ": is\n", is, "\nexpected\n", R.middleCols(t * P, P));
      CHECK((is - R.middleCols(t * P, P)).cwiseAbs().maxCoeff() <= 1e-11);
    }
  }
}

TEST_CASE(
    "kernel iteration: there are tangents where activations and the rule are smooth, elsewhere they are refused") {
  moe::LimitSpec limit;
  limit.block.activation = gelu;
  limit.layer.post_activation = identity;
  limit.input.kind = moe::OptimizerKind::adam;
  CHECK(moe::has_tangents(limit));
  moe::LimitSpec other = limit;
  other.block.activation = relu;
  CHECK(!moe::has_tangents(other));
  other = limit, other.layer.post_activation = relu;
  CHECK(!moe::has_tangents(other));
  other = limit, other.input.kind = moe::OptimizerKind::signsgd;
  CHECK(!moe::has_tangents(other));
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 0.7, 2);
  s.model.activation = relu;
  moe::IterationOptions options;
  options.responses = moe::Responses::tangents;
  CHECK_THROWS_AS(moe::iterate_kernels(s, limit_fixture::data(4, 4, 1), options), moe::ConfigError);
}

TEST_CASE("kernel iteration: what it does not solve is refused by name, all at once") {
  moe::RunSpec s = limit_fixture::spec("I", "mssp", moe::OptimizerKind::adam, 0.7, 2);
  s.optimizer.eps = 1e-8;
  s.model.routing = moe::Routing::topk;
  s.model.depth = 2;
  s.model.norm = moe::Norm::rms;
  s.model.balance_loss = s.model.balance_bias = 0.1;
  moe::IterationOptions options;
  options.replicas = 2;
  const auto refusal = [&] {
    try {
      moe::iterate_kernels(s, limit_fixture::data(4, 4, 1), options);
    } catch (const moe::ConfigError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const std::string message = refusal();
  for (const char* key : {"optimizer.eps", "model.routing", "model.depth", "model.norm", "model.balance_loss",
                          "model.balance_bias", "sampling.replicas"})
    CHECK_MESSAGE(message.find(key) != std::string::npos, key, " in ", message);
  s.model.routing = moe::Routing::soft;  // which does not balance: as everywhere, what is not used is ignored
  CHECK(refusal().find("model.depth") != std::string::npos);
  CHECK(refusal().find("balance") == std::string::npos);
}

TEST_CASE("kernel iteration: a diverging iteration ends with the step and what diverged") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 1e4, 6);
  s.model.activation = identity;
  moe::IterationOptions options;
  options.batch = {200, 100, 0};
  options.replicas = 3;
  try {
    moe::iterate_kernels(s, limit_fixture::data(4, 4, 1), options);
    FAIL("a learning rate of 1e4 was solved");
  } catch (const moe::NumericsError& e) {
    CHECK(e.step >= 1);
    CHECK(e.field.find("of iteration") != std::string::npos);
  }
}
