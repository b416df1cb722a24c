/// Switches of the host that stands in for a GPU (gpu_on_host.cpp).
#pragma once

#include <cstddef>
#include <initializer_list>

namespace gpu_on_host {

/// Order in which the threads of a block, and the blocks, take their turns between two meetings. A kernel whose result depends on it
/// has a race.
enum class Turns { first_to_last, last_to_first };
void take_turns(Turns order);

/// How often a device would have kept the host waiting so far: copies to and from it, and where it was asked to.
std::size_t host_waits();

/// The most bytes that arrays have taken at once since the last call.
std::size_t peak_bytes();

inline void in_both_orders(void (*check)()) {
  for (const Turns order : {Turns::first_to_last, Turns::last_to_first}) {
    take_turns(order);
    check();
  }
}

}  // namespace gpu_on_host
