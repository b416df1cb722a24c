// What must not change a finite network: the order of experts, threads, unchosen experts; and what must.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/network_fixture.hpp"
#include "validation/network.hpp"
#include "validation/reference_points.hpp"
#include "validation/reference_train.hpp"

namespace {

using moe::reference::MatrixXd;
using network_fixture::Index;

double worst(const MatrixXd& a, const MatrixXd& b) { return (a - b).cwiseAbs().maxCoeff(); }

moe::NetworkRun train_from(const moe::RunSpec& spec, const moe::Dataset& data, const moe::NetworkWeights& start) {
  moe::TrainOptions options;
  options.initial = &start;
  return moe::train_network(spec, data, spec.network.widths.front(), 0, options);
}

}  // namespace

TEST_CASE("network does not depend on the order of its experts [top-K, softmax, Adam]") {
  moe::RunSpec spec = network_fixture::spec("I", "mup", moe::OptimizerKind::adam, 8);
  spec.model.routing = moe::Routing::topk;
  spec.model.gate = moe::Gate::softmax;
  const moe::Dataset data = network_fixture::data(9, 5, 3);
  const moe::NetworkWeights w = moe::random_weights(spec, data, 16, 1);
  const moe::NetworkRun run = train_from(spec, data, w);
  const Index Ne = run.shape.Ne, order[] = {2, 0, 3, 1};
  REQUIRE(run.shape.M == 4);
  moe::NetworkWeights permuted = w;
  for (Index i = 0; i < 4; ++i) {
    permuted.router.row(i) = w.router.row(order[i]);
    permuted.expert_in.middleRows(i * Ne, Ne) = w.A(order[i], Ne);
    permuted.expert_out.middleCols(i * Ne, Ne) = w.B(order[i], Ne);
  }
  const moe::NetworkRun other = train_from(spec, data, permuted);
  REQUIRE(!run.failure);
  for (std::size_t t = 0; t < run.loss.size(); ++t) CHECK(std::abs(run.loss[t] - other.loss[t]) < 1e-12);
  CHECK(worst(other.final_weights.A(0, Ne), run.final_weights.A(2, Ne)) < 1e-11);
  CHECK(worst(other.final_weights.A(0, Ne), run.final_weights.A(0, Ne)) > 1e-2);
  CHECK(run.loss.front() - run.loss.back() > 0.05);
}

TEST_CASE("network top-K gives ties to the lower index and exactly K experts to every token") {
  moe::ModelSpec model;
  model.routing = moe::Routing::topk;
  model.gate = moe::Gate::constant;
  MatrixXd r(5, 3);
  r.col(0) << 0.1, 0.7, 0.7, 0.7, 0.2;
  r.col(1) << 0, 0, 0, 0, 0;
  r.col(2) << -1, 0.0, -0.0, 2, 0.0;  // -0 and 0 tie
  const MatrixXd active = moe::reference::gates(model, 2, r).active;
  MatrixXd expected(5, 3);
  expected.col(0) << 0, 1, 1, 0, 0;
  expected.col(1) << 1, 1, 0, 0, 0;
  expected.col(2) << 0, 1, 0, 1, 0;
  CHECK(active == expected);
}

TEST_CASE("network softmax gates average to one over the active experts and ignore a common shift of the logits") {
  moe::ModelSpec model;
  model.gate = moe::Gate::softmax;
  model.routing = moe::Routing::topk;
  const MatrixXd r = network_fixture::gaussian(7, 11, 3.0, 5);
  const auto g = moe::reference::gates(model, 3, r);
  const MatrixXd shifted = r.array() + 800.0;
  CHECK(worst(g.G.colwise().sum() / 3, MatrixXd::Ones(1, 11)) < 1e-14);
  CHECK(worst(moe::reference::gates(model, 3, shifted).G, g.G) < 1e-12);
  CHECK(g.active.colwise().sum() == MatrixXd::Constant(1, 11, 3));
}

TEST_CASE("network leaves an expert that no token chooses where it was [every optimizer but adamw]") {
  for (auto optimizer : {moe::OptimizerKind::sgd, moe::OptimizerKind::momentum, moe::OptimizerKind::adam,
                         moe::OptimizerKind::signsgd, moe::OptimizerKind::adafactor}) {
    moe::RunSpec spec = network_fixture::spec("I", "mup", optimizer, 3);
    spec.optimizer.eps = 0;
    spec.optimizer.lr = 0.01;
    spec.model.routing = moe::Routing::topk;
    spec.model.activation = moe::Activation::relu;  // phi >= 0: a router row of -1 is never among the largest
    const moe::Dataset data = network_fixture::data(9, 5, 3);
    moe::NetworkWeights w = moe::random_weights(spec, data, 16, 1);
    w.router.row(1).setConstant(-1);
    const moe::NetworkRun run = train_from(spec, data, w);
    REQUIRE(!run.failure);
    const Index Ne = run.shape.Ne;
    CHECK(run.final_weights.router.row(1) == w.router.row(1));
    CHECK(run.final_weights.A(1, Ne) == w.A(1, Ne));
    CHECK(run.final_weights.B(1, Ne) == w.B(1, Ne));
    CHECK(run.final_weights.A(0, Ne) != w.A(0, Ne));
    CHECK(run.observables.at("load_max").back() <= 2.0);
  }
}

TEST_CASE(
    "network has the loss of its training set on a test set that repeats it, in every piece [300 samples; top-K, bias, "
    "two blocks]") {
  moe::RunSpec s = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 3);
  s.model.routing = moe::Routing::topk;
  s.model.balance_bias = 0.3;
  s.model.depth = 2;
  s.model.norm = moe::Norm::rms;
  s.model.residual = true;
  s.training.test_every = 1;
  moe::Dataset d = network_fixture::data(5, 4, 3);
  d.x_test = d.x.replicate(1, 60);  // 256 are a piece, of which five is no divisor
  d.y_test = d.y.replicate(1, 60);
  const moe::NetworkRun run = moe::train_network(s, d, 16, 1);
  REQUIRE(run.test_loss.size() == run.loss.size());
  for (std::size_t t = 0; t < run.loss.size(); ++t) CHECK(std::abs(run.test_loss[t] - run.loss[t]) < 1e-13);
  CHECK(run.loss.back() < 0.99 * run.loss.front());
}

TEST_CASE("network runs are the same whatever the number of threads, and differ between seeds") {
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::adam, 4);
  spec.network.widths = {8, 20};
  spec.network.seeds = 3;
  spec.sampling.seed = 5;
  const moe::Dataset data = network_fixture::data(7, 5, 3);
  const auto one = moe::train_networks(spec, data, 1), four = moe::train_networks(spec, data, 4);
  REQUIRE(one.size() == 2);
  for (std::size_t w = 0; w < 2; ++w) {
    REQUIRE(one[w].size() == 3);
    for (std::size_t s = 0; s < 3; ++s) {
      CHECK(one[w][s].loss == four[w][s].loss);
      CHECK(one[w][s].observables == four[w][s].observables);
      CHECK(one[w][s].seed == 5 + s);
      CHECK(one[w][s].shape.N == spec.network.widths[w]);
    }
    CHECK(one[w][0].loss[2] != one[w][1].loss[2]);
    CHECK(one[w][1].loss == moe::train_network(spec, data, spec.network.widths[w], 6).loss);
  }
}

TEST_CASE(
    "network does not change by being observed, bit for bit [derivatives before the update or with it; SGD, Adam, "
    "Adafactor; soft and top-K; depth 2, normalised]") {
  const moe::Dataset data = network_fixture::data(7, 5, 3);
  for (const auto optimizer : {moe::OptimizerKind::sgd, moe::OptimizerKind::adam, moe::OptimizerKind::adafactor})
    for (const auto routing : {moe::Routing::soft, moe::Routing::topk})
      for (const auto precision : {moe::Precision::float32, moe::Precision::float64}) {
        moe::RunSpec spec = network_fixture::spec("II", "mssp", optimizer, 6);
        spec.model.routing = routing;
        spec.model.depth = 2;
        spec.model.residual = true;
        spec.model.norm = moe::Norm::rms;
        spec.sampling.precision = precision;
        const moe::NetworkRun observed = moe::train_network(spec, data, 20, 3);
        REQUIRE(observed.observe_steps.size() == 7);
        spec.output.observables = {"none"};
        const moe::NetworkRun plain = moe::train_network(spec, data, 20, 3);
        REQUIRE(plain.observe_steps.empty());
        CHECK(plain.loss == observed.loss);
        CHECK(plain.loss.back() < plain.loss.front());
        CHECK(plain.final_weights.w_in == observed.final_weights.w_in);
        CHECK(plain.final_weights.router == observed.final_weights.router);
        CHECK(plain.final_weights.expert_in == observed.final_weights.expert_in);
        CHECK(plain.final_weights.expert_out == observed.final_weights.expert_out);
        CHECK(plain.final_weights.readout == observed.final_weights.readout);
      }
}

TEST_CASE(
    "network of one block is the same whatever the branch exponent, bit for bit [L^-alpha and the factors of (T29) are "
    "one; both trainers; SGD, Adam, Adafactor; norm or none]") {
  const moe::Dataset data = network_fixture::data(7, 5, 3);
  for (const auto& [regime, optimizer, norm] : {std::tuple{"I", moe::OptimizerKind::sgd, moe::Norm::none},
                                                {"II", moe::OptimizerKind::adam, moe::Norm::rms},
                                                {"III", moe::OptimizerKind::adafactor, moe::Norm::none}})
    for (const auto& train : {&moe::train_network, &moe::train_reference_network}) {
      moe::RunSpec spec = network_fixture::spec(regime, "mssp", optimizer, 4);
      spec.model.norm = norm;
      spec.model.residual = true;
      const moe::NetworkRun unsaid = train(spec, data, 16, 3, {});
      CHECK(unsaid.loss.back() < unsaid.loss.front());
      for (const double alpha : {0.0, 0.5, 1.7}) {
        spec.model.branch_exponent = alpha;
        const moe::NetworkRun said = train(spec, data, 16, 3, {});
        INFO(std::string(regime), ", alpha ", alpha);
        CHECK(said.loss == unsaid.loss);
        CHECK(said.observables == unsaid.observables);
        CHECK(said.final_weights.expert_in == unsaid.final_weights.expert_in);
      }
    }
}

TEST_CASE("network initial weights have the std of the parameterization; shared experts start equal and part") {
  const moe::Dataset data = network_fixture::data(7, 40, 3);
  moe::RunSpec spec = network_fixture::spec("III", "mssp", moe::OptimizerKind::sgd, 3);
  spec.network.widths = {64};
  spec.model.init_scale[moe::Tensor::router] = 2;
  const moe::NetworkWeights w = moe::random_weights(spec, data, 64, 0);
  const Index M = 32, Ne = 32;
  const auto std_of = [](const MatrixXd& m) { return std::sqrt(m.squaredNorm() / static_cast<double>(m.size())); };
  // The relative error of a standard deviation from n normals is (2n)^-1/2; five of them.
  const auto near = [](double value, double expected, double n) {
    return std::abs(value / expected - 1) < 5 / std::sqrt(2 * n);
  };
  CHECK(near(std_of(w.w_in), std::pow(40.0, -0.5), 64 * 40));
  CHECK(near(std_of(w.router), 2 * std::pow(64.0, -0.5), 32 * 64));
  CHECK(near(std_of(w.expert_in), std::pow(64.0, -0.5), 32 * 64));
  CHECK(near(std_of(w.expert_out), std::pow(32.0, -0.5), 32 * 64));
  CHECK(near(std_of(w.readout), 1.0 / 64, 3 * 64));
  for (Index i = 1; i < M; ++i) {
    CHECK(w.A(i, Ne) == w.A(0, Ne));
    CHECK(w.B(i, Ne) == w.B(0, Ne));
  }
  const moe::NetworkRun run = moe::train_network(spec, data, 64, 0);
  CHECK(worst(run.final_weights.A(1, Ne), run.final_weights.A(0, Ne)) > 1e-6);

  spec.model.depth = 2;  // every block shares its own
  const moe::NetworkWeights deep = moe::random_weights(spec, data, 64, 0);
  CHECK(deep.A(M + 1, Ne) == deep.A(M, Ne));
  CHECK(deep.B(M + 1, Ne) == deep.B(M, Ne));
  CHECK(worst(deep.A(M, Ne), deep.A(0, Ne)) > std::pow(64.0, -0.5));
  CHECK(worst(deep.B(M, Ne), deep.B(0, Ne)) > std::pow(32.0, -0.5));
  spec.model.depth = 1;

  spec.model.regime = "II";
  spec.model.readout_init = moe::ReadoutInit::zero;
  const moe::NetworkWeights independent = moe::random_weights(spec, data, 64, 0);
  CHECK(independent.A(1, 3) != independent.A(0, 3));
  CHECK(independent.readout.norm() == 0);
  CHECK(near(std_of(independent.expert_out), std::sqrt(32.0 / 3), 64 * 32 * 3));
}
