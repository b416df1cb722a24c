// Backpropagation of the finite network against central differences of its loss.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "tests/network_fixture.hpp"
#include "validation/network.hpp"
#include "validation/network_start.hpp"
#include "validation/reference_model.hpp"

namespace {

using moe::Activation;
using moe::Gate;
using moe::Loss;
using moe::NetworkWeights;
using moe::Routing;
using moe::reference::MatrixXd;
using network_fixture::gaussian;

/// Smallest gap between the last chosen and the first unchosen logit: what a difference quotient must not cross.
double routing_margin(const MatrixXd& r, int K) {
  double margin = std::numeric_limits<double>::infinity();
  for (Eigen::Index mu = 0; mu < r.cols(); ++mu) {
    Eigen::VectorXd sorted = r.col(mu);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    if (K < sorted.size()) margin = std::min(margin, sorted(K - 1) - sorted(K));
  }
  return margin;
}

struct Case {
  moe::reference::Model model;
  NetworkWeights weights;
  MatrixXd x, y;
};

/// A network of L blocks with every multiplier away from its neutral value.
Case tiny(Gate gate, Activation activation, Routing routing, bool residual, Loss loss, int L = 1,
          moe::Norm norm = moe::Norm::none) {
  Case c;
  c.model.shape = {.N = 5, .M = 4, .Ne = 3, .K = routing == Routing::topk ? 2 : 4, .D = 3, .C = 2, .L = L};
  c.model.spec.depth = L;
  c.model.spec.norm = norm;
  c.model.spec.branch_exponent = 0.6;
  c.model.spec.gate = gate;
  c.model.spec.activation = activation;
  c.model.spec.post_activation = Activation::tanh;
  c.model.spec.routing = routing;
  c.model.spec.residual = residual;
  c.model.spec.activation_scale = 1.3;
  c.model.spec.router_temperature = 0.8;
  c.model.spec.output_scale = 1.7;
  c.model.aggregation = 0.37;
  c.model.loss = loss;
  c.weights = {gaussian(5, 3, 0.8, 1), gaussian(4 * L, 5, 0.9, 2), gaussian(12 * L, 5, 0.7, 3),
               gaussian(5, 12 * L, 0.9, 4), gaussian(2, 5, 0.8, 5)};
  c.x = gaussian(3, 6, 1.0, 6);
  c.y = loss == Loss::mse ? gaussian(2, 6, 1.0, 8) : MatrixXd::Zero(2, 6);
  if (loss == Loss::cross_entropy)
    for (Eigen::Index mu = 0; mu < 6; ++mu) c.y(mu % 3 == 0 ? 1 : 0, mu) = 1;
  return c;
}

/// What is trained on: the loss and the balancing losses (T31). Difference quotients cross no routing, so that loads stay.
double loss_at(const Case& c, const NetworkWeights& w) {
  const moe::reference::Forward a = moe::reference::forward(c.model, w, c.x, 0);
  double loss = moe::network::loss_value(c.model.loss, a.f, c.y);
  if (c.model.spec.balance_loss > 0 && c.model.spec.routing == Routing::topk)
    for (const auto& block : a.blocks)
      loss += moe::reference::balance_loss(c.model.spec.balance_loss,
                                           moe::reference::loads(c.model.shape.K, block.gates.active), block.r);
  return loss;
}

/// Largest deviation of a gradient from the five-point difference quotient of loss() over the entries of `tensor`, which loss() reads:
/// (8 (L(w + e) - L(w - e)) - (L(w + 2e) - L(w - 2e))) / 12e.
template <class LossOf>
double worst_entry(MatrixXd& tensor, const MatrixXd& gradient, const LossOf& loss) {
  const double e = 5e-5;
  double worst = 0;
  REQUIRE(gradient.rows() == tensor.rows());
  REQUIRE(gradient.cols() == tensor.cols());
  for (Eigen::Index k = 0; k < gradient.size(); ++k) {
    double& entry = tensor.data()[k];
    const double kept = entry;
    const auto loss_beside = [&](double shift) {
      entry = kept + shift;
      const double beside = loss();
      entry = kept;
      return beside;
    };
    const double near = loss_beside(e) - loss_beside(-e), far = loss_beside(2 * e) - loss_beside(-2 * e);
    worst = std::max(worst, std::abs((8 * near - far) / (12 * e) - gradient.data()[k]));
  }
  return worst;
}
double worst_entry(const Case& c, MatrixXd NetworkWeights::*tensor, const MatrixXd& gradient) {
  NetworkWeights w = c.weights;
  return worst_entry(w.*tensor, gradient, [&] { return loss_at(c, w); });
}
void check_entries(const Case& c, const NetworkWeights& gradient, double allowed) {
  for (const auto& [name, tensor] : {std::pair{"w_in", &NetworkWeights::w_in},
                                     {"router", &NetworkWeights::router},
                                     {"expert_in", &NetworkWeights::expert_in},
                                     {"expert_out", &NetworkWeights::expert_out},
                                     {"readout", &NetworkWeights::readout}}) {
    INFO(std::string(name));
    CHECK(worst_entry(c, tensor, gradient.*tensor) < allowed);
  }
}

}  // namespace

TEST_CASE(
    "network gradients of all five tensors match central differences [every gate, activation, routing, residual, "
    "loss]") {
  // Rounding: a few 1e-16 L / e = 2e-11; truncation e^4 times fifth derivatives of order 1e3: below 1e-14. The
  // gradients are of order 0.01 to 1.
  const double allowed = 1e-10;
  for (Gate gate : {Gate::sigmoid, Gate::softmax, Gate::constant})
    for (Activation activation : {Activation::tanh, Activation::relu, Activation::gelu, Activation::identity})
      for (Routing routing : {Routing::soft, Routing::topk})
        for (bool residual : {false, true})
          for (Loss loss : {Loss::mse, Loss::cross_entropy}) {
            const Case c = tiny(gate, activation, routing, residual, loss);
            INFO(fmt::format("gate {}, activation {}, routing {}, residual {}, loss {}", static_cast<int>(gate),
                             static_cast<int>(activation), static_cast<int>(routing), residual,
                             static_cast<int>(loss)));
            const auto fields = moe::reference::forward(c.model, c.weights, c.x, 0);
            REQUIRE(routing_margin(fields.blocks[0].r, c.model.shape.K) > 1e-3);
            const NetworkWeights g = moe::reference::backward(c.model, c.weights, fields, c.y, 0).weights;
            check_entries(c, g, allowed);
            CHECK(g.w_in.norm() > 1e-3);
            CHECK(g.expert_in.norm() > 1e-3);
            CHECK(g.expert_out.norm() > 1e-3);
            CHECK((gate == Gate::constant ? g.router.norm() == 0 : g.router.norm() > 1e-4));
          }
}

TEST_CASE(
    "network gradients of all five tensors match central differences in stacks of blocks [L = 1, 3; norm; gates, "
    "activations, routing, residual, loss] (T28)") {
  const double allowed = 1e-9;
  int compared = 0;
  for (const auto& [L, norm] : {std::pair{1, moe::Norm::rms}, {3, moe::Norm::none}, {3, moe::Norm::rms}})
    for (Gate gate : {Gate::sigmoid, Gate::softmax})
      for (Activation activation : {Activation::tanh, Activation::gelu})
        for (Routing routing : {Routing::soft, Routing::topk})
          for (bool residual : {false, true})
            for (Loss loss : {Loss::mse, Loss::cross_entropy}) {
              const Case c = tiny(gate, activation, routing, residual, loss, L, norm);
              INFO(fmt::format("L {}, norm {}, gate {}, activation {}, routing {}, residual {}, loss {}", L,
                               static_cast<int>(norm), static_cast<int>(gate), static_cast<int>(activation),
                               static_cast<int>(routing), residual, static_cast<int>(loss)));
              const auto fields = moe::reference::forward(c.model, c.weights, c.x, 0);
              // Truncation: e^4/30 of the fifth derivative, 5! |x|^5 / q^5 behind a norm that divides by q: 1e-10 for q = 0.1, |x| = 2.
              double margin = 1, smallest_q = norm == moe::Norm::none ? 1 : fields.s.q.minCoeff();
              for (const auto& block : fields.blocks) {
                margin = std::min(margin, routing_margin(block.r, c.model.shape.K));
                if (norm != moe::Norm::none) smallest_q = std::min(smallest_q, block.in.q.minCoeff());
              }
              if (margin < 2e-3 || smallest_q < 0.1) continue;
              const NetworkWeights g = moe::reference::backward(c.model, c.weights, fields, c.y, 0).weights;
              check_entries(c, g, allowed);
              for (int l = 0; l < L; ++l) CHECK(g.expert_out.middleCols(12 * l, 12).norm() > 1e-5);
              ++compared;
            }
  MESSAGE(fmt::format("{} of 96 networks compared", compared));
  CHECK(compared > 50);
}

TEST_CASE(
    "one step of the fast trainer moves all five tensors down the central differences of its own loss [every gate, "
    "activation and routing; loss, depth and norm in turn] [slow]") {
  // As above; the loss is a sum of some ten more roundings.
  const double allowed = 1e-9;
  const moe::Dataset data = network_fixture::data(6, 3, 2);
  int compared = 0;
  for (Gate gate : {Gate::sigmoid, Gate::softmax, Gate::constant})
    for (Activation activation : {Activation::tanh, Activation::relu, Activation::gelu, Activation::identity})
      for (Routing routing : {Routing::soft, Routing::topk}) {
        const int variant = (static_cast<int>(gate) + static_cast<int>(activation) + static_cast<int>(routing)) % 3;
        moe::RunSpec spec = network_fixture::spec("I", "mssp", moe::OptimizerKind::sgd, 1);
        spec.model.gate = gate, spec.model.activation = activation, spec.model.routing = routing;
        spec.model.active_fraction = 0.5;
        spec.model.post_activation = Activation::tanh;
        spec.model.residual = variant > 0;
        spec.model.depth = variant == 2 ? 2 : 1;
        spec.model.norm = variant == 2 ? moe::Norm::rms : moe::Norm::none;
        spec.model.router_temperature = 0.8;
        spec.training.loss = variant == 1 ? Loss::cross_entropy : Loss::mse;
        spec.output.observables = {"none"};
        const int N = 7;
        const moe::NetworkShape shape = moe::network_shape(spec, data, N);
        const int L = shape.L, M = shape.M, Ne = shape.Ne;
        NetworkWeights start = {gaussian(N, 3, 0.8, 1), gaussian(M * L, N, 0.9, 2), gaussian(M * Ne * L, N, 0.7, 3),
                                gaussian(N, M * Ne * L, 0.9, 4), gaussian(2, N, 0.8, 5)};
        const moe::NetworkConstants constants = moe::constants_at(spec, shape);
        const moe::reference::Model model{spec.model, spec.training.loss, shape, constants.aggregation};
        const auto fields = moe::reference::forward(model, start, data.x, 0);
        double margin = 1;
        for (const auto& block : fields.blocks) margin = std::min(margin, routing_margin(block.r, shape.K));
        if (margin < 2e-3) continue;
        ++compared;
        INFO(fmt::format("gate {}, activation {}, routing {}, variant {}", static_cast<int>(gate),
                         static_cast<int>(activation), static_cast<int>(routing), variant));
        moe::TrainOptions options;
        options.initial = &start;
        const moe::NetworkRun run = moe::train_network(spec, data, N, 0, options);
        REQUIRE(!run.failure);
        spec.training.steps = 0;
        const auto check = [&](moe::Tensor tensor, MatrixXd NetworkWeights::*member) {
          const MatrixXd gradient = (start.*member - run.final_weights.*member) / constants.lr[tensor];
          const double worst = worst_entry(start.*member, gradient,
                                           [&] { return moe::train_network(spec, data, N, 0, options).loss.front(); });
          CHECK(worst < allowed);
          CHECK((gradient.norm() > 1e-4 || (tensor == moe::Tensor::router && gate == Gate::constant)));
        };
        check(moe::Tensor::input, &NetworkWeights::w_in);
        check(moe::Tensor::router, &NetworkWeights::router);
        check(moe::Tensor::expert_in, &NetworkWeights::expert_in);
        check(moe::Tensor::expert_out, &NetworkWeights::expert_out);
        check(moe::Tensor::readout, &NetworkWeights::readout);
      }
  MESSAGE(fmt::format("{} of 24 networks compared", compared));
  CHECK(compared > 20);
}

TEST_CASE(
    "network gradients of all five tensors match central differences with a balancing loss in every block [L = 1, 3; "
    "gates; "
    "norm, temperature] (T31)") {
  const double allowed = 1e-9;
  int compared = 0;
  for (const auto& [L, norm] :
       {std::pair{1, moe::Norm::none}, {1, moe::Norm::rms}, {3, moe::Norm::none}, {3, moe::Norm::rms}})
    for (Gate gate : {Gate::sigmoid, Gate::softmax, Gate::constant})
      for (Loss loss : {Loss::mse, Loss::cross_entropy}) {
        Case c = tiny(gate, Activation::tanh, Routing::topk, true, loss, L, norm);
        c.x.row(0).array() += 1.5;  // what tokens have in common makes some experts popular
        INFO(fmt::format("L {}, norm {}, gate {}, loss {}", L, static_cast<int>(norm), static_cast<int>(gate),
                         static_cast<int>(loss)));
        const NetworkWeights plain =
            moe::reference::backward(c.model, c.weights, moe::reference::forward(c.model, c.weights, c.x, 0), c.y, 0)
                .weights;
        c.model.spec.balance_loss = 0.9;
        const auto fields = moe::reference::forward(c.model, c.weights, c.x, 0);
        double margin = 1;
        for (const auto& block : fields.blocks) margin = std::min(margin, routing_margin(block.r, c.model.shape.K));
        if (margin < 2e-3) continue;
        const NetworkWeights g = moe::reference::backward(c.model, c.weights, fields, c.y, 0).weights;
        check_entries(c, g, allowed);
        CHECK((g.router - plain.router).norm() > 0.01);
        CHECK((g.w_in - plain.w_in).norm() > 0.001);
        ++compared;
      }
  CHECK(compared > 8);
}
