// One body for the GPU and for the host that stands in for it: the time step on the GPU backend against the CPU's, step by step.
// Including files define MOE_DEVICE_NAME and on_device(check).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "dmft/march_template.hpp"
#include "support/cuda.hpp"
#include "tests/limit_fixture.hpp"

namespace gpu_march {
inline namespace MOE_DEVICE_SPACE {

using moe::Index;

struct Case {
  const char *regime, *param;
  moe::OptimizerKind optimizer;
  moe::Routing routing;
  moe::Gate gate;
  moe::Loss loss;
  moe::Activation activation = moe::Activation::tanh;
  int depth = 1;
  double balance = 0;  ///< coefficient of the balancing loss and rate of the bias
};

inline moe::RunSpec run_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, 0.3, 20);
  s.model.routing = c.routing;
  s.model.gate = c.gate;
  s.model.activation = c.activation;
  s.model.depth = c.depth;
  s.model.balance_loss = s.model.balance_bias = c.balance;
  if (c.depth > 1) {
    s.model.norm = moe::Norm::rms;
    s.model.residual = true;
  }
  s.training.loss = c.loss;
  s.sampling.neurons = 48;
  return s;
}

/// Outputs (C, P) at t = 0 .. 20, and last those of inputs that are not trained on.
template <class B>
std::vector<Eigen::MatrixXd> outputs(const moe::RunSpec& spec, const moe::Dataset& data,
                                     const Eigen::MatrixXd& others) {
  moe::Faults faults;
  std::vector<std::string> warnings;
  const moe::LimitSpec limit = moe::limit_spec(spec, moe::step_shape(spec, data), faults, warnings);
  faults.throw_if_any();
  moe::Replica<B> replica(limit, data.x.rows(), data.y.rows(), data.x.cols(), 0);
  replica.set_batch(data.x, data.y);
  std::vector<Eigen::MatrixXd> f;
  for (int t = 0; t <= spec.training.steps; ++t) {
    replica.forward();
    replica.backward();
    f.push_back(replica.outputs());
    if (t < spec.training.steps) replica.update();
  }
  f.push_back(replica.evaluate(others));
  return f;
}

inline double largest(const Eigen::MatrixXd& m) { return m.size() == 0 ? 0 : m.cwiseAbs().maxCoeff(); }

/// Every input moved by its own part of a relative `push`: along no direction that a norm takes out.
inline Eigen::MatrixXd moved_by(double push, const Eigen::MatrixXd& x) {
  return x.cwiseProduct(Eigen::MatrixXd::NullaryExpr(x.rows(), x.cols(), [push](Eigen::Index i, Eigen::Index j) {
    return 1 + push * std::sin(1.0 + 2.3 * static_cast<double>(i) + 5.1 * static_cast<double>(j));
  }));
}

/// What rounding may do: the CPU's answer to inputs moved by a relative `push`, in units of the push, times the roundings so far: twelve
/// sums a step and block (two parts of six answers), each over at most SE Sa = 24 x 24 sites and so of 24 roundings.
template <class Real>
void check(const Case& c) {
  const moe::RunSpec spec = run_of(c);
  const int C = c.loss == moe::Loss::mse ? 1 : 3;
  const moe::Dataset data = limit_fixture::data(5, 6, C);
  moe::Dataset pushed = data;
  const double push = 1e-6;
  pushed.x = moved_by(push, data.x);
  const Eigen::MatrixXd others = limit_fixture::data(4, 6, C, 9).x;
  const auto cpu = outputs<moe::Cpu<double>>(spec, data, others),
             moved = outputs<moe::Cpu<double>>(spec, pushed, moved_by(push, others));
  const auto gpu = outputs<moe::Cuda<Real>>(spec, data, others);
  INFO(std::string(c.regime), " ", std::string(c.param), " optimizer ", static_cast<int>(c.optimizer), " routing ",
       static_cast<int>(c.routing), " depth ", c.depth);
  REQUIRE(gpu.size() == cpu.size());
  double response = 0;
  for (std::size_t t = 0; t < cpu.size(); ++t) {
    response = std::max(response, largest(cpu[t] - moved[t]) / push);
    const double roundings = 12.0 * 24 * c.depth * static_cast<double>(t + 1);
    const double allowed = roundings * std::numeric_limits<Real>::epsilon() * (response + largest(cpu[t]) + 1);
    const double found = largest(gpu[t] - cpu[t]);
    INFO("t = ", t, ", size ", largest(cpu[t]), ", response ", response);
    CHECK(found <= allowed);
    CHECK(std::isfinite(found));
  }
  CHECK(largest(cpu[20] - cpu[0]) > 0.05);  // it has learned
}

inline const std::vector<Case> cases = {
    {"II", "mssp", moe::OptimizerKind::sgd, moe::Routing::soft, moe::Gate::sigmoid, moe::Loss::mse},
    {"II", "mssp", moe::OptimizerKind::sgd, moe::Routing::topk, moe::Gate::softmax, moe::Loss::cross_entropy},
    {"II", "mup", moe::OptimizerKind::adam, moe::Routing::soft, moe::Gate::softmax, moe::Loss::mse,
     moe::Activation::gelu},
    {"III", "mssp", moe::OptimizerKind::adam, moe::Routing::soft, moe::Gate::sigmoid, moe::Loss::cross_entropy},
    {"III", "mup", moe::OptimizerKind::momentum, moe::Routing::soft, moe::Gate::sigmoid, moe::Loss::mse},
    {"I", "mssp", moe::OptimizerKind::adamw, moe::Routing::soft, moe::Gate::softmax, moe::Loss::cross_entropy,
     moe::Activation::relu},
    {"I", "mup", moe::OptimizerKind::sgd, moe::Routing::soft, moe::Gate::sigmoid, moe::Loss::mse},
    {"II", "mssp", moe::OptimizerKind::sgd, moe::Routing::soft, moe::Gate::sigmoid, moe::Loss::mse,
     moe::Activation::tanh, 2},
    {"II", "mssp", moe::OptimizerKind::adafactor, moe::Routing::topk, moe::Gate::sigmoid, moe::Loss::mse},
    {"III", "mssp", moe::OptimizerKind::adafactor, moe::Routing::soft, moe::Gate::sigmoid, moe::Loss::mse,
     moe::Activation::tanh, 2},
    {"II", "mssp", moe::OptimizerKind::sgd, moe::Routing::topk, moe::Gate::softmax, moe::Loss::mse,
     moe::Activation::tanh, 1, 0.1}};

/// Sums over an expert's units: of few by a thread each, of many by reductions; the last expert's products cancel.
template <class Real>
void check_measures() {
  constexpr Index experts = 5, tokens = 3;
  for (const Index hidden : {7, 64, 65, 3000}) {
    Eigen::MatrixXd v(experts * hidden, tokens), zeta(experts * hidden, tokens), mask(experts, tokens);
    for (Index p = 0; p < tokens; ++p)
      for (Index i = 0; i < experts; ++i) {
        mask(i, p) = (i + p) % 2 == 0 ? 0 : 1;
        for (Index a = 0; a < hidden; ++a) {
          const Index k = i * hidden + a;
          v(k, p) = static_cast<double>((7 * k + 3 * p) % 11 - 5) / 8;
          zeta(k, p) = static_cast<double>((5 * k + p) % 13 - 6) / 8 + 0.25;
        }
        if (i + 1 == experts && hidden % 2 == 0)
          for (Index a = 0; a < hidden; a += 2) {  // to within a rounding of the first
            const Index k = i * hidden + a;
            v(k, p) = v(k + 1, p) = a == 0 ? 1 + std::numeric_limits<Real>::epsilon() : 1;
            zeta(k, p) = 1, zeta(k + 1, p) = a == 0 ? -1 + std::numeric_limits<Real>::epsilon() : -1;
          }
      }
    Eigen::MatrixXd s(experts, tokens), weights(experts, tokens);
    double squares = 0;
    for (Index p = 0; p < tokens; ++p)
      for (Index i = 0; i < experts; ++i) {
        const auto units = v.col(p).segment(i * hidden, hidden);
        s(i, p) = units.dot(zeta.col(p).segment(i * hidden, hidden)) / static_cast<double>(hidden);
        weights(i, p) = units.squaredNorm();
        squares += mask(i, p) * units.squaredNorm();
      }
    if (hidden % 2 == 0) s.row(experts - 1).setZero();
    const double effective =
        (weights.colwise().sum().array().square() / weights.colwise().squaredNorm().array()).minCoeff();
    using B = moe::Cuda<Real>;
    const auto on = [](const Eigen::MatrixXd& m) {
      auto matrix = B::Matrix::uninitialized(m.rows(), m.cols());
      B::upload(m, matrix);
      return matrix;
    };
    auto v_on = on(v), zeta_on = on(zeta), mask_on = on(mask), s_on = on(Eigen::MatrixXd::Constant(experts, tokens, 9));
    moe::detail::mean_products_over_hidden<B>(v_on, zeta_on, s_on);
    const Eigen::MatrixXd is = B::download(s_on);
    INFO("hidden units ", hidden, ": is\n", is, "\nexpected\n", s);
    const double eps = std::numeric_limits<Real>::epsilon();
    CHECK(largest(is - s) <= 4 * eps * largest(s));  // products are exact and sums in double: a rounding of each result
    if (hidden % 2 == 0) CHECK(is.row(experts - 1).isZero(0));
    CHECK(std::abs(moe::mean_square_of_active<B>(v_on, mask_on) -
                   squares / (mask.sum() * static_cast<double>(hidden))) <= 4 * eps * squares);
    CHECK(std::abs(moe::effective_experts<B>(v_on, hidden) - effective) <= 16 * eps * effective);
  }
}

}  // namespace MOE_DEVICE_SPACE
}  // namespace gpu_march

TEST_CASE(MOE_DEVICE_NAME ": twenty steps are the CPU's within their rounding [float64]") {
  on_device([] {
    for (const gpu_march::Case& c : gpu_march::cases) gpu_march::check<double>(c);
  });
}

TEST_CASE(MOE_DEVICE_NAME ": sums over the units of experts, few and many [float32; float64]") {
  on_device([] { gpu_march::check_measures<float>(), gpu_march::check_measures<double>(); });
}
