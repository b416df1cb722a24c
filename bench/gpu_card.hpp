/// What a card does at best, measured in the run that is judged by it, and times of work on it.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "bench/timing.hpp"
#include "support/cuda.hpp"

namespace bench {

/// Seconds of f on the device, the best of five. Launching and waiting takes some 10 us: work that is not much longer is queued several times
/// for one wait.
template <class F>
double device_seconds(const F& f) {
  const auto run = [&](int times) {
    for (int k = 0; k < times; ++k) f();
    moe::gpu::synchronise();
  };
  run(1);
  const double once = seconds_of([&] { run(1); });
  const int times = static_cast<int>(std::clamp(2e-3 / once, 1.0, 100.0));
  return best_seconds([&] { run(times); }, 5) / times;
}

template <class Real = float>
typename moe::Cuda<Real>::Matrix random(moe::Index rows, moe::Index cols, std::uint64_t stream) {
  auto m = moe::Cuda<Real>::Matrix::uninitialized(rows, cols);
  moe::Cuda<Real>::normal(m, moe::StreamKey{stream, 0});
  return m;
}

struct Card {
  double bytes_a_second = 0, flops_a_second = 0, tf32_flops_a_second = 0;

  /// The card whose products are in TF32.
  Card in_tf32() const { return {bytes_a_second, tf32_flops_a_second, tf32_flops_a_second}; }

  double least_seconds(double bytes, double flops) const {
    return std::max(bytes / bytes_a_second, flops / flops_a_second);
  }
};

/// Bytes read and written by a copy of 1 GiB, and a product of 8192 x 8192 matrices in float32 and in TF32.
inline Card measured_card() {
  using B = moe::Cuda<float>;
  const moe::gpu::Device device = moe::gpu::device();
  Card card;
  {
    auto from = B::Matrix::uninitialized(1 << 14, 1 << 14), to = B::Matrix::uninitialized(1 << 14, 1 << 14);
    card.bytes_a_second = 2.0 * static_cast<double>(from.bytes()) / device_seconds([&] { B::copy(from, to); });
  }
  const moe::Index n = 8192;
  auto a = random(n, n, 1), b = random(n, n, 2), c = B::Matrix::uninitialized(n, n);
  for (const bool tf32 : {false, true}) {
    const moe::gpu::Tf32 products(tf32);
    (tf32 ? card.tf32_flops_a_second : card.flops_a_second) =
        2.0 * std::pow(static_cast<double>(n), 3) /
        device_seconds([&] { B::gemm(moe::Op::plain, moe::Op::plain, 1, a, b, 0, c); });
  }
  fmt::print("{}: copies {:.0f} GB/s, products {:.1f} TF/s in float32, {:.1f} in TF32\n", device.name,
             card.bytes_a_second / 1e9, card.flops_a_second / 1e12, card.tf32_flops_a_second / 1e12);
  return card;
}

inline void print(const Card& card, const std::string& what, double seconds, double bytes, double flops) {
  fmt::print("{:<52} {:>9.3f} ms  {:>5.1f} % of the roofline, bound by {} ({:.3g} bytes, {:.3g} flops)\n", what,
             1e3 * seconds, 100 * card.least_seconds(bytes, flops) / seconds,
             bytes / card.bytes_a_second > flops / card.flops_a_second ? "memory" : "products", bytes, flops);
}

}  // namespace bench
