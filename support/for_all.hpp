/// Independent pieces of work for a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "support/cpu.hpp"
#include "support/resources.hpp"

namespace moe {

/// f(k) for k = 0 .. count - 1, handed out in this order to `at_once` workers (0: as many as threads) that share the threads. The first
/// exception is thrown when all are done.
template <class F>
void for_all(int count, int at_once, int threads, const F& f) {
  const int all = thread_count(threads), workers = std::min(at_once > 0 ? at_once : all, count);
  std::atomic<int> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  {
    std::vector<std::jthread> pool;
    pool.reserve(static_cast<std::size_t>(workers));
    for (int w = 0; w < workers; ++w)
      pool.emplace_back([&] {
        set_operation_threads(std::max(1, all / workers));
        for (int k = next++; k < count; k = next++) try {
            f(k);
          } catch (...) {
            const std::lock_guard lock(error_mutex);
            if (!error) error = std::current_exception();
          }
      });
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace moe
