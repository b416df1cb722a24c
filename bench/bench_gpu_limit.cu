/// bench_gpu_limit: the limit solver on a GPU, as fractions of what the card itself does in the same run (docs/benchmarks.md). The least
/// time of an operation is max(bytes / copy bandwidth, flops / rate of a large float32 product), of a step the sum over its products
/// (factors read once, results written once) and one read and one write of every field.
///   bench_gpu_limit sweep [NEURONS]   time steps of a sweep, regime II, SGD, P = 16 and 64
///   bench_gpu_limit sums [SITES]      sums over sites for few entries, in pieces and as one product of the library
///   bench_gpu_limit pairs             Adam on arrays over pairs of sites, 24 bytes a pair
///   bench_gpu_limit memory            1e6 neuron samples until the basis has rank 200: what the card has left
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "bench/gpu_card.hpp"
#include "dmft/replica.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/error.hpp"

namespace {

using bench::Card;
using moe::Index;
using moe::Op;

/// The GPU backend that keeps an account of what it is asked for. With `watched` every operation is waited for, to see where time goes.
struct Accounted : moe::Cuda<float> {
  using Base = moe::Cuda<float>;
  struct Entry {
    double seconds = 0, least = 0;
    int calls = 0;
  };
  static inline Card card;
  static inline bool watched = false;
  static inline double least = 0;  ///< seconds of the products
  static inline std::map<std::string, Entry> entries;

  template <class F>
  static void account(const std::string& name, double bytes, double flops, const F& f) {
    const double needed = card.least_seconds(bytes, flops);
    least += needed;
    if (!watched) return f();
    moe::gpu::synchronise();
    Entry& entry = entries[name];
    entry.seconds += bench::seconds_of([&] {
      f();
      moe::gpu::synchronise();
    });
    entry.least += needed;
    ++entry.calls;
  }
  static double size(double rows, double cols) { return 4 * rows * cols; }

  static void gemm(Op a, Op b, double alpha, View A, View X, double beta, View C) {
    const double m = static_cast<double>(C.rows), n = static_cast<double>(C.cols),
                 k = static_cast<double>(a == Op::plain ? A.cols : A.rows);
    const char* const kind = m * n * k < 1e8                 ? "products of small matrices"
                             : k >= std::max(m, n)           ? "products, sums over sites"
                             : std::min(m, n) > 1e3          ? "products, pairs of sites"
                             : C.rows > C.cols && k < C.rows ? "products, combinations of vectors over sites"
                                                             : "products, other";
    account(kind, size(m, k) + size(k, n) + (beta == 0 ? 1 : 2) * size(m, n), 2 * m * n * k,
            [&] { Base::gemm(a, b, alpha, A, X, beta, C); });
  }
  static Eigen::MatrixXd gram(View E) {
    const double S = static_cast<double>(E.rows), P = static_cast<double>(E.cols);
    Eigen::MatrixXd out;
    account("Gram matrices", size(S, P), 2 * S * P * P, [&] { out = Base::gram(E); });
    return out;
  }
  template <class F>
  static void each(Index rows, Index cols, const F& f) {
    account("maps", 0, 0, [&] { Base::each(rows, cols, f); });
  }
  template <class F>
  static double sum(Index rows, Index cols, const F& f) {
    double total = 0;
    account("sums", 0, 0, [&] { total = Base::sum(rows, cols, f); });
    return total;
  }
  template <class F>
  static void column_sums(Index rows, Index cols, const F& f, View out) {
    account("column sums", 0, 0, [&] { Base::column_sums(rows, cols, f, out); });
  }
  static void copy(View from, View to) {
    account("copies", 0, 0, [&] { Base::copy(from, to); });
  }
  static void normal(View out, const moe::StreamKey& key) {
    account("random numbers", size(static_cast<double>(out.rows), static_cast<double>(out.cols)), 0,
            [&] { Base::normal(out, key); });
  }
};

/// Bytes of one read and one write of the fields of a step: of a neuron, an expert and a product site, as they stand in replica.hpp and
/// block.hpp.
double field_bytes(const moe::SampleCounts& counts, double P) {
  const double neurons = static_cast<double>(counts.neurons), experts = static_cast<double>(counts.experts),
               sites = experts * static_cast<double>(counts.hidden);
  return 2 * 4 * P * (10 * neurons + 5 * experts + 5 * sites);
}

struct Problem {
  moe::Dataset data;
  moe::LimitSpec limit;
  Problem(const std::string& optimizer, int P, Index neurons) {
    const moe::RunSpec spec = moe::read_config_text(
        fmt::format(
            "[model]\nregime = 'II'\n[optimizer]\nname = '{}'\nlr = 0.2\neps = 1e-3\n[data]\nsource = "
            "'gaussian'\ndimension = "
            "64\ntrain = {}\ntest = 0\n[training]\nsteps = 200\nloss = 'mse'\n[sampling]\nneurons = {}\nreplicas = 1\n",
            optimizer, P, neurons),
        "bench");
    data = moe::load_dataset(spec);
    moe::Faults faults;
    std::vector<std::string> warnings;
    limit = moe::limit_spec(spec, moe::step_shape(spec, data), faults, warnings);
    faults.throw_if_any();
  }
  template <class B>
  moe::Replica<B> replica() const {
    moe::Replica<B> r(limit, data.x.rows(), data.y.rows(), data.x.cols(), 0);
    r.set_batch(data.x, data.y);
    return r;
  }
};

template <class B>
void step(moe::Replica<B>& r) {
  r.forward();
  r.backward();
  r.update();
}

void sweep(const Card& card, Index neurons) {
  Accounted::card = card;
  for (const int P : {16, 64}) {
    const int steps = P == 16 ? 40 : 16;
    const Problem problem("sgd", P, neurons);
    fmt::print("\nsweep, regime II, SGD, {} neuron samples ({} experts x {} hidden units), P = {}\n", neurons,
               problem.limit.block.counts.experts, problem.limit.block.counts.hidden, P);
    fmt::print("{:>5} {:>9} {:>12} {:>12} {:>12}\n", "step", "rank phi", "ms", "least ms", "of roofline");
    double total = 0, total_least = 0;
    // The same steps three times: the first time kernels of the library are loaded, others for other ranks.
    enum class Pass { first, timed, watched };
    for (const Pass pass : {Pass::first, Pass::timed, Pass::watched}) {
      Accounted::watched = pass == Pass::watched;
      Accounted::entries.clear();
      auto replica = problem.replica<Accounted>();
      for (int t = 0; t < steps; ++t) {
        Accounted::least = 0;
        moe::gpu::synchronise();
        const double seconds = bench::seconds_of([&] {
          step(replica);
          moe::gpu::synchronise();
        });
        if (pass != Pass::timed || t == 0) continue;
        const double least = Accounted::least + card.least_seconds(field_bytes(problem.limit.block.counts, P), 0);
        total += seconds, total_least += least;
        if (t % (steps / 8) == 0)
          fmt::print("{:>5} {:>9} {:>12.2f} {:>12.2f} {:>10.0f} %\n", t, replica.layers()[0]->block().phi_rank(),
                     1e3 * seconds, 1e3 * least, 100 * least / seconds);
      }
    }
    fmt::print(
        "all steps but the first: {:.1f} ms, {:.0f} % of the roofline; where time goes when every operation is waited "
        "for:\n",
        1e3 * total, 100 * total_least / total);
    for (const auto& [name, entry] : Accounted::entries)
      fmt::print("  {:<46} {:>9.2f} ms, least {:>9.2f} ms, {:>6} calls\n", name, 1e3 * entry.seconds, 1e3 * entry.least,
                 entry.calls);
    std::fflush(stdout);
  }
}

void pairs(const Card& card) {
  using B = moe::Cuda<float>;
  const Index SX = 1 << 15, SY = 1 << 13;
  for (const Index P : {8, 16, 32, 64}) {
    moe::UpdateRule rule;
    rule.kind = moe::OptimizerKind::adam;
    rule.lr = 0.01, rule.beta1 = 0.9, rule.beta2 = 0.999, rule.eps = 1e-3;
    moe::LearnedArray<B> array(SX, SY, rule);
    auto z = bench::random(SX, P, 1), x = bench::random(SY, P, 2);
    const double count = static_cast<double>(SX) * static_cast<double>(SY);
    bench::print(card, fmt::format("Adam on {} x {} pairs, P = {}", SX, SY, P),
                 bench::device_seconds([&] { array.update(z, x); }), 24 * count, 2 * count * static_cast<double>(P));
    auto out = B::Matrix::uninitialized(SX, P), back = B::Matrix::uninitialized(SY, P);
    bench::print(card, "  forward, pairs read once",
                 bench::device_seconds([&] { B::gemm(Op::plain, Op::plain, 1, array.value(), x, 0, out); }), 4 * count,
                 2 * count * static_cast<double>(P));
    bench::print(card, "  backward, pairs read once",
                 bench::device_seconds([&] { B::gemm(Op::transposed, Op::plain, 1, array.value(), z, 0, back); }),
                 4 * count, 2 * count * static_cast<double>(P));
  }
}

/// What a step asks of its bases and queries, as the solver makes it and by one call of the library for all of the sum.
template <class Real>
void sums(const Card& card, Index sites, Index rank, Index P) {
  using B = moe::Cuda<Real>;
  auto basis = bench::random<Real>(sites, rank, 1), query = bench::random<Real>(sites, P, 2);
  auto out = B::Matrix::uninitialized(rank, P);
  const auto size = [](Index rows, Index cols) { return double(sizeof(Real)) * double(rows) * double(cols); };
  const double bytes = size(sites, rank + P) + size(rank, P), flops = 2.0 * double(rank * P) * double(sites);
  const auto [count, length] = moe::kernels::pieces_of(rank, P, sites);
  bench::print(card, fmt::format("{} x {} over {} sites, float{}, {} pieces", rank, P, sites, 8 * sizeof(Real), count),
               bench::device_seconds([&] { B::gemm(Op::transposed, Op::plain, 1, basis, query, 0, out); }), bytes,
               flops);
  bench::print(card, "  as one product", bench::device_seconds([&] {
                 moe::gpu::gemm(Op::transposed, Op::plain, rank, P, sites, Real(1), basis.view().data, sites,
                                query.view().data, sites, Real(0), out.view().data, rank);
               }),
               bytes, flops);
}

void memory() {
  using B = moe::Cuda<float>;
  const Problem problem("sgd", 16, 1000000);
  const double before = moe::gpu::device().free_bytes;
  auto replica = problem.replica<B>();
  int t = 0;
  double most = 0;
  while (replica.layers()[0]->block().phi_rank() < 200 && t < 200) {
    step(replica);
    ++t;
    most = std::max(most, before - moe::gpu::device().free_bytes);
  }
  const moe::gpu::Device device = moe::gpu::device();
  fmt::print(
      "1e6 neuron samples, rank {} after {} steps: {:.1f} GB in arrays between steps, {:.1f} GB taken from the card, "
      "of {:.1f}\n",
      replica.layers()[0]->block().phi_rank(), t, most / 1e9, moe::gpu::peak_bytes() / 1e9, device.total_bytes / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc >= 2 ? argv[1] : "";
    if (what != "sweep" && what != "sums" && what != "pairs" && what != "memory") {
      fmt::print(stderr,
                 "bench_gpu_limit: give sweep, sums, pairs or memory; the head of bench/bench_gpu_limit.cu explains\n");
      return 2;
    }
    if (const moe::gpu::Device device = moe::gpu::device(); !device.present) {
      fmt::print(stderr, "bench_gpu_limit: {}\n", device.why_not);
      return 1;
    }
    if (what == "memory") return memory(), 0;
    const Card card = bench::measured_card();
    if (what == "pairs") return pairs(card), 0;
    if (what == "sweep") return sweep(card, argc >= 3 ? std::stol(argv[2]) : 200000), 0;
    // As many product sites as a sweep of 2e5 neurons has; at 2e5 the second cache would hold a basis of rank 64 from one time to the next.
    const Index sites = argc >= 3 ? std::stol(argv[2]) : 800000;
    for (const Index P : {16, 64}) {
      for (const Index rank : {64, 200, 600}) sums<float>(card, sites, rank, P);
      sums<double>(card, sites, P, P);  // Gram matrices
    }
    return 0;
  } catch (const std::exception& failure) {
    fmt::print(stderr, "bench_gpu_limit: {}\n", failure.what());
    return 1;
  }
}
