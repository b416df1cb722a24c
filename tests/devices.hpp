/// Where cases that compare with a reference run: on the CPU, and on a GPU where there is one.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/gpu.hpp"
#include "support/run_spec.hpp"

namespace devices {

inline std::vector<moe::Device> all() {
  if (moe::gpu::device().present) return {moe::Device::cpu, moe::Device::cuda};
  return {moe::Device::cpu};
}

/// check(device) on every device. Without a GPU the first case of a run says so.
template <class F>
void on_each(const F& check) {
  static const moe::gpu::Device card = moe::gpu::device();
  static bool said = card.present;
  if (!said) MESSAGE("references are met by the CPU alone: ", card.why_not);
  said = true;
  for (const moe::Device device : all()) {
    INFO("on the ", std::string(device == moe::Device::cuda ? "GPU" : "CPU"));
    check(device);
  }
}

}  // namespace devices
