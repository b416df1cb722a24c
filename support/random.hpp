/// Addressed randomness: a value is a function of (seed, stream, index), Philox 4x32-10 of Random123 with Box-Muller. Threads,
/// devices and restarts cannot change it.
#pragma once

#include <Random123/philox.h>

#include <cmath>
#include <cstdint>

#include "support/host_device.hpp"
#include "support/vector_math.hpp"

namespace moe {

/// Address of one stream of random numbers. `purpose` and `draw` are chosen by the caller so that no two uses coincide.
struct StreamKey {
  std::uint64_t seed = 0;     ///< run seed
  std::uint32_t replica = 0;  ///< replica of the limit
  std::uint32_t stream = 0;   ///< what is drawn, e.g. population number
  std::uint32_t draw = 0;     ///< how manieth draw of the stream
};

/// Hands out streams of random numbers, one per population or operator, in the order of construction.
class StreamNumbers {
 public:
  StreamNumbers(std::uint64_t seed, std::uint32_t replica) : key_{seed, replica, 0, 0} {}
  StreamKey next() {
    ++key_.stream;
    return key_;
  }

 private:
  StreamKey key_;
};

namespace detail {
MOE_HD inline r123::Philox4x32::ctr_type philox(const StreamKey& k, std::uint64_t index) {
  // 32 bits of the counter hold the draw, 64 the index, 32 the stream; the key holds seed and replica folded together.
  r123::Philox4x32::ctr_type c = {
      {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), k.draw, k.stream}};
  r123::Philox4x32::key_type key = {{static_cast<std::uint32_t>(k.seed) ^ (k.replica * 0x9E3779B9u),
                                     static_cast<std::uint32_t>(k.seed >> 32) ^ (k.replica + 0x85EBCA6Bu)}};
  return r123::Philox4x32()(c, key);
}
/// (0, 1], 2^-33 at least, so that its logarithm is finite.
MOE_HD inline double unit_open(std::uint32_t u) { return (u + 0.5) * (1.0 / 4294967296.0); }
}  // namespace detail

/// Uniform numbers behind two normals: `radius` in (0, 1], `angle` in [0, 2 pi).
template <class Real>
struct NormalBits {
  Real radius, angle;
};

template <class Real>
MOE_HD inline NormalBits<Real> normal_bits(const StreamKey& key, std::uint64_t index) {
  const auto c = detail::philox(key, index);
  // 53-bit radius argument, 32-bit angle: the tail of the normal reaches 8.5 sigma.
  const double u =
      (static_cast<double>(c[0]) * 2097152.0 + static_cast<double>(c[1] >> 11) + 0.5) * (1.0 / 9007199254740992.0);
  return {static_cast<Real>(u), static_cast<Real>(6.283185307179586476925 * detail::unit_open(c[2]))};
}

/// Box-Muller.
template <class Real>
MOE_HD inline void normal_from_bits(const NormalBits<Real>& bits, Real& even, Real& odd) {
  const Real radius = std::sqrt(Real(-2) * std::log(bits.radius));
  even = radius * std::cos(bits.angle);
  odd = radius * std::sin(bits.angle);
}

/// Two standard normals at `index`: out[0], out[1].
template <class Real>
MOE_HD inline void normal_pair(const StreamKey& key, std::uint64_t index, Real out[2]) {
  normal_from_bits(normal_bits<Real>(key, index), out[0], out[1]);
}

/// Uniform 32-bit integer at `index`.
MOE_HD inline std::uint32_t uniform_bits(const StreamKey& key, std::uint64_t index) {
  return detail::philox(key, index)[0];
}

}  // namespace moe
