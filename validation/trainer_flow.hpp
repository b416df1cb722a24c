/// Gradient flow of a finite network: lr -> 0 at fixed lr T (theory section 6.4), by the steppers of the limit.
#pragma once

#include "support/ode.hpp"
#include "validation/network.hpp"
#include "validation/trainer_maps.hpp"
#include "validation/trainer_state.hpp"

namespace moe::trainer {

/// W(t) = W(0) + unit * moved(t), tensor by tensor. The stepper sees `moved` alone: with unit = lr times the size of a gradient's entry
/// where fields are of order one (T6)-(T10), its entries are of order one at every width, and rtol and atol mean what they mean in the
/// limit. Times are in steps of gradient descent.
template <class B>
class Flow {
 public:
  using Real = typename B::Real;
  using State = ArrayList<B>;

  Flow(const FlowSpec& spec, const NetworkShape& z, double aggregation, const PerTensor<double>& lr) : stepper_(spec) {
    const double N = z.N, K = z.K, Ne = z.Ne;
    const PerTensor<double> gradient{{1 / N, 1 / K, 1 / (K * Ne), aggregation / N, 1}};
    for (std::size_t t = 0; t < num_tensors; ++t) {
      unit_.values[t] = static_cast<Real>(lr.values[t] * gradient.values[t]);
      rate_.values[t] = static_cast<Real>(lr.values[t] == 0 ? 0 : 1 / gradient.values[t]);
    }
  }

  /// Weights of the interval's start -> weights of its end; `initial` are W(0). descend(slots, rates, first): into slots, which are
  /// zero, one update of gradient descent with these learning rates at the present weights; `first`: gradients of these weights are
  /// there. Between two steps `pause` is called; what it throws ends the training.
  template <class Descend>
  void advance(Tensors<B>& weights, Tensors<B>& initial, const FlowInterval& interval, const Descend& descend,
               const std::function<void()>& pause) {
    if (moved_.arrays.empty())
      for (const auto& w : weights.values) moved_.arrays.emplace_back(w.rows(), w.cols());
    bool first = !inside();
    const auto right_hand_side = [&](const State& at, State& derivative) {
      if (!first) set(weights, initial, at);
      derivative.arrays.resize(num_tensors);
      for (std::size_t t = 0; t < num_tensors; ++t) {
        auto& d = derivative.arrays[t];
        if (d.empty())
          d = typename B::Matrix(weights.values[t].rows(), weights.values[t].cols());
        else
          d.fill(0);
      }
      descend([&](Tensor t) { return Slot<B>{derivative.arrays[static_cast<std::size_t>(t)], {}, {}}; }, rate_, first);
      first = false;
    };
    stepper_.advance(moved_, interval, right_hand_side, [&] {
      pause();
      return false;
    });
    set(weights, initial, moved_);
  }
  /// Loaded within an interval, where `weights` are those of some stage.
  bool inside() const { return stepper_.inside(); }

  void transfer(Archive& a) {
    a("moved", moved_);
    a("stepper", stepper_);
  }

 private:
  void set(Tensors<B>& weights, Tensors<B>& initial, const State& moved) const {
    for (std::size_t t = 0; t < num_tensors; ++t)
      displace<B>(initial.values[t], unit_.values[t], moved.arrays[t].view(), weights.values[t]);
  }

  FlowStepper<B> stepper_;
  PerTensor<Real> unit_, rate_;
  State moved_;
};

}  // namespace moe::trainer
