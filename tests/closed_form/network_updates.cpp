// Optimizers and statistics of finite networks against values worked out by hand.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/network_fixture.hpp"
#include "validation/reference_observables.hpp"
#include "validation/reference_optimizer.hpp"

namespace {

using moe::reference::MatrixXd;

/// A network whose tensors have one entry each, so that an update is five scalars.
moe::NetworkWeights filled(double value) {
  const MatrixXd one = MatrixXd::Constant(1, 1, value);
  return {one, one, one, one, one};
}

/// Weights after updates with the gradients in turn, from 2.0, lr 0.1 (0.2 for the readout).
moe::NetworkWeights updated(const moe::OptimizerSpec& spec, double eps, std::initializer_list<double> gradients) {
  moe::PerTensor<double> lr, all_eps;
  lr.values.fill(0.1);
  lr[moe::Tensor::readout] = 0.2;
  all_eps.values.fill(eps);
  moe::reference::Optimizer optimizer(spec, lr, all_eps, 1, 1);
  moe::NetworkWeights w = filled(2.0);
  for (double g : gradients) optimizer.step(w, filled(g));
  return w;
}

}  // namespace

TEST_CASE("network optimizers make the updates worked out by hand [two steps, gradients 3 and -1]") {
  moe::OptimizerSpec spec;
  const auto value = [](const MatrixXd& m) { return m(0, 0); };
  SUBCASE("sgd") {
    spec.name = moe::OptimizerKind::sgd;
    const auto w = updated(spec, 0, {3, -1});
    CHECK(value(w.w_in) == doctest::Approx(2 - 0.1 * 2).epsilon(1e-15));
    CHECK(value(w.readout) == doctest::Approx(2 - 0.2 * 2).epsilon(1e-15));
  }
  SUBCASE("momentum: velocities 3 and 0.8 * 3 - 1") {
    spec.name = moe::OptimizerKind::momentum;
    spec.momentum = 0.8;
    CHECK(value(updated(spec, 0, {3, -1}).router) == doctest::Approx(2 - 0.1 * (3 + 1.4)).epsilon(1e-15));
  }
  SUBCASE("signsgd, no move at zero gradient") {
    spec.name = moe::OptimizerKind::signsgd;
    CHECK(value(updated(spec, 0, {3, 0, 0.5}).expert_in) == doctest::Approx(2 - 0.1 - 0.1).epsilon(1e-15));
  }
  // beta1 = 0.5, beta2 = 0.75, eps = 0.5. Step 1: m^ = 3, v^ = 9. Step 2: m = 0.75 - 0.5 = 0.25, m^ = 0.25/0.75,
  // v = 0.75 * 2.25 + 0.25 = 1.9375, v^ = 1.9375/0.4375.
  const double first = 3 / (3 + 0.5), second = (0.25 / 0.75) / (std::sqrt(1.9375 / 0.4375) + 0.5);
  spec.beta1 = 0.5;
  spec.beta2 = 0.75;
  SUBCASE("adam: eps outside the root, after bias correction") {
    spec.name = moe::OptimizerKind::adam;
    spec.weight_decay = 0.5;  // adamw only
    const auto w = updated(spec, 0.5, {3, -1});
    CHECK(value(w.expert_out) == doctest::Approx(2 - 0.1 * (first + second)).epsilon(1e-14));
    CHECK(value(w.readout) == doctest::Approx(2 - 0.2 * (first + second)).epsilon(1e-14));
  }
  SUBCASE("adamw: every tensor shrinks by 1 - optimizer.lr weight_decay, whatever its own lr") {
    spec.name = moe::OptimizerKind::adamw;
    spec.lr = 0.4;
    spec.weight_decay = 0.5;
    const auto w = updated(spec, 0.5, {3, -1});
    CHECK(value(w.w_in) == doctest::Approx((2 * 0.8 - 0.1 * first) * 0.8 - 0.1 * second).epsilon(1e-14));
    CHECK(value(w.readout) == doctest::Approx((2 * 0.8 - 0.2 * first) * 0.8 - 0.2 * second).epsilon(1e-14));
  }
  SUBCASE("adafactor: one entry has row = col; weights 1 and 2^-0.8") {
    spec.name = moe::OptimizerKind::adafactor;
    const double weight = std::pow(2.0, -0.8), mean = (1 - weight) * 9.25 + weight * 1.25;
    CHECK(value(updated(spec, 0.5, {3, -1}).expert_in) ==
          doctest::Approx(2 - 0.1 * (3 / std::sqrt(9.25) - 1 / std::sqrt(mean))).epsilon(1e-14));
  }
  SUBCASE("adam with eps = 0 does not move where the gradient is zero") {
    spec.name = moe::OptimizerKind::adam;
    CHECK(value(updated(spec, 0, {0, 0}).w_in) == 2.0);
  }
}

TEST_CASE("network statistics of gates and experts have the values worked out by hand") {
  using namespace moe::network;
  using namespace moe::reference;
  MatrixXd G(3, 2);
  G << 0.5, 1.0,  //
      0.5, 0.0,   //
      0.0, 0.0;
  // Token 1: two equal gates, exp(H) = 2; token 2: one, exp(H) = 1; K = 2.
  CHECK(router_entropy(G, 2) == doctest::Approx(0.75).epsilon(1e-15));
  MatrixXd active(4, 2);
  active << 1, 1, 1, 0, 0, 1, 0, 0;
  // Shares 1, 1/2, 1/2, 0 of the tokens over kappa = 1/2.
  CHECK(loads(active, 2) == Eigen::Vector4d(2, 1, 1, 0));
  CHECK(quantile(Eigen::Vector4d(3, 0, 2, 1), 0.99) == doctest::Approx(2.97).epsilon(1e-15));
  CHECK(quantile(Eigen::Vector4d(3, 0, 2, 1), 1.0) == 3);
  MatrixXd x(4, 2);  // two experts of two units
  x << 1, 1, 1, 0, 1, 3, 1, 0;
  // Token 1: c = (2, 2), 2 experts; token 2: c = (1, 9), 100/82.
  CHECK(effective_experts(x, 2) == doctest::Approx(100.0 / 82).epsilon(1e-15));
  CHECK(effective_experts(1e-160 * x, 2) == doctest::Approx(100.0 / 82).epsilon(1e-3));
  CHECK(effective_experts(MatrixXd::Zero(4, 2), 2) == 0);
  // A token that no expert serves, as relu makes them, is left out, as in the limit.
  MatrixXd with_unserved = MatrixXd::Zero(4, 3);
  with_unserved.rightCols(2) = x;
  CHECK(effective_experts(with_unserved, 2) == effective_experts(x, 2));
  MatrixXd chosen(2, 2);
  chosen << 1, 0, 0, 1;
  // Active pairs: expert 1 with token 1 (mean square 1), expert 2 with token 2 (9/2).
  CHECK(rms_active(x, chosen) == doctest::Approx(std::sqrt(2.75)).epsilon(1e-15));
}

TEST_CASE("network losses, gradients and accuracy have the values worked out by hand") {
  using namespace moe::network;
  using namespace moe::reference;
  MatrixXd f(2, 2), y(2, 2);
  f << 1, 900, 1, 0;
  y << 1, 0, 0, 1;
  // CE: token 1 log 2; token 2 900 (no overflow); mse: (1/2)(0 + 1 + 900^2 + 1)/2.
  CHECK(loss_value(moe::Loss::cross_entropy, f, y) == doctest::Approx((std::log(2.0) + 900) / 2).epsilon(1e-15));
  CHECK(loss_value(moe::Loss::mse, f, y) == doctest::Approx(810002.0 / 4).epsilon(1e-15));
  CHECK(accuracy(f, y) == 0.5);
  MatrixXd sign(1, 3), target(1, 3);
  sign << 0.3, -0.2, 5;
  target << 1, 1, -1;
  CHECK(accuracy(sign, target) == doctest::Approx(1.0 / 3));
}
