// Balancing in the limit's sample of experts (T31), (T32) against the reference network's and against the definitions.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "dmft/gating.hpp"
#include "tests/network_fixture.hpp"
#include "validation/network.hpp"
#include "validation/reference_points.hpp"
#include "validation/reference_train.hpp"

namespace {

using Eigen::MatrixXd;
using moe::Index;
using B = moe::Cpu<double>;
using network_fixture::gaussian;

constexpr Index M = 12, P = 7, K = 3;

moe::HostMatrix<double> host(const MatrixXd& from) {
  moe::HostMatrix<double> to(from.rows(), from.cols());
  B::upload(from, to);
  return to;
}
moe::GateSpec spec(moe::Gate kind) {
  moe::GateSpec s{kind, true, K, 1 / 0.7};
  s.balance_loss = 0.8;
  s.balance_bias = 0.05;
  return s;
}
moe::ModelSpec model(moe::Gate kind) {
  moe::ModelSpec m;
  m.gate = kind;
  m.routing = moe::Routing::topk;
  m.router_temperature = 0.7;
  return m;
}

}  // namespace

TEST_CASE(
    "the limit's balancing gradient is -K times that of the network's loss, and moves no expert but against others") {
  const MatrixXd r = gaussian(M, P, 1.5, 3);
  const moe::reference::Gates gates = moe::reference::gates(model(moe::Gate::sigmoid), K, r);
  auto logits = host(r), mask = host(gates.active), rho = host(MatrixXd::Zero(M, P));
  moe::balance_backward<B>(spec(moe::Gate::sigmoid), logits, mask, rho);
  const MatrixXd found = B::download(rho);
  const MatrixXd expected =
      -static_cast<double>(K) * moe::reference::balance_backward(0.8, moe::reference::loads(K, gates.active), r);
  CHECK((found - expected).cwiseAbs().maxCoeff() < 1e-14);
  CHECK(found.cwiseAbs().maxCoeff() > 0.01);
  CHECK(found.colwise().sum().cwiseAbs().maxCoeff() < 1e-14);
  // Written out for one pair: -lambda (kappa/P) e (load - <load e>).
  const Eigen::VectorXd e = r.col(2).array().exp() / r.col(2).array().exp().mean();
  const Eigen::VectorXd load = gates.active.rowwise().mean() * M / K;
  CHECK(found(5, 2) == doctest::Approx(-0.8 * K / M / P * e(5) * (load(5) - load.dot(e) / M)).epsilon(1e-12));
}

TEST_CASE(
    "the selection bias chooses experts and gates do not see it [every gate; a bias of 2000 below the largest logit]") {
  for (moe::Gate kind : {moe::Gate::sigmoid, moe::Gate::softmax, moe::Gate::constant})
    for (const double size : {0.7, 2000.0}) {
      const MatrixXd r = gaussian(M, P, size, 3);
      const Eigen::VectorXd b = gaussian(M, 1, 3 * size, 4);
      const moe::reference::Gates expected = moe::reference::gates(model(kind), K, r, b);
      const moe::reference::Gates without = moe::reference::gates(model(kind), K, r);
      auto logits = host(r), bias = host(b), mask = host(r), G = host(r);
      moe::apply_gate<B>(spec(kind), logits, bias, mask, G);
      INFO("gate ", static_cast<int>(kind), ", size ", size);
      CHECK(B::download(mask) == expected.active);
      REQUIRE(B::download(G).allFinite());
      REQUIRE(expected.G.allFinite());
      CHECK(expected.active != without.active);
      CHECK((B::download(G) - expected.G).cwiseAbs().maxCoeff() < 1e-13);
      CHECK(expected.active.colwise().sum() == MatrixXd::Constant(1, P, K));
      if (kind == moe::Gate::softmax) CHECK((expected.G.colwise().sum().array() - K).abs().maxCoeff() < 1e-12);
    }
}

TEST_CASE(
    "the selection bias moves by its rate towards experts with too few tokens, and stands where the load is one") {
  // K M = 8 tokens of 2 of 4 experts: a fair share is 4. Tokens of the experts: 8, 4, 3, 1.
  MatrixXd active = MatrixXd::Zero(4, 8);
  active.row(0).setOnes();
  active.row(1).head(4).setOnes();
  active.row(2).segment(4, 3).setOnes();
  active(3, 7) = 1;
  moe::GateSpec s{moe::Gate::sigmoid, true, 2};
  s.balance_bias = 0.25;
  auto mask = host(active), bias = host(MatrixXd::Constant(4, 1, 1.0));
  moe::move_bias<B>(s, mask, bias);
  moe::move_bias<B>(s, mask, bias);
  CHECK(B::download(bias) == Eigen::Vector4d(0.5, 1, 1.5, 1.5));
}

TEST_CASE(
    "the bias of networks alternates between two halves of experts that nothing else tells apart [both trainers]") {
  // Regime I, MSSP: routers start from zero and hardly move. Ties go to the lower index: experts 0 and 1, then by the bias 2 and 3.
  moe::RunSpec s = network_fixture::spec("I", "mssp", moe::OptimizerKind::sgd, 3);
  s.model.routing = moe::Routing::topk;
  s.model.balance_bias = 0.125;
  s.optimizer.lr = 1e-9;
  s.model.depth = 2;
  s.model.residual = true;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  for (const auto& [steps, b] : {std::pair{1, 0.125}, {2, 0.0}}) {
    s.training.steps = steps;
    MatrixXd expected(4, 2);
    expected << -b, -b, -b, -b, b, b, b, b;
    CHECK(moe::train_network(s, data, 16, 1).selection_bias == expected);
    CHECK(moe::train_reference_network(s, data, 16, 1).selection_bias == expected);
  }
}
