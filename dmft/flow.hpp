/// Gradient flow of one replica: lr -> 0 at fixed lr T (theory section 6.4). The network's own forward and backward pass is the
/// right-hand side; the state is what SGD learns, in the form in which the operators keep it.
#pragma once

#include "dmft/replica.hpp"
#include "support/ode.hpp"

namespace moe {

template <class B>
class Flow {
 public:
  explicit Flow(const FlowSpec& spec) : stepper_(spec) {}

  /// Weights of the interval's start -> weights of its end; at the start forward() and backward() have been done. `check` is called
  /// after every other pass and throws NumericsError where a field is not finite. False where `pause` ended it between two steps: the
  /// next call goes on from there.
  template <class Check>
  bool advance(Replica<B>& replica, const FlowInterval& interval, const Check& check,
               const typename FlowStepper<B>::Pause& pause) {
    bool stands = !inside();  // the first evaluation is at the state whose fields are there already
    if (stands) replica.learned(w_);
    const auto right_hand_side = [&](const State& at, State& derivative) {
      if (!stands) {
        replica.set_learned(at);
        replica.forward();
        replica.backward();
        check();
      }
      stands = false;
      replica.learned_derivative(derivative);
    };
    if (!stepper_.advance(w_, interval, right_hand_side, pause)) return false;
    replica.set_learned(w_);
    if (replica.settle()) stepper_.forget();  // derivatives in the bases mean nothing to a dense operator
    return true;
  }
  bool inside() const { return stepper_.inside(); }
  const FlowWork& work() const { return stepper_.work(); }

  /// Also within an interval, where the replica's weights are those of some stage, and the state stands here.
  void transfer(Archive& a) {
    a("stepper", stepper_);
    if (inside()) a("state", w_);
  }

 private:
  using State = ArrayList<B>;
  FlowStepper<B> stepper_;
  State w_;
};

}  // namespace moe
