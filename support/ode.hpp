/// Boost.Odeint's steppers on lists of arrays: the algebra that they need, and one class that advances such a list in time by a
/// stepper chosen at run time.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <boost/numeric/odeint/stepper/adams_bashforth.hpp>
#include <boost/numeric/odeint/stepper/adams_moulton.hpp>
#include <boost/numeric/odeint/stepper/controlled_runge_kutta.hpp>
#include <boost/numeric/odeint/stepper/runge_kutta4.hpp>
#include <boost/numeric/odeint/stepper/runge_kutta_dopri5.hpp>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/archive.hpp"
#include "support/cpu.hpp"
#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// A point of state space, or a derivative there: arrays by number. Arrays may grow on the way (bases do): what a shorter one lacks
/// is zero.
template <class B>
struct ArrayList {
  using Matrix = typename B::Matrix;
  std::vector<Matrix> arrays;

  ArrayList() = default;
  ArrayList(const ArrayList& other) { *this = other; }
  ArrayList(ArrayList&&) noexcept = default;
  ArrayList& operator=(ArrayList&&) noexcept = default;
  ArrayList& operator=(const ArrayList& other) {
    if (this == &other) return *this;
    arrays.resize(other.arrays.size());
    for (std::size_t k = 0; k < arrays.size(); ++k) {
      const Matrix& from = other.arrays[k];
      if (arrays[k].rows() != from.rows() || arrays[k].cols() != from.cols())
        arrays[k] = Matrix::uninitialized(from.rows(), from.cols());
      B::copy(from.view(), arrays[k]);
    }
    return *this;
  }
  void transfer(Archive& a) { a("arrays", arrays); }
};

namespace detail {
/// Element (i, j), zero outside of the window.
template <bool inside, class View>
MOE_HD inline double element(const View& v, Index i, Index j) {
  return inside || (i < v.rows && j < v.cols) ? static_cast<double>(v(i, j)) : 0.0;
}
/// out = sum_k weight_k in_k
template <class View, int count, bool inside>
struct WeightedSum {
  View out;
  View in[count];
  double weight[count];
  MOE_HD void operator()(Index i, Index j) const {
    double sum = weight[0] * element<inside>(in[0], i, j);
    for (int k = 1; k < count; ++k) sum += weight[k] * element<inside>(in[k], i, j);
    out(i, j) = static_cast<std::remove_reference_t<decltype(out(i, j))>>(sum);
  }
};
/// error becomes |error| / (absolute + relative (of_state |x| + of_slope |dx/dt|))
template <class View, bool inside>
struct RelativeError {
  View error;
  View in[2];  ///< x, dx/dt
  double absolute, relative, of_state, of_slope;
  MOE_HD void operator()(Index i, Index j) const {
    const double size =
        of_state * std::abs(element<inside>(in[0], i, j)) + of_slope * std::abs(element<inside>(in[1], i, j));
    error(i, j) = static_cast<std::remove_reference_t<decltype(error(i, j))>>(
        std::abs(static_cast<double>(error(i, j))) / (absolute + relative * size));
  }
};
/// out = |in|, infinite for what is not finite.
template <class View>
struct Magnitude {
  using Real = std::remove_reference_t<decltype(*View::data)>;
  View in, out;
  MOE_HD void operator()(Index i, Index j) const {
    const Real size = std::abs(in(i, j));
    out(i, j) = size <= std::numeric_limits<Real>::max() ? size : Real(HUGE_VAL);
  }
};
}  // namespace detail

/// The stepper algebra of Boost.Odeint over all arrays, `out` growing to the largest of them. Its operations are weighted sums, whose
/// weights are found by asking them for unit vectors, and the relative error: formulas that run on every device.
template <class B>
struct ArrayAlgebra {
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// out = op(in...)
  template <class Op, class Out, class... In>
  static void apply(const Op& op, Out& out, const In&... in) {
    out.arrays.resize(std::max({out.arrays.size(), in.arrays.size()...}));
    for (std::size_t k = 0; k < out.arrays.size(); ++k) {
      grow(out.arrays[k], std::max({out.arrays[k].rows(), rows(in, k)...}),
           std::max({out.arrays[k].cols(), cols(in, k)...}));
      const View to = out.arrays[k], from[] = {view(in, k)...};
      const bool equal = std::all_of(std::begin(from), std::end(from),
                                     [&](const View& v) { return v.rows == to.rows && v.cols == to.cols; });
      equal ? map<true>(op, to, from) : map<false>(op, to, from);
    }
  }
  template <class S1, class S2, class Op>
  static void for_each2(S1& s1, S2& s2, Op op) {
    apply(op, s1, s2);
  }
  template <class S1, class S2, class S3, class Op>
  static void for_each3(S1& s1, S2& s2, S3& s3, Op op) {
    apply(op, s1, s2, s3);
  }
  template <class S1, class S2, class S3, class S4, class Op>
  static void for_each4(S1& s1, S2& s2, S3& s3, S4& s4, Op op) {
    apply(op, s1, s2, s3, s4);
  }
  template <class S1, class S2, class S3, class S4, class S5, class Op>
  static void for_each5(S1& s1, S2& s2, S3& s3, S4& s4, S5& s5, Op op) {
    apply(op, s1, s2, s3, s4, s5);
  }
  template <class S1, class S2, class S3, class S4, class S5, class S6, class Op>
  static void for_each6(S1& s1, S2& s2, S3& s3, S4& s4, S5& s5, S6& s6, Op op) {
    apply(op, s1, s2, s3, s4, s5, s6);
  }
  template <class S1, class S2, class S3, class S4, class S5, class S6, class S7, class Op>
  static void for_each7(S1& s1, S2& s2, S3& s3, S4& s4, S5& s5, S6& s6, S7& s7, Op op) {
    apply(op, s1, s2, s3, s4, s5, s6, s7);
  }

  /// Largest magnitude; infinite when an element is not finite, so that an error estimate cannot pass as small.
  static double norm_inf(const ArrayList<B>& s) {
    double largest = 0;
    for (const Matrix& m : s.arrays) {
      if (m.empty()) continue;
      auto sizes = Matrix::uninitialized(m.rows(), m.cols());
      auto top = Matrix::uninitialized(1, m.cols());
      B::each(m.rows(), m.cols(), detail::Magnitude<View>{m.view(), sizes});
      B::column_maxima(sizes, top);
      largest = std::max(largest, B::download(top).maxCoeff());
    }
    return largest;
  }

 private:
  static Index rows(const ArrayList<B>& s, std::size_t k) { return k < s.arrays.size() ? s.arrays[k].rows() : 0; }
  static Index cols(const ArrayList<B>& s, std::size_t k) { return k < s.arrays.size() ? s.arrays[k].cols() : 0; }
  static View view(const ArrayList<B>& s, std::size_t k) { return k < s.arrays.size() ? s.arrays[k].view() : View{}; }
  static void grow(Matrix& m, Index rows, Index cols) {
    if (m.rows() == rows && m.cols() == cols) return;
    Matrix bigger(rows, cols);
    if (!m.empty()) B::copy(m, bigger.view().row_range(0, m.rows()).columns(0, m.cols()));
    m = std::move(bigger);
  }
  template <bool inside, class Op, std::size_t count>
  static void map(const Op& op, View out, const View (&in)[count]) {
    detail::WeightedSum<View, static_cast<int>(count), inside> sum{out, {}, {}};
    for (std::size_t k = 0; k < count; ++k) {
      double unit[count] = {};
      unit[k] = 1;
      sum.in[k] = in[k];
      [&]<std::size_t... n>(std::index_sequence<n...>) { op(sum.weight[k], std::as_const(unit[n])...); }
      (std::make_index_sequence<count>());
    }
    B::each(out.rows, out.cols, sum);
  }
  template <bool inside>
  static void map(const boost::numeric::odeint::default_operations::rel_error<double>& op, View out,
                  const View (&in)[2]) {
    B::each(
        out.rows, out.cols,
        detail::RelativeError<View, inside>{out, {in[0], in[1]}, op.m_eps_abs, op.m_eps_rel, op.m_a_x, op.m_a_dxdt});
  }
};

/// Work that an interval took.
struct FlowWork {
  int evaluations = 0;  ///< of the right-hand side
  int accepted = 0, rejected = 0;
  void transfer(Archive& a) {
    a("evaluations", evaluations);
    a("accepted", accepted);
    a("rejected", rejected);
  }
};

/// From recorded state `step` to the next, by their times.
struct FlowInterval {
  int step = 0;
  double from = 0, to = 1;
};

/// Advances a state along dw/dt = right-hand side. Steps never cross the end of an interval that was asked for, so that what is
/// recorded there is a state of the integration itself. Between two steps within an interval the stepper can be saved with the state,
/// and goes on bit for bit.
template <class B>
class FlowStepper {
 public:
  using State = ArrayList<B>;
  /// derivative <- dw/dt at w. Throws NumericsError where that is not finite: dopri5 then tries a shorter step.
  using System = std::function<void(const State& w, State& derivative)>;
  /// Called between two steps: true ends the call there.
  using Pause = std::function<bool()>;

  explicit FlowStepper(const FlowSpec& spec) : spec_(spec), next_step_(spec.step_size) {}

  /// w(from) -> w(to). Intervals of equal length keep the multistep method's history valid; forget() it when w was changed. False
  /// where `pause` ended it: called again with the same interval, it goes on there. Throws NumericsError of the system, or where the
  /// tolerance asks for steps too short to be taken.
  bool advance(State& w, const FlowInterval& interval, const System& system, const Pause& pause = {}) {
    const auto right_hand_side = [&](const State& x, State& dxdt, double) {
      ++work_.evaluations;
      system(x, dxdt);
    };
    if (!inside_) {
      work_ = {};
      t_ = interval.from;
      if (spec_.stepper == Stepper::dopri5) right_hand_side(w, derivative_, t_);
      inside_ = true;
    }
    while (inside_) {
      inside_ = spec_.stepper == Stepper::dopri5 ? adaptive_step(w, interval, right_hand_side)
                                                 : fixed_step(w, interval, right_hand_side);
      if (inside_ && pause && pause()) return false;
    }
    return true;
  }
  /// Within an interval: advance() returned false, or the state that was loaded had been saved by `pause`.
  bool inside() const { return inside_; }
  /// Of the interval so far.
  const FlowWork& work() const { return work_; }

  /// Past derivatives are no longer those of this state.
  void forget() {
    multistep_.reset();
    past_ = 0;
  }

  void transfer(Archive& a) {
    a("inside", inside_);
    a("work", work_);
    a("time", t_);
    if (inside_ && spec_.stepper == Stepper::dopri5) a("derivative", derivative_);
    a("next_step", next_step_);
    a("past", past_);
    std::vector<State> history(static_cast<std::size_t>(std::min(past_, order - 1)));
    for (std::size_t k = 0; k < history.size(); ++k) {
      if (!a.loading()) history[k] = multistep_.step_storage()[k].m_v;
      a("history" + std::to_string(k), history[k]);
    }
    if (!a.loading()) return;
    // A stepper takes a history in by making the steps that begin one, with the known derivatives in place of the system.
    multistep_.reset();
    for (std::size_t k = history.size(); k-- > 0;) {
      State scratch;
      multistep_.do_step([&](const State&, State& dxdt, double) { dxdt = history[k]; }, State(history[k]), 0, scratch,
                         1);
    }
  }

 private:
  template <template <class...> class Method>
  using On = Method<State, double, State, double, ArrayAlgebra<B>, boost::numeric::odeint::default_operations>;
  static constexpr int order = 4;
  using Rk4 = On<boost::numeric::odeint::runge_kutta4>;
  using Dopri5 = On<boost::numeric::odeint::runge_kutta_dopri5>;
  using Never = boost::numeric::odeint::never_resizer;  // the algebra does
  using Predictor = boost::numeric::odeint::adams_bashforth<order, State, double, State, double, ArrayAlgebra<B>,
                                                            boost::numeric::odeint::default_operations, Never, Rk4>;
  using Corrector = boost::numeric::odeint::adams_moulton<order, State, double, State, double, ArrayAlgebra<B>,
                                                          boost::numeric::odeint::default_operations, Never>;

  /// One attempt of dopri5, within the interval. False once its end is reached.
  template <class System>
  bool adaptive_step(State& w, const FlowInterval& interval, System& right_hand_side) {
    namespace odeint = boost::numeric::odeint;
    using Errors = odeint::default_error_checker<double, ArrayAlgebra<B>, odeint::default_operations>;
    odeint::controlled_runge_kutta<Dopri5, Errors> dopri5(Errors(spec_.atol, spec_.rtol));
    const double shortest = 1e-12 * std::max(std::abs(interval.to), interval.to - interval.from);
    double step = std::min(next_step_, interval.to - t_);
    const bool cut = step < next_step_;
    bool accepted = false;
    try {
      accepted = dopri5.try_step(right_hand_side, w, derivative_, t_, step) == odeint::success;
    } catch (const NumericsError&) {  // a stage beyond all numbers: w, its derivative and t are what they were
      step *= least_factor;
      if (step < shortest) throw;
    }
    ++(accepted ? work_.accepted : work_.rejected);
    if (!accepted || !cut || step > next_step_) next_step_ = step;
    if (next_step_ < shortest)
      throw NumericsError(
          interval.step, "step of the flow",
          fmt::format(
              "has become too short to be taken at time {:g}: training.rtol = {:g} and training.atol = {:g} ask "
              "for more than the numbers hold. Raise them, use sampling.precision = \"float64\", or fixed steps "
              "(training.stepper = \"rk4\")",
              t_, spec_.rtol, spec_.atol));
    return interval.to - t_ > shortest;
  }

  /// One step of rk4 or abm; the interval has a whole number of them. False once its end is reached.
  template <class System>
  bool fixed_step(State& w, const FlowInterval& interval, System& right_hand_side) {
    const double length = interval.to - interval.from;
    const int steps = std::max(1, static_cast<int>(std::ceil(length / spec_.step_size * (1 - 1e-12))));
    const double step = length / steps;
    t_ = interval.from + work_.accepted * step;
    if (spec_.stepper == Stepper::rk4) {
      rk4_.do_step(right_hand_side, w, t_, step);
    } else {
      // Predictor and corrector of Boost's adams_bashforth_moulton, which hides the derivatives that a checkpoint needs.
      multistep_.do_step(right_hand_side, w, t_, predicted_, step);
      if (past_ + 1 < order)
        w = predicted_;
      else
        corrector_.do_step(right_hand_side, w, predicted_, t_ + step, w, step, multistep_.step_storage());
      ++past_;
    }
    return ++work_.accepted < steps;
  }

  static constexpr double least_factor = 0.2;  ///< by which the controller shortens a step at most

  FlowSpec spec_;
  bool inside_ = false;
  FlowWork work_;
  double t_ = 0;  ///< of w, within an interval
  double next_step_;
  State derivative_, predicted_;
  Rk4 rk4_;
  Predictor multistep_;
  Corrector corrector_;
  int past_ = 0;  ///< steps since the multistep method began
};

}  // namespace moe
