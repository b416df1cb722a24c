// The host in place of a GPU (support/gpu_launch.hpp): the threads of a block are coroutines that take turns between two meetings.
// Memory that was not written holds NaN, what a block shares too. Under the thread sanitizer, which does not look into this file, the threads of a block are
// threads of its own, ordered by launches and meetings alone: it reports two that use the same memory without a meeting between them,
// shared or not, in one block or in two.
#include "tests/backend/gpu_on_host.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <bit>
#include <boost/context/fiber.hpp>
#include <boost/context/stack_context.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/gpu_launch.hpp"

#ifdef MOE_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace {

constexpr std::size_t stack_bytes = std::size_t{64} << 10, most_shared = std::size_t{48} << 10;

/// What the thread sanitizer is told: which of its threads runs, and what a launch and a meeting order. It is told of so many launches
/// of every kernel in so many blocks; to the others a kernel is a loop.
#ifdef MOE_THREAD_SANITIZER
class Watch {
 public:
  bool on() const { return on_; }
  void launch(const void* kernel, moe::Index blocks, unsigned threads) {
    on_ = ++launches_[{kernel, blocks, threads}] <= watched_launches;
    if (!on_) return;
    host_ = __tsan_get_current_fiber();
    meetings_.assign(static_cast<std::size_t>(blocks), {});
    __tsan_release(&begin_);
  }
  void begin_thread() {
    if (on_) __tsan_acquire(&begin_);
  }
  void end_thread() {
    if (on_) __tsan_release(&end_);
  }
  void end() {
    if (on_) __tsan_acquire(&end_);
  }
  void resume(std::size_t coroutine) {
    if (!on_) return;
    while (threads_.size() <= coroutine) threads_.push_back(__tsan_create_fiber(0));
    __tsan_switch_to_fiber(threads_[coroutine], __tsan_switch_to_fiber_no_sync);
  }
  void stop() {
    if (on_) __tsan_switch_to_fiber(host_, __tsan_switch_to_fiber_no_sync);
  }
  void come(moe::Index block, std::size_t meeting) {
    if (on_) __tsan_release(at(block, meeting));
  }
  void leave(moe::Index block, std::size_t meeting) {
    if (on_) __tsan_acquire(at(block, meeting));
  }
  /// Memory that is taken or given back meanwhile belongs to nobody.
  void look_away() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  void look() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }

 private:
  static constexpr int watched_launches = 4;
  /// Two in turn: the first to leave a meeting comes to the next one before the last has left.
  using Meetings = std::array<std::uint64_t, 2>;
  void* at(moe::Index block, std::size_t meeting) { return &meetings_[static_cast<std::size_t>(block)][meeting % 2]; }

  bool on_ = false;
  void* host_ = nullptr;
  std::vector<void*> threads_;
  std::vector<Meetings> meetings_;
  std::map<std::tuple<const void*, moe::Index, unsigned>, int> launches_;
  std::uint64_t begin_ = 0, end_ = 0;
};
#else
struct Watch {
  static bool on() { return false; }
  void launch(const void*, moe::Index, unsigned) {}
  void begin_thread() {}
  void end_thread() {}
  void end() {}
  void resume(std::size_t) {}
  void stop() {}
  void come(moe::Index, std::size_t) {}
  void leave(moe::Index, std::size_t) {}
  void look_away() {}
  void look() {}
};
#endif

/// The coroutines on which the threads of one block run. One whose thread ends goes on with the next of the block, so that kernels
/// without a meeting need a single one; watched, it runs one thread of a block, and another one in the next block.
class Blocks {
 public:
  void run(const void* kernel, moe::Index blocks, moe::Extent extent, const std::function<void()>& thread,
           bool backwards) {
    extent_ = extent;
    thread_ = &thread;
    backwards_ = backwards;
    threads_ = extent.x * extent.y;
    watch_.launch(kernel, blocks, threads_);
    for (moe::Index k = 0; k < blocks; ++k) run(backwards ? blocks - 1 - k : k);
    watch_.end();
  }
  void meet() {
    const std::size_t meeting = meeting_;
    watch_.come(block_, meeting);
    take_turns();
    watch_.leave(block_, meeting);
  }
  /// The others of the block go on until they meet; nothing is ordered by that.
  void take_turns() { scheduler_ = std::move(scheduler_).resume(); }
  void* shared(const void* key, std::size_t bytes) {
    for (const Shared& s : shared_)
      if (s.key == key) return s.memory.get();
    if ((shared_bytes_ += bytes) > most_shared) throw std::logic_error("a block shares more than 48 KiB");
    watch_.look_away();
    shared_.push_back({key, std::make_unique_for_overwrite<std::byte[]>(bytes)});
    std::memset(shared_.back().memory.get(), 0xFF, bytes);
    watch_.look();
    return shared_.back().memory.get();
  }
  moe::Place place() const {
    const unsigned t = coroutines_[current_]->thread;
    return {t % extent_.x, t / extent_.x, extent_.x, extent_.y, block_};
  }

 private:
  struct Coroutine {
    std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(stack_bytes);
    boost::context::fiber rest;  ///< what is left to run; empty before it begins and once it has ended
    unsigned thread = 0;
  };
  struct Shared {
    const void* key;
    std::unique_ptr<std::byte[]> memory;
  };
  struct StackOf {
    Coroutine* coroutine;
    boost::context::stack_context allocate() {
      boost::context::stack_context stack;
      stack.size = stack_bytes;
      stack.sp = coroutine->stack.get() + stack_bytes;
      return stack;
    }
    void deallocate(boost::context::stack_context&) noexcept {}
  };

  void run(moe::Index block) {
    block_ = block;
    begun_ = ended_ = 0;
    meeting_ = 0;
    std::size_t used = 0;
    while (begun_ < threads_) resume(used++);  // each call ends at a meeting, or when no thread is left to begin
    while (ended_ < threads_) {
      if (ended_ != 0) throw std::logic_error("a thread of a block ended while others wait for it");
      ++meeting_;
      for (std::size_t k = 0; k < used; ++k) resume(backwards_ ? used - 1 - k : k);
      if (ended_ != 0 && ended_ != threads_) throw std::logic_error("some threads of a block meet and others do not");
    }
    watch_.look_away();
    shared_.clear();
    shared_bytes_ = 0;
    watch_.look();
  }
  void resume(std::size_t which) {
    current_ = watch_.on() ? (which + static_cast<std::size_t>(block_)) % threads_ : which;
    while (coroutines_.size() <= current_) coroutines_.push_back(std::make_unique<Coroutine>());
    Coroutine& c = *coroutines_[current_];
    if (!c.rest)
      c.rest = boost::context::fiber(std::allocator_arg, StackOf{&c}, [this](boost::context::fiber&& scheduler) {
        scheduler_ = std::move(scheduler);
        run_threads();
        return std::move(scheduler_);
      });
    watch_.resume(current_);
    c.rest = std::move(c.rest).resume();
    watch_.stop();
  }
  void run_threads() {
    Coroutine& mine = *coroutines_[current_];
    do {
      mine.thread = backwards_ ? threads_ - 1 - begun_ : begun_;
      ++begun_;
      watch_.begin_thread();
      (*thread_)();
      watch_.end_thread();
      ++ended_;
    } while (!watch_.on() && begun_ < threads_);
  }

  Watch watch_;
  moe::Index block_ = 0;
  moe::Extent extent_;
  const std::function<void()>* thread_ = nullptr;
  bool backwards_ = false;
  unsigned threads_ = 0, begun_ = 0, ended_ = 0;
  std::size_t current_ = 0, meeting_ = 0, shared_bytes_ = 0;
  std::vector<Shared> shared_;
  boost::context::fiber scheduler_;
  std::vector<std::unique_ptr<Coroutine>> coroutines_;
};

/// Bits of a float that a product in TF32 does not read.
constexpr std::uint32_t unread_by_tf32 = (1U << 13) - 1;

thread_local Blocks on_this_thread;
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

Place place() { return on_this_thread.place(); }
void meet() { on_this_thread.meet(); }
void* shared_memory(const void* key, std::size_t bytes) { return on_this_thread.shared(key, bytes); }
void run_blocks(const void* kernel, Index blocks, Extent extent, const std::function<void()>& thread) {
  if (extent.x * extent.y == 0 || extent.x * extent.y > 1024) throw std::logic_error("a block has 1 to 1024 threads");
  on_this_thread.run(kernel, blocks, extent, thread, turns == gpu_on_host::Turns::last_to_first);
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
  on_this_thread.take_turns();
  for (int k = 0; k < 8; ++k) {
    d0 += A[g][k] * B[k][2 * t];
    d1 += A[g][k] * B[k][2 * t + 1];
    d2 += A[g + 8][k] * B[k][2 * t];
    d3 += A[g + 8][k] * B[k][2 * t + 1];
  }
  on_this_thread.take_turns();
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
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const float* A, Index lda, Index A_step,
                    const float* B, Index ldb, Index B_step, float* C) {
  for (Index p = 0; p < count; ++p)
    host_gemm(a, b, m, n, k, float(1), A + p * A_step, lda, B + p * B_step, ldb, float(0), C + p * m * n, m);
}
void gemm_of_pieces(Op a, Op b, Index m, Index n, Index k, Index count, const double* A, Index lda, Index A_step,
                    const double* B, Index ldb, Index B_step, double* C) {
  for (Index p = 0; p < count; ++p)
    host_gemm(a, b, m, n, k, double(1), A + p * A_step, lda, B + p * B_step, ldb, double(0), C + p * m * n, m);
}
}  // namespace device

}  // namespace on_host
}  // namespace moe
