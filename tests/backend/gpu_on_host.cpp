// The host in place of a GPU (support/gpu_launch.hpp): the threads of a block are coroutines that take turns between two meetings.
// Memory that was not written holds NaN.
#include "tests/backend/gpu_on_host.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <boost/context/fiber.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/gpu_launch.hpp"

namespace {

constexpr std::size_t stack_bytes = std::size_t{64} << 10;

/// The coroutines on which the threads of one block run. One that ends goes on with the next thread of the block, so that kernels
/// without a meeting need a single one.
class Block {
 public:
  void run(moe::Index number, moe::Extent extent, const std::function<void()>& thread, bool backwards) {
    number_ = number;
    extent_ = extent;
    thread_ = &thread;
    backwards_ = backwards;
    threads_ = extent.x * extent.y;
    begun_ = ended_ = 0;
    std::size_t used = 0;
    while (begun_ < threads_) resume(used++);  // each call ends at a meeting, or when no thread is left to begin
    while (ended_ < threads_) {
      if (ended_ != 0) throw std::logic_error("a thread of a block ended while others wait for it");
      for (std::size_t k = 0; k < used; ++k) resume(backwards ? used - 1 - k : k);
      if (ended_ != 0 && ended_ != threads_) throw std::logic_error("some threads of a block meet and others do not");
    }
  }
  void meet() { scheduler_ = std::move(scheduler_).resume(); }
  moe::Place place() const {
    const unsigned t = coroutines_[current_]->thread;
    return {t % extent_.x, t / extent_.x, extent_.x, extent_.y, number_};
  }

 private:
  struct Coroutine {
    boost::context::fiber rest;  ///< what is left to run; empty before it begins and once it has ended
    unsigned thread = 0;
  };

  void resume(std::size_t which) {
    if (which == coroutines_.size()) coroutines_.push_back(std::make_unique<Coroutine>());
    Coroutine& c = *coroutines_[which];
    current_ = which;
    if (!c.rest)
      c.rest = boost::context::fiber(std::allocator_arg, stacks_, [this](boost::context::fiber&& scheduler) {
        scheduler_ = std::move(scheduler);
        run_threads();
        return std::move(scheduler_);
      });
    c.rest = std::move(c.rest).resume();
  }
  void run_threads() {
    Coroutine& mine = *coroutines_[current_];
    while (begun_ < threads_) {
      mine.thread = backwards_ ? threads_ - 1 - begun_ : begun_;
      ++begun_;
      (*thread_)();
      ++ended_;
    }
  }

  moe::Index number_ = 0;
  moe::Extent extent_;
  const std::function<void()>* thread_ = nullptr;
  bool backwards_ = false;
  unsigned threads_ = 0, begun_ = 0, ended_ = 0;
  std::size_t current_ = 0;
  boost::context::fiber scheduler_;
  boost::context::pooled_fixedsize_stack stacks_{stack_bytes};
  std::vector<std::unique_ptr<Coroutine>> coroutines_;
};

/// Bits of a float that a product in TF32 does not read.
constexpr std::uint32_t unread_by_tf32 = (1U << 13) - 1;

thread_local Block block;
gpu_on_host::Turns turns = gpu_on_host::Turns::first_to_last;
std::size_t waits = 0;
/// Of the arrays that there are.
std::unordered_map<void*, std::size_t> sizes;
std::size_t taken = 0, most_taken = 0;

template <class Real>
void host_gemm(moe::Op a, moe::Op b, moe::Index m, moe::Index n, moe::Index k, Real alpha, const Real* A,
               moe::Index lda, const Real* B, moe::Index ldb, Real beta, Real* C, moe::Index ldc) {
  using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;
  const auto map = [](moe::Op op, const Real* data, moe::Index rows, moe::Index cols, moe::Index ld) -> Matrix {
    if (op == moe::Op::transposed) std::swap(rows, cols);
    const Matrix plain = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>(data, rows, cols, Eigen::OuterStride<>(ld));
    return op == moe::Op::plain ? plain : Matrix(plain.transpose());
  };
  Eigen::Map<Matrix, 0, Eigen::OuterStride<>> out(C, m, n, Eigen::OuterStride<>(ldc));
  const Matrix product = alpha * (map(a, A, m, k, lda) * map(b, B, k, n, ldb));
  if (beta == Real(0))
    out = product;
  else
    out = product + beta * out;
}

}  // namespace

void gpu_on_host::take_turns(Turns order) { turns = order; }
std::size_t gpu_on_host::host_waits() { return waits; }
std::size_t gpu_on_host::peak_bytes() { return std::exchange(most_taken, taken); }

namespace moe {
inline namespace on_host {

Place place() { return block.place(); }
void meet() { block.meet(); }
void run_blocks(Index blocks, Extent extent, const std::function<void()>& thread) {
  if (extent.x * extent.y == 0 || extent.x * extent.y > 1024) throw std::logic_error("a block has 1 to 1024 threads");
  const bool backwards = turns == gpu_on_host::Turns::last_to_first;
  for (Index k = 0; k < blocks; ++k) block.run(backwards ? blocks - 1 - k : k, extent, thread, backwards);
}
float round_to_tf32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::isfinite(value) ? std::bit_cast<float>((bits + (unread_by_tf32 + 1) / 2) & ~unread_by_tf32) : value;
}
void multiply_add_tf32(const float (&a)[4], const float (&b)[2], float& d0, float& d1, float& d2, float& d3) {
  struct Fragments {
    float A[16][8], B[8][8];
  };
  static thread_local Fragments of_warps[32];
  const unsigned me = place().thread(), g = me % 32 / 4, t = me % 4;
  auto& [A, B] = of_warps[me / 32];
  const auto read = [](float factor) {
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(factor) & ~unread_by_tf32);
  };
  A[g][t] = read(a[0]);
  A[g + 8][t] = read(a[1]);
  A[g][t + 4] = read(a[2]);
  A[g + 8][t + 4] = read(a[3]);
  B[t][g] = read(b[0]);
  B[t + 4][g] = read(b[1]);
  meet();
  for (int k = 0; k < 8; ++k) {
    d0 += A[g][k] * B[k][2 * t];
    d1 += A[g][k] * B[k][2 * t + 1];
    d2 += A[g + 8][k] * B[k][2 * t];
    d3 += A[g + 8][k] * B[k][2 * t + 1];
  }
  meet();
}

namespace device {
void* allocate(std::size_t bytes) {
  void* p = std::malloc(bytes);
  if (p == nullptr) throw std::bad_alloc();
  std::memset(p, 0xFF, bytes);
  sizes[p] = bytes;
  most_taken = std::max(most_taken, taken += bytes);
  return p;
}
void release(void* p) noexcept {
  if (p == nullptr) return;
  taken -= sizes.extract(p).mapped();
  std::free(p);
}
void zero(void* p, std::size_t bytes) { std::memset(p, 0, bytes); }
void synchronise() { ++waits; }
void copy(Direction direction, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
          std::size_t width, std::size_t height) {
  if (direction != Direction::on_device && width > 0 && height > 0) ++waits;
  for (std::size_t k = 0; k < height && width > 0; ++k)
    std::memcpy(static_cast<char*>(to) + k * to_pitch, static_cast<const char*>(from) + k * from_pitch, width);
}
void gemm(Op a, Op b, Index m, Index n, Index k, float alpha, const float* A, Index lda, const float* B, Index ldb,
          float beta, float* C, Index ldc) {
  host_gemm(a, b, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
}
void gemm(Op a, Op b, Index m, Index n, Index k, double alpha, const double* A, Index lda, const double* B, Index ldb,
          double beta, double* C, Index ldc) {
  host_gemm(a, b, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
}
}  // namespace device

}  // namespace on_host
}  // namespace moe
