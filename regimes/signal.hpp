/// Symbolic signal propagation: the training of section 1 to 5 of docs/theory.md with every number replaced by its size in N, so that a
/// few steps give the size exponent of everything (docs/parameterizations.md). Written once over a number of regimes/size.hpp.
///
/// A field is kept as its parts along the independent random directions that the network holds: the columns of W_in, the readout, and
/// the Gaussian answers of Q, A, B to each new query. Sums over a population are then of the order of their number (law of large
/// numbers) along a direction that both factors share, and of its square root (central limit theorem) otherwise; and a matrix
/// answers by (T12), (T13): s_chi |x| Gaussian, plus s_beta times the part of x along an earlier backward answer in the
/// direction of what that one was asked (the response), and the same with sides exchanged.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "regimes/size.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// The step that stands for "late". Sizes of most tables that have a limit have settled by the third; where a gradient grows through its
/// eps it takes more. A search for tables does without those.
template <class S>
inline constexpr int late_step = 14;
template <>
inline constexpr int late_step<SizeInterval> = 5;

/// What a matrix answers per unit of query: s_chi forward, s_beta backward (section 4), square roots of the variances.
template <class S>
struct Gains {
  S chi, beta;
};

/// What the formulas depend on besides sizes.
struct SignalModel {
  bool expert_in_shared = false, expert_out_shared = false;
  bool linear = true;          ///< SGD, momentum
  bool gate_varies = true;     ///< false: constant gate, or one softmax weight that is 1
  bool gate_relative = false;  ///< softmax: what all experts have in common does not move it
  bool topk = false;
  bool balanced = false;  ///< top-K with a balancing loss
  bool residual = false;
  bool loss_bounded = true;  ///< cross entropy: -dL/df is at most of order one
  Activation activation = Activation::tanh, post_activation = Activation::identity;
};

/// Sizes of everything that enters, in the units of section 3.
template <class S>
struct SignalSetup : SignalModel {
  S neurons, experts, hidden;  ///< N, M, N_e along the path
  S input, readout;            ///< D^(1/2) std W_in, N std W_out
  Gains<S> router, expert_in, expert_out;
  PerTensor<S> lr, eps;  ///< normalised
};

namespace signal {

template <class S>
inline constexpr int times = late_step<S> + 1;

/// Parts of a field by direction. Where a bounded activation saturates, few sites carry the RMS: `rest` holds what their averages do not see.
template <class S>
struct Field {
  static constexpr int max_parts = (2 + 3 * times<S> + 3) / 4 * 4;
  std::array<S, max_parts> part{};
  S rest{};

  S rms() const {
    std::array<S, lanes> sum{rest};
    for (int d = 0; d < max_parts; d += lanes)
      for (int k = 0; k < lanes; ++k) sum[k] = sum[k] + part[d + k];
    return total(sum);
  }
  /// Several partial sums, so that the processor need not wait for one.
  static constexpr int lanes = 4;
  static S total(const std::array<S, lanes>& sum) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }
  Field operator+(const Field& other) const {
    Field sum;
    for (int d = 0; d < max_parts; ++d) sum.part[d] = part[d] + other.part[d];
    sum.rest = rest + other.rest;
    return sum;
  }
  Field operator*(const S& factor) const {
    Field f;
    for (int d = 0; d < max_parts; ++d) f.part[d] = part[d] * factor;
    f.rest = rest * factor;
    return f;
  }
  Field unit() const {
    const S whole = rms();
    Field f;
    for (int d = 0; d < max_parts; ++d) f.part[d] = share(part[d], whole);
    f.rest = share(rest, whole);
    return f;
  }
};

/// Mean of a b over a population; `fluctuation` is its count to the power -1/2.
template <class S>
S overlap(const Field<S>& a, const S& a_rms, const Field<S>& b, const S& b_rms, const S& fluctuation) {
  constexpr int lanes = Field<S>::lanes;
  std::array<S, lanes> sum{a_rms * b_rms * fluctuation};
  for (int d = 0; d < Field<S>::max_parts; d += lanes)
    for (int k = 0; k < lanes; ++k) sum[k] = sum[k] + a.part[d + k] * b.part[d + k];
  return Field<S>::total(sum);
}
template <class S>
S overlap(const Field<S>& a, const Field<S>& b, const S& fluctuation) {
  return overlap(a, a.rms(), b, b.rms(), fluctuation);
}

/// Value, mean slope and RMS slope of an activation as factors of an argument of size |x|, and the change of its slope.
template <class S>
struct Slopes {
  Slopes(Activation activation, const S& size) : activation_(activation), size_(size), inside_(S::one()) {
    if (activation == Activation::tanh) inside_ = bounded(S::one() / size);  // share of sites that do not saturate
  }
  Field<S> value(const Field<S>& x) const { return x * inside_; }
  Field<S> change(const Field<S>& dx) const {
    Field<S> d = dx * inside_;
    const S change = dx.rms();
    d.rest = d.rest + smaller(change, sqrt(change)) * sqrt(inside_);
    return activation_ == Activation::tanh ? d : dx;
  }
  Field<S> times_slope(const Field<S>& x) const {
    Field<S> d = x * inside_;
    if (activation_ == Activation::tanh) d.rest = d.rest + x.rms() * sqrt(inside_);
    return d;
  }
  /// RMS of phi'(x + dx) - phi'(x); `before` are the slopes at x.
  S slope_change(const S& dx, const Slopes& before) const {
    switch (activation_) {
      case Activation::tanh: return bounded(dx * (size_ + dx)) * sqrt(before.inside_);
      case Activation::relu: return sqrt(share(dx, size_ + dx));
      case Activation::gelu: return bounded(dx);
      case Activation::identity: break;
    }
    return {};
  }

 private:
  Activation activation_;
  S size_, inside_;
};

/// One of Q, A, B: initial part, what it was asked, and learned part. "forward" answers live on side X, "backward" ones on Y.
template <class S>
class Matrix {
 public:
  /// Directions of its answers begin at `forward_parts` on side X and at `backward_parts` on side Y, one a step.
  Matrix(const Gains<S>& gains, int forward_parts, int backward_parts)
      : gains_(gains), forward_parts_(forward_parts), backward_parts_(backward_parts) {
    forward_.reserve(times<S>);
    backward_.reserve(times<S>);
    learned_.reserve(times<S>);
  }

  /// The next query is the last one plus `increment`.
  void ask_forward(const Field<S>& increment) { forward_.push_back({increment.unit(), increment.rms()}); }
  void ask_backward(const Field<S>& increment) { backward_.push_back({increment.unit(), increment.rms()}); }

  /// W(0) x for an x made of the increments first, first + 1, ... of the queries so far.
  Field<S> forward(const Field<S>& x, int first = 0) const {
    return answer(x, first, gains_.chi, gains_.beta, forward_, forward_parts_, backward_, backward_parts_);
  }
  Field<S> backward(const Field<S>& z, int first = 0) const {
    return answer(z, first, gains_.beta, gains_.chi, backward_, backward_parts_, forward_, forward_parts_);
  }

  /// The response alone: for an x whose Gaussian answer the caller adds.
  Field<S> response_forward(const Field<S>& x) const { return response(x, gains_.beta, backward_, backward_parts_); }

  /// One update with gradient z x^T, (T15) to (T19) or (T22).
  void learn_linear(const Field<S>& z, const Field<S>& x, const S& lr) {
    learned_.push_back({lr, {z, z.rms()}, {x, x.rms()}});
  }
  /// `size` of an entrywise update: of order one unless eps is larger than the gradient.
  void learn_entrywise(const Field<S>& z, const Field<S>& x, const S& size) {
    learned_.push_back({size, unit_of(z), unit_of(x)});
  }
  Field<S> learned_forward(const Field<S>& x, const S& fluctuation) const {
    Field<S> sum;
    const S size = x.rms();
    for (const auto& u : learned_)
      sum = sum + u.left.field * (u.size * overlap(u.right.field, u.right.rms, x, size, fluctuation));
    return sum;
  }
  Field<S> learned_backward(const Field<S>& z, const S& fluctuation) const {
    Field<S> sum;
    const S size = z.rms();
    for (const auto& u : learned_)
      sum = sum + u.right.field * (u.size * overlap(u.left.field, u.left.rms, z, size, fluctuation));
    return sum;
  }

 private:
  struct Measured {
    Field<S> field;
    S rms;
  };
  struct Update {
    S size;
    Measured left, right;
  };
  static Measured unit_of(const Field<S>& f) {
    const Field<S> unit = f.unit();
    return {unit, unit.rms()};
  }

  /// (T12): Gaussian `gain` |x|; response `other_gain` times the part of x along an answer of the other side. Queries are kept as
  /// their directions and sizes.
  static Field<S> answer(const Field<S>& x, int first, const S& gain, const S& other_gain,
                         const std::vector<Measured>& asked, int own_parts, const std::vector<Measured>& others,
                         int other_parts) {
    Field<S> sum = response(x, other_gain, others, other_parts);
    for (int s = first; s < static_cast<int>(asked.size()); ++s)
      sum.part[own_parts + s] = sum.part[own_parts + s] + gain * asked[s].rms;
    return sum;
  }
  static Field<S> response(const Field<S>& x, const S& other_gain, const std::vector<Measured>& others,
                           int other_parts) {
    Field<S> sum;
    for (std::size_t j = 0; j < others.size(); ++j) {
      const S along = x.part[other_parts + static_cast<int>(j)];
      if (!along.is_zero()) sum = sum + others[j].field * (other_gain * along);
    }
    return sum;
  }

  Gains<S> gains_;
  int forward_parts_, backward_parts_;
  std::vector<Measured> forward_, backward_;
  std::vector<Update> learned_;
};

}  // namespace signal

/// Sizes by name at one step: the observables of support/observable.hpp and the atomic quantities listed in regimes/exponents.hpp.
template <class S>
using NamedSizes = std::vector<std::pair<const char*, S>>;

/// Trains symbolically: sizes at t = 0, 1, ..., the same names in the same order at each.
template <class S>
class SignalPropagation {
 public:
  explicit SignalPropagation(const SignalSetup<S>& setup) : c_(setup) {}

  /// What intervals may be cut to, because nobody asks for tables beyond: largest exponents at t = 0, at t = 1 and later, and smallest
  /// ones at the step before the last, in the order of the names.
  struct Limits {
    std::array<std::vector<double>, 3> highest;
    std::vector<double> lowest;
  };
  /// Kept by reference.
  void limit_to(const Limits& limits) { limits_ = &limits; }

  /// Sizes of the next step, the first time those at t = 0; at most late_step<S> + 1 times.
  const NamedSizes<S>& step() {
    if (!out_.empty()) {
      update();
      ++t_;
      out_.clear();
    }
    forward();
    backward();
    gradients();
    return out_;
  }

  std::vector<NamedSizes<S>> run() {
    std::vector<NamedSizes<S>> steps;
    for (int t = 0; t <= late_step<S>; ++t) steps.push_back(step());
    return steps;
  }

 private:
  using Field = signal::Field<S>;
  using Matrix = signal::Matrix<S>;
  using Slopes = signal::Slopes<S>;
  static constexpr int T = signal::times<S>;
  // Directions of neurons; of hidden units of experts; of experts.
  static constexpr int along_input = 0, along_readout = 1, along_y = 2, along_xi_A = 2 + T, along_xi_Q = 2 + 2 * T;
  static constexpr int along_u = 0, along_zeta = T;
  static constexpr int common = 0, along_r = 1, along_s = 1 + T;

  void record(const char* name, S& value) {
    if (limits_) {
      cap(value, limits_->highest[std::min(t_, 2)][out_.size()]);
      if (t_ == late_step<S> - 1) raise(value, limits_->lowest[out_.size()]);
    }
    out_.emplace_back(name, value);
  }
  void record(const char* name, S&& value) { record(name, value); }
  void record(const char* name, Field& field) {
    if (limits_) {
      const double highest = limits_->highest[std::min(t_, 2)][out_.size()];
      for (S& part : field.part) cap(part, highest);
      cap(field.rest, highest);
    }
    out_.emplace_back(name, field.rms());
  }
  static Field along(int direction, const S& size) {
    Field f;
    f.part[direction] = size;
    return f;
  }

  /// (1/K) sum over experts of a field over (expert, unit), for a matrix that all experts share.
  Field average_over_experts(Field f) const {
    const S whole = f.rms();
    for (int d = 0; d < 2 * T; ++d) {
      if (!is_shared(d)) f.part[d] = f.part[d] * over_experts_;
    }
    f.rest = f.rest * over_experts_ + whole * over_experts_;
    return f;
  }

  /// Does every expert have the same answers along direction d of the hidden units?
  bool is_shared(int d) const { return d < along_zeta ? c_.expert_in_shared : d < 2 * T && c_.expert_out_shared; }
  S shared(const Field& f) const {
    S sum{};
    for (int d = 0; d < 2 * T; ++d)
      if (is_shared(d)) sum = sum + f.part[d];
    return sum;
  }
  S differing(const Field& f) const {
    S sum = f.rest;
    for (int d = 0; d < 2 * T; ++d)
      if (!is_shared(d)) sum = sum + f.part[d];
    return sum;
  }

  void forward() {
    const bool start = t_ == 0;
    // (T1), (T21)
    record("change_h", h_learned_);
    Field h = along(along_input, c_.input) + h_learned_;
    record("rms_h", h);
    at_h_ = Slopes(c_.activation, h.rms());
    Field dphi = at_h_.change(h_learned_);
    record("change_phi", dphi);
    phi_ = at_h_.value(h);
    if (!start) phi_ = phi_ + dphi;
    record("rms_phi", phi_);
    phi_increment_ = start ? phi_ : dphi;

    // (T2), (T15)
    auto [r, dr] = answers_to_phi(router_, {"rms_r_init", "r_propagating", "rms_r_effective"});
    record("rms_r", r);
    record("change_r", dr);
    gate(r, dr);

    // (T3), (T16)
    auto [u, du] = answers_to_phi(expert_in_, {"rms_u_init", "u_propagating", "rms_u_effective"});
    for (const char* name : {"rms_u", "rms_u_all"}) record(name, u);
    record("change_u", du);
    at_u_ = Slopes(c_.activation, u.rms());
    du_ = du.rms();
    dv_ = at_u_.change(du);
    record("change_v", dv_);
    v_ = at_u_.value(u);
    if (start) v_start_ = v_, at_u_start_ = at_u_;
    if (!start) v_ = v_ + dv_;
    for (const char* name : {"rms_v", "rms_v_all"}) record(name, v_);

    aggregate();
    read_out();
  }

  /// What a matrix answers to phi, and how much of it has changed; the names of its initial, propagating and learned part.
  std::pair<Field, Field> answers_to_phi(Matrix& matrix, const std::array<const char*, 3>& names) {
    matrix.ask_forward(phi_increment_);
    Field init = matrix.forward(phi_), propagating = t_ == 0 ? Field{} : matrix.forward(phi_, 1);
    Field learned = matrix.learned_forward(phi_, over_neurons_);
    record(names[0], init);
    record(names[1], propagating);
    record(names[2], learned);
    return {init + learned, propagating + learned};
  }

  /// Gates: a constant of order one plus what varies from expert to expert.
  void gate(const Field& r, const Field& dr) {
    const S size = r.rms();
    gate_ = {};
    gate_change_ = {};
    r_inside_ = bounded(S::one() / size);
    r_size_ = size;
    dr_ = dr.rms();
    if (c_.topk) {
      gate_ = r.unit();
      if (!dr_.is_zero()) gate_change_ = sqrt(share(dr_, size));
    }
    if (!c_.gate_varies) return;
    gate_ = gate_ + r * r_inside_;
    gate_change_ = gate_change_ + bounded(dr_);
  }

  /// (T4), (T17), (T26)
  void aggregate() {
    const bool start = t_ == 0, shared = c_.expert_out_shared;
    // The gates of time t multiply v(0) too: what has changed of them is asked in the same query as what v has moved by, and belongs to
    // y_init.
    const auto asked = [&](const Field& f) { return shared ? average_over_experts(f) : f; };
    Field regated;
    regated.rest = gate_change_ * v_start_.rms();
    Gv_ = v_;
    Gv_increment_ = start ? v_ : dv_ + regated;
    expert_out_.ask_forward(asked(Gv_increment_));
    const S gain = c_.expert_out.chi;
    Field y_init = along(along_y, gain * asked(v_start_).rms()), y_propagating, y_regated;
    if (!start) {
      moved_asked_[t_] = asked(dv_).rms();
      regated_asked_[t_] = asked(regated).rms();
      y_propagating = expert_out_.response_forward(asked(dv_));
      for (int s = 1; s <= t_; ++s) {
        y_propagating.part[along_y + s] = y_propagating.part[along_y + s] + gain * moved_asked_[s];
        y_regated.part[along_y + s] = gain * regated_asked_[s];
      }
      y_init = y_init + y_regated;
    }
    Field y_learned = expert_out_.learned_forward(Gv_, over_units_);
    record("rms_y_init", y_init);
    record("rms_y_propagating", y_propagating);
    record("rms_y_effective", y_learned);
    y_ = y_init + y_propagating + y_learned;
    dy_ = y_propagating + y_learned + y_regated;
    record("rms_y", y_);
    record("change_y", dy_);
    // Each B_i v_i by itself: of independent experts, the sum has a Gaussian part smaller by M^(1/2).
    const S one_expert = shared ? gain : gain * sqrt(c_.experts);
    record("expert_output_init", one_expert * v_start_.rms());
    record("expert_output_propagating", start ? S{} : y_propagating.rms() + one_expert * dv_.rms());
    record("expert_output_effective", y_learned);
  }

  /// (T5), (T20)
  void read_out() {
    at_y_ = Slopes(c_.post_activation, y_.rms());
    if (t_ == 0) at_y_start_ = at_y_;
    stream_ = at_y_.value(y_);
    Field dstream = at_y_.change(dy_);
    if (t_ > 0) stream_ = stream_ + dstream;
    if (c_.residual) {
      stream_ = stream_ + phi_;
      if (t_ > 0) dstream = dstream + phi_increment_;
    }
    const Field start = along(along_readout, c_.readout);
    f_ = overlap(start + readout_learned_, stream_, over_neurons_);
    df_ = S{};
    if (t_ > 0) {
      S learned = overlap(readout_learned_, stream_, over_neurons_);
      df_ = learned + overlap(start, dstream, over_neurons_);
      record("f_effective", learned);
    } else {
      record("f_effective", S{});
    }
    record("rms_f", f_);
    record("change_f", df_);
  }

  void backward() {
    const bool start = t_ == 0;
    // (T6); a loss that is not bounded pulls with the size of f.
    delta_ = c_.loss_bounded ? S::one() : S::one() + f_;
    const S ddelta = c_.loss_bounded ? bounded(df_) : df_;
    const Field readout_start = along(along_readout, c_.readout);
    const Field D0 = (readout_start + readout_learned_) * delta_;
    const Field dD0 = readout_learned_ * delta_ + readout_start * ddelta;
    D_ = at_y_.times_slope(D0);
    Field dD;
    // Here and below: of a product a b, the change is a db + da b(0).
    if (start) {
      D0_start_ = D0.rms();
    } else {
      dD = at_y_.times_slope(dD0);
      dD.rest = dD.rest + D0_start_ * at_y_.slope_change(dy_.rms(), at_y_start_);
    }
    record("rms_D", D_);
    record("change_D", dD);

    // (T7), (T18)
    expert_out_.ask_backward(start ? D_ : dD);
    Field zeta_init = expert_out_.backward(D_);
    Field zeta_learned = expert_out_.learned_backward(D_, over_neurons_);
    Field zeta = zeta_init + zeta_learned;
    Field dzeta = start ? Field{} : expert_out_.backward(D_, 1) + zeta_learned;
    record("rms_zeta", zeta);
    record("rms_zeta_init", zeta_init);
    record("rms_zeta_effective", zeta_learned);
    record("change_zeta", dzeta);

    // (T8)
    ghat_ = at_u_.times_slope(zeta);
    Field dghat;
    if (start) {
      zeta_start_ = zeta.rms(), ghat_start_ = ghat_.rms();
    } else {
      dghat = at_u_.times_slope(dzeta);
      dghat.rest = dghat.rest + zeta_start_ * at_u_.slope_change(du_, at_u_start_) + ghat_start_ * gate_change_;
    }
    logits(zeta, dzeta);

    // (T10), (T19)
    const auto asked = [&](const Field& f) { return c_.expert_in_shared ? average_over_experts(f) : f; };
    expert_in_.ask_backward(asked(start ? ghat_ : dghat));
    Field A_init = expert_in_.backward(asked(ghat_));
    Field A_learned = expert_in_.learned_backward(ghat_, over_units_);
    Field Q_init = router_.backward(rho_), Q_learned = router_.learned_backward(rho_, over_experts_);
    xi_ = A_init + A_learned + Q_init + Q_learned;
    Field dxi;
    if (!start) dxi = expert_in_.backward(asked(ghat_), 1) + A_learned + router_.backward(rho_, 1) + Q_learned;
    if (c_.residual) {
      xi_ = xi_ + D0;
      if (!start) dxi = dxi + dD0;
    }
    record("rms_xi", xi_);
    record("rms_xi_A_init", A_init);
    record("rms_xi_A_effective", A_learned);
    record("rms_xi_Q_init", Q_init);
    record("rms_xi_Q_effective", Q_learned);
    record("change_xi", dxi);
  }

  /// (T9): s_i sums over the hidden units of an expert.
  void logits(const Field& zeta, const Field& dzeta) {
    const bool start = t_ == 0;
    S mean{};  // the same for all experts but for what their gates differ in
    for (int d = 0; d < 2 * T; ++d) mean = mean + v_.part[d] * zeta.part[d];
    // What is left of independent signs in that sum is the same for all experts as far as they share v and zeta.
    const S left = start ? differing(v_) * zeta.rms() + v_.rms() * differing(zeta)
                         : differing(dv_) * zeta.rms() + dv_.rms() * differing(zeta) +
                               differing(v_start_) * dzeta.rms() + v_start_.rms() * differing(dzeta);
    const S in_common =
        start ? shared(v_) * shared(zeta) : shared(dv_) * shared(zeta) + shared(v_start_) * shared(dzeta);
    s_change_[t_] = left * over_hidden_;
    s_common_[t_] = in_common * over_hidden_;
    Field s = gate_ * mean, ds;
    s.part[common] = mean;
    if (!start) ds = s;  // at t = 0 zeta is independent of v
    for (int k = 0; k <= t_; ++k) {
      s.part[along_s + k] = s.part[along_s + k] + s_change_[k];
      s.part[common] = s.part[common] + s_common_[k];
    }
    for (int k = 1; k <= t_; ++k) {
      ds.part[along_s + k] = ds.part[along_s + k] + s_change_[k];
      ds.part[common] = ds.part[common] + s_common_[k];
    }
    if (c_.gate_relative) s.part[common] = ds.part[common] = S{};

    rho_ = {};
    Field drho;
    if (c_.gate_varies) {
      // The share of gates that do not saturate has slope one and carries the mean square: over experts where there are many,
      // over initialisations where there are few.
      const S slope = sqrt(r_inside_);
      rho_ = s * r_inside_;
      rho_.rest = s.rms() * slope;
      if (start) {
        s_start_ = s.rms();
      } else {
        drho = ds * r_inside_;
        const S slope_change = bounded(dr_ * (r_size_ + dr_)) + (c_.topk ? gate_change_ : S{});
        drho.rest = ds.rms() * slope + s_start_ * (c_.gate_relative ? slope_change + bounded(dr_) : slope_change);
      }
    }
    if (c_.balanced) {
      // Loads differ by order one, along r that chooses and otherwise from expert to expert.
      rho_ = rho_ + gate_;
      rho_.rest = rho_.rest + S::one();
      drho.rest = drho.rest + bounded(dr_) + gate_change_;
    }
    record("rms_rho", rho_);
    record("change_rho", drho);
    router_.ask_backward(start ? rho_ : drho);
  }

  /// Gradients in the units of section 3, as the optimizer sees them, alone and over the eps of an entrywise rule.
  void gradients() {
    input_gradient_ = at_h_.times_slope(xi_);
    readout_gradient_ = stream_ * delta_;
    const PerTensor<S> size{{input_gradient_.rms(), rho_.rms() * phi_.rms(), ghat_.rms() * phi_.rms(),
                             D_.rms() * Gv_.rms(), readout_gradient_.rms()}};
    static constexpr std::array names = {"gradient_input", "gradient_router", "gradient_expert_in",
                                         "gradient_expert_out", "gradient_readout"};
    static constexpr std::array ratios = {"gradient_over_eps_input", "gradient_over_eps_router",
                                          "gradient_over_eps_expert_in", "gradient_over_eps_expert_out",
                                          "gradient_over_eps_readout"};
    record("gain_input", c_.input);
    record("chi_router", c_.router.chi);
    record("beta_router", c_.router.beta);
    record("chi_expert_in", c_.expert_in.chi);
    record("beta_expert_in", c_.expert_in.beta);
    record("chi_expert_out", c_.expert_out.chi);
    record("beta_expert_out", c_.expert_out.beta);
    record("gain_readout", c_.readout);
    static constexpr std::array rates = {"lr_input", "lr_router", "lr_expert_in", "lr_expert_out", "lr_readout"};
    static constexpr std::array scales = {"eps_input", "eps_router", "eps_expert_in", "eps_expert_out", "eps_readout"};
    for (std::size_t i = 0; i < names.size(); ++i) {
      record(rates[i], c_.lr.values[i]);
      record(scales[i], c_.linear ? S{} : c_.eps.values[i]);
      S gradient = size.values[i], ratio = c_.linear ? gradient : gradient / c_.eps.values[i];
      record(names[i], gradient);
      record(ratios[i], ratio);
      step_size_.values[i] = c_.lr.values[i] * (c_.linear ? S::one() : bounded(ratio));
    }
  }

  void update() {
    const auto learn = [&](Matrix& matrix, const Field& z, const Field& x, Tensor t) {
      if (c_.linear)
        matrix.learn_linear(z, x, step_size_[t]);
      else
        matrix.learn_entrywise(z, x, step_size_[t]);
    };
    learn(router_, rho_, phi_, Tensor::router);
    learn(expert_in_, ghat_, phi_, Tensor::expert_in);
    learn(expert_out_, D_, Gv_, Tensor::expert_out);
    const auto moved = [&](const Field& gradient, Tensor t) {
      return (c_.linear ? gradient : gradient.unit()) * step_size_[t];
    };
    h_learned_ = h_learned_ + moved(input_gradient_, Tensor::input);
    readout_learned_ = readout_learned_ + moved(readout_gradient_, Tensor::readout);
  }

  SignalSetup<S> c_;
  // What is left of independent signs in a mean over neurons, experts, hidden units, and over all units of all experts.
  S over_neurons_ = S::one() / sqrt(c_.neurons), over_experts_ = S::one() / sqrt(c_.experts);
  S over_hidden_ = S::one() / sqrt(c_.hidden);
  S over_units_ = c_.expert_in_shared || c_.expert_out_shared ? over_hidden_ : over_experts_ * over_hidden_;
  Matrix router_{c_.router, along_r, along_xi_Q};
  Matrix expert_in_{c_.expert_in, along_u, along_xi_A};
  Matrix expert_out_{c_.expert_out, along_y, along_zeta};
  int t_ = 0;
  const Limits* limits_ = nullptr;
  NamedSizes<S> out_;
  Field h_learned_, readout_learned_;  ///< h(t) - h(0); wbar(t) - wbar(0)
  // of the current step
  Field phi_, phi_increment_, gate_, v_, v_start_, dv_, Gv_, Gv_increment_, y_, dy_, stream_, D_, ghat_, rho_, xi_;
  Field input_gradient_, readout_gradient_;
  PerTensor<S> step_size_;
  S gate_change_{}, r_inside_{}, r_size_{}, dr_{}, du_{}, f_{}, df_{}, delta_{};
  std::array<S, T> moved_asked_{}, regated_asked_{};  ///< what each query of B asks of dv and of changed gates
  std::array<S, T> s_change_{}, s_common_{};          ///< left over from independent signs: by expert, of all experts
  static Slopes no_slopes() { return {Activation::identity, S::one()}; }
  Slopes at_h_ = no_slopes(), at_u_ = no_slopes(), at_y_ = no_slopes();
  // of t = 0
  Slopes at_u_start_ = no_slopes(), at_y_start_ = no_slopes();
  S D0_start_{}, zeta_start_{}, ghat_start_{}, s_start_{};
};

}  // namespace moe
