#include "validation/network_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string_view>

#include "regimes/regime.hpp"
#include "support/error.hpp"
#include "support/gpu.hpp"
#include "support/observable.hpp"
#include "support/resources.hpp"

namespace moe {
namespace {

/// Where a network trains: on the CPU; on the GPU, what is in its memory; and what the host then holds.
enum class Memory { of_cpu, of_gpu, of_host };

/// Bytes of the parts of a network and of its training.
struct Parts {
  double sites = 0, N = 0, weights = 0;  ///< numbers: units of a block's experts, neurons, entries of the five tensors
  double bytes_a_weight = 0;             ///< weights, what their rule and observables keep, and copies
  double fields = 0;                     ///< bytes
  double bytes() const { return weights * bytes_a_weight + fields; }
};

Parts parts_of(const RunSpec& spec, const Dataset& data, int width, Memory memory) {
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
  const std::vector<std::string> observables = selected_observables(spec);
  const auto wanted = [&](std::initializer_list<std::string_view> names) {
    std::ptrdiff_t count = 0;
    for (const std::string_view name : names) count += std::count(observables.begin(), observables.end(), name);
    return static_cast<double>(count);
  };
  const bool observed = !observables.empty(), mini_batches = spec.training.batch > 0,
             of_y = wanted({"rms_y_init", "rms_y_propagating", "rms_y_effective"}) > 0;
  // Drawn in double, then trained; handed back in double where they are kept.
  const double drawn = sizeof(double) + real;
  double trained = real * (1 + moments + (observed ? 1 : 0));
  if (spec.training.dynamics == Dynamics::flow)  // W, W(0), what has moved, and the stepper's stages
    trained = real * (3 + (spec.training.stepper == Stepper::rk4 ? 6 : 12));
  p.bytes_a_weight = memory == Memory::of_gpu ? trained : memory == Memory::of_host ? drawn : std::max(drawn, trained);
  if (memory != Memory::of_gpu && spec.output.weights)
    p.bytes_a_weight = std::max(p.bytes_a_weight, 1.5 * sizeof(double) + real);
  const double active = s.K * s.Ne, P = mini_batches ? spec.training.batch : train;
  const double dense = spec.model.routing == Routing::soft ? 0 : 3;  // all experts, where only some were computed
  const double piece = std::min(memory == Memory::of_gpu ? 1024.0 : 256.0, std::max(test, mini_batches ? train : 0));
  const double norm = spec.model.norm == Norm::none ? 0 : 1;
  const double step = s.L * (5 * active + (4 + norm) * s.N + 2 * s.M + 2 * s.K) + (4 + norm) * s.N + 3 * C;
  const double evaluation = s.L * (3 * active + (2 + norm) * s.N + s.M + s.K) + (2 + norm) * s.N + C;
  // Fields of t = 0 that later ones are compared with; under mini-batches a pass at the initial weights.
  const double kept_units =
      wanted({"change_u", "change_zeta"}) + (!mini_batches && (of_y || wanted({"change_v"}) > 0) ? 1 : 0);
  const double kept =
      s.L * (kept_units * p.sites + wanted({"change_r", "change_rho"}) * s.M + wanted({"change_y", "change_D"}) * s.N) +
      wanted({"change_h", "change_phi", "change_xi"}) * s.N + wanted({"change_f"}) * C +
      (mini_batches && of_y ? evaluation : 0);
  const double observing = observed ? 2 * active + (2 + dense) * p.sites + (4 + s.L) * s.N + s.M + kept : 0;
  const double gradient = kind == OptimizerKind::adafactor ? s.N * std::max({s.D, s.M, s.Ne}) : 0;  // of one matrix
  if (memory == Memory::of_host) return p;
  p.fields = real * (gradient + (step + observing) * P + evaluation * piece + s.D * (train + test)) +
             sizeof(double) * C * train;
  if (mini_batches) p.fields += (real * s.D + sizeof(double) * C) * P;
  if (memory == Memory::of_cpu) {  // lanes of what units make together (trainer_products.hpp)
    const double sum = s.N * std::max(P, piece);
    p.fields += real * std::min(std::min(16.0, p.weights / 131072) * sum, std::max(8388608.0, 4 * sum));
    return p;
  }
  const double pairs = s.K * std::max(P, piece), word = sizeof(std::ptrdiff_t);
  p.fields += real * std::min(p.weights, 4194304.0);  // pieces of gradients
  if (spec.model.routing != Routing::soft)            // lists of pairs; the experts' parts of a sum
    p.fields += s.L * 3 * word * pairs + word * s.M * std::max(P, piece) / 32 +
                real * std::max(128 * pairs, std::min(67108864.0, s.N * pairs));
  if (observed) p.fields += sizeof(double) * 2 * s.K * P;
  return p;
}

/// What is largest, and what makes it smaller.
std::string largest_part(const RunSpec& spec, const Parts& p) {
  if (p.weights * p.bytes_a_weight > p.fields)
    return fmt::format("the matrices of the experts, {} x {:.0f} x {:.0f} numbers with {:.0f} bytes for each, {}",
                       2 * spec.model.depth, p.sites, p.N, p.bytes_a_weight,
                       bytes_text(2 * spec.model.depth * p.sites * p.N * p.bytes_a_weight));
  return fmt::format("the fields on {:.0f} hidden units, {}", spec.model.depth * p.sites, bytes_text(p.fields));
}
std::vector<std::string> remedies_of(const RunSpec& spec, const Parts& p, int width) {
  std::vector<std::string> remedies;
  if (p.weights * p.bytes_a_weight <= p.fields)
    remedies.push_back(
        fmt::format("lower {}", spec.training.batch > 0 ? "training.batch" : "data.train or set training.batch"));
  if (spec.sampling.precision == Precision::float64) remedies.emplace_back("use sampling.precision = \"float32\"");
  remedies.push_back(fmt::format("lower the largest of network.widths = {}", width));
  return remedies;
}

/// How many networks of each width train at once, the widest first: train_networks begins with the last width and goes on to the
/// first, and the worst case is that the widest meet.
template <class Each>
void for_networks_at_once(const RunSpec& spec, int threads, const Each& each) {
  std::vector<int> widths = spec.network.widths;
  std::sort(widths.rbegin(), widths.rend());
  double free_workers = thread_count(threads);
  for (const int width : widths) {
    const double networks = std::min<double>(spec.network.seeds, free_workers);
    each(width, networks);
    free_workers -= networks;
  }
}
int widest(const RunSpec& spec) { return *std::max_element(spec.network.widths.begin(), spec.network.widths.end()); }

/// Throws where the networks that train at once need more of `memory` than is available.
void require(const RunSpec& spec, const Dataset& data, int threads, Memory memory) {
  double need = 0, at_once = 0;
  for_networks_at_once(spec, threads, [&](int width, double networks) {
    need += networks * parts_of(spec, data, width, memory).bytes();
    at_once += networks;
  });
  if (spec.output.weights)
    for (const int width : spec.network.widths)
      need += spec.network.seeds * parts_of(spec, data, width, memory).weights * sizeof(double);
  const AvailableMemory available = available_memory();
  if (need <= available.bytes) return;

  const int width = widest(spec);
  const Parts p = parts_of(spec, data, width, memory);
  std::vector<std::string> remedies = remedies_of(spec, p, width);
  if (spec.output.weights) remedies.insert(remedies.end() - 1, "leave output.weights off");
  if (at_once > 1 && p.bytes() <= available.bytes)
    remedies.insert(remedies.begin(), "give a smaller --threads, so that fewer networks train at once");
  throw ConfigError({fmt::format(
      "memory: training needs about {} ({:.0f} network{} at once), and {} are available ({}). The largest part of a "
      "network of width {} is {}. To need less: {}.",
      bytes_text(need), at_once, at_once > 1 ? "s" : "", bytes_text(available.bytes), available.source, width,
      largest_part(spec, p), fmt::join(remedies, "; or "))});
}

}  // namespace

double network_bytes(const RunSpec& spec, const Dataset& data, int width) {
  return parts_of(spec, data, width, Memory::of_cpu).bytes();
}
double gpu_network_bytes(const RunSpec& spec, const Dataset& data, int width) {
  return parts_of(spec, data, width, Memory::of_gpu).bytes() + gpu::library_bytes;
}

void require_network_memory(const RunSpec& spec, const Dataset& data, int threads) {
  require(spec, data, threads, Memory::of_cpu);
}

void require_gpu_network_memory(const RunSpec& spec, const Dataset& data, int threads, const AvailableMemory& card) {
  const int width = widest(spec);
  const Parts p = parts_of(spec, data, width, Memory::of_gpu);
  if (const double need = gpu_network_bytes(spec, data, width); need > card.bytes)
    throw ConfigError({fmt::format(
        "memory: a network of width {} needs about {} on the GPU, and {} are free ({}). The largest part is {}. To "
        "need less: {}.",
        width, bytes_text(need), bytes_text(card.bytes), card.source, largest_part(spec, p),
        fmt::join(remedies_of(spec, p, width), "; or "))});
  require(spec, data, threads, Memory::of_host);
}

void require_network_memory(const RunSpec& spec, const Dataset& data, int threads, Device device) {
  if (device != Device::cuda) return require_network_memory(spec, data, threads);
  require_gpu_network_memory(spec, data, threads, gpu_memory());
}

}  // namespace moe
