/// Orders drawn from addressed bits: which rows train, which test, and in which order mini-batches meet them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/random.hpp"

namespace moe {

/// Streams of data.seed. Everything about the data is addressed by (data.seed, one of these, draw, index), so that all
/// programs, replicas and network seeds see the same data. The high bytes keep them apart from streams of
/// sampling.seed.
enum class DataStream : std::uint32_t {
  train_rows = 0xDA7A0000u,  ///< permutation of the (training) samples
  test_rows = 0xDA7A0001u,   ///< permutation of a test part of its own
  inputs = 0xDA7A0002u,      ///< x of the gaussian source
  teacher = 0xDA7A0003u,     ///< its linear map
  epochs = 0xDA7A0004u,      ///< shuffled batches, draw = epoch
};

inline StreamKey data_key(std::uint64_t seed, DataStream stream, std::uint32_t draw = 0) {
  return StreamKey{seed, 0, static_cast<std::uint32_t>(stream), draw};
}

/// Fisher-Yates: for i = n-1 .. 1 swap entries i and j, j = floor(b_i (i+1) / 2^64) with the 64 bits b_i =
/// uniform_bits(2i) 2^32 + uniform_bits(2i+1). Every permutation of n rows has the same probability up to a relative n
/// 2^-64.
std::vector<std::size_t> permutation(std::size_t n, const StreamKey& key);

}  // namespace moe
