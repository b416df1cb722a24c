#include "data/permutation.hpp"

#include <numeric>
#include <utility>

#include "data/dataset.hpp"

namespace moe {
namespace {

/// floor(bits (n) / 2^64) without 128-bit integers, which ISO C++ lacks: schoolbook halves.
std::uint64_t scaled(std::uint64_t bits, std::uint64_t n) {
  const std::uint64_t high = bits >> 32, low = bits & 0xFFFFFFFFu, n_high = n >> 32, n_low = n & 0xFFFFFFFFu;
  const std::uint64_t middle = high * n_low + (low * n_low >> 32);
  return high * n_high + (middle >> 32) + (((middle & 0xFFFFFFFFu) + low * n_high) >> 32);
}

}  // namespace

std::vector<std::size_t> permutation(std::size_t n, const StreamKey& key) {
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t i = n; i-- > 1;) {
    const std::uint64_t bits = std::uint64_t{uniform_bits(key, 2 * i)} << 32 | uniform_bits(key, 2 * i + 1);
    std::swap(order[i], order[scaled(bits, i + 1)]);
  }
  return order;
}

std::vector<int> batch_rows(const RunSpec& spec, int num_train, int step, int steps) {
  if (spec.training.batch <= 0) return {};
  const std::int64_t batch = spec.training.batch, P = num_train;
  std::vector<int> rows(static_cast<std::size_t>(steps * batch));
  std::vector<std::size_t> order;
  std::int64_t order_epoch = -1;
  for (std::int64_t j = 0; j < steps * batch; ++j) {
    const std::int64_t position = step * batch + j, epoch = position / P, at = position % P;
    if (spec.training.batch_order == BatchOrder::sequential) {
      rows[static_cast<std::size_t>(j)] = static_cast<int>(at);
      continue;
    }
    if (epoch != order_epoch) {
      order = permutation(static_cast<std::size_t>(P),
                          data_key(spec.data.seed, DataStream::epochs, static_cast<std::uint32_t>(epoch)));
      order_epoch = epoch;
    }
    rows[static_cast<std::size_t>(j)] = static_cast<int>(order[static_cast<std::size_t>(at)]);
  }
  return rows;
}

}  // namespace moe
