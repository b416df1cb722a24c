#include "validation/network_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "regimes/regime.hpp"
#include "support/error.hpp"
#include "support/resources.hpp"

namespace moe {
namespace {

/// Numbers in the parts of a network and of its training.
struct Parts {
  double sites = 0, N = 0, expert_matrix = 0, weights = 0, weight_copies = 0, fields = 0;
  double bytes() const { return (weights * weight_copies + fields) * sizeof(double); }
};

Parts parts_of(const RunSpec& spec, const Dataset& data, int width) {
  const Sizes s = network_sizes(spec, width, static_cast<int>(data.x.rows()));
  const double C = static_cast<double>(data.y.rows()), train = static_cast<double>(data.x.cols()),
               test = static_cast<double>(data.x_test.cols());
  Parts p;
  p.N = s.N;
  p.sites = s.M * s.Ne;
  p.expert_matrix = p.sites * s.N;
  p.weights = s.N * s.D + s.M * s.N + 2 * p.expert_matrix + C * s.N;
  // The weights, those at t = 0, the gradient; moments; one more while they are copied or written.
  const OptimizerKind kind = spec.optimizer.name;
  const double moments = kind == OptimizerKind::adam || kind == OptimizerKind::adamw ? 2
                         : kind == OptimizerKind::momentum                           ? 1
                                                                                     : 0;
  p.weight_copies = 3 + moments;
  // Fields of the step, of t = 0, of the backward pass, normalised ones and their parts; or those of an evaluation.
  const double P = spec.training.batch > 0 ? spec.training.batch : train;
  const double piece = std::min(256.0, std::max(test, spec.training.batch > 0 ? train : 0));
  p.fields = (18 * p.sites + 23 * s.N + 12 * s.M) * P + (5 * p.sites + 5 * s.N + 4 * s.M) * piece;
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
  double free_workers = threads > 0 ? threads : std::max(1U, std::thread::hardware_concurrency());
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
  const bool matrices = widest.weights * widest.weight_copies > widest.fields;
  std::vector<std::string> remedies;
  if (at_once > 1 && network_bytes(spec, data, widths.front()) <= available.bytes)
    remedies.emplace_back("give a smaller --threads, so that fewer networks train at once");
  if (!matrices)
    remedies.push_back(
        fmt::format("lower {}", spec.training.batch > 0 ? "training.batch" : "data.train or set training.batch"));
  if (spec.output.weights) remedies.emplace_back("leave output.weights off");
  remedies.push_back(fmt::format("lower the largest of network.widths = {}", widths.front()));
  const std::string largest =
      matrices ? fmt::format("the matrices of the experts, 2 x {:.0f} x {:.0f} numbers in {:.0f} copies, {}",
                             widest.sites, widest.N, widest.weight_copies,
                             bytes_text(2 * widest.expert_matrix * widest.weight_copies * sizeof(double)))
               : fmt::format("the fields on {:.0f} hidden units, {}", widest.sites,
                             bytes_text(widest.fields * sizeof(double)));
  throw ConfigError({fmt::format(
      "memory: training needs about {} ({:.0f} network{} at once), and {} are available ({}). The largest part of a "
      "network of width {} is {}. To need less: {}.",
      bytes_text(need), at_once, at_once > 1 ? "s" : "", bytes_text(available.bytes), available.source, widths.front(),
      largest, fmt::join(remedies, "; or "))});
}

}  // namespace moe
