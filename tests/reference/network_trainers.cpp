// The fast trainer against the reference trainer, which shares none of its dynamics, on configurations drawn at random.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <rapidcheck.h>

#include <cmath>
#include <limits>
#include <string>

#include "support/config.hpp"
#include "support/distribution.hpp"
#include "support/observable.hpp"
#include "tests/devices.hpp"
#include "tests/network_fixture.hpp"
#include "validation/network.hpp"
#include "validation/network_start.hpp"
#include "validation/reference_model.hpp"
#include "validation/reference_train.hpp"

namespace {

using Eigen::MatrixXd;

/// A configuration with every choice open but signSGD and every multiplier away from its neutral value.
moe::RunSpec any_spec() {
  using namespace moe;
  const auto uniform = [](double low, double high) { return low + (high - low) * *rc::gen::inRange(0, 1000) / 1000.0; };
  RunSpec s = network_fixture::spec(*rc::gen::element<std::string>("I", "II", "III"),
                                    *rc::gen::element<std::string>("mup", "mssp"),
                                    *rc::gen::element(OptimizerKind::sgd, OptimizerKind::momentum, OptimizerKind::adam,
                                                      OptimizerKind::adamw, OptimizerKind::adafactor),
                                    4);
  s.model.activation = *rc::gen::element(Activation::tanh, Activation::relu, Activation::gelu, Activation::identity);
  s.model.post_activation = *rc::gen::element(Activation::tanh, Activation::identity, Activation::gelu);
  s.model.activation_scale = uniform(0.6, 1.5);
  s.model.gate = *rc::gen::element(Gate::sigmoid, Gate::softmax, Gate::constant);
  s.model.routing = *rc::gen::element(Routing::soft, Routing::topk);
  s.model.active_fraction = uniform(0.1, 1.0);
  s.model.residual = *rc::gen::arbitrary<bool>();
  s.model.experts = *rc::gen::inRange(1, 6);
  s.model.expert_width = *rc::gen::inRange(1, 21);
  s.model.experts_per_width = uniform(0.1, 0.7);
  s.model.expert_width_per_width = uniform(0.1, 0.9);
  s.model.depth = *rc::gen::element(1, 1, 2, 3);
  s.model.branch_exponent = uniform(0.3, 1);
  s.model.norm = *rc::gen::element(Norm::none, Norm::rms);
  if (s.model.activation == Activation::relu) s.model.norm = Norm::none;  // few units may all be zero: 0/0
  // The gate of a single active expert scales the block's output, and the norm takes that out again: its gradient is zero, and with a
  // router that starts from zero rounding would route.
  if (s.model.routing == Routing::topk && s.model.norm == Norm::rms) s.model.residual = true;
  s.model.router_temperature = uniform(0.5, 2);
  s.model.balance_loss = *rc::gen::element(0.0, 0.6);
  // The experts that no token chooses are pulled alike: from a router that starts from zero, rounding decides who comes first.
  if (s.model.regime == "I" && s.model.param == "mssp") s.model.balance_loss = 0;
  s.model.balance_bias = *rc::gen::element(0.0, 0.15);
  s.model.aggregation = {{"const", uniform(0.5, 1.5)}, {"K", *rc::gen::element(-1.0, -0.8)}};
  s.model.output_scale = uniform(0.5, 2);
  s.optimizer.lr = uniform(0.02, 0.1) * (is_linear(s.optimizer.name) ? 4 : 1);
  for (double& scale : s.optimizer.lr_scale.values) scale = uniform(0.5, 1.5);
  s.optimizer.weight_decay = uniform(0.1, 1);
  s.optimizer.momentum = uniform(0.5, 0.9);
  s.training.loss = *rc::gen::element(Loss::mse, Loss::cross_entropy);
  s.training.batch = *rc::gen::element(0, 3, 5);
  s.training.eval_every = *rc::gen::element(1, 2);
  s.training.batch_order = *rc::gen::element(BatchOrder::sequential, BatchOrder::shuffled);
  s.output.observe_every = *rc::gen::element(1, 2);
  s.output.kernels_at = {0, 3};
  s.output.distributions_at = {0, 3};
  s.network.widths = {*rc::gen::inRange(10, 90)};
  // Without residual a norm divides by what the block makes, which a few units may leave near zero, and rounding is amplified.
  if (s.model.norm == Norm::rms && !s.model.residual) {
    s.model.expert_width = std::max(s.model.expert_width, 8);
    s.model.expert_width_per_width = std::max(s.model.expert_width_per_width, 0.4);
    s.network.widths.front() = std::max(s.network.widths.front(), 30);
  }
  return s;
}

/// A configuration that runs, data for it (8 samples, 5 inputs), and a seed.
struct Problem {
  moe::RunSpec spec;
  moe::Dataset data;
  std::uint64_t seed = 0;
  int width() const { return spec.network.widths.front(); }
};
Problem any_problem() {
  Problem p;
  p.spec = any_spec();
  p.data = network_fixture::data(
      8, 5, p.spec.training.loss == moe::Loss::mse ? *rc::gen::inRange(1, 4) : *rc::gen::inRange(2, 5));
  p.seed = *rc::gen::inRange<std::uint64_t>(0, 1000);
  moe::Faults faults;
  moe::check_networks(p.spec, &p.data, p.spec.network.widths, faults);
  RC_PRE(faults.empty());
  return p;
}

/// Largest deviation over what both recorded, each relative to the size of what it belongs to.
class Comparison {
 public:
  void add(const std::string& name, double ours, double theirs, double size) {
    const double deviation = std::abs(ours - theirs) / size;
    if (!(deviation <= worst))
      worst = std::isnan(deviation) ? std::numeric_limits<double>::infinity() : deviation, where = name;
  }
  void add(const std::string& name, const std::vector<double>& ours, const std::vector<double>& theirs, double floor) {
    if (ours.size() != theirs.size()) return add(name + " (number of values)", 1, 0, 0);
    double size = floor;
    for (double x : theirs) size = std::max(size, std::abs(x));
    for (std::size_t k = 0; k < ours.size(); ++k) add(name, ours[k], theirs[k], size);
  }
  void add(const std::string& name, const MatrixXd& ours, const MatrixXd& theirs) {
    if (ours.rows() != theirs.rows() || ours.cols() != theirs.cols()) return add(name + " (shape)", 1, 0, 0);
    if (theirs.size() > 0) add(name, (ours - theirs).cwiseAbs().maxCoeff(), 0, theirs.cwiseAbs().maxCoeff() + 1e-6);
  }
  double worst = 0;
  std::string where;
};

/// Fields grow from order one by more than what amplifies rounding to the deviation that is allowed.
bool explodes(const moe::NetworkRun& run) {
  constexpr double bound = 1e4;
  for (const auto& [name, values] : run.observables)
    if (!std::all_of(values.begin(), values.end(), [](double x) { return std::abs(x) < bound; })) return true;
  return run.failure.has_value();
}

Comparison compare(const moe::NetworkRun& ours, const moe::NetworkRun& theirs) {
  Comparison c;
  c.add("failure", ours.failure.has_value(), theirs.failure.has_value(), 0.5);
  c.add("explosion", explodes(ours), explodes(theirs), 0.5);
  if (explodes(ours) || explodes(theirs)) return c;
  c.add("loss", ours.loss, theirs.loss, 0.1);
  c.add("accuracy", ours.accuracy, theirs.accuracy, 1);
  c.add("test_loss", ours.test_loss, theirs.test_loss, 0.1);
  c.add("batch_loss", ours.batch_loss, theirs.batch_loss, 0.1);
  c.add("steps",
        ours.eval_steps == theirs.eval_steps && ours.observe_steps == theirs.observe_steps &&
            ours.test_steps == theirs.test_steps && ours.kernel_steps == theirs.kernel_steps,
        1, 1);
  c.add("number of outputs", static_cast<double>(ours.f.size()), static_cast<double>(theirs.f.size()), 0.5);
  for (std::size_t k = 0; k < std::min(ours.f.size(), theirs.f.size()); ++k) c.add("f", ours.f[k], theirs.f[k]);
  c.add("number of observables", static_cast<double>(ours.observables.size()),
        static_cast<double>(theirs.observables.size()), 0.5);
  for (const auto& [name, values] : theirs.observables) {
    // A part of a field is known to the rounding of the field: init and effective are measured in units of their sum.
    double size = 1e-3;
    for (const char* end : {"_init", "_effective", "_propagating"})
      if (const auto at = name.find(end); at != std::string::npos) {
        const std::string of_block = name.find('.') == std::string::npos ? "" : name.substr(name.find('.'));
        const auto whole = theirs.observables.find(name.substr(0, at) + of_block);
        if (whole != theirs.observables.end())
          for (double x : whole->second) size = std::max(size, std::abs(x));
        for (const char* other : {"_init", "_effective", "_propagating"})
          if (const auto part = theirs.observables.find(name.substr(0, at) + other + of_block);
              part != theirs.observables.end())
            for (double x : part->second) size = std::max(size, std::abs(x));
      }
    const auto found = ours.observables.find(name);
    c.add(name, found == ours.observables.end() ? std::vector<double>{} : found->second, values, size);
  }
  for (const auto& [name, kernels] : theirs.kernels)
    for (std::size_t k = 0; k < kernels.size(); ++k) c.add("kernel " + name, ours.kernels.at(name).at(k), kernels[k]);
  // An entry near an edge may fall on either side of it by rounding.
  for (const auto& [name, shares] : theirs.distributions)
    for (std::size_t k = 0; k < shares.size(); ++k) {
      // Zero is an edge, and what is zero but for rounding may have either sign: its two bins count as one.
      const std::size_t above_zero = moe::distribution_middle;
      double moved = 0, at_zero = 0;
      for (std::size_t bin = 0; bin < shares[k].size(); ++bin) {
        const double difference = ours.distributions.at(name).at(k).at(bin) - shares[k][bin];
        (bin + 1 == above_zero || bin == above_zero) ? at_zero += difference : moved += std::abs(difference);
      }
      moved += std::abs(at_zero);
      if (moved > 0.02) c.add("distribution of " + name, moved, 0, 0.01);
    }
  const moe::NetworkWeights &w = ours.final_weights, &v = theirs.final_weights;
  c.add("w_in", w.w_in, v.w_in);
  c.add("router", w.router, v.router);
  c.add("expert_in", w.expert_in, v.expert_in);
  c.add("expert_out", w.expert_out, v.expert_out);
  c.add("readout", w.readout, v.readout);
  c.add("selection_bias", ours.selection_bias, theirs.selection_bias);
  return c;
}

}  // namespace

TEST_CASE(
    "fast trainer agrees with the reference trainer on random configurations, all that is recorded and the trained "
    "weights [float64, 100 configurations, 1 or 2 threads]") {
  // Rounding: sums of at most 90 x 60 products of order one, amplified by four updates.
  const double allowed = 1e-9;
  double worst = 0;
  int failures = 0, topk = 0, runs = 0;
  const bool held = rc::check("fast trainer = reference trainer", [&] {
    const Problem p = any_problem();
    moe::TrainOptions options;
    options.threads = *rc::gen::element(1, 2);
    options.device = *rc::gen::elementOf(devices::all());
    const moe::NetworkRun theirs = moe::train_reference_network(p.spec, p.data, p.width(), p.seed);
    const Comparison c = compare(moe::train_network(p.spec, p.data, p.width(), p.seed, options), theirs);
    runs += 1;
    failures += explodes(theirs) ? 1 : 0;
    topk += p.spec.model.routing == moe::Routing::topk ? 1 : 0;
    worst = std::max(worst, c.worst);
    RC_LOG() << moe::print_config(p.spec) << "seed " << p.seed << ": " << c.where << " deviates by " << c.worst << '\n';
    RC_ASSERT(c.worst < allowed);
  });
  MESSAGE(fmt::format("{} runs, largest relative deviation {:.1e}; {} with top-K, {} that exploded", runs, worst, topk,
                      failures));
  CHECK(held);
  CHECK(runs >= 100);
  CHECK(failures < runs / 20);
  CHECK(topk > runs / 5);
}

TEST_CASE("fast trainer follows the flow of the reference trainer on random configurations [rk4: the same steps]") {
  const double allowed = 1e-9;  // as above, with sixteen evaluations
  const bool held = rc::check("fast flow = reference flow", [&] {
    Problem p = any_problem();
    p.spec.optimizer.name = moe::OptimizerKind::sgd;
    p.spec.training.batch = 0;
    p.spec.training.dynamics = moe::Dynamics::flow;
    p.spec.model.balance_bias = 0;
    p.spec.training.stepper = moe::Stepper::rk4;
    p.spec.training.time = *rc::gen::element(0.0, 3.0);
    p.spec.training.step_size = *rc::gen::element(0.4, 1.0);
    const moe::NetworkRun theirs = moe::train_reference_network(p.spec, p.data, p.width(), p.seed);
    moe::TrainOptions options;
    options.device = *rc::gen::elementOf(devices::all());
    const Comparison c = compare(moe::train_network(p.spec, p.data, p.width(), p.seed, options), theirs);
    RC_LOG() << moe::print_config(p.spec) << "seed " << p.seed << ": " << c.where << " deviates by " << c.worst << '\n';
    RC_ASSERT(c.worst < allowed);
  });
  CHECK(held);
}

TEST_CASE("fast trainer makes the signSGD update of the reference gradient on random configurations") {
  // A sign is not continuous: where the gradient is rounding either is right (as in the whole router when K = 1 and gates are softmax),
  // and only one update can be compared.
  const bool held = rc::check("signSGD", [&] {
    Problem p = any_problem();
    p.spec.optimizer.name = moe::OptimizerKind::signsgd;
    p.spec.training.steps = 1;
    const moe::NetworkWeights start = moe::random_weights(p.spec, p.data, p.width(), p.seed);
    moe::TrainOptions options;
    options.device = *rc::gen::elementOf(devices::all());
    const moe::NetworkRun run = moe::train_network(p.spec, p.data, p.width(), p.seed, options);
    RC_ASSERT(!run.failure);
    const moe::NetworkConstants constants = moe::constants_at(p.spec, run.shape);
    const moe::reference::Model model{p.spec.model, p.spec.training.loss, run.shape, constants.aggregation};
    Eigen::MatrixXd x = p.data.x, y = p.data.y;
    if (const auto rows = moe::batch_rows(p.spec, 8, 0); !rows.empty())
      x = p.data.x(Eigen::all, rows), y = p.data.y(Eigen::all, rows);
    const auto a = moe::reference::forward(model, start, x, 0);
    const moe::NetworkWeights g = moe::reference::backward(model, start, a, y, 0).weights;
    double largest = 0;
    for (auto member : {&moe::NetworkWeights::w_in, &moe::NetworkWeights::router, &moe::NetworkWeights::expert_in,
                        &moe::NetworkWeights::expert_out, &moe::NetworkWeights::readout})
      largest = std::max(largest, (g.*member).cwiseAbs().maxCoeff());
    const double rounding = 1e-13 * largest;
    const auto agrees = [&](moe::Tensor tensor, MatrixXd moe::NetworkWeights::*member) {
      const MatrixXd &gradient = g.*member, moved = (start.*member - run.final_weights.*member) / constants.lr[tensor];
      for (Eigen::Index k = 0; k < gradient.size(); ++k) {
        const double entry = gradient.data()[k];
        if (std::abs(entry) > rounding) RC_ASSERT(std::abs(moved.data()[k] - (entry > 0 ? 1 : -1)) < 1e-6);
      }
    };
    agrees(moe::Tensor::input, &moe::NetworkWeights::w_in);
    agrees(moe::Tensor::router, &moe::NetworkWeights::router);
    agrees(moe::Tensor::expert_in, &moe::NetworkWeights::expert_in);
    agrees(moe::Tensor::expert_out, &moe::NetworkWeights::expert_out);
    agrees(moe::Tensor::readout, &moe::NetworkWeights::readout);
  });
  CHECK(held);
}
