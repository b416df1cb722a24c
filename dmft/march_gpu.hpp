/// march() on the GPU, in the run's precision: march_gpu.cu where nvcc is, march_no_gpu.cpp elsewhere.
#pragma once

#include "dmft/march.hpp"

namespace moe {

/// Throws BackendError in a build without CUDA.
void march_on_gpu(const Plan& plan, int index, const SolveOptions& options, const std::atomic<bool>& stop,
                  Record& record);

}  // namespace moe
