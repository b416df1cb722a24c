/// Twenty steps of networks that train on a GPU, or on the host that stands in for it, against those on the CPU: outputs, everything that
/// is observed, and the weights at the end.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/network_fixture.hpp"

namespace gpu_network_training {

using Eigen::MatrixXd;

/// Trains as train_network does, with spec.sampling.seed.
using Train = std::function<moe::NetworkRun(const moe::RunSpec&, const moe::Dataset&, const moe::TrainOptions&)>;

struct Case {
  std::string name;
  moe::RunSpec spec;
  int outputs = 1;
};

inline std::vector<Case> cases() {
  using moe::OptimizerKind;
  const auto make = [](OptimizerKind optimizer, moe::Routing routing, moe::Gate gate, int outputs, const auto& change) {
    moe::RunSpec s = network_fixture::spec("II", "mssp", optimizer, 20);
    s.model.routing = routing;
    s.model.gate = gate;
    s.training.loss = outputs == 1 ? moe::Loss::mse : moe::Loss::cross_entropy;
    s.output.observe_every = 5;
    change(s);
    return Case{"", s, outputs};
  };
  using enum moe::Routing;
  std::vector<Case> list = {
      make(OptimizerKind::sgd, soft, moe::Gate::sigmoid, 1,
           [](moe::RunSpec& s) {
             s.output.kernels_at = {0, 20};
           }),
      make(OptimizerKind::adam, topk, moe::Gate::softmax, 3,
           [](moe::RunSpec& s) {
             s.model.depth = 2;
             s.model.norm = moe::Norm::rms;
             s.model.residual = true;
             s.model.balance_loss = s.model.balance_bias = 0.1;
             s.output.kernels_at = {20};
           }),
      make(OptimizerKind::adafactor, topk, moe::Gate::sigmoid, 1, [](moe::RunSpec& s) { s.training.batch = 5; }),
      make(OptimizerKind::adafactor, soft, moe::Gate::softmax, 3,
           [](moe::RunSpec& s) {
             s.model.depth = 3;
             s.model.branch_exponent = 0.5;
             s.model.norm = moe::Norm::rms;
             s.model.residual = true;
           }),
      make(OptimizerKind::momentum, soft, moe::Gate::softmax, 3,
           [](moe::RunSpec& s) {
             s.model.activation = moe::Activation::gelu;
             s.model.router_temperature = 2;
           }),
      make(OptimizerKind::sgd, topk, moe::Gate::sigmoid, 1, [](moe::RunSpec& s) {
        s.training.dynamics = moe::Dynamics::flow;
        s.training.stepper = moe::Stepper::rk4;
        s.training.steps = 3;
      })};
  const char* const names[] = {"soft, SGD",
                               "top-K, Adam, depth 2, norm, balancing",
                               "top-K, Adafactor, mini-batches",
                               "soft, Adafactor, depth 3, norm",
                               "soft, momentum, gelu",
                               "top-K, flow"};
  for (std::size_t k = 0; k < list.size(); ++k) list[k].name = names[k];
  return list;
}

inline double largest(const MatrixXd& m) { return m.size() == 0 ? 0 : m.cwiseAbs().maxCoeff(); }

/// Everything that a run recorded, by name: a matrix each, of one step or of all.
inline std::vector<std::pair<std::string, MatrixXd>> recorded(const moe::NetworkRun& run) {
  std::vector<std::pair<std::string, MatrixXd>> all;
  for (std::size_t t = 0; t < run.f.size(); ++t)
    all.emplace_back("f at " + std::to_string(run.eval_steps[t]), run.f[t]);
  const auto row = [](const std::vector<double>& v) {
    return MatrixXd(Eigen::Map<const Eigen::VectorXd>(v.data(), static_cast<Eigen::Index>(v.size())));
  };
  all.emplace_back("loss", row(run.loss));
  all.emplace_back("test loss", row(run.test_loss));
  all.emplace_back("loss of batches", row(run.batch_loss));
  for (const auto& [name, values] : run.observables) all.emplace_back(name, row(values));
  for (const auto& [name, kernels] : run.kernels)
    for (const auto& kernel : kernels) all.emplace_back(name, kernel);
  const moe::NetworkWeights& w = run.final_weights;
  all.emplace_back("W_in", w.w_in);
  all.emplace_back("Q", w.router);
  all.emplace_back("A", w.expert_in);
  all.emplace_back("B", w.expert_out);
  all.emplace_back("W_out", w.readout);
  all.emplace_back("bias", run.selection_bias);
  return all;
}

/// What rounding may do: the CPU's answer to inputs moved by a relative `push`, in units of the push, times the roundings so far: twelve
/// sums a step and block, each over at most M N_e = 24 terms and so of 24 roundings.
inline void check(const Case& c, const Train& train, double rounding) {
  INFO(c.name);
  const moe::Dataset data = network_fixture::data(12, 6, c.outputs);
  moe::Dataset pushed = data;
  const double push = 1e-6;
  for (MatrixXd* x : {&pushed.x, &pushed.x_test})
    for (Eigen::Index k = 0; k < x->size(); ++k)
      x->data()[k] *= 1 + push * std::sin(1.0 + 2.3 * static_cast<double>(k));
  const moe::TrainOptions options;
  const moe::NetworkRun cpu = moe::train_network(c.spec, data, 16, c.spec.sampling.seed, options),
                        moved = moe::train_network(c.spec, pushed, 16, c.spec.sampling.seed, options),
                        gpu = train(c.spec, data, options);
  const auto expected = recorded(cpu), answers = recorded(moved), found = recorded(gpu);
  REQUIRE(!cpu.failure);
  REQUIRE(!gpu.failure);
  REQUIRE(found.size() == expected.size());
  const double roundings = 12.0 * 24 * c.spec.model.depth * (c.spec.training.steps + 1);
  double response = 0, moved_by_training = 0;
  for (std::size_t k = 0; k < expected.size(); ++k) {
    const auto& [name, value] = expected[k];
    INFO(name, ", size ", largest(value));
    REQUIRE(found[k].first == name);
    REQUIRE(found[k].second.rows() == value.rows());
    REQUIRE(found[k].second.cols() == value.cols());
    response = std::max(response, largest(value - answers[k].second) / push);
    const double difference = largest(found[k].second - value);
    CHECK(std::isfinite(difference));
    CHECK(difference <= roundings * rounding * (response + largest(value) + 1));
    if (name.rfind("f at ", 0) == 0) moved_by_training = std::max(moved_by_training, largest(value - cpu.f[0]));
  }
  CHECK(moved_by_training > 0.05);
}

/// What is not finite ends a run at the same step and field, forward and backward, and what was recorded before is kept.
inline void check_failure(const Train& train) {
  std::string fields;
  const auto same = [&](const moe::RunSpec& spec, int outputs) {
    const moe::Dataset data = network_fixture::data(12, 6, outputs);
    const moe::NetworkRun cpu = moe::train_network(spec, data, 16, 0), gpu = train(spec, data, {});
    INFO("lr ", spec.optimizer.lr, ", output scale ", spec.model.output_scale, ", outputs ", outputs);
    REQUIRE(cpu.failure);
    REQUIRE(gpu.failure);
    CHECK(gpu.failure->step == cpu.failure->step);
    CHECK(gpu.failure->field == cpu.failure->field);
    CHECK(gpu.eval_steps == cpu.eval_steps);
    CHECK(gpu.batch_loss.size() == cpu.batch_loss.size());
    fields += cpu.failure->field + " at " + std::to_string(cpu.failure->step) + ", ";
  };
  for (const double lr : {1e30, 1e120, 1e300}) {
    moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 20);
    spec.optimizer.lr = lr;
    spec.training.loss = moe::Loss::mse;
    same(spec, 1);
  }
  // Gates of one half each, whose derivatives are those of a step.
  for (const int batch : {0, 5}) {
    moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 20);
    spec.model.output_scale = 1e300;
    spec.model.init_scale[moe::Tensor::router] = 0;
    spec.model.router_temperature = 1e-20;
    spec.training.loss = moe::Loss::cross_entropy;
    spec.training.batch = batch;
    same(spec, 3);
  }
  INFO("fields ", fields);
  CHECK(fields.find("dL/") != std::string::npos);
}

}  // namespace gpu_network_training
