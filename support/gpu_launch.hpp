/// Kernels in few words: where a thread stands, where the threads of a block meet, what they share. nvcc makes CUDA of it. Elsewhere
/// the threads of a block take turns on the host (tests/backend/gpu_on_host.cpp): slowly, but every index of a kernel is then
/// tested on machines without a GPU. Everything of the device lives in one of two namespaces, so that both fit into one program.
#pragma once

#include "support/gpu.hpp"
#include "support/host_device.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define MOE_DEVICE_SPACE on_gpu
#define MOE_KERNEL __global__
#define MOE_DEVICE __device__
#define MOE_SHARED __shared__
#else
#include <bit>
#include <functional>
#define MOE_DEVICE_SPACE on_host
#define MOE_KERNEL
#define MOE_DEVICE
#define MOE_SHARED static thread_local
#endif

namespace moe {
inline namespace MOE_DEVICE_SPACE {

/// Extent of a block of threads: x varies fastest. Blocks are counted along one axis.
struct Extent {
  unsigned x = 1, y = 1;
};

/// Where a thread stands: (x, y) of its block, and the block's number.
struct Place {
  unsigned x, y, threads_x, threads_y;
  Index block;
  MOE_HD unsigned thread() const { return x + y * threads_x; }
  MOE_HD unsigned threads() const { return threads_x * threads_y; }
};

#if defined(__CUDACC__)
MOE_DEVICE inline Place place() {
  return {threadIdx.x, threadIdx.y, blockDim.x, blockDim.y, static_cast<Index>(blockIdx.x)};
}
/// All threads of the block come here before one goes on.
MOE_DEVICE inline void meet() { __syncthreads(); }
/// Adds one to a counter that threads share; sets one bit of a word that they share.
MOE_DEVICE inline void count_one(unsigned& counter) { atomicAdd(&counter, 1U); }
MOE_DEVICE inline void set_bit(unsigned& word, unsigned bit) { atomicOr(&word, 1U << bit); }
/// How many bits are set.
MOE_DEVICE inline Index ones(unsigned word) { return __popc(word); }

template <class Kernel, class... Arguments>
void launch(const char* name, Kernel kernel, Index blocks, Extent block, Arguments... arguments) {
  if (blocks == 0) return;
  kernel<<<static_cast<unsigned>(blocks), dim3(block.x, block.y), 0, cudaStreamPerThread>>>(arguments...);
  gpu::check_launch(name);
}
namespace device = gpu;
#else
Place place();
void meet();
inline void count_one(unsigned& counter) { ++counter; }
inline void set_bit(unsigned& word, unsigned bit) { word |= 1U << bit; }
inline Index ones(unsigned word) { return std::popcount(word); }

/// Runs `thread` once for every thread of every block, block after block.
void run_blocks(Index blocks, Extent block, const std::function<void()>& thread);

template <class Kernel, class... Arguments>
void launch(const char*, Kernel kernel, Index blocks, Extent block, Arguments... arguments) {
  run_blocks(blocks, block, [&] { kernel(arguments...); });
}
/// support/gpu.hpp on the host.
namespace device {
using gpu::Direction;
void* allocate(std::size_t bytes);
void release(void* p) noexcept;
void zero(void* p, std::size_t bytes);
void copy(Direction direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
          std::size_t width, std::size_t height);
inline void synchronise() {}
void gemm(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B, Index ldb,
          float beta, float* C, Index ldc);
void gemm(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B, Index ldb,
          double beta, double* C, Index ldc);
}  // namespace device
#endif

}  // namespace MOE_DEVICE_SPACE
}  // namespace moe
