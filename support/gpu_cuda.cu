/// support/gpu.hpp by the CUDA runtime and cuBLAS. Work of one host thread goes to its own stream (cudaStreamPerThread); memory comes
/// from the device's pool, which keeps what is freed: a step allocates the same scratch again and again.
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>

#include "support/error.hpp"
#include "support/gpu_launch.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"

namespace moe::gpu {

namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw BackendError(
        fmt::format("cuda: {} failed: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status)));
}
void check(cublasStatus_t status, const char* what, Index m, Index n, Index k) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw BackendError(fmt::format("cuda: {} of {} x {} x {} failed: {} ({})", what, m, n, k,
                                   cublasGetStatusString(status), cublasGetStatusName(status)));
}

/// Without a device the first call that needs one says so.
const Choice& choice() {
  static const Choice made = [] {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return Choice{};
    return choose(ranks().number_on_machine(), ranks().on_this_machine(), count,
                  std::getenv("CUDA_VISIBLE_DEVICES") != nullptr);
  }();
  return made;
}

cudaMemPool_t pool() {
  cudaMemPool_t of_device = nullptr;
  check(cudaDeviceGetDefaultMemPool(&of_device, choice().device), "cudaDeviceGetDefaultMemPool");
  return of_device;
}
double of_pool(cudaMemPoolAttr what) {
  std::uint64_t bytes = 0;
  check(cudaMemPoolGetAttribute(pool(), what, &bytes), "cudaMemPoolGetAttribute");
  return static_cast<double>(bytes);
}

/// Once per process: the pool of the device keeps what is freed.
void keep_freed() {
  static const bool done = [] {
    std::uint64_t all = UINT64_MAX;
    check(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrReleaseThreshold, &all), "cudaMemPoolSetAttribute");
    return true;
  }();
  static_cast<void>(done);
}

/// cuBLAS of the calling thread, on its stream.
class Blas {
 public:
  Blas() {
    const cudaStream_t mine = stream();
    check(cublasCreate(&handle_), "cublasCreate", 0, 0, 0);
    check(cublasSetStream(handle_, mine), "cublasSetStream", 0, 0, 0);
  }
  ~Blas() { cublasDestroy(handle_); }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  operator cublasHandle_t() const { return handle_; }

 private:
  cublasHandle_t handle_ = nullptr;
};
cublasHandle_t blas() {
  thread_local const Blas mine;
  return mine;
}

/// 100 times a compute capability.
int oldest_built_for() {
  const int all[] = {__CUDA_ARCH_LIST__};
  return *std::min_element(std::begin(all), std::end(all));
}

/// Of products in single precision.
void set_math(Index m, Index n, Index k) {
  check(cublasSetMathMode(blas(), Tf32::stands() ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH),
        "cublasSetMathMode", m, n, k);
}

cublasOperation_t operation(Op op) { return op == Op::plain ? CUBLAS_OP_N : CUBLAS_OP_T; }

}  // namespace

cudaStream_t stream() noexcept {
  thread_local const cudaError_t chosen = cudaSetDevice(choice().device);  // if it fails, so does what comes next
  static_cast<void>(chosen);
  return cudaStreamPerThread;
}

Device device() {
  Device found;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    found.why_not = fmt::format("no CUDA device was found: {}", status == cudaSuccess ? "the driver knows none"
                                                                : status == cudaErrorInsufficientDriver
                                                                    ? "no NVIDIA driver, or one older than this build"
                                                                    : cudaGetErrorString(status));
    cudaGetLastError();  // not a fault of what comes later
    return found;
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, choice().device), "cudaGetDeviceProperties");
  if (const int has = 100 * properties.major + 10 * properties.minor; has < oldest_built_for()) {
    found.why_not =
        fmt::format("{} has compute capability {}.{}, and this build is for {}.{} and later", properties.name,
                    properties.major, properties.minor, oldest_built_for() / 100, oldest_built_for() / 10 % 10);
    return found;
  }
  stream();
  std::size_t available = 0, total = 0;
  check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
  found.present = true;
  found.name = properties.name;
  found.ranks = choice().ranks;
  // What this process's pool keeps for the next arrays is free too. It only grows: asked last, it has all that is used.
  const double used = of_pool(cudaMemPoolAttrUsedMemCurrent), kept = of_pool(cudaMemPoolAttrReservedMemCurrent);
  found.free_bytes = (static_cast<double>(available) + kept - used) / found.ranks;
  found.total_bytes = static_cast<double>(total);
  return found;
}

double peak_bytes() { return of_pool(cudaMemPoolAttrUsedMemHigh); }

void* allocate(std::size_t bytes) {
  keep_freed();
  void* p = nullptr;
  const cudaError_t status = cudaMallocAsync(&p, bytes, stream());
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t available = 0, total = 0;
    check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
    throw BackendError(
        fmt::format("cuda: no room for an array of {} in GPU memory: {} of {} are free. Lower sampling.neurons, "
                    "network.widths or the samples of a step",
                    bytes_text(static_cast<double>(bytes)), bytes_text(static_cast<double>(available)),
                    bytes_text(static_cast<double>(total))));
  }
  check(status, "cudaMallocAsync");
  return p;
}

void release(void* p) noexcept {
  if (p != nullptr) cudaFreeAsync(p, stream());
}

void zero(void* p, std::size_t bytes) { check(cudaMemsetAsync(p, 0, bytes, stream()), "cudaMemsetAsync"); }

void copy(Direction direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
          std::size_t width, std::size_t height) {
  if (width == 0 || height == 0) return;
  const cudaMemcpyKind kind = direction == Direction::to_device ? cudaMemcpyHostToDevice
                              : direction == Direction::to_host ? cudaMemcpyDeviceToHost
                                                                : cudaMemcpyDeviceToDevice;
  if (height == 1 || (to_pitch == width && from_pitch == width))  // one piece
    check(cudaMemcpyAsync(to, from, width * height, kind, stream()), "cudaMemcpyAsync");
  else
    check(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, stream()), "cudaMemcpy2DAsync");
  // Host arrays may be gone, or are read, as soon as this returns.
  if (direction != Direction::on_device) synchronise();
}

void synchronise() { check(cudaStreamSynchronize(stream()), "a kernel or copy"); }

void gemm(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B, Index ldb,
          float beta, float* C, Index ldc) {
  set_math(m, n, k);
  check(cublasSgemm_64(blas(), operation(a), operation(b), m, n, k, &alpha, A, lda, B, ldb, &beta, C, ldc),
        "cublasSgemm", m, n, k);
}
void gemm(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B, Index ldb,
          double beta, double* C, Index ldc) {
  check(cublasDgemm_64(blas(), operation(a), operation(b), m, n, k, &alpha, A, lda, B, ldb, &beta, C, ldc),
        "cublasDgemm", m, n, k);
}
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const float* A, Index lda, Index A_step,
                    const float* B, Index ldb, Index B_step, float* C) {
  set_math(m, n, k);
  const float one = 1, zero = 0;
  check(cublasSgemmStridedBatched_64(blas(), operation(a), operation(b), m, n, k, &one, A, lda, A_step, B, ldb, B_step,
                                     &zero, C, m, m * n, count),
        "cublasSgemmStridedBatched", m, n, k);
}
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const double* A, Index lda, Index A_step,
                    const double* B, Index ldb, Index B_step, double* C) {
  const double one = 1, zero = 0;
  check(cublasDgemmStridedBatched_64(blas(), operation(a), operation(b), m, n, k, &one, A, lda, A_step, B, ldb, B_step,
                                     &zero, C, m, m * n, count),
        "cublasDgemmStridedBatched", m, n, k);
}

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace moe::gpu
