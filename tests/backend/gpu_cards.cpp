// Which device of its machine a rank takes, and among how many ranks it shares that one's memory.
#include <doctest/doctest.h>

#include <vector>

#include "support/gpu.hpp"

namespace {

struct Rank {
  int number, ranks, devices;
  bool own;
  int device, shared_by;
};

}  // namespace

TEST_CASE(
    "GPU: ranks of a machine take its devices in turn and share their memory; those of a launcher are a rank's own") {
  const std::vector<Rank> expected = {{0, 1, 1, false, 0, 1}, {0, 1, 4, false, 0, 1}, {0, 1, 1, true, 0, 1},
                                      {2, 4, 1, false, 0, 4}, {2, 4, 1, true, 0, 1},  {3, 4, 4, false, 3, 1},
                                      {3, 4, 4, true, 3, 1},  {4, 6, 4, false, 0, 2}, {5, 6, 4, false, 1, 2},
                                      {2, 6, 4, false, 2, 1}, {6, 7, 3, false, 0, 3}, {1, 2, 4, true, 1, 1}};
  for (const Rank& r : expected) {
    INFO("rank ", r.number, " of ", r.ranks, " on ", r.devices, " devices, own ", r.own);
    const moe::gpu::Choice made = moe::gpu::choose(r.number, r.ranks, r.devices, r.own);
    CHECK(made.device == r.device);
    CHECK(made.ranks == r.shared_by);
  }
}
