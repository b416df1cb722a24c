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

  /// Weights of time `from` -> weights of time `to`. forward() and backward() stand at `from`; `check` is called after every other
  /// pass and throws where a field is not finite.
  template <class Check>
  FlowWork advance(Replica<B>& replica, double from, double to, const Check& check) {
    State w;
    replica.learned(w);
    bool stands = true;  // the first evaluation is at the state whose fields are there already
    const FlowWork work = stepper_.advance(w, from, to, [&](const State& at, State& derivative) {
      if (!stands) {
        replica.set_learned(at);
        replica.forward();
        replica.backward();
        check();
      }
      stands = false;
      replica.learned_derivative(derivative);
    });
    replica.set_learned(w);
    if (replica.settle()) stepper_.forget();  // derivatives in the bases mean nothing to a dense operator
    return work;
  }

  void transfer(Archive& a) { stepper_.transfer(a); }

 private:
  using State = ArrayList<B>;
  FlowStepper<B> stepper_;
};

}  // namespace moe
