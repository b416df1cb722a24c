#include "validation/evidence.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "support/observable.hpp"

namespace moe {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;

}  // namespace

void note_small_eps(Evidence& e) {
  constexpr double comparable = 0.02;  // theory section 5
  if (is_linear(e.spec.optimizer.name) || e.spec.optimizer.eps >= comparable) return;
  Faults faults;
  std::vector<std::string> warnings;
  const LimitSpec limit =
      limit_spec(e.spec, {}, faults, warnings);  // which gradients vanish does not depend on the data
  if (!faults.empty() || limit.vanishing.empty()) return;
  std::vector<std::string> names;
  for (const Tensor t : limit.vanishing) names.emplace_back(tensor_names[static_cast<std::size_t>(t)]);
  e.eps_matters = true;
  e.notes.push_back(fmt::format(
      "optimizer.eps = {:g}, and the gradient of {} vanishes with size at t = 0: networks take full steps of "
      "random sign until N^-1/2 is below eps, the limit takes none (docs/theory.md, section 5)",
      e.spec.optimizer.eps, fmt::join(names, ", ")));
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

Evidence evidence_of(const RunSpec& spec, const std::vector<std::vector<NetworkRun>>& runs, const LimitResult& limit,
                     const LimitResult* second) {
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
  note_small_eps(e);
  return e;
}

}  // namespace moe
