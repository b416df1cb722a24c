/// What an optimizer does to one tensor, entry by entry, on the raw weights with the raw learning rate and eps of its
/// parameterization: W -= lr Psi(gradient history).
#pragma once

#include <cmath>

#include "support/error.hpp"
#include "support/matrix.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe::trainer {

/// Windows on a tensor (N, columns) and on its optimizer state, empty where the rule has none.
template <class Real>
struct Slot {
  HostView<Real> value, first, second;  ///< weights; velocity or first moment; second moment
};

/// The rule of one tensor in one step.
template <class Real>
struct Rule {
  OptimizerKind kind = OptimizerKind::sgd;
  Real lr = 0, momentum = 0;
  Real decay = 1;  ///< AdamW: 1 - optimizer.lr weight_decay, the same for every tensor
  AdamPoint<Real> adam{};

  /// `update`: the number of this update, counted from 1, for the bias corrections.
  static Rule at(const OptimizerSpec& spec, double lr, double eps, int update) {
    Rule rule;
    rule.kind = spec.name;
    rule.lr = static_cast<Real>(lr);
    rule.momentum = static_cast<Real>(spec.momentum);
    if (spec.name == OptimizerKind::adamw) rule.decay = static_cast<Real>(1 - spec.lr * spec.weight_decay);
    rule.adam = {static_cast<Real>(spec.beta1), static_cast<Real>(spec.beta2), static_cast<Real>(eps),
                 static_cast<Real>(1 / (1 - std::pow(spec.beta1, update))),
                 static_cast<Real>(1 / (1 - std::pow(spec.beta2, update)))};
    return rule;
  }

  bool has_velocity() const { return kind == OptimizerKind::momentum; }
  bool has_moments() const { return kind == OptimizerKind::adam || kind == OptimizerKind::adamw; }
  /// Weights without gradient move too: their moments or the decay go on.
  bool moves_without_gradient() const { return has_velocity() || has_moments(); }

  /// Calls f with update(g, w, m, v), which makes the update of one weight from its gradient.
  template <class F>
  void with_entry(F&& f) const {
    const Rule r = *this;
    switch (kind) {
      case OptimizerKind::sgd: return f([r](Real g, Real& w, Real&, Real&) { w -= r.lr * g; });
      case OptimizerKind::momentum:
        return f([r](Real g, Real& w, Real& velocity, Real&) {
          velocity = r.momentum * velocity + g;
          w -= r.lr * velocity;
        });
      case OptimizerKind::adam:
      case OptimizerKind::adamw:
        return f([r](Real g, Real& w, Real& m, Real& v) { w = r.decay * w - r.lr * r.adam(g, m, v); });
      case OptimizerKind::signsgd: return f([r](Real g, Real& w, Real&, Real&) { w -= r.lr * SignPoint<Real>()(g); });
      case OptimizerKind::adafactor: break;
    }
    throw BackendError("the finite trainer does not have this optimizer; check_networks() should have refused it");
  }
};

}  // namespace moe::trainer
