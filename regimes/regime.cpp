#include "regimes/regime.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "support/config_keys.hpp"

namespace moe {

namespace {

/// The co-scaling regimes. One row: growth of N, M, N_e, K, D, L along the path; what is sampled; default neurons.
const std::array<Regime, 3> regimes = {{
    {"I", {1, 0, 1, 0, 0, 0}, false, true, 1024},
    {"II", {1, 1, 0, 1, 0, 0}, true, false, 768},
    {"III", {1, 1, 1, 1, 0, 0}, true, true, 256},
}};
static_assert(regime_names.size() == std::tuple_size_v<decltype(regimes)>, "the configuration names every regime");

/// Largest count of anything that is one dimension of an array.
constexpr double largest_count = 1 << 24;

/// round(ratio * N), halves away from zero. Zero units cannot run, and neither can more than an array holds.
double scaled(const RunSpec& spec, const char* key, double ratio, int N, const char* what, Faults& faults) {
  const double count = std::round(ratio * N);
  const bool none = count < 1;
  if (none || count > largest_count)
    faults.add(key, fmt::format("{}", ratio), spec.place(key),
               fmt::format("gives {} {} at width {}", none ? "no" : fmt::format("{}", count), what, N),
               none ? "Raise it or the width" : "Lower it or the width");
  return count;
}

double active_of(const RunSpec& spec, double experts) {
  return std::max(1.0, std::round(active_fraction(spec) * experts));
}

}  // namespace

const Regime& regime_named(const std::string& name) {
  for (const auto& regime : regimes)
    if (regime.name == name) return regime;
  throw std::out_of_range(fmt::format("no regime '{}'", name));
}

double active_fraction(const RunSpec& spec) {
  return spec.model.routing == Routing::topk ? spec.model.active_fraction : 1.0;
}

Sizes network_sizes(const RunSpec& spec, int N, int D) {
  const Regime& regime = regime_named(spec.model.regime);
  Sizes sizes;
  Faults faults;
  sizes.N = N;
  sizes.M = regime.experts_sampled
                ? scaled(spec, "model.experts_per_width", spec.model.experts_per_width, N, "experts", faults)
                : spec.model.experts;
  sizes.Ne = regime.hidden_sampled ? scaled(spec, "model.expert_width_per_width", spec.model.expert_width_per_width, N,
                                            "hidden units in an expert", faults)
                                   : spec.model.expert_width;
  faults.throw_if_any();
  sizes.K = active_of(spec, sizes.M);
  sizes.D = D;
  sizes.L = spec.model.depth;
  return sizes;
}

SampleCounts sample_counts(const RunSpec& spec, const Regime& regime) {
  SampleCounts counts;
  Faults faults;
  counts.neurons = spec.sampling.neurons > 0 ? spec.sampling.neurons : regime.default_neurons;
  const auto population = [&](bool sampled, int fixed, int said, const char* key, double ratio, const char* what) {
    if (!sampled) return fixed;
    return said > 0 ? said : static_cast<int>(scaled(spec, key, ratio, counts.neurons, what, faults));
  };
  counts.experts = population(regime.experts_sampled, spec.model.experts, spec.sampling.experts,
                              "model.experts_per_width", spec.model.experts_per_width, "expert samples");
  counts.hidden = population(regime.hidden_sampled, spec.model.expert_width, spec.sampling.hidden,
                             "model.expert_width_per_width", spec.model.expert_width_per_width, "hidden samples");
  faults.throw_if_any();
  counts.active = static_cast<int>(active_of(spec, counts.experts));
  return counts;
}

}  // namespace moe
