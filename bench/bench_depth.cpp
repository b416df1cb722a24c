/// bench_depth: what L blocks cost beside one of the same sizes, limit and network: time and memory over L times those of one block
/// (docs/benchmarks.md). Each case runs in a process of its own: its largest memory counts, above what the program takes with the data
/// read. L = 1, 2, 4 in turn, best of ROUNDS.
///   bench_depth [solve|train [ROUNDS [RULE]]]        without arguments all, three rounds
///   bench_depth case solve|train RULE ROUTING L      one case: seconds, MB, largest ranks of the queries of A and B
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
#include <string>
#include <vector>

#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/cpu.hpp"
#include "validation/network.hpp"

namespace {

struct Cost {
  double seconds = HUGE_VAL, megabytes = HUGE_VAL, rank_in = 0, rank_out = 0;
};

/// Fresh batches of 16: every step adds 16 directions to every basis, whatever L, so that ranks are the same.
moe::RunSpec spec_of(const std::string& rule, const std::string& routing, int L) {
  return moe::read_config_text(
      fmt::format("[model]\nresidual = true\nnorm = 'rms'\ndepth = {}\nrouting = '{}'\nactive_fraction = 0.25\n"
                  "[optimizer]\nname = '{}'\nlr = 0.05\neps = 0.02\n[data]\ntrain = 320\ntest = 0\n"
                  "[training]\nsteps = 20\nbatch = 16\neval_every = 20\n[sampling]\nneurons = 1024\nreplicas = 1\n"
                  "[network]\nwidths = [512]\nseeds = 1\n[output]\nobservables = 'none'\n",
                  L, routing, rule),
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

void one_case(const std::string& what, const std::string& rule, const std::string& routing, int L) {
  moe::keep_freed_memory();
  const moe::RunSpec spec = spec_of(rule, routing, L);
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
    cost.rank_in = largest("rank_phi"), cost.rank_out = largest("rank_Gv");
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
  fmt::print("{} {} {} {}\n", cost.seconds, static_cast<double>(usage.ru_maxrss) / 1024 - before, cost.rank_in,
             cost.rank_out);
}

/// One case in a process of its own.
Cost cost_of(const std::string& what, const std::string& rule, const std::string& routing, int L) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  FILE* out = popen(fmt::format("'{}' case {} {} {} {}", self, what, rule, routing, L).c_str(), "r");
  if (out == nullptr) throw std::runtime_error("cannot start " + self);
  Cost c;
  const int read = std::fscanf(out, "%lf %lf %lf %lf", &c.seconds, &c.megabytes, &c.rank_in, &c.rank_out);
  if (pclose(out) != 0 || read != 4)
    throw std::runtime_error(fmt::format("{} {} {}, L = {} failed", what, rule, routing, L));
  return c;
}

void table(const std::string& what, int rounds, const std::string& only) {
  fmt::print("\n{}: regime II, mssp, norm and residual, fresh batches of 16 digits, 20 steps, {}, one thread\n", what,
             what == "solve" ? "1024 neurons" : "N = 512");
  fmt::print("{:>8} {:>8} {:>3} {:>9} {:>14} {:>8} {:>14} {:>8} {:>8}\n", "rule", "routing", "L", "seconds",
             "over L times 1", "MB", "over L times 1", "rank A", "rank B");
  for (const char* rule : {"sgd", "adam", "adafactor"}) {
    if (!only.empty() && only != rule) continue;
    for (const char* routing : {"soft", "topk"}) {
      std::map<int, Cost> best;
      for (int round = 0; round < rounds; ++round)
        for (const int L : {1, 2, 4}) {
          const Cost c = cost_of(what, rule, routing, L);
          best[L] = {std::min(best[L].seconds, c.seconds), std::min(best[L].megabytes, c.megabytes), c.rank_in,
                     c.rank_out};
        }
      for (const auto& [L, c] : best)
        fmt::print("{:>8} {:>8} {:>3} {:>9.3f} {:>14.2f} {:>8.0f} {:>14.2f} {:>8} {:>8}\n", rule, routing, L, c.seconds,
                   c.seconds / L / best[1].seconds, c.megabytes, c.megabytes / L / best[1].megabytes, c.rank_in,
                   c.rank_out);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> a(argv + 1, argv + argc);
    if (a.size() == 5 && a[0] == "case") return one_case(a[1], a[2], a[3], std::stoi(a[4])), 0;
    const int rounds = a.size() > 1 ? std::stoi(a[1]) : 3;
    for (const char* what : {"solve", "train"})
      if (a.empty() || a[0] == what) table(what, rounds, a.size() > 2 ? a[2] : "");
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_depth: {}\n", e.what());
    return 1;
  }
}
