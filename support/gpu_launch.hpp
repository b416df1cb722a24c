/// Kernels in few words: where a thread stands, where the threads of a block meet, what they share. nvcc makes CUDA of it. Elsewhere
/// the threads of a block take turns on the host (tests/backend/gpu_on_host.cpp): slowly, but every index of a kernel is then
/// tested on machines without a GPU. Everything of the device lives in one of two namespaces, so that both fit into one program.
#pragma once

#include "support/gpu.hpp"
#include "support/host_device.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <type_traits>

namespace moe::gpu {
/// The calling thread's own, on the device of this process.
cudaStream_t stream() noexcept;
}  // namespace moe::gpu

#define MOE_DEVICE_SPACE on_gpu
#define MOE_KERNEL __global__
#define MOE_DEVICE __device__
/// A variable of a type that all threads of a block share.
#define MOE_SHARED(name, ...) __shared__ std::type_identity_t<__VA_ARGS__> name
#define MOE_RESIDENT(threads, blocks) __launch_bounds__(threads, blocks)
#define MOE_UNROLL _Pragma("unroll")
#else
#include <atomic>
#include <bit>
#include <functional>
#define MOE_DEVICE_SPACE on_host
#define MOE_KERNEL
#define MOE_DEVICE
#define MOE_SHARED(name, ...) auto& name = shared<__VA_ARGS__>([] {})
#define MOE_RESIDENT(threads, blocks)  // registers of a kernel such that so many blocks fit on a multiprocessor
#define MOE_UNROLL                     // the loop that follows without a counter
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

/// Four neighbours in memory: one access where they begin at a multiple of 16 bytes (of float64 two).
template <class Real>
struct alignas(16) Four {
  Real at[4] = {};
};
template <class Real>
MOE_DEVICE Four<Real> get_four(const Real* from) {
  return *reinterpret_cast<const Four<Real>*>(from);
}
template <class Real>
MOE_DEVICE void put_four(const Four<Real>& values, Real* to) {
  *reinterpret_cast<Four<Real>*>(to) = values;
}
/// Two neighbours, likewise where they begin at a multiple of their bytes.
template <class Real>
struct alignas(2 * sizeof(Real)) Two {
  Real at[2] = {};
};
template <class Real>
MOE_DEVICE Two<Real> get_two(const Real* from) {
  return *reinterpret_cast<const Two<Real>*>(from);
}
/// put_four in the memory of the device where a branch beside it writes single ones: nvcc would make both of those.
#if defined(__CUDACC__)
MOE_DEVICE inline void put_four_at_once(const Four<float>& v, float* to) {
  __stcg(reinterpret_cast<float4*>(to), make_float4(v.at[0], v.at[1], v.at[2], v.at[3]));
}
MOE_DEVICE inline void put_four_at_once(const Four<double>& v, double* to) {
  __stcg(reinterpret_cast<double2*>(to), make_double2(v.at[0], v.at[1]));
  __stcg(reinterpret_cast<double2*>(to) + 1, make_double2(v.at[2], v.at[3]));
}
#else
template <class Real>
void put_four_at_once(const Four<Real>& values, Real* to) {
  put_four(values, to);
}
#endif
/// The first `left` of four, from anywhere: the others are zeros and not written.
template <class Real>
MOE_DEVICE Four<Real> get_four(const Real* from, int left) {
  Four<Real> values;
  MOE_UNROLL
  for (int m = 0; m < 4; ++m)
    if (m < left) values.at[m] = from[m];
  return values;
}
template <class Real>
MOE_DEVICE void put_four(const Four<Real>& values, Real* to, int left) {
  MOE_UNROLL
  for (int m = 0; m < 4; ++m)
    if (m < left) to[m] = values.at[m];
}

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
/// The nearest number with ten bits of mantissa, ties away from zero.
MOE_DEVICE inline float round_to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}
/// D(i, j) += sum_k A(i, k) B(k, j) with i < 16, k and j < 8, by all threads of a warp, on numbers that are rounded to TF32. Lane
/// 4 g + t has a = A(g, t), A(g + 8, t), A(g, t + 4), A(g + 8, t + 4), b = B(t, g), B(t + 4, g), and of D the four (g, 2t),
/// (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
MOE_DEVICE inline void multiply_add_tf32(const float (&a)[4], const float (&b)[2], float& d0, float& d1, float& d2,
                                         float& d3) {
  asm volatile(  // never moved behind a branch that a part of the warp takes
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

template <class Kernel, class... Arguments>
void launch(const char* name, Kernel kernel, Index blocks, Extent block, Arguments... arguments) {
  if (blocks == 0) return;
  kernel<<<static_cast<unsigned>(blocks), dim3(block.x, block.y), 0, gpu::stream()>>>(arguments...);
  gpu::check_launch(name);
}
namespace device = gpu;
#else
Place place();
void meet();
/// What the threads of a block share under a key, not written when the block begins. They have 48 KiB.
void* shared_memory(const void* key, std::size_t bytes);
template <class T, class Where>
T& shared(Where) {
  static const char key = 0;
  return *static_cast<T*>(shared_memory(&key, sizeof(T)));
}
inline void count_one(unsigned& counter) { std::atomic_ref(counter).fetch_add(1, std::memory_order_relaxed); }
inline void set_bit(unsigned& word, unsigned bit) {
  std::atomic_ref(word).fetch_or(1U << bit, std::memory_order_relaxed);
}
inline Index ones(unsigned word) { return std::popcount(word); }
float round_to_tf32(float value);
void multiply_add_tf32(const float (&a)[4], const float (&b)[2], float& d0, float& d1, float& d2, float& d3);

/// Runs `thread`, of a kernel, once for every thread of every block, block after block.
void run_blocks(const void* kernel, Index blocks, Extent block, const std::function<void()>& thread);

template <class Kernel, class... Arguments>
void launch(const char*, Kernel kernel, Index blocks, Extent block, Arguments... arguments) {
  run_blocks(reinterpret_cast<const void*>(kernel), blocks, block, [&] { kernel(arguments...); });
}
/// support/gpu.hpp on the host.
namespace device {
using gpu::Direction;
void* allocate(std::size_t bytes);
void release(void* p) noexcept;
void zero(void* p, std::size_t bytes);
void copy(Direction direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
          std::size_t width, std::size_t height);
void synchronise();
void gemm(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B, Index ldb,
          float beta, float* C, Index ldc);
void gemm(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B, Index ldb,
          double beta, double* C, Index ldc);
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const float* A, Index lda, Index A_step,
                    const float* B, Index ldb, Index B_step, float* C);
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const double* A, Index lda, Index A_step,
                    const double* B, Index ldb, Index B_step, double* C);
}  // namespace device
#endif

}  // namespace MOE_DEVICE_SPACE
}  // namespace moe
