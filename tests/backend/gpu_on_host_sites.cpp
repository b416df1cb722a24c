// Batches of sites of kernel iteration on the GPU backend, its kernels run on the host, against the CPU's.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "dmft/kernel_iteration.hpp"
#include "dmft/site_batch_template.hpp"
#include "support/cuda.hpp"
#include "tests/backend/gpu_on_host.hpp"
#include "tests/limit_fixture.hpp"

namespace {

using Eigen::MatrixXd;
using moe::Index;

struct Case {
  const char *regime, *param;
  moe::OptimizerKind optimizer = moe::OptimizerKind::sgd;
  moe::Routing routing = moe::Routing::soft;
  moe::Gate gate = moe::Gate::sigmoid;
  moe::Activation activation = moe::Activation::tanh, post_activation = moe::Activation::identity;
  bool residual = false;
  int mini_batch = 0, depth = 1;
  double balance = 0;
};
using enum moe::OptimizerKind;
// No softmax where experts start equal (III MSSP): rho is rounding at t = 0 there, and which numbers of a draw its direction meets differs
// from one device to another, as the law does not.
const std::vector<Case> cases = {
    {"I", "mup", momentum, moe::Routing::soft, moe::Gate::softmax, moe::Activation::tanh, moe::Activation::tanh, true},
    {"I", "mssp", adam},
    {"II", "mssp", sgd, moe::Routing::soft, moe::Gate::sigmoid, moe::Activation::tanh, moe::Activation::identity},
    {"II", "mup", sgd, moe::Routing::topk, moe::Gate::softmax, moe::Activation::gelu},
    {"II", "mssp", adam, moe::Routing::topk},
    {"I", "mup", adamw, moe::Routing::soft, moe::Gate::softmax, moe::Activation::gelu, moe::Activation::tanh, true, 2},
    {"III", "mssp", adafactor, moe::Routing::topk, moe::Gate::sigmoid, moe::Activation::tanh, moe::Activation::gelu,
     true},
    {"II", "mssp", adamw, moe::Routing::soft, moe::Gate::constant, moe::Activation::tanh, moe::Activation::identity,
     true, 3},
    {"II", "mup", adafactor},
    {"III", "mssp", sgd, moe::Routing::topk, moe::Gate::constant, moe::Activation::tanh, moe::Activation::identity,
     false, 2},
    {"III", "mssp", adafactor},
    {"III", "mup", adam, moe::Routing::soft, moe::Gate::softmax, moe::Activation::gelu, moe::Activation::gelu, true},
    {"I", "mup", sgd, moe::Routing::soft, moe::Gate::sigmoid, moe::Activation::relu},
    {"II", "mssp", signsgd},
    {"II", "mssp", sgd, moe::Routing::topk, moe::Gate::sigmoid, moe::Activation::tanh, moe::Activation::identity, true,
     3, 2, 0.2},
    {"III", "mssp", adam, moe::Routing::soft, moe::Gate::sigmoid, moe::Activation::relu, moe::Activation::relu, true},
};
constexpr int steps = 4, samples = 5;
const moe::BatchCounts batch{40, 16, 8};

moe::RunSpec spec_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, moe::is_linear(c.optimizer) ? 0.3 : 0.1, steps);
  s.model.routing = c.routing;
  s.model.gate = c.gate;
  s.model.activation = c.activation;
  s.model.post_activation = c.post_activation;
  s.model.residual = c.residual;
  s.model.router_temperature = 0.8;
  s.model.depth = c.depth;
  s.model.norm = c.depth > 1 ? moe::Norm::rms : moe::Norm::none;
  s.model.balance_loss = s.model.balance_bias = c.balance;
  s.optimizer.momentum = 0.6;
  s.optimizer.weight_decay = 0.3;
  s.training.batch = c.mini_batch;
  s.sampling.precision = moe::Precision::float64;
  s.sampling.neurons = static_cast<int>(batch.neurons);
  s.sampling.experts = static_cast<int>(batch.experts);
  s.sampling.hidden = static_cast<int>(batch.hidden);
  return s;
}

/// One after the other what two batches marched through time together estimate, and what one estimates from that: kernels, f, fields, paths.
std::vector<MatrixXd> estimates(const moe::SiteBackend& sites, const Case& c, const moe::Dataset& data) {
  const moe::RunSpec spec = spec_of(c);
  moe::Faults faults;
  std::vector<std::string> warnings;
  const moe::LimitSpec limit = moe::limit_spec(spec, moe::step_shape(spec, data), faults, warnings);
  faults.throw_if_any();
  moe::SiteProblem problem{&limit, data.x, data.y, steps + 1};
  for (int t = 0; c.mini_batch > 0 && t <= steps; ++t) problem.learns.push_back(moe::batch_rows(spec, samples, t));
  moe::BatchCounts counts = batch;
  counts.experts = limit.block.counts.experts, counts.hidden = limit.block.counts.hidden;
  std::vector<MatrixXd> all;
  const auto keep = [&](moe::BatchMeans& means) {
    for (const moe::CausalMatrix& kernel : means.kernels.all()) {
      MatrixXd& numbers = all.emplace_back(kernel.shape().n(), kernel.shape().n());
      numbers.setZero();
      for (Index t = 0; t < kernel.shape().steps; ++t)
        numbers.block(0, t * samples, kernel.shape().rows(t), samples) = kernel.step(t);
    }
    for (const MatrixXd* path : means.paths.all()) all.push_back(*path);
    all.push_back(means.f);
    all.push_back(means.fields);
  };
  moe::BatchMeans passed =
      sites.pass(problem, counts, {{3, 0}, {3, 1}}, moe::zero_kernels(limit, problem.shape()), nullptr);
  keep(passed);
  moe::StreamNumbers streams(3, 2);
  moe::BatchMeans sampled = sites.sampler(problem, passed.kernels, passed.paths)->sample(counts, streams, nullptr);
  keep(sampled);
  return all;
}

double largest(const MatrixXd& m) { return m.size() == 0 ? 0 : m.cwiseAbs().maxCoeff(); }

}  // namespace

TEST_CASE(
    "GPU sites on the host, thread by thread: a pass and a batch are the CPU's within their rounding [float64; regime "
    "x rule x routing x "
    "gate; mini-batches]") {
  bool backwards = false;  // the two orders in turn: operations are checked in both
  for (const Case& c : cases) {
    gpu_on_host::take_turns(backwards ? gpu_on_host::Turns::last_to_first : gpu_on_host::Turns::first_to_last);
    backwards = !backwards;
    const moe::Dataset data = limit_fixture::data(samples, 5, 2);
    moe::Dataset pushed = data;
    const double push = 1e-7;
    for (Index j = 0; j < data.x.cols(); ++j)
      for (Index i = 0; i < data.x.rows(); ++i)
        pushed.x(i, j) *= 1 + push * std::sin(1.0 + 2.3 * static_cast<double>(i) + 5.1 * static_cast<double>(j));
    const auto cpu = estimates(moe::site_backend<moe::Cpu<double>>(), c, data),
               moved = estimates(moe::site_backend<moe::Cpu<double>>(), c, pushed),
               gpu = estimates(moe::site_backend<moe::Cuda<double>>(), c, data);
    REQUIRE(gpu.size() == cpu.size());
    for (std::size_t k = 0; k < cpu.size(); ++k) {
      INFO("regime ", std::string(c.regime), " ", std::string(c.param), ", rule ", static_cast<int>(c.optimizer),
           ", routing ", static_cast<int>(c.routing), ", array ", k);
      REQUIRE(gpu[k].rows() == cpu[k].rows());
      REQUIRE(gpu[k].cols() == cpu[k].cols());
      // What rounding may do: the CPU's answer to a relative push of the inputs, in units of the push, times the roundings on the way: a
      // dozen sums a step, each over at most 128 sites and 25 queries. What the push does not see is that a covariance's root divides its
      // roundings by a pivot's root, which is a hundredth of a query's or more (next_of_root leaves out what is less).
      const double roundings = 12.0 * (128 + 25) * (steps + 1), of_root = 1e2;
      const double response = largest(cpu[k] - moved[k]) / push, size = largest(cpu[k]);
      const double allowed = roundings * of_root * std::numeric_limits<double>::epsilon() * (response + size);
      const double found = largest(gpu[k] - cpu[k]);
      INFO("size ", size, ", response ", response);
      CHECK(found <= allowed);
      CHECK(std::isfinite(size));
      CHECK(allowed <= 1e-6 * (1 + size));
    }
    const std::size_t paths = moe::is_linear(c.optimizer) ? 0 : 5;
    const MatrixXd& f = cpu[static_cast<std::size_t>(c.depth) * (moe::num_kernels + paths)];
    CHECK(largest(f.rightCols(samples) - f.leftCols(samples)) > 0.02);  // it has learned
  }
}

TEST_CASE(
    "GPU sites on the host, thread by thread: kernel iteration comes to the CPU's curve and certificate [II mssp topk "
    "adam, III mup]") {
  for (const std::size_t which : {4, 11}) {
    const moe::RunSpec spec = spec_of(cases[which]);
    const moe::Dataset data = limit_fixture::data(3, 3, 1);
    moe::IterationOptions options;
    options.batch = batch;
    options.batches = 2;
    options.replicas = 3;
    options.threads = 1;
    const moe::IterationResult cpu = moe::iterate_kernels(spec, data, options);
    options.sites = moe::site_backend<moe::Cuda<double>>();
    const moe::IterationResult gpu = moe::iterate_kernels(spec, data, options);
    REQUIRE(gpu.report.changes.size() == cpu.report.changes.size());
    for (std::size_t t = 0; t < cpu.loss.mean.size(); ++t)
      CHECK(std::abs(gpu.loss.mean[t] - cpu.loss.mean[t]) <= 1e-8 * cpu.loss.mean[0]);
    for (std::size_t k = 0; k < cpu.report.residuals.size(); ++k)
      CHECK(std::abs(gpu.report.residuals[k].value - cpu.report.residuals[k].value) <=
            1e-6 * cpu.report.residuals[k].value);
    CHECK(cpu.loss.mean.back() < 0.99 * cpu.loss.mean.front());
  }
}
