/// bench_network: step times of the finite trainer (docs/benchmarks.md). One line a case, for reading and for bench/torch_networks.py.
///   bench_network step REGIME N OPTIMIZER ROUTING [STEPS [THREADS]]    one network, all threads inside: seconds a step
///   bench_network many N COUNT OPTIMIZER STEPS                         COUNT networks trained together: seconds a step of all
///   bench_network observe REGIME N OPTIMIZER ROUTING                   cost of the standard observables at observe_every = 10
///   bench_network gemm                                                 best rate of large float32 products of any library at hand
#include <dnnl.h>
#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "bench/timing.hpp"
#include "support/config.hpp"
#include "support/cpu.hpp"
#include "support/resources.hpp"
#include "validation/network.hpp"

namespace {

using Clock = std::chrono::steady_clock;

/// P = 64 digits, top-K with K = M/4, nothing recorded on the way but the loss, which the step computes anyway.
moe::RunSpec spec_of(const std::string& regime, int N, const std::string& optimizer, const std::string& routing,
                     int steps) {
  return moe::read_config_text(
      fmt::format("[model]\nregime = '{}'\nrouting = '{}'\nactive_fraction = 0.25\n[optimizer]\nname = '{}'\nlr = "
                  "0.02\neps = 1e-3\n"
                  "[data]\ntrain = 64\ntest = 0\n[training]\nsteps = {}\n[network]\nwidths = [{}]\nseeds = 1\n"
                  "[output]\nobservables = 'none'\n",
                  regime, routing, optimizer, steps, N),
      "bench");
}

/// Median seconds between updates of one network, after a quarter of them.
double step_seconds(const moe::RunSpec& spec, int threads) {
  const moe::Dataset data = moe::load_dataset(spec);
  std::vector<Clock::time_point> at;
  moe::TrainOptions options;
  options.threads = threads;
  options.keep_outputs = false;
  options.on_step = [&](int, double) { at.push_back(Clock::now()); };
  const auto run = moe::train_network(spec, data, spec.network.widths[0], 0, options);
  if (run.failure) throw moe::NumericsError(*run.failure);
  std::vector<double> seconds;
  for (std::size_t k = at.size() / 4 + 1; k < at.size(); ++k)
    seconds.push_back(std::chrono::duration<double>(at[k] - at[k - 1]).count());
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
  return seconds[seconds.size() / 2];
}

/// Multiply-adds times two of a step: six products of each active expert matrix, three of the others.
double flops(const moe::RunSpec& spec) {
  const moe::NetworkShape s = moe::network_shape(spec, moe::load_dataset(spec), spec.network.widths[0]);
  return 2.0 * 64 * s.N * (6.0 * s.K * s.Ne + 3.0 * s.M + 2.0 * s.D + 3.0 * s.C);
}

void step(const std::vector<std::string>& a) {
  const int steps = a.size() > 5 ? std::stoi(a[5]) : 30, threads = a.size() > 6 ? std::stoi(a[6]) : 0;
  const moe::RunSpec spec = spec_of(a[1], std::stoi(a[2]), a[3], a[4], steps);
  const double seconds = step_seconds(spec, threads);
  fmt::print("{} {} {} {} {:.6f} s/step {:.1f} GF/s\n", a[1], a[2], a[3], a[4], seconds, flops(spec) / seconds / 1e9);
}

void many(const std::vector<std::string>& a) {
  const int steps = std::stoi(a[4]);
  moe::RunSpec spec = spec_of("II", std::stoi(a[1]), a[3], "soft", steps);
  spec.network.seeds = std::stoi(a[2]);
  const moe::Dataset data = moe::load_dataset(spec);
  moe::TrainOptions options;
  options.keep_outputs = false;
  const auto total = [&](int n) {
    spec.training.steps = n;
    return bench::seconds_of([&] { moe::train_networks(spec, data, 0, options); });
  };
  total(3);
  const double seconds = (total(steps) - total(3)) / (steps - 3);  // without drawing the weights
  fmt::print("{} x {} {} {:.6f} s/step\n", a[2], a[1], a[3], seconds);
}

void observe(const std::vector<std::string>& a) {
  moe::RunSpec plain = spec_of(a[1], std::stoi(a[2]), a[3], a[4], 41);
  moe::RunSpec observed = plain;
  observed.output.observables = {"standard"};
  observed.output.observe_every = 10;
  const moe::Dataset data = moe::load_dataset(plain);
  // Seconds of steps 11 .. 40, four of which are observed.
  const auto seconds = [&](const moe::RunSpec& spec) {
    Clock::time_point first, last;
    moe::TrainOptions options;
    options.threads = 0;
    options.keep_outputs = false;
    options.on_step = [&](int t, double) { (t == 10 ? first : last) = Clock::now(); };
    const auto run = moe::train_network(spec, data, spec.network.widths[0], 0, options);
    return std::chrono::duration<double>(last - first).count();
  };
  double best_plain = HUGE_VAL, best_observed = HUGE_VAL;
  for (int round = 0; round < 15; ++round) {
    best_plain = std::min(best_plain, seconds(plain));
    best_observed = std::min(best_observed, seconds(observed));
  }
  fmt::print("{} {} {} {} observing costs {:.1f} %\n", a[1], a[2], a[3], a[4], 100 * (best_observed / best_plain - 1));
}

void gemm() {
  using Matrix = Eigen::MatrixXf;
  const int threads = static_cast<int>(std::thread::hardware_concurrency());
  double best = 0;
  const auto note = [&](const char* name, Eigen::Index n, double seconds) {
    const double rate = 2.0 * static_cast<double>(n * n * n) / seconds / 1e9;
    fmt::print("{} {} {:.1f} GF/s\n", name, n, rate);
    best = std::max(best, rate);
  };
  moe::set_operation_threads(threads);
  for (const Eigen::Index n : {1024, 2048}) {
    const Matrix A = Matrix::Random(n, n), X = Matrix::Random(n, n);
    Matrix C(n, n);
    note("oneDNN", n,
         bench::best_seconds([&] { dnnl_sgemm('N', 'N', n, n, n, 1, X.data(), n, A.data(), n, 0, C.data(), n); }, 5));
    note("Eigen", n,
         bench::best_seconds(
             [&] {
#pragma omp parallel for schedule(static)
               for (Eigen::Index t = 0; t < threads; ++t) {
                 const Eigen::Index first = t * n / threads, count = (t + 1) * n / threads - first;
                 C.middleCols(first, count).noalias() = A * X.middleCols(first, count);
               }
             },
             5));
  }
  fmt::print("best {:.1f} GF/s\n", best);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    moe::keep_freed_memory();
    const std::vector<std::string> a(argv + 1, argv + argc);
    const std::string what = a.empty() ? "" : a[0];
    if (what == "step" && a.size() >= 5) return step(a), 0;
    if (what == "many" && a.size() == 5) return many(a), 0;
    if (what == "observe" && a.size() == 5) return observe(a), 0;
    if (what == "gemm") return gemm(), 0;
    fmt::print(
        stderr,
        "bench_network: give step, many, observe or gemm with their arguments; the head of bench/bench_network.cpp "
        "explains\n");
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_network: {}\n", e.what());
    return 1;
  }
}
