/// What an optimizer does to one tensor on the raw weights with the raw learning rate and eps of its parameterization,
/// W -= lr Psi(gradient history): entry by entry, or for Adafactor matrix by matrix.
#pragma once

#include <cmath>
#include <vector>

#include "support/error.hpp"
#include "support/host_device.hpp"
#include "support/matrix.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe::trainer {

/// Windows on a tensor (N, columns) and on its optimizer state, empty where the rule has none. Adafactor: first (N, matrices),
/// second (1, columns), running means of squares over the columns of each matrix and over the neurons.
template <class B>
struct Slot {
  typename B::View value, first, second;  ///< weights; velocity or first moment; second moment
};

/// One weight by its gradient: update(g, w, m, v).
namespace entry {
template <class Real>
struct Descent {
  Real lr;
  MOE_HD void operator()(Real g, Real& w, Real&, Real&) const { w -= lr * g; }
};
template <class Real>
struct Momentum {
  Real lr, momentum;
  MOE_HD void operator()(Real g, Real& w, Real& velocity, Real&) const {
    velocity = momentum * velocity + g;
    w -= lr * velocity;
  }
};
template <class Real>
struct Adam {
  Real lr, decay;
  AdamPoint<Real> psi;
  MOE_HD void operator()(Real g, Real& w, Real& m, Real& v) const { w = decay * w - lr * psi(g, m, v); }
};
template <class Real>
struct Sign {
  Real lr;
  MOE_HD void operator()(Real g, Real& w, Real&, Real&) const { w -= lr * SignPoint<Real>()(g); }
};
}  // namespace entry

/// The rule of one tensor in one step.
template <class Real>
struct Rule {
  OptimizerKind kind = OptimizerKind::sgd;
  Real lr = 0, momentum = 0;
  Real decay = 1;  ///< AdamW: 1 - optimizer.lr weight_decay, the same for every tensor
  AdamPoint<Real> adam{};
  double keep = 0, eps = 0;  ///< Adafactor: the running means keep 1 - weight of the past

  /// `update`: the number of this update, counted from 1, for bias corrections and weights.
  static Rule at(const OptimizerSpec& spec, double lr, double eps, int update) {
    Rule rule;
    rule.kind = spec.name;
    rule.lr = static_cast<Real>(lr);
    rule.momentum = static_cast<Real>(spec.momentum);
    if (spec.name == OptimizerKind::adamw) rule.decay = static_cast<Real>(1 - spec.lr * spec.weight_decay);
    rule.adam = {static_cast<Real>(spec.beta1), static_cast<Real>(spec.beta2), static_cast<Real>(eps),
                 static_cast<Real>(1 / (1 - std::pow(spec.beta1, update))),
                 static_cast<Real>(1 / (1 - std::pow(spec.beta2, update)))};
    rule.keep = 1 - std::pow(update, -0.8);
    rule.eps = eps;
    return rule;
  }

  bool has_velocity() const { return kind == OptimizerKind::momentum; }
  bool has_moments() const { return kind == OptimizerKind::adam || kind == OptimizerKind::adamw; }
  bool factored() const { return kind == OptimizerKind::adafactor; }
  /// Weights without gradient move too, or what the rule keeps of them: moments or the decay go on.
  bool moves_without_gradient() const { return has_velocity() || has_moments() || factored(); }

  /// Not Adafactor. Calls f with update(g, w, m, v), which makes the update of one weight from its gradient.
  template <class F>
  void with_entry(F&& f) const {
    switch (kind) {
      case OptimizerKind::sgd: return f(entry::Descent<Real>{lr});
      case OptimizerKind::momentum: return f(entry::Momentum<Real>{lr, momentum});
      case OptimizerKind::adam:
      case OptimizerKind::adamw: return f(entry::Adam<Real>{lr, decay, adam});
      case OptimizerKind::signsgd: return f(entry::Sign<Real>{lr});
      case OptimizerKind::adafactor: break;
    }
    throw BackendError("Adafactor is not a rule of single entries");
  }

  /// Adafactor (T30): one update of a matrix (N, columns) from its gradient; row (N, 1) and col (1, columns).
  void factored_step(HostView<Real> gradient, HostView<Real> w, HostView<Real> row, HostView<Real> col) const {
    const auto N = static_cast<double>(w.rows), columns = static_cast<double>(w.cols);
    const auto run = [this](Real& mean, double now) {
      mean = static_cast<Real>(keep * static_cast<double>(mean) + (1 - keep) * (now + eps * eps));
    };
    std::vector<double> along_row(static_cast<std::size_t>(w.rows), 0.0);
    for (Index j = 0; j < w.cols; ++j) {
      const Real* const g = &gradient(0, j);
      double along_column = 0;
#pragma omp simd reduction(+ : along_column)
      for (Index n = 0; n < w.rows; ++n) {
        const double square = static_cast<double>(g[n]) * static_cast<double>(g[n]);
        along_row[static_cast<std::size_t>(n)] += square;
        along_column += square;
      }
      run(col(0, j), along_column / N);
    }
    double mean = 0;
    for (Index n = 0; n < w.rows; ++n) {
      run(row(n, 0), along_row[static_cast<std::size_t>(n)] / columns);
      mean += static_cast<double>(row(n, 0)) / N;
    }
    const auto inverse_root = [](double x) { return x > 0 ? 1 / std::sqrt(x) : 0.0; };  // 0: there was no gradient yet
    std::vector<Real> of_row(static_cast<std::size_t>(w.rows));
    for (Index n = 0; n < w.rows; ++n)
      of_row[static_cast<std::size_t>(n)] = static_cast<Real>(inverse_root(static_cast<double>(row(n, 0)) / mean));
    for (Index j = 0; j < w.cols; ++j) {
      const Real step = static_cast<Real>(static_cast<double>(lr) * inverse_root(static_cast<double>(col(0, j))));
      const Real* const g = &gradient(0, j);
      Real* const to = &w(0, j);
#pragma omp simd
      for (Index n = 0; n < w.rows; ++n) to[n] -= step * of_row[static_cast<std::size_t>(n)] * g[n];
    }
  }
};

/// What a tensor does when it learns.
template <class B>
struct Update {
  Rule<typename B::Real> rule;
  Slot<B> slot;
};
template <class B>
using Updates = PerTensor<Update<B>>;

}  // namespace moe::trainer
