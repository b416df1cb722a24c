/// bench_gpu_network: networks that train on a GPU, as fractions of what the card itself does in the same run (docs/benchmarks.md): a
/// kernel's or step's least time is max(bytes / copy bandwidth, flops / rate of a large product in float32, or in TF32 where that is said).
///   bench_gpu_network kernels      each kernel, first against sums written out, then timed
///   bench_gpu_network steps        whole training steps, batch 4096
///   bench_gpu_network many         64 networks of N = 256 trained together, regimes II and III
#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/gpu_card.hpp"
#include "data/dataset.hpp"
#include "support/config.hpp"
#include "support/cuda.hpp"
#include "support/error.hpp"
#include "validation/network.hpp"
#include "validation/trainer_pairs_gpu.hpp"
#include "validation/trainer_products_gpu.hpp"

namespace {

using moe::Index;
using B = moe::Cuda<float>;
using Products = moe::trainer::Products<B>;
using Pairs = moe::trainer::Pairs<B>;
using Clock = std::chrono::steady_clock;
using bench::Card;
using bench::device_seconds;
using bench::print;
using bench::random;

/// The nearest number that TF32 has.
double in_tf32(double factor) {
  int exponent = 0;
  const double mantissa = std::frexp(factor, &exponent);
  return std::ldexp(std::round(std::ldexp(mantissa, 11)), exponent - 11);
}

/// Grouped products of a small network against sums over pairs of the same factors; throws where they are off.
void check_products(bool tf32, Index Ne) {
  const moe::gpu::Tf32 products(tf32);
  const Index N = 130, M = 5, P = 150, K = 2;
  moe::trainer::GpuDispatch d;
  auto r = random(M, P, 3);
  d.choose_largest(r.view(), K);
  auto W = random(N, M * Ne, 4), X = random(N, P, 5), C = random(Ne, K * P, 6);
  auto out = B::Matrix::uninitialized(Ne, K * P), Y = B::Matrix::uninitialized(N, P);
  const auto factor = [&](const B::Matrix& matrix) -> Eigen::MatrixXd {
    const Eigen::MatrixXd exact = B::download(matrix.view());
    return tf32 ? Eigen::MatrixXd(exact.unaryExpr([](double f) { return in_tf32(f); })) : exact;
  };
  const Eigen::MatrixXd before = B::download(W), w = factor(W), x = factor(X), c = factor(C);
  Products::answer(d, W, 1, X, out);
  Products::collect(d, W, 1, C, Y);
  moe::trainer::Rule<float> descent;
  descent.lr = 0.5F;
  Products::learn(d, {descent, {W, {}, {}}}, 1, X, C);
  const auto chosen = moe::GpuMatrix<Index>::to_host({d.lists().chosen, K, P, K});
  const auto pairs = moe::GpuMatrix<Index>::to_host({d.lists().pairs, K, P, K});
  Eigen::MatrixXd answers(Ne, K * P), sums = Eigen::MatrixXd::Zero(N, P), learned = before;
  for (Index p = 0; p < P; ++p)
    for (Index k = 0; k < K; ++k) {
      const Index i = chosen(k, p), pair = pairs(k, p);
      answers.col(pair) = w.middleCols(i * Ne, Ne).transpose() * x.col(p);
      sums.col(p) += w.middleCols(i * Ne, Ne) * c.col(pair);
      learned.middleCols(i * Ne, Ne) -= 0.5 * x.col(p) * c.col(pair).transpose();
    }
  const auto require = [&](const char* what, const B::Matrix& found, const Eigen::MatrixXd& expected) {
    const double off = (B::download(found.view()) - expected).cwiseAbs().maxCoeff();
    // Sums of at most 300 products of normals, the largest of which stay below 5^2.
    if (!(off <= 300 * 25 * 1.2e-7))
      throw moe::BackendError(
          fmt::format("{} of experts of width {}{}: off by {:.2g}", what, Ne, tf32 ? ", TF32" : "", off));
  };
  require("answers", out, answers);
  require("what is collected", Y, sums);
  require("updates", W, learned);
}

struct Shape {
  const char* name;
  Index N, M, Ne, P, K;
};

/// The kernels of top-K routing and of the fields between the products.
void kernels_at(const Card& card, const Shape& s) {
  const double N = static_cast<double>(s.N), M = static_cast<double>(s.M), Ne = static_cast<double>(s.Ne),
               P = static_cast<double>(s.P), K = static_cast<double>(s.K), weights = N * M * Ne, pairs = K * P;
  fmt::print("{}: N {}, M {}, N_e {}, K {}, P {}\n", s.name, s.N, s.M, s.Ne, s.K, s.P);
  moe::trainer::GpuDispatch d;
  auto r = random(s.M, s.P, 1), W = random(s.N, s.M * s.Ne, 2), m = random(s.N, s.M * s.Ne, 3),
       v = B::Matrix(s.N, s.M * s.Ne), X = random(s.N, s.P, 4), C = random(s.Ne, s.K * s.P, 5);
  auto out = B::Matrix::uninitialized(s.Ne, s.K * s.P), Y = B::Matrix::uninitialized(s.N, s.P),
       G = B::Matrix::uninitialized(s.K, s.P), g_G = B::Matrix::uninitialized(s.K, s.P),
       g_u = B::Matrix::uninitialized(s.Ne, s.K * s.P);
  print(card, "choose experts, sort their tokens", device_seconds([&] { d.choose_largest(r.view(), s.K); }),
        4 * M * P + 3 * 8 * pairs, 0);
  moe::ModelSpec model;
  model.gate = moe::Gate::softmax;
  print(card, "gates", device_seconds([&] { Pairs::gate(model, d, r, G); }), 8 * pairs, 0);
  const double product = 2 * N * Ne * pairs, read = 4 * weights;
  for (const bool tf32 : {false, true}) {
    const moe::gpu::Tf32 products(tf32);
    const Card at = tf32 ? card.in_tf32() : card;
    const auto timed = [&](const std::string& what, double bytes, const auto& f) {
      print(at, what + (tf32 ? ", TF32" : ""), device_seconds(f), bytes, product);
    };
    const double fields = 4 * (N * P + Ne * pairs);
    timed("answers of experts", read + fields, [&] { Products::answer(d, W, 1, X, out); });
    timed("what experts make together", read + fields, [&] { Products::collect(d, W, 1, C, Y); });
    for (const auto kind : {moe::OptimizerKind::sgd, moe::OptimizerKind::adam}) {
      moe::OptimizerSpec o;
      o.name = kind;
      const auto rule = moe::trainer::Rule<float>::at(o, 1e-6, 1e-3, 2);
      const bool sgd = kind == moe::OptimizerKind::sgd;
      timed(sgd ? "updates of experts, SGD" : "updates of experts, Adam", (sgd ? 8 : 24) * weights + fields, [&] {
        Products::learn(d, {rule, {W, m, v}}, 1, X, C);
      });
    }
  }
  print(card, "gate times field", device_seconds([&] { Pairs::times_gate(d, G, C, out); }), 8 * Ne * pairs, 0);
  const moe::PointActivation<float> tanh{moe::Activation::tanh, 1};
  print(card, "through the experts, backward",
        device_seconds([&] { Pairs::through_experts(tanh, d, C, C, G, out, g_u, g_G); }), 16 * Ne * pairs, 0);
}

/// Updates of whole tensors: soft routing, all experts stacked.
void tensor_updates(const Card& card, Index N, Index columns, Index P) {
  auto W = random(N, columns, 1), m = random(N, columns, 2), v = B::Matrix(N, columns), L = random(N, P, 3),
       C = random(columns, P, 4);
  const double weights = static_cast<double>(N) * static_cast<double>(columns);
  for (const auto kind : {moe::OptimizerKind::sgd, moe::OptimizerKind::momentum, moe::OptimizerKind::adam}) {
    moe::OptimizerSpec o;
    o.name = kind;
    const auto rule = moe::trainer::Rule<float>::at(o, 1e-6, 1e-3, 2);
    const double moved = kind == moe::OptimizerKind::sgd ? 8 : kind == moe::OptimizerKind::momentum ? 16 : 24;
    const char* const name = kind == moe::OptimizerKind::sgd    ? "SGD"
                             : kind == moe::OptimizerKind::adam ? "Adam"
                                                                : "momentum";
    print(card, fmt::format("update of {} x {}, P = {}, {}", N, columns, P, name), device_seconds([&] {
            Products::learn({rule, {W, m, v}}, 1, L, C);
          }),
          moved * weights + 4 * static_cast<double>((N + columns) * P), 2 * weights * static_cast<double>(P));
  }
}

moe::RunSpec spec_of(const std::string& text, int N, const std::string& optimizer, int P, int steps) {
  return moe::read_config_text(
      fmt::format("{}\n[optimizer]\nname = '{}'\nlr = 0.02\neps = 1e-3\n[data]\nsource = 'gaussian'\ndimension = 64\n"
                  "train = {}\ntest = 0\n[training]\nsteps = {}\n[network]\nwidths = [{}]\nseeds = 1\n[output]\n"
                  "observables = 'none'\n",
                  text, optimizer, P, steps, N),
      "bench");
}

/// Bytes and flops that a step cannot do without: the weights read forward and backward, and read and written with what their rule
/// keeps; six products of each active expert matrix, three of the others.
struct Work {
  double bytes = 0, flops = 0;
};
Work work_of(const moe::RunSpec& spec, const moe::NetworkShape& s, double P) {
  const double N = s.N, M = s.M, Ne = s.Ne, K = s.K, D = s.D, C = s.C;
  const double kept = spec.optimizer.name == moe::OptimizerKind::adam ? 3 : 1;
  const double weights = N * (D + M + 2 * M * Ne + C);
  return {4 * weights * (2 + 2 * kept) + 4 * P * (6 * K * Ne + 8 * N + 4 * M),
          2 * P * N * (6 * K * Ne + 3 * M + 2 * D + 3 * C)};
}

void step(const Card& card, const std::string& name, const moe::RunSpec& spec) {
  const moe::Dataset data = moe::load_dataset(spec);
  const int N = spec.network.widths[0];
  std::vector<Clock::time_point> at;
  moe::TrainOptions options;
  options.device = moe::Device::cuda;
  options.keep_outputs = options.keep_weights = false;
  options.on_step = [&](int, double) { at.push_back(Clock::now()); };
  const auto run = moe::train_network(spec, data, N, 0, options);
  if (run.failure) throw moe::NumericsError(*run.failure);
  std::vector<double> seconds;
  for (std::size_t k = at.size() / 4 + 1; k < at.size(); ++k)
    seconds.push_back(std::chrono::duration<double>(at[k] - at[k - 1]).count());
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
  const Work work = work_of(spec, run.shape, static_cast<double>(data.x.cols()));
  print(card, name, seconds[seconds.size() / 2], work.bytes, work.flops);
}

void steps(const Card& card) {
  for (const char* optimizer : {"sgd", "adam"}) {
    const auto in = [&](bool tf32, const char* what, const std::string& model, int N) {
      moe::RunSpec spec = spec_of(model, N, optimizer, 4096, 20);
      spec.network.tf32 = tf32;
      step(tf32 ? card.in_tf32() : card, fmt::format("{}, {}{}", what, optimizer, tf32 ? ", TF32" : ""), spec);
    };
    for (const bool tf32 : {false, true}) {
      in(tf32, "regime I, N = N_e = 4096, M = 16", "[model]\nregime = 'I'\nexperts = 16\nexpert_width_per_width = 1.0",
         4096);
      in(tf32, "regime II, N = 4096, M = 2048, N_e = 16", "[model]\nregime = 'II'\nexpert_width = 16", 4096);
      in(tf32, "top-K, M = 256, K = 8, N = 2048, N_e = 1024",
         "[model]\nregime = 'I'\nexperts = 256\nrouting = 'topk'\nactive_fraction = 0.03125\n", 2048);
    }
  }
}

void many(const Card& card) {
  for (const char* regime : {"II", "III"}) {
    moe::RunSpec spec = spec_of(fmt::format("[model]\nregime = '{}'", regime), 256, "adam", 4096, 40);
    spec.network.seeds = 64;
    const moe::Dataset data = moe::load_dataset(spec);
    moe::TrainOptions options;
    options.device = moe::Device::cuda;
    options.keep_outputs = false;
    const auto total = [&](int n) {
      spec.training.steps = n;
      return bench::seconds_of([&] { moe::train_networks(spec, data, 64, options); });
    };
    total(3);
    const double seconds = (total(40) - total(3)) / 37;  // without drawing the weights
    const Work one = work_of(spec, moe::network_shape(spec, data, 256), static_cast<double>(data.x.cols()));
    print(card, fmt::format("64 networks of N = 256 together, regime {}", regime), seconds, 64 * one.bytes,
          64 * one.flops);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc == 2 ? argv[1] : "";
    if (what != "kernels" && what != "steps" && what != "many") {
      fmt::print(stderr,
                 "bench_gpu_network: give kernels, steps or many; the head of bench/bench_gpu_network.cu explains\n");
      return 2;
    }
    if (const moe::gpu::Device device = moe::gpu::device(); !device.present) {
      fmt::print(stderr, "bench_gpu_network: {}\n", device.why_not);
      return 1;
    }
    if (what == "kernels")
      for (const bool tf32 : {false, true})
        for (const Index Ne : {17, 40, 130}) check_products(tf32, Ne);
    const Card card = bench::measured_card();
    if (what == "steps") return steps(card), 0;
    if (what == "many") return many(card), 0;
    kernels_at(card, {"wide experts", 2048, 256, 1024, 4096, 8});
    kernels_at(card, {"narrow experts", 4096, 2048, 16, 4096, 512});
    tensor_updates(card, 4096, 32768, 4096);
    tensor_updates(card, 4096, 32768, 64);
    return 0;
  } catch (const std::exception& failure) {
    fmt::print(stderr, "bench_gpu_network: {}\n", failure.what());
    return 1;
  }
}
