/// bench_limit: what the limit solver reaches of this machine, as ratios taken side by side in one run (docs/benchmarks.md).
///   bench_limit [products|pairs|steps|threads ...]     without arguments: all
#include <dnnl.h>
#include <fmt/format.h>
#include <omp.h>
#include <sys/resource.h>

#include <Eigen/Core>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bench/timing.hpp"
#include "dmft/operator.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"

namespace {

using B = moe::Cpu<float>;
using moe::Index;
using moe::Op;

B::Matrix gaussian(Index rows, Index cols, std::uint32_t stream) {
  auto m = B::Matrix::uninitialized(rows, cols);
  B::normal(m, {1, 0, stream, 0});
  return m;
}

/// Best rate of one product C = op(A) op(B) that any library at hand reaches with all threads: oneDNN whole, oneDNN and Eigen in our
/// pieces. Flops per second.
double best_library_rate(Op a, Index m, Index n, Index k) {
  auto A = a == Op::plain ? gaussian(m, k, 1) : gaussian(k, m, 1), X = gaussian(k, n, 2);
  B::Matrix C(m, n);
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  using Map = Eigen::Map<Eigen::MatrixXf>;
  const Map Ae(A.data(), A.rows(), A.cols()), Xe(X.data(), k, n);
  Map Ce(C.data(), m, n);
  const int threads = omp_get_max_threads();
  double best = bench::best_seconds([&] {
    dnnl_sgemm('N', a == Op::plain ? 'N' : 'T', n, m, k, 1, X.data(), k, A.data(), A.rows(), 0, C.data(), m);
  });
  best = std::min(best, bench::best_seconds([&] { B::gemm(a, Op::plain, 1, A, X, 0, C); }));
  best = std::min(best, bench::best_seconds([&] {
#pragma omp parallel for schedule(static)
                    for (Index t = 0; t < threads; ++t) {
                      const Index first = t * m / threads, count = (t + 1) * m / threads - first;
                      if (a == Op::plain)
                        Ce.middleRows(first, count).noalias() = Ae.middleRows(first, count) * Xe;
                      else
                        Ce.middleRows(first, count).noalias() = Ae.middleCols(first, count).transpose() * Xe;
                    }
                  }));
  return flops / best;
}

/// The operator's answer to a stored query at rank r on both sides, against the best GEMM rate at the shapes that occur in it.
void products() {
  fmt::print("\noperator products: forward and backward answers of one operator, 4096 x 4096 sites, float32\n");
  fmt::print("{:>5} {:>5}  {:>12} {:>12} {:>12}  {:>8}\n", "P", "rank", "ours GF/s", "best N GF/s", "best T GF/s",
             "of best");
  constexpr Index S = 4096;
  for (const Index P : {32, 64, 128})
    for (const Index rank : {256, 768}) {
      moe::Population<B> X(S, {1, 0, 1, 0}, false), Y(S, {1, 0, 2, 0}, false);
      moe::QueryBasis<B> zt(S, 1e-3), xt(S, 1e-3);
      moe::UpdateRule rule;
      rule.lr = 0.1;
      moe::Operator<B> W(X, zt, Y, xt, {1, 1}, rule, {1, 0, 3, 0});
      B::Matrix on_X(S, P), on_Y(S, P);
      auto x = gaussian(S, P, 10), z = gaussian(S, P, 11);
      for (Index have = 0; have < rank; have += P) {
        x = gaussian(S, P, static_cast<std::uint32_t>(100 + have));
        z = gaussian(S, P, static_cast<std::uint32_t>(5000 + have));
        xt.ask(x), W.forward(x, on_X), zt.ask(z), W.backward(z, on_Y), W.update(z, x);
      }
      // Queries inside the basis from here on: coefficients, residual, images, responses, learned part; the basis does not grow.
      const double time = bench::best_seconds([&] {
        xt.ask(x);
        W.forward(x, on_X);
        zt.ask(z);
        W.backward(z, on_Y);
        W.update(z, x);
      });
      // Products of S x r x P: per direction coefficients, residual, images, responses, and along the basis what answers and was learned
      // together; r x r x P ones are 2 more.
      const double big = 2.0 * static_cast<double>(S) * static_cast<double>(rank) * static_cast<double>(P);
      const double small = 2.0 * static_cast<double>(rank) * static_cast<double>(rank) * static_cast<double>(P);
      const double flops = 2 * (5 * big) + 3 * small;
      const double plain = best_library_rate(Op::plain, S, P, rank),
                   transposed = best_library_rate(Op::transposed, rank, P, S);
      // Per direction two of the five are transposed (inner dimension S).
      const double ideal = 2 * (3 * big / plain + 2 * big / transposed) + 3 * small / plain;
      fmt::print("{:>5} {:>5}  {:>12.1f} {:>12.1f} {:>12.1f}  {:>7.0f} %\n", P, rank, flops / time / 1e9, plain / 1e9,
                 transposed / 1e9, 100 * ideal / time);
    }
}

/// Adam on an array over pairs of sites: 24 bytes a pair (value and two moments, read and written), against a copy of as many bytes.
void pairs() {
  fmt::print("\nAdam on pair arrays, float32, 24 bytes a pair, against std::memcpy on all threads\n");
  fmt::print("{:>6} {:>6} {:>4}  {:>12} {:>12}  {:>8}\n", "SX", "SY", "P", "ours GB/s", "copy GB/s", "of copy");
  for (const Index P : {8, 16, 64}) {
    constexpr Index SX = 8192, SY = 4096;
    moe::UpdateRule rule;
    rule.kind = moe::OptimizerKind::adam;
    rule.lr = 0.01, rule.beta1 = 0.9, rule.beta2 = 0.999, rule.eps = 1e-3;
    moe::LearnedArray<B> pairs(SX, SY, rule);
    auto z = gaussian(SX, P, 1), x = gaussian(SY, P, 2);
    auto from = gaussian(SX, SY, 3);
    auto to = B::Matrix(SX, SY);
    const auto time = bench::best_in_turn([&] { pairs.update(z, x); },
                                          [&] {
#pragma omp parallel for schedule(static)
                                            for (Index j = 0; j < SY; ++j)
                                              std::memcpy(to.data() + j * SX, from.data() + j * SX, SX * sizeof(float));
                                          });
    const double count = static_cast<double>(SX * SY), ours = 24 * count / time.first, copy = 8 * count / time.second;
    fmt::print("{:>6} {:>6} {:>4}  {:>12.1f} {:>12.1f}  {:>7.0f} %\n", SX, SY, P, ours / 1e9, copy / 1e9,
               100 * ours / copy);
  }
}

moe::RunSpec spec_of(const std::string& toml) { return moe::read_config_text(toml, "bench"); }

double mean(const std::vector<double>& v, std::size_t first, std::size_t last) {
  double s = 0;
  for (std::size_t k = first; k < last; ++k) s += v[k];
  return s / static_cast<double>(last - first);
}
double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

/// Time per step once the rank has saturated: full batch, P = 16, T = 1000.
void steps() {
  fmt::print("\ntime per step, regime II, mssp, SGD, digits, P = 16, T = 1000, 1024 neurons\n");
  fmt::print("{:>10} {:>10} {:>10}  {:>14} {:>14} {:>8}\n", "rank 250", "rank 1000", "dense", "200-300 ms",
             "900-1000 ms", "ratio");
  for (const double tolerance : {0.01, 0.03}) {
    moe::RunSpec spec = spec_of(fmt::format(
        "[optimizer]\nname = 'sgd'\nlr = 1.0\n[data]\ntrain = 16\ntest = 0\n[training]\nsteps = 1000\n[sampling]\n"
        "neurons = 1024\nreplicas = 1\ntolerance = {}\n[output]\nobservables = 'none'\n",
        tolerance));
    const moe::LimitResult r = moe::solve_limit(spec, moe::load_dataset(spec));
    const auto& t = r.diagnostics.at("step_seconds");
    const auto part = [&](std::size_t a, std::size_t b) {
      return median({t.begin() + static_cast<std::ptrdiff_t>(a), t.begin() + static_cast<std::ptrdiff_t>(b)});
    };
    const double early = part(200, 300), late = part(900, 1000);
    fmt::print("{:>10} {:>10} {:>10}  {:>14.2f} {:>14.2f} {:>8.2f}\n", mean(r.diagnostics.at("rank_Gv"), 249, 250),
               r.diagnostics.at("rank_Gv").back(), r.diagnostics.at("dense_fraction").back(), 1e3 * early, 1e3 * late,
               late / early);
  }
}

/// One thread against all, the replicas of a default solve side by side, and one replica with threads inside.
void threads() {
  const int all = static_cast<int>(std::thread::hardware_concurrency());
  fmt::print("\n{} threads against one, wall time\n", all);
  for (const char* optimizer : {"sgd", "adam"})
    for (const int replicas : {4, 1}) {
      moe::RunSpec spec = spec_of(
          fmt::format("[optimizer]\nname = '{}'\n[training]\nsteps = 30\n[sampling]\nreplicas = {}\nneurons = {}\n",
                      optimizer, replicas, replicas == 1 ? 2048 : 1024));
      const moe::Dataset data = moe::load_dataset(spec);
      const auto solve = [&](int n) {
        moe::SolveOptions o;
        o.threads = n;
        moe::solve_limit(spec, data, o);
      };
      const auto time = bench::best_in_turn([&] { solve(1); }, [&] { solve(all); }, 3);
      fmt::print("{:>5}, {} replica{}: {:.2f} s and {:.2f} s, {:.2f}x\n", optimizer, replicas, replicas == 1 ? "" : "s",
                 time.first, time.second, time.first / time.second);
    }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    moe::keep_freed_memory();
    std::vector<std::string> wanted(argv + 1, argv + argc);
    const std::vector<std::pair<std::string, std::function<void()>>> all = {
        {"products", products}, {"pairs", pairs}, {"steps", steps}, {"threads", threads}};
    for (const std::string& one : wanted)
      if (std::none_of(all.begin(), all.end(), [&](const auto& known) { return known.first == one; }))
        throw std::runtime_error(
            fmt::format(R"(no part "{}": give some of products, pairs, steps, threads, or none for all)", one));
    for (const auto& [name, run] : all)
      if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end()) run();
    return 0;
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_limit: {}\n", e.what());
    return 1;
  }
}
