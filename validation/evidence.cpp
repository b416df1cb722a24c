#include "validation/evidence.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "regimes/exponents.hpp"
#include "support/observable.hpp"
#include "validation/network_start.hpp"

namespace moe {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;

/// A tensor whose gradient at t = 0, in units of its eps, falls as this power of N.
struct FallingGradient {
  Tensor tensor = Tensor::input;
  double power = -0.5;
};

std::vector<FallingGradient> falling_gradients(const RunSpec& spec, const Parameterization& param,
                                               const LimitSpec& limit) {
  const auto exponents = atomic_exponents(spec, param);
  const std::string measure = spec.optimizer.eps > 0 ? "gradient_over_eps_" : "gradient_";
  std::vector<FallingGradient> falling;
  for (std::size_t i = 0; i < num_tensors; ++i) {
    const auto t = static_cast<Tensor>(i);
    if (spec.optimizer.lr * spec.optimizer.lr_scale[t] == 0) continue;
    const auto found =
        std::ranges::find(exponents, measure + tensor_names[i], [](const ObservableExponents& o) { return o.name; });
    const std::optional<double> power = found->at[static_cast<std::size_t>(Stage::init)];
    if (power && *power < 0)
      falling.push_back({t, *power});
    else if (std::ranges::count(limit.vanishing, t) > 0)  // in a stack, of which exponents know one block
      falling.push_back({t});
  }
  return falling;
}

/// RMS over the entries of every tensor of gradient over eps at t = 0, in four networks of this width: of a first step of Adam,
/// W(1) - W(0) = -lr g/(|g| + eps).
PerTensor<double> gradient_over_eps(RunSpec spec, const Dataset& data, int width) {
  constexpr int networks = 4;
  spec.optimizer.name = OptimizerKind::adam;
  spec.training.dynamics = Dynamics::gd;
  spec.training.steps = 1;
  spec.sampling.precision = Precision::float64;
  spec.output = {};
  spec.output.observables = {"none"};
  spec.output.weights = true;
  const PerTensor<double> lr = constants_at(spec, network_shape(spec, data, width)).lr;
  PerTensor<double> squares;
  for (int k = 0; k < networks; ++k) {
    const std::uint64_t seed = spec.sampling.seed + static_cast<std::uint64_t>(k);
    const NetworkWeights before = random_weights(spec, data, width, seed);
    TrainOptions options;
    options.initial = &before;
    const NetworkWeights after = train_network(spec, data, width, seed, options).final_weights;
    const auto add = [&](Tensor t, const MatrixXd& w1, const MatrixXd& w0) {
      if (lr[t] == 0 || w1.size() == 0) return;
      const Eigen::ArrayXXd step = ((w1 - w0) / lr[t]).array().abs().min(1);
      squares[t] += (step / (1 - step)).square().mean() / networks;
    };
    add(Tensor::input, after.w_in, before.w_in);
    add(Tensor::router, after.router, before.router);
    add(Tensor::expert_in, after.expert_in, before.expert_in);
    add(Tensor::expert_out, after.expert_out, before.expert_out);
    add(Tensor::readout, after.readout, before.readout);
  }
  for (double& square : squares.values) square = std::sqrt(square);
  return squares;
}

}  // namespace

void note_small_eps(Evidence& e, const Dataset* data) {
  if (is_linear(e.spec.optimizer.name) || e.networks.empty()) return;
  Faults faults;
  const std::optional<LimitSpec> limit = checked_limit(e.spec, data, faults);
  if (!limit) return;
  const Parameterization param = load_parameterization(e.spec);
  const std::vector<FallingGradient> falling = falling_gradients(e.spec, param, *limit);
  if (falling.empty()) return;
  const int least = e.networks.front().shape.N, most = e.networks.back().shape.N;
  std::vector<std::string> quotients = {"unknown without the data"};
  if (data != nullptr) {
    quotients.clear();
    const PerTensor<double> over_eps = gradient_over_eps(e.spec, *data, least);
    for (const auto& [t, power] : falling) {
      const double at_largest = over_eps[t] * std::pow(static_cast<double>(most) / least, power);
      e.over_eps_at_smallest = std::max(e.over_eps_at_smallest, over_eps[t]);
      e.over_eps_at_largest = std::max(e.over_eps_at_largest, at_largest);
      quotients.push_back(fmt::format("{} {:.2g}", tensor_names[static_cast<std::size_t>(t)], at_largest));
    }
  } else if (e.spec.optimizer.eps < 0.02) {
    e.over_eps_at_smallest = e.over_eps_at_largest = HUGE_VAL;
  }
  if (e.over_eps_at_largest < 0.01) return;
  e.notes.push_back(fmt::format(
      "optimizer.eps = {:g}: gradients that fall below eps with size are at t = 0 so many times as large at "
      "N = {}: {}. Above 1 networks take full steps of random sign, and the limit takes none; below, "
      "extrapolations are granted an error (docs/validation.md)",
      e.spec.optimizer.eps, most, fmt::join(quotients, ", ")));
}

NetworkSamples network_samples(const std::vector<NetworkRun>& runs) {
  NetworkSamples samples;
  samples.shape = runs.front().shape;
  std::vector<const NetworkRun*> finished;
  for (const NetworkRun& run : runs) {
    if (run.failure)
      ++samples.diverged;
    else
      finished.push_back(&run);
  }
  if (finished.empty()) return samples;
  const auto table = [&](const std::string& name, auto&& values_of) {
    const std::size_t n = values_of(*finished.front()).size();
    if (n == 0) return;
    MatrixXd rows(static_cast<Index>(finished.size()), static_cast<Index>(n));
    for (std::size_t s = 0; s < finished.size(); ++s)
      for (std::size_t t = 0; t < n; ++t)
        rows(static_cast<Index>(s), static_cast<Index>(t)) = values_of(*finished[s])[t];
    samples.curves[name] = std::move(rows);
  };
  table(
      "loss", [](const NetworkRun& r) -> const auto& { return r.loss; });
  table(
      "accuracy", [](const NetworkRun& r) -> const auto& { return r.accuracy; });
  table(
      "test_loss", [](const NetworkRun& r) -> const auto& { return r.test_loss; });
  table(
      "test_accuracy", [](const NetworkRun& r) -> const auto& { return r.test_accuracy; });
  table(
      "batch_loss", [](const NetworkRun& r) -> const auto& { return r.batch_loss; });
  for (const auto& [name, unused] : finished.front()->observables)
    table(
        name, [key = name](const NetworkRun& r) -> const auto& { return r.observables.at(key); });
  return samples;
}

LimitSamples limit_samples(const LimitResult& result) {
  LimitSamples samples;
  const auto keep = [&](const std::string& name, const Curve& curve) {
    if (!curve.mean.empty()) samples.curves[name] = curve;
  };
  keep("loss", result.loss);
  keep("accuracy", result.accuracy);
  keep("test_loss", result.test_loss);
  keep("test_accuracy", result.test_accuracy);
  keep("batch_loss", result.batch_loss);
  for (const auto& [name, curve] : result.observables) keep(name, curve);
  samples.replicas = result.replicas;
  samples.neurons = result.counts.neurons;
  samples.matching = result.matching;
  samples.lists_hold = result.lists_hold;
  samples.random_limit = result.random_limit;
  samples.status = result.failure ? result.failure->what() : result.interrupted ? "interrupted" : "complete";
  return samples;
}

Evidence evidence_of(const RunSpec& spec, const Dataset& data, const std::vector<std::vector<NetworkRun>>& runs,
                     const LimitResult& limit, const LimitResult* second) {
  Evidence e;
  e.spec = spec;
  for (const auto& of_width : runs)
    if (!of_width.empty()) e.networks.push_back(network_samples(of_width));
  std::stable_sort(e.networks.begin(), e.networks.end(),
                   [](const auto& a, const auto& b) { return a.shape.N < b.shape.N; });
  e.limit = limit_samples(limit);
  if (second != nullptr) e.second = limit_samples(*second);
  const auto note_steps = [&](const std::string& name, const std::vector<int>& steps) { e.steps[name] = steps; };
  note_steps("loss", limit.eval_steps);
  note_steps("accuracy", limit.eval_steps);
  note_steps("test_loss", limit.test_steps);
  note_steps("test_accuracy", limit.test_steps);
  std::vector<int> every(limit.batch_loss.mean.size());
  for (std::size_t t = 0; t < every.size(); ++t) every[t] = static_cast<int>(t);
  note_steps("batch_loss", every);
  for (const auto& info : observable_table)
    for (const Recorded& one : recorded(info.name, spec.model.depth)) note_steps(one.key, limit.observe_steps);
  note_small_eps(e, &data);
  return e;
}

}  // namespace moe
