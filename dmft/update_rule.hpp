/// What an optimizer does to one tensor, in the units of theory section 3, and arrays that it acts on entry by entry (T22).
#pragma once

#include <cmath>

#include "support/archive.hpp"
#include "support/cpu.hpp"
#include "support/error.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Optimizer of one tensor. lr and eps are the normalised ones; decay is the factor 1 - optimizer.lr * weight_decay per step.
struct UpdateRule {
  OptimizerKind kind = OptimizerKind::sgd;
  double lr = 0, eps = 0;
  double momentum = 0, beta1 = 0, beta2 = 0;
  double decay = 1;

  bool linear() const { return is_linear(kind); }
  bool has_velocity() const { return kind == OptimizerKind::momentum; }
  bool has_moments() const { return kind == OptimizerKind::adam || kind == OptimizerKind::adamw; }
};

/// An array with its optimizer state. Gradients arrive as outer products sum_mu z_mu x_mu^T and are never stored.
template <class B>
class LearnedArray {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  LearnedArray() = default;
  /// `scale` multiplies the learning rate: 1/D for W_in, whose inputs are coordinates and not a population (T21).
  LearnedArray(Index rows, Index cols, const UpdateRule& rule, double scale = 1)
      : rule_(rule), scale_(scale), value_(rows, cols) {
    if (rule.has_velocity() || rule.has_moments()) first_ = Matrix(rows, cols);
    if (rule.has_moments()) second_ = Matrix(rows, cols);
  }

  bool empty() const { return value_.empty(); }
  View value() { return value_; }
  View velocity() { return first_; }
  std::size_t bytes() const { return value_.bytes() + first_.bytes() + second_.bytes(); }

  void transfer(Archive& a) {
    a("steps", steps_);
    a("value", value_);
    a("first", first_);
    a("second", second_);
  }

  /// What learns, for a flow: d value/dt = scale * lr * sum_mu z_mu x_mu^T, SGD only.
  Matrix& learned() { return value_; }
  void derivative(View z, View x, Matrix& out) const {
    out = Matrix::uninitialized(z.rows, x.rows);
    add_gradient(z, x, 0, out);
  }

  /// value = decay * value + scale * lr * rule(sum_mu z_mu x_mu^T);  z (rows, P), x (cols, P).
  void update(View z, View x) {
    ++steps_;
    const View value = value_, first = first_, second = second_;
    const Real lr = static_cast<Real>(scale_ * rule_.lr), decay = static_cast<Real>(rule_.decay);
    switch (rule_.kind) {
      case OptimizerKind::sgd: add_gradient(z, x, 1, value); return;
      case OptimizerKind::momentum: {
        const Real momentum = static_cast<Real>(rule_.momentum);
        B::entrywise_update(z, x, {value, first}, [=] MOE_HD(Real g, Index i, Index j) {
          first(i, j) = momentum * first(i, j) + g;
          value(i, j) += lr * first(i, j);
        });
        return;
      }
      case OptimizerKind::adam:
      case OptimizerKind::adamw: {
        const AdamPoint<Real> adam{static_cast<Real>(rule_.beta1), static_cast<Real>(rule_.beta2),
                                   static_cast<Real>(rule_.eps),
                                   static_cast<Real>(1 / (1 - std::pow(rule_.beta1, steps_))),
                                   static_cast<Real>(1 / (1 - std::pow(rule_.beta2, steps_)))};
        B::entrywise_update(z, x, {value, first, second}, [=] MOE_HD(Real g, Index i, Index j) {
          value(i, j) = decay * value(i, j) + lr * adam(g, first(i, j), second(i, j));
        });
        return;
      }
      case OptimizerKind::signsgd: {
        const SignPoint<Real> sign;
        B::entrywise_update(z, x, {value}, [=] MOE_HD(Real g, Index i, Index j) { value(i, j) += lr * sign(g); });
        return;
      }
      case OptimizerKind::adafactor: break;
    }
    throw BackendError("this optimizer has no limit in the solver; validate() should have refused it");
  }

 private:
  /// to = keep * to + scale * lr * sum_mu z_mu x_mu^T
  void add_gradient(View z, View x, double keep, View to) const {
    B::gemm(Op::plain, Op::transposed, scale_ * rule_.lr, z, x, keep, to);
  }

  UpdateRule rule_;
  double scale_ = 1;
  int steps_ = 0;
  Matrix value_, first_, second_;  ///< (rows, cols): value, velocity or first moment, second moment
};

}  // namespace moe
