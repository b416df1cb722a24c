/// What the GPU backend asks of the machine: memory, copies, products. gpu_cuda.cu answers with the CUDA runtime and cuBLAS; a build
/// without CUDA links gpu_absent.cpp, which has no device. Every call is checked; failures throw BackendError.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "support/matrix.hpp"
#include "support/op.hpp"

namespace moe::gpu {

/// The device of this process, or why there is none: "this build has no CUDA (configured with DMFT_CUDA=OFF)".
struct Device {
  bool present = false;
  std::string name, why_not;
  double free_bytes = 0, total_bytes = 0;  ///< free: an equal share of what all ranks that have this device may take
  int ranks = 1;
};
Device device();

/// Which of the devices that it sees a rank takes, and how many ranks take the same one.
struct Choice {
  int device = 0, ranks = 1;
};
/// Ranks of a machine, of which this is number `number`, take the devices in turn. `own`: a launcher has shown it some that are its alone.
inline Choice choose(int number, int ranks, int devices, bool own) {
  if (own && devices == 1) return {0, 1};
  const int device = number % devices;
  return {device, (ranks - 1 - device) / devices + 1};
}

/// What products take for each thread that uses them: the library itself, on the cards where it takes most, and pieces of long sums.
inline constexpr double library_bytes = (32 + 16) * 1048576.0;
/// The most bytes that this process's arrays have taken at once.
double peak_bytes();

enum class Direction { to_device, to_host, on_device };

/// Work is queued in the order of the calls, on a stream of the calling thread; copies to the host wait for it.
void* allocate(std::size_t bytes);
void release(void* p) noexcept;
void zero(void* p, std::size_t bytes);
/// `height` pieces of `width` bytes; a pitch is the distance between the beginnings of two.
void copy(Direction direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
          std::size_t width, std::size_t height);
void synchronise();

/// C = alpha op(A) op(B) + beta C, column-major, C (m, n), inner dimension k. Single precision is IEEE's unless Tf32 stands.
void gemm(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B, Index ldb,
          float beta, float* C, Index ldc);
void gemm(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B, Index ldb,
          double beta, double* C, Index ldc);
/// The products of `count` pieces of A and B, which begin `A_step` and `B_step` elements after one another; C (m, n) one behind the other.
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const float* A, Index lda, Index A_step,
                    const float* B, Index ldb, Index B_step, float* C);
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const double* A, Index lda, Index A_step,
                    const double* B, Index ldb, Index B_step, double* C);

/// While it stands, products in single precision of the calling thread round their factors to TF32, if `wanted`: 10 bits of mantissa
/// instead of 23, sums as before.
class Tf32 {
 public:
  explicit Tf32(bool wanted) : before_(std::exchange(stands_, wanted)) {}
  ~Tf32() { stands_ = before_; }
  Tf32(const Tf32&) = delete;
  Tf32& operator=(const Tf32&) = delete;

  static bool stands() { return stands_; }

 private:
  static inline thread_local bool stands_ = false;
  bool before_;
};

/// After the launch of a kernel.
void check_launch(const char* kernel);

}  // namespace moe::gpu
