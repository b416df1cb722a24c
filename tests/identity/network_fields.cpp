// Normalised fields and the decomposition of finite networks: identities of theory sections 3 and 7.
#include <doctest/doctest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "regimes/regime.hpp"
#include "support/observable.hpp"
#include "tests/network_fixture.hpp"
#include "validation/reference_observables.hpp"

namespace {

using moe::reference::MatrixXd;
using network_fixture::gaussian;
using network_fixture::Index;

/// A trained network with the fields of its first and last step.
struct Trained {
  moe::RunSpec spec;
  moe::Dataset data = network_fixture::data(10, 6, 3);
  moe::reference::Model model;
  moe::NetworkWeights initial, last;
  moe::NetworkRun run;

  explicit Trained(const moe::RunSpec& s) : spec(s) {
    const int N = spec.network.widths.front();
    initial = moe::random_weights(spec, data, N, 3);
    moe::TrainOptions options;
    options.initial = &initial;
    run = moe::train_network(spec, data, N, 3, options);
    REQUIRE(!run.failure);
    last = run.final_weights;
    moe::Faults faults;
    const moe::Parameterization table = moe::load_parameterization(spec, faults);
    const double c = moe::network_constants(spec, table, moe::network_sizes(spec, N, 6)).aggregation;
    model = {spec.model, spec.training.loss, run.shape, c};
  }
};

double worst(const MatrixXd& a, const MatrixXd& b) { return (a - b).cwiseAbs().maxCoeff(); }

moe::RunSpec demanding(const std::string& regime, moe::OptimizerKind optimizer, moe::Gate gate) {
  moe::RunSpec s = network_fixture::spec(regime, "mssp", optimizer, 6);
  s.model.gate = gate;
  s.model.routing = moe::Routing::topk;
  s.model.residual = true;
  s.model.post_activation = moe::Activation::tanh;
  s.model.aggregation = {{"const", 1.4}, {"K", -1.0}};
  s.model.output_scale = 1.3;
  s.model.router_temperature = 0.7;
  s.optimizer.weight_decay = 0.5;
  return s;
}

}  // namespace

TEST_CASE("network fields obey (T6)-(T11) written out [top-K, residual, prefactor 1.4/K, output scale 1.3]") {
  for (moe::Gate gate : {moe::Gate::sigmoid, moe::Gate::softmax}) {
    const Trained t(demanding("II", moe::OptimizerKind::sgd, gate));
    const auto& [N, M, Ne, K, D, C, L] = t.run.shape;
    REQUIRE(L == 1);
    const auto a = moe::reference::forward(t.model, t.last, t.data.x, 0);
    const auto g = moe::reference::backward(t.model, t.last, a, t.data.y, 0);
    const auto fields = moe::reference::normalised(t.run.shape, g);
    const auto& b = fields.blocks[0];
    const auto& block = a.blocks[0];
    const double P = 10, Kc = 1.4, alpha = 1.3, tau = 0.7;
    // (T6): Delta = (y - softmax f)/P, wbar = N alpha W_out^T.
    MatrixXd Delta(C, 10);
    for (Index mu = 0; mu < 10; ++mu) {
      const Eigen::VectorXd e = a.f.col(mu).array().exp();
      Delta.col(mu) = (t.data.y.col(mu) - e / e.sum()) / P;
    }
    const MatrixXd D0 = N * alpha * (t.last.readout.transpose() * Delta);
    const MatrixXd Dn = D0.array() * (1 - block.y.array().tanh().square());
    CHECK(worst(b.D, Dn) < 1e-13);
    MatrixXd xi = D0;
    for (int i = 0; i < M; ++i) {
      const MatrixXd zeta = Kc * Ne / N * (t.last.B(i, Ne).transpose() * Dn);  // (T7) with K c B for B
      const MatrixXd u = t.last.A(i, Ne) * a.phi;
      const MatrixXd ghat =
          (zeta.array() * (1 - u.array().tanh().square())).rowwise() * block.gates.G.row(i).array();  // (T8)
      CHECK(worst(b.zeta.middleRows(i * Ne, Ne), zeta) < 1e-13);
      CHECK(worst(b.ghat.middleRows(i * Ne, Ne), ghat) < 1e-13);
      xi += N / static_cast<double>(K * Ne) * (t.last.A(i, Ne).transpose() * ghat);
    }
    for (Index mu = 0; mu < 10; ++mu) {  // (T9)
      double mean = 0;
      Eigen::VectorXd s(M);
      for (int i = 0; i < M; ++i) {
        s(i) = block.v.col(mu).segment(i * Ne, Ne).dot(b.zeta.col(mu).segment(i * Ne, Ne)) / Ne;
        mean += block.gates.G(i, mu) * s(i) / K;
      }
      for (int i = 0; i < M; ++i) {
        const double G = block.gates.G(i, mu);
        const double rho = gate == moe::Gate::softmax ? G * (s(i) - mean) / tau : G * (1 - G) * s(i) / tau;
        CHECK(std::abs(b.rho(i, mu) - rho) < 1e-13);
      }
    }
    xi += static_cast<double>(N) / K * (t.last.router.transpose() * b.rho);  // (T10)
    CHECK(worst(fields.xi, xi) < 1e-12);
    const MatrixXd gradient =
        -(xi.array() * (1 - a.h.array().tanh().square())).matrix() * t.data.x.transpose() / N;  // (T11)
    CHECK(worst(g.weights.w_in, gradient) < 1e-13);
  }
}

TEST_CASE("network decomposition adds up to the fields it splits [three regimes, SGD, Adam, AdamW]") {
  for (const char* regime : {"I", "II", "III"})
    for (auto optimizer : {moe::OptimizerKind::sgd, moe::OptimizerKind::adam, moe::OptimizerKind::adamw}) {
      const Trained t(demanding(regime, optimizer, moe::Gate::sigmoid));
      const auto fields_of = [&](const moe::NetworkWeights& w, const moe::reference::Forward& a) {
        return moe::reference::normalised(t.run.shape, moe::reference::backward(t.model, w, a, t.data.y, 0));
      };
      const auto a0 = moe::reference::forward(t.model, t.initial, t.data.x, 0);
      const auto a = moe::reference::forward(t.model, t.last, t.data.x, 0);
      const auto b0 = fields_of(t.initial, a0), b = fields_of(t.last, a);
      const moe::reference::Snapshot initial{t.initial, a0, b0}, now{t.last, a, b};
      const auto parts = moe::reference::decompose(t.model, initial, now);
      const auto& block = a.blocks[0];
      CHECK(worst(parts.y_init + parts.y_propagating + parts.y_effective, block.y) < 1e-13);
      CHECK(worst(parts.r_init + parts.r_effective, block.r) < 1e-13);
      CHECK(worst(parts.u_init + parts.u_effective, block.u) < 1e-13);
      CHECK(worst(parts.zeta_init + parts.zeta_effective, b.blocks[0].zeta) < 1e-12);
      // D0 of (T10): -N dL/ds, what the residual path carries past the experts.
      const MatrixXd D0 = -t.run.shape.N * moe::reference::backward(t.model, t.last, a, t.data.y, 0).blocks[0].out;
      CHECK(worst(parts.xi_A_init + parts.xi_A_effective + parts.xi_Q_init + parts.xi_Q_effective + D0, b.xi) < 1e-12);
      CHECK(moe::reference::rms(parts.y_effective) > 1e-3);
      CHECK(moe::reference::rms(parts.y_propagating) > 1e-3);
      CHECK(moe::reference::rms(parts.u_effective) > 1e-3);

      // At t = 0 all is initial.
      const auto start = moe::reference::decompose(t.model, initial, initial);
      CHECK(worst(start.y_init, a0.blocks[0].y) < 1e-14);
      CHECK(start.y_propagating.norm() == 0);
      CHECK(start.y_effective.norm() == 0);
      CHECK(start.zeta_effective.norm() == 0);

      // What the run recorded is these very arrays.
      const auto& o = t.run.observables;
      CHECK(o.at("rms_y_propagating").back() ==
            doctest::Approx(moe::reference::rms(parts.y_propagating)).epsilon(1e-12));
      CHECK(o.at("rms_xi_A_effective").back() ==
            doctest::Approx(moe::reference::rms(parts.xi_A_effective)).epsilon(1e-12));
      CHECK(o.at("change_xi").back() == doctest::Approx(moe::reference::rms(b.xi - b0.xi)).epsilon(1e-12));
      CHECK(o.at("change_h").front() == 0);
    }
}

TEST_CASE("network records every observable and kernel of the common list, finite at all steps") {
  moe::RunSpec spec = demanding("III", moe::OptimizerKind::adam, moe::Gate::softmax);
  spec.output.kernels_at = {0, 5};
  spec.output.observe_every = 4;
  const Trained t(spec);
  CHECK(t.run.observe_steps == std::vector<int>{0, 4, 6});
  std::set<std::string> names;
  for (const auto& info : moe::observable_table) {
    CAPTURE(info.name);
    names.insert(info.name);
    REQUIRE(t.run.observables.contains(info.name));
    const auto& values = t.run.observables.at(info.name);
    CHECK(values.size() == 3);
    for (double value : values) CHECK(std::isfinite(value));
  }
  CHECK(t.run.observables.size() == names.size());
  CHECK(t.run.kernel_steps == std::vector<int>{0, 5});
  for (const auto& info : moe::kernel_table) {
    CAPTURE(info.name);
    const auto& kernels = t.run.kernels.at(info.name);
    REQUIRE(kernels.size() == 2);
    CHECK(kernels[1].rows() == 10);
    CHECK(worst(kernels[1], kernels[1].transpose()) < 1e-15);
    CHECK(kernels[1].trace() > 0);
  }
  // <phi phi> on the diagonal is the mean square of phi.
  CHECK(std::sqrt(t.run.kernels.at("Phi")[0].trace() / 10) ==
        doctest::Approx(t.run.observables.at("rms_phi")[0]).epsilon(1e-12));
  CHECK(std::sqrt(t.run.kernels.at("DD")[0].trace() / 10) ==
        doctest::Approx(t.run.observables.at("rms_D")[0]).epsilon(1e-12));
}
