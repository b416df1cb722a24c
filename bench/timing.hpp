/// Ratios that survive a noisy machine: two actions are timed in turn, A B A B ..., and compared by their best times.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>

namespace bench {

template <class F>
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Best time of one action out of `rounds`, after one that is not counted.
template <class F>
double best_seconds(F&& f, int rounds = 9) {
  f();
  double best = HUGE_VAL;
  for (int k = 0; k < rounds; ++k) best = std::min(best, seconds_of(f));
  return best;
}

struct Pair {
  double first, second;
};

/// Best times of two actions taken in turn.
template <class F, class G>
Pair best_in_turn(F&& f, G&& g, int rounds = 9) {
  f();
  g();
  Pair best{HUGE_VAL, HUGE_VAL};
  for (int k = 0; k < rounds; ++k) {
    best.first = std::min(best.first, seconds_of(f));
    best.second = std::min(best.second, seconds_of(g));
  }
  return best;
}

}  // namespace bench
