/// support/gpu.hpp in a build without CUDA: there is no device, and nothing else may be asked.
#include "support/gpu.hpp"

namespace moe::gpu {

Device device() { return {false, "", "this build has no CUDA (DMFT_CUDA is OFF, or no nvcc was found)", 0, 0}; }

}  // namespace moe::gpu
