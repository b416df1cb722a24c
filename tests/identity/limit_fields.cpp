// What stands between the matrices of the limit, written out (theory sections 1, 3 and 11), by the formulas of the reference network; the two
// sides of every matrix; and the observables of theory section 7 by their definitions.
#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "dmft/observer.hpp"
#include "dmft/replica.hpp"
#include "dmft/solve.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/network_statistics.hpp"
#include "validation/reference_observables.hpp"
#include "validation/reference_points.hpp"

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::RowVectorXd;
using B = moe::Cpu<double>;
using View = B::View;
using enum moe::OptimizerKind;
using moe::Activation;
using moe::Gate;
using moe::Norm;

constexpr int S = 24, P = 5;

/// Every multiplier away from its neutral value; 5 of 12 sampled experts are chosen, or 2 of 4 explicit ones.
moe::RunSpec demanding(const char* regime, const char* param, moe::OptimizerKind optimizer, Gate gate) {
  moe::RunSpec s = limit_fixture::as_network(
      limit_fixture::spec(regime, param, optimizer, moe::is_linear(optimizer) ? 0.7 : 0.2, 3), S);
  s.model.gate = gate;
  s.model.routing = moe::Routing::topk;
  s.model.active_fraction = 0.4;
  s.model.experts = 4;
  s.model.expert_width = 3;
  s.model.router_temperature = 0.7;
  s.model.balance_loss = 0.6;
  s.model.balance_bias = 0.15;
  s.model.activation_scale = 1.4;
  s.model.post_activation = Activation::tanh;
  s.model.residual = true;
  s.model.norm = Norm::rms;
  s.model.depth = 3;
  s.model.branch_exponent = 0.5;
  s.optimizer.weight_decay = 0.5;
  s.sampling.tolerance = 1e-9;
  return s;
}

moe::LimitSpec limit_of(const moe::RunSpec& s, const moe::StepShape& step) {
  moe::Faults faults;
  std::vector<std::string> warnings;
  moe::LimitSpec limit = moe::limit_spec(s, step, faults, warnings);
  faults.throw_if_any();
  limit.block.matching = false;
  return limit;
}

moe::HostMatrix<double> gaussian(Index rows, Index cols, std::uint32_t stream) {
  moe::HostMatrix<double> m(rows, cols);
  B::normal(m, {5, 0, stream, 0});
  return m;
}

double worst(const MatrixXd& a, const MatrixXd& b) { return (a - b).cwiseAbs().maxCoeff(); }

/// Averages (P, P) of products over the rows.
MatrixXd products(const MatrixXd& a, const MatrixXd& b) { return a.transpose() * b / static_cast<double>(a.rows()); }

MatrixXd of_units(const MatrixXd& of_experts, Index units) {
  MatrixXd all(units, of_experts.cols());
  const Index hidden = units / of_experts.rows();
  for (Index k = 0; k < units; ++k) all.row(k) = of_experts.row(k / hidden);
  return all;
}

struct Case {
  const char* regime;
  const char* param;
  moe::OptimizerKind optimizer;
  Gate gate;
  moe::Form form = moe::Form::bases;
};

}  // namespace

TEST_CASE(
    "limit fields obey (T2)-(T10) and (T28) written out, and both sides of a matrix are adjoint, of its parts too "
    "[every structure, gate and form; top-K, temperature, balancing, norm, residual, three blocks' multiplier]") {
  for (const Case& c : {Case{"I", "mup", sgd, Gate::softmax}, Case{"I", "mssp", momentum, Gate::sigmoid},
                        Case{"II", "mssp", sgd, Gate::sigmoid}, Case{"II", "mssp", adamw, Gate::softmax},
                        Case{"II", "mssp", sgd, Gate::constant}, Case{"III", "mup", sgd, Gate::sigmoid},
                        Case{"III", "mssp", adamw, Gate::sigmoid}, Case{"III", "mssp", sgd, Gate::softmax},
                        Case{"II", "mssp", sgd, Gate::softmax, moe::Form::dense}}) {
    moe::RunSpec spec = demanding(c.regime, c.param, c.optimizer, c.gate);
    spec.sampling.form = c.form;
    const moe::ModelSpec& model = spec.model;
    const moe::LimitSpec limit = limit_of(spec, {6, 2, P});
    const int K = static_cast<int>(limit.block.gate.active);
    const double b = model.activation_scale, branch = 1 / std::sqrt(3.0);
    moe::StreamNumbers streams(11, 0);
    moe::Population<B> neurons(S, streams.next(), false);
    moe::Layer<B> layer(limit.layer, limit.block, std::move(neurons), streams, P);
    moe::Block<B>& block = layer.block();
    const double kappa = block.shape().kappa;
    Eigen::VectorXd bias = Eigen::VectorXd::Zero(block.shape().experts);
    double learned = 0;
    for (std::uint32_t t = 0; t < 3; ++t) {
      INFO("regime ", std::string(c.regime), " ", std::string(c.param), ", gate ", static_cast<int>(c.gate), ", step ",
           t);
      auto x_in = gaussian(S, P, 100 + t), g_in = gaussian(S, P, 200 + t);
      const MatrixXd x = B::download(x_in), g = B::download(g_in);
      const MatrixXd out = B::download(layer.forward(x_in)), back = B::download(layer.backward(g_in));
      moe::BlockFields<B>& f = block.fields();
      const MatrixXd z = B::download(layer.z()), y = B::download(layer.y()), D = B::download(layer.D());
      const MatrixXd r = B::download(f.r), u = B::download(f.u), zeta = B::download(f.zeta), v = B::download(f.v),
                     Gv = B::download(f.Gv), ghat = B::download(f.ghat), rho = B::download(f.rho),
                     xi_A = B::download(f.xi_A), xi_Q = B::download(f.xi_Q);
      // Sums of up to 300 products of order ten.
      constexpr double rounding = 1e-12;
      const auto phi = [&](const MatrixXd& a) { return moe::reference::activate(Activation::tanh, b, a); };
      const auto slope = [&](const MatrixXd& a) { return moe::reference::activate_derivative(Activation::tanh, b, a); };

      const RowVectorXd q = (x.colwise().squaredNorm() / S).cwiseSqrt();
      CHECK(worst(z, x.array().rowwise() / q.array()) < rounding);
      const moe::reference::Gates gates = moe::reference::gates(model, K, r, bias);
      CHECK(B::download(f.mask) == gates.active);
      CHECK(worst(B::download(f.G), gates.G) < rounding);
      const MatrixXd G = of_units(gates.G, u.rows());
      CHECK(worst(v, phi(u)) < rounding);
      CHECK(worst(Gv, G.cwiseProduct(v)) < rounding);
      CHECK(worst(out, branch * phi(y) + x) < rounding);

      CHECK(worst(D, branch * slope(y).cwiseProduct(g)) < rounding);
      CHECK(worst(ghat, G.cwiseProduct(slope(u)).cwiseProduct(zeta)) < rounding);
      const Index hidden = block.shape().hidden;
      MatrixXd s(r.rows(), P);
      for (Index i = 0; i < s.rows(); ++i)
        s.row(i) = v.cwiseProduct(zeta).middleRows(i * hidden, hidden).colwise().mean();
      const MatrixXd of_balance =
          moe::reference::balance_backward(model.balance_loss, moe::reference::loads(K, gates.active), r);
      CHECK(worst(rho, moe::reference::gate_backward(model, K, gates, s) - K * of_balance) < rounding);
      const MatrixXd xi = xi_A + xi_Q;
      const RowVectorXd along = z.cwiseProduct(xi).colwise().mean();
      const MatrixXd through = (xi.array() - z.array().rowwise() * along.array()).rowwise() / q.array();
      CHECK(worst(back, through + g) < rounding);

      // <y D> = <Gv zeta>/kappa and the like, whatever was learned: the factors with which experts are averaged.
      using Split = moe::Block<B>::Split;
      const auto adjoint = [&](const MatrixXd& on_neurons, const MatrixXd& to, const MatrixXd& on_sites,
                               const MatrixXd& from) {
        return worst(products(on_neurons, to), products(on_sites, from) / kappa);
      };
      const double bases = 1e-9;  // what they leave out of a query
      CHECK(adjoint(y, D, Gv, zeta) < bases);
      CHECK(adjoint(xi_A, z, ghat, u) < bases);
      CHECK(adjoint(xi_Q, z, rho, r) < bases);
      const auto part = [&](Split of) { return block.parts(of, layer.y()); };
      const auto of_y = part(Split::y), of_zeta = part(Split::zeta), of_u = part(Split::u), of_A = part(Split::xi_A),
                 of_r = part(Split::r), of_Q = part(Split::xi_Q);
      const auto at = [](const B::Matrix& a) { return B::download(const_cast<B::Matrix&>(a).view()); };
      CHECK(adjoint(at(of_y.init), D, Gv, at(of_zeta.init)) < bases);
      CHECK(adjoint(at(of_A.init), z, ghat, at(of_u.init)) < bases);
      CHECK(adjoint(at(of_Q.init), z, rho, at(of_r.init)) < bases);
      CHECK(adjoint(at(of_Q.learned), z, rho, at(of_r.learned)) < bases);
      learned = std::max(learned, at(of_r.learned).cwiseAbs().maxCoeff());

      block.for_each_gradient([](auto& tensor, View grad, View query) { tensor.update(grad, query); });
      block.move_selection_bias();
      const Eigen::VectorXd load = moe::reference::loads(K, gates.active);
      for (Index i = 0; i < bias.size(); ++i)
        if (std::abs(load(i) - 1) > 1e-9) bias(i) += load(i) < 1 ? model.balance_bias : -model.balance_bias;
    }
    CHECK(learned > 1e-2);
    CHECK(bias.cwiseAbs().maxCoeff() > 0.1);
  }
}

TEST_CASE(
    "limit observables and kernels are what their names say, of the fields that stand [two blocks, top-K, softmax]") {
  moe::RunSpec spec = demanding("II", "mssp", sgd, Gate::softmax);
  spec.model.depth = 2;
  const moe::Dataset data = limit_fixture::data(P, 6, 2);
  const moe::LimitSpec limit = limit_of(spec, {6, 2, P});
  moe::Replica<B> replica(limit, 6, 2, P, 0);
  replica.set_batch(data.x, data.y);
  std::vector<std::string> names;
  for (const auto& info : moe::observable_table) names.emplace_back(info.name);
  const std::vector<moe::Recorded> wanted = moe::recorded_all(names, limit.depth);
  moe::Observer<B> observer(wanted, true);
  const int K = static_cast<int>(limit.block.gate.active);
  const auto rms = [](const MatrixXd& a) { return std::sqrt(a.squaredNorm() / static_cast<double>(a.size())); };
  std::map<std::string, MatrixXd> at_first;
  for (int t = 0; t < 3; ++t) {
    replica.forward();
    replica.backward();
    const std::vector<double> values = observer.measure(replica);
    std::map<std::string, MatrixXd> fields = {{"h", B::download(replica.h())},
                                              {"phi", B::download(replica.phi())},
                                              {"f", replica.outputs()},
                                              {"xi", B::download(replica.xi())}};
    std::map<std::string, double> expected;
    for (int l = 0; l < limit.depth; ++l) {
      moe::Layer<B>& layer = *replica.layers()[static_cast<std::size_t>(l)];
      moe::BlockFields<B>& f = layer.block().fields();
      const std::string dot = "." + std::to_string(l + 1);
      const MatrixXd G = B::download(f.G), mask = B::download(f.mask), Gv = B::download(f.Gv),
                     ghat = B::download(f.ghat);
      for (const auto& [name, view] : {std::pair<const char*, View>{"r", f.r},
                                       {"u", f.u},
                                       {"v", f.v},
                                       {"y", layer.y()},
                                       {"D", layer.D()},
                                       {"zeta", f.zeta},
                                       {"rho", f.rho}})
        fields[name + dot] = B::download(view);
      for (const char* name : {"u", "v"}) {
        expected[std::string("rms_") + name + "_all" + dot] = rms(fields.at(name + dot));
        expected[std::string("rms_") + name + dot] = moe::reference::rms_active(fields.at(name + dot), mask);
      }
      const Eigen::VectorXd loads = moe::network::loads(mask, K);
      expected["load_q99" + dot] = moe::network::quantile(loads, 0.99);
      expected["load_max" + dot] = loads.maxCoeff();
      expected["router_entropy" + dot] = moe::network::router_entropy(G, K);
      expected["ess_forward" + dot] = moe::reference::effective_experts(Gv, mask.rows());
      expected["ess_backward" + dot] = moe::reference::effective_experts(ghat, mask.rows());
      const auto kernel = [&](const char* name) { return moe::Observer<B>::kernel(replica, {name + dot, name, l}); };
      const MatrixXd z = B::download(layer.z()), D = fields.at("D" + dot);
      CHECK(worst(kernel("Phi"), products(z, z)) < 1e-13);
      CHECK(worst(kernel("DD"), products(D, D)) < 1e-13);
      CHECK(worst(kernel("GvGv"), products(Gv, Gv)) < 1e-13);
      CHECK(worst(kernel("ghatghat"), products(ghat, ghat)) < 1e-13);
    }
    if (t == 0) at_first = fields;
    for (const auto& [name, field] : fields) {
      expected.try_emplace("rms_" + name, rms(field));
      expected["change_" + name] = rms(field - at_first.at(name));
    }
    std::size_t compared = 0;
    for (std::size_t k = 0; k < wanted.size(); ++k) {
      const auto found = expected.find(wanted[k].key);
      if (found == expected.end()) continue;
      ++compared;
      INFO(wanted[k].key, " at step ", t, " is ", values[k], ", written out ", found->second);
      CHECK(std::abs(values[k] - found->second) <= 1e-12 * (1 + found->second));
    }
    CHECK(compared == expected.size());
    CHECK(expected.at("rms_v.1") != doctest::Approx(expected.at("rms_v_all.1")).epsilon(1e-3));
    replica.update();
  }
}
