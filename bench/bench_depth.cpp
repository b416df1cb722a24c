/// bench_depth: what L blocks cost beside one of the same sizes, limit and network: time and memory over L times those of one block
/// (docs/benchmarks.md). Each case runs in a process of its own: its largest memory counts, above what the program takes with the data
/// read. L = 1, 2, 4, 1 in turn; times are medians of ROUNDS, ratios medians of the ratios within a round: the best of several would
/// favour the short runs of one block, which find a quiet moment more easily.
///   bench_depth [solve|train [ROUNDS [RULE [ROUTING [NEURONS]]]]]   without arguments all, five rounds, 1024 neurons of a solve, 512 of a network
///   bench_depth case solve|train RULE ROUTING L [NEURONS]           one case: seconds, MB, largest ranks of the queries phi, D, G v
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/resources.hpp"
#include "validation/network.hpp"
#include "validation/network_statistics.hpp"

namespace {

struct Cost {
  double seconds = HUGE_VAL, megabytes = HUGE_VAL, rank_phi = 0, rank_D = 0, rank_Gv = 0;
};

/// Fresh batches of 16: every step adds 16 directions to every basis, whatever L, so that ranks are the same. With a linear psi the D of
/// the last block would stay near the span of ten readout vectors, and one block alone be cheaper than the others of a stack.
moe::RunSpec spec_of(const std::string& rule, const std::string& routing, int L, int neurons) {
  return moe::read_config_text(
      fmt::format("[model]\nresidual = true\nnorm = 'rms'\npost_activation = 'tanh'\ndepth = {}\nrouting = "
                  "'{}'\nactive_fraction = 0.25\n"
                  "[optimizer]\nname = '{}'\nlr = 0.05\neps = 0.02\n[data]\ntrain = 320\ntest = 0\n"
                  "[training]\nsteps = 20\nbatch = 16\neval_every = 20\n[sampling]\nneurons = {}\nreplicas = 1\n"
                  "[network]\nwidths = [{}]\nseeds = 1\n[output]\nobservables = 'none'\n",
                  L, routing, rule, neurons, neurons),
      "bench");
}

/// Seconds from the first update to the last, which leaves out the drawing of samples and weights and the evaluation of the whole set.
class Stopwatch {
 public:
  void tick() { (count_++ == 0 ? first_ : last_) = bench_clock::now(); }
  double seconds() const { return std::chrono::duration<double>(last_ - first_).count(); }

 private:
  using bench_clock = std::chrono::steady_clock;
  int count_ = 0;
  bench_clock::time_point first_, last_;
};

double resident_megabytes() {
  std::ifstream statm("/proc/self/statm");
  double size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1024 * 1024);
}

void one_case(const std::string& what, const std::string& rule, const std::string& routing, int L, int neurons) {
  moe::keep_freed_memory();
  const moe::RunSpec spec = spec_of(rule, routing, L, neurons);
  const moe::Dataset data = moe::load_dataset(spec);
  const double before = resident_megabytes();
  Cost cost;
  if (what == "solve") {
    moe::SolveOptions options;
    options.threads = 1;
    const auto r = moe::solve_limit(spec, data, options);
    if (r.failure) throw moe::NumericsError(*r.failure);
    const auto& seconds = r.diagnostics.at("step_seconds");
    cost.seconds = 0;
    for (std::size_t t = 1; t + 1 < seconds.size(); ++t) cost.seconds += seconds[t];
    const auto largest = [&](const char* name) { return *std::ranges::max_element(r.diagnostics.at(name)); };
    cost.rank_phi = largest("rank_phi"), cost.rank_D = largest("rank_D"), cost.rank_Gv = largest("rank_Gv");
  } else {
    Stopwatch watch;
    moe::TrainOptions options;
    options.keep_outputs = options.keep_weights = false;
    options.on_step = [&](int, double) { watch.tick(); };
    const auto r = moe::train_network(spec, data, spec.network.widths[0], 0, options);
    if (r.failure) throw moe::NumericsError(*r.failure);
    cost.seconds = watch.seconds();
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("{} {} {} {} {}\n", cost.seconds, static_cast<double>(usage.ru_maxrss) / 1024 - before, cost.rank_phi,
             cost.rank_D, cost.rank_Gv);
}

/// One case in a process of its own.
Cost cost_of(const std::string& what, const std::string& rule, const std::string& routing, int L, int neurons) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  FILE* out = popen(fmt::format("'{}' case {} {} {} {} {}", self, what, rule, routing, L, neurons).c_str(), "r");
  if (out == nullptr) throw std::runtime_error("cannot start " + self);
  Cost c;
  const int read =
      std::fscanf(out, "%lf %lf %lf %lf %lf", &c.seconds, &c.megabytes, &c.rank_phi, &c.rank_D, &c.rank_Gv);
  if (pclose(out) != 0 || read != 5)
    throw std::runtime_error(fmt::format("{} {} {}, L = {} failed", what, rule, routing, L));
  return c;
}

double quantile(const std::vector<double>& values, double share) {
  return moe::network::quantile(
      Eigen::Map<const Eigen::VectorXd>(values.data(), static_cast<Eigen::Index>(values.size())), share);
}

struct Only {
  std::string rule, routing;  ///< empty: all
};

void table(const std::string& what, int rounds, const Only& only, int neurons) {
  fmt::print("\n{}: regime II, mssp, norm and residual, fresh batches of 16 digits, 20 steps, {} neurons, one thread\n",
             what, neurons);
  fmt::print("{:>9} {:>8} {:>3} {:>9} {:>30} {:>8} {:>14}  {}\n", "rule", "routing", "L", "seconds",
             "over L times 1 (quartiles)", "MB", "over L times 1", "ranks of phi, D, Gv");
  for (const char* rule : {"sgd", "adam", "adafactor"}) {
    if (!only.rule.empty() && only.rule != rule) continue;
    for (const char* routing : {"soft", "topk"}) {
      if (!only.routing.empty() && only.routing != routing) continue;
      std::map<int, std::vector<double>> seconds, ratios;
      std::map<int, Cost> cost;
      for (int round = 0; round < rounds; ++round) {
        double one_block = 0;
        for (const int L : {1, 2, 4, 1}) {
          const Cost c = cost_of(what, rule, routing, L, neurons);
          seconds[L].push_back(c.seconds);
          cost[L] = {0, std::min(cost[L].megabytes, c.megabytes), c.rank_phi, c.rank_D, c.rank_Gv};
          if (L == 1) one_block += c.seconds / 2;
        }
        for (const int L : {1, 2, 4}) {
          const double blocks = L == 1 ? one_block : seconds[L].back();
          ratios[L].push_back(blocks / L / one_block);
        }
      }
      for (const auto& [L, c] : cost)
        fmt::print("{:>9} {:>8} {:>3} {:>9.3f} {:>30} {:>8.0f} {:>14.2f}  {}, {}, {}\n", rule, routing, L,
                   quantile(seconds[L], 0.5),
                   fmt::format("{:.2f} ({:.2f} .. {:.2f})", quantile(ratios[L], 0.5), quantile(ratios[L], 0.25),
                               quantile(ratios[L], 0.75)),
                   c.megabytes, c.megabytes / L / cost[1].megabytes, c.rank_phi, c.rank_D, c.rank_Gv);
      std::fflush(stdout);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> a(argv + 1, argv + argc);
    const auto number = [&](std::size_t k, int otherwise) { return a.size() > k ? std::stoi(a[k]) : otherwise; };
    const auto name = [&](std::size_t k) { return a.size() > k ? a[k] : std::string(); };
    if (a.size() >= 5 && a[0] == "case") return one_case(a[1], a[2], a[3], std::stoi(a[4]), number(5, 512)), 0;
    if (!a.empty() && a[0] != "solve" && a[0] != "train")
      throw std::runtime_error(fmt::format(R"(no part "{}": give solve or train, or none for both)", a[0]));
    for (const auto& [what, neurons] : {std::pair("solve", 1024), std::pair("train", 512)})
      if (a.empty() || a[0] == what) table(what, number(1, 5), {name(2), name(3)}, number(4, neurons));
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_depth: {}\n", e.what());
    return 1;
  }
}
