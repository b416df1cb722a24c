#include "validation/network_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "regimes/regime.hpp"
#include "support/error.hpp"
#include "support/observable.hpp"
#include "support/resources.hpp"

namespace moe {
namespace {

/// Bytes of the parts of a network and of its training.
struct Parts {
  double sites = 0, N = 0, weights = 0;  ///< numbers: units of a block's experts, neurons, entries of the five tensors
  double bytes_a_weight = 0;             ///< weights, what their rule and observables keep, and copies
  double fields = 0;                     ///< bytes
  double bytes() const { return weights * bytes_a_weight + fields; }
};

Parts parts_of(const RunSpec& spec, const Dataset& data, int width) {
  const Sizes s = network_sizes(spec, width, static_cast<int>(data.x.rows()));
  const auto C = static_cast<double>(data.y.rows()), train = static_cast<double>(data.x.cols()),
             test = static_cast<double>(data.x_test.cols());
  const double real = spec.sampling.precision == Precision::float32 ? sizeof(float) : sizeof(double);
  Parts p;
  p.N = s.N;
  p.sites = s.M * s.Ne;
  p.weights = s.N * s.D + s.L * (s.M * s.N + 2 * p.sites * s.N) + C * s.N;
  const OptimizerKind kind = spec.optimizer.name;
  const double moments = kind == OptimizerKind::adam || kind == OptimizerKind::adamw ? 2
                         : kind == OptimizerKind::momentum                           ? 1
                         : kind == OptimizerKind::adafactor                          ? 1 / s.Ne
                                                                                     : 0;
  const bool observed = !selected_observables(spec).empty();
  // Drawn in double, then trained; handed back in double where they are kept.
  p.bytes_a_weight = std::max(sizeof(double) + real, real * (1 + moments + (observed ? 1 : 0)));
  if (spec.training.dynamics == Dynamics::flow)  // W, W(0), what has moved, and the stepper's stages
    p.bytes_a_weight = real * (3 + (spec.training.stepper == Stepper::rk4 ? 6 : 12));
  if (spec.output.weights) p.bytes_a_weight = std::max(p.bytes_a_weight, 1.5 * sizeof(double) + real);
  const double active = s.K * s.Ne, P = spec.training.batch > 0 ? spec.training.batch : train;
  const double dense = spec.model.routing == Routing::soft ? 0 : 3;  // all experts, where only some were computed
  const double piece = std::min(256.0, std::max(test, spec.training.batch > 0 ? train : 0));
  const double norm = spec.model.norm == Norm::none ? 0 : 1;
  const double step = s.L * (5 * active + (4 + norm) * s.N + 2 * s.M + 2 * s.K) + (4 + norm) * s.N;
  const double kept = s.L * (p.sites + s.M);  // of t = 0, in every block
  const double observing = observed ? 2 * active + (2 + dense) * p.sites + 4 * s.N + s.M + kept : 0;
  const double evaluation = s.L * (3 * active + (2 + norm) * s.N + s.M + s.K) + (2 + norm) * s.N;
  const double gradient = kind == OptimizerKind::adafactor ? s.N * std::max({s.D, s.M, s.Ne}) : 0;  // of one matrix
  p.fields = real * (gradient + (step + observing) * P + evaluation * piece + s.D * (train + test));
  return p;
}

}  // namespace

double network_bytes(const RunSpec& spec, const Dataset& data, int width) {
  return parts_of(spec, data, width).bytes();
}

void require_network_memory(const RunSpec& spec, const Dataset& data, int threads) {
  // train_networks begins with the last width and goes on to the first: the worst case is that the widest meet.
  std::vector<int> widths = spec.network.widths;
  std::sort(widths.rbegin(), widths.rend());
  double free_workers = thread_count(threads);
  double need = 0, at_once = 0;
  for (const int width : widths) {
    const double networks = std::min<double>(spec.network.seeds, free_workers);
    need += networks * network_bytes(spec, data, width);
    at_once += networks;
    free_workers -= networks;
  }
  if (spec.output.weights)
    for (const int width : widths) need += spec.network.seeds * parts_of(spec, data, width).weights * sizeof(double);
  const AvailableMemory available = available_memory();
  if (need <= available.bytes) return;

  const Parts widest = parts_of(spec, data, widths.front());
  const bool matrices = widest.weights * widest.bytes_a_weight > widest.fields;
  std::vector<std::string> remedies;
  if (at_once > 1 && network_bytes(spec, data, widths.front()) <= available.bytes)
    remedies.emplace_back("give a smaller --threads, so that fewer networks train at once");
  if (!matrices)
    remedies.push_back(
        fmt::format("lower {}", spec.training.batch > 0 ? "training.batch" : "data.train or set training.batch"));
  if (spec.output.weights) remedies.emplace_back("leave output.weights off");
  if (spec.sampling.precision == Precision::float64) remedies.emplace_back("use sampling.precision = \"float32\"");
  remedies.push_back(fmt::format("lower the largest of network.widths = {}", widths.front()));
  const std::string largest =
      matrices ? fmt::format("the matrices of the experts, {} x {:.0f} x {:.0f} numbers with {:.0f} bytes for each, {}",
                             2 * spec.model.depth, widest.sites, widest.N, widest.bytes_a_weight,
                             bytes_text(2 * spec.model.depth * widest.sites * widest.N * widest.bytes_a_weight))
               : fmt::format("the fields on {:.0f} hidden units, {}", spec.model.depth * widest.sites,
                             bytes_text(widest.fields));
  throw ConfigError({fmt::format(
      "memory: training needs about {} ({:.0f} network{} at once), and {} are available ({}). The largest part of a "
      "network of width {} is {}. To need less: {}.",
      bytes_text(need), at_once, at_once > 1 ? "s" : "", bytes_text(available.bytes), available.source, widths.front(),
      largest, fmt::join(remedies, "; or "))});
}

}  // namespace moe
