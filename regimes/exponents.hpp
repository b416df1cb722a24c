/// Size exponents of what is measured, predicted from the table alone (docs/parameterizations.md says how).
#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "parameterizations/parameterization.hpp"
#include "regimes/regime.hpp"
#include "regimes/signal.hpp"
#include "support/run_spec.hpp"

namespace moe {

enum class Stage {
  init,
  first_step,
  late
};  ///< t = 0; after one update; late in training, when correlations have developed
inline constexpr int num_stages = 3;
inline constexpr std::array<const char*, num_stages> stage_names = {"init", "first_step", "late"};
/// The step at which each is read.
template <class S>
inline constexpr std::array<int, num_stages> step_of_stage = {0, 1, late_step<S>};

/// Exponents that differ from zero by less are zero: tables write 1/3 in decimals.
inline constexpr double zero_exponent = 1e-9;
inline double snapped(double exponent) { return std::abs(exponent) < zero_exponent ? 0 : exponent; }

/// Of an observable of support/observable.hpp, or of a quantity of atomic_table, along the regime's path (N ~ N_e in I; N ~ M ~ K in
/// II; all four in III).
struct ObservableExponents {
  std::string name;
  /// Exponent of N of its RMS by Stage; nothing: identically zero, or not defined. `unbounded` where it grows with every step.
  std::array<std::optional<double>, num_stages> at;
  std::string reason;  ///< one sentence where it is not zero: what vanishes or explodes and why
};

/// What signal propagation knows of besides the observables, in units in which order one is right (section 3).
struct AtomicInfo {
  const char* name;
  const char* description;
};
inline constexpr std::array atomic_table = {
    AtomicInfo{"r_propagating", "Q(0) (phi(t) - phi(0))"},
    AtomicInfo{"u_propagating", "A(0) (phi(t) - phi(0))"},
    AtomicInfo{"expert_output_init", "B_i(0) v_i(0) of one expert, before the sum over experts"},
    AtomicInfo{"expert_output_propagating", "B_i(0) (v_i(t) - v_i(0)) of one expert, before the sum over experts"},
    AtomicInfo{"expert_output_effective", "(B_i(t) - B_i(0)) v_i(t) of one expert"},
    AtomicInfo{"f_effective", "(W_out(t) - W_out(0)) s(t)"},
    AtomicInfo{"gain_input", "size of the initial h: D^(1/2) std of W_in"},
    AtomicInfo{"chi_router", "s_chi of Q: initial logits per unit of phi (T12)"},
    AtomicInfo{"beta_router", "s_beta of Q: initial backward answers per unit of rho (T13)"},
    AtomicInfo{"chi_expert_in", "s_chi of A: initial u per unit of phi"},
    AtomicInfo{"beta_expert_in", "s_beta of A: initial backward answers per unit of ghat"},
    AtomicInfo{"chi_expert_out", "s_chi of B: initial y per unit of G v"},
    AtomicInfo{"beta_expert_out", "s_beta of B: initial zeta per unit of D"},
    AtomicInfo{"gain_readout", "size of the initial N W_out"},
    AtomicInfo{"lr_input", "learning rate in the units of section 3: what W_in moves h by, per unit of gradient"},
    AtomicInfo{"lr_router", "the same of Q and r"},
    AtomicInfo{"lr_expert_in", "the same of A and u"},
    AtomicInfo{"lr_expert_out", "the same of B and y"},
    AtomicInfo{"lr_readout", "the same of W_out"},
    AtomicInfo{"eps_input", "eps in the units of the gradient (section 3), entrywise rules only"},
    AtomicInfo{"eps_router", "the same of Q"},
    AtomicInfo{"eps_expert_in", "the same of A"},
    AtomicInfo{"eps_expert_out", "the same of B"},
    AtomicInfo{"eps_readout", "the same of W_out"},
    AtomicInfo{"gradient_input", "phi'(h) xi, gradient of W_in times N (T11)"},
    AtomicInfo{"gradient_router", "rho phi, gradient of Q times K"},
    AtomicInfo{"gradient_expert_in", "ghat phi, gradient of A times K N_e"},
    AtomicInfo{"gradient_expert_out", "D G v, gradient of B times K N"},
    AtomicInfo{"gradient_readout", "gradient of W_out"},
    AtomicInfo{"gradient_over_eps_input", "what an entrywise rule sees of it, in units of its eps"},
    AtomicInfo{"gradient_over_eps_router", "what an entrywise rule sees of it, in units of its eps"},
    AtomicInfo{"gradient_over_eps_expert_in", "what an entrywise rule sees of it, in units of its eps"},
    AtomicInfo{"gradient_over_eps_expert_out", "what an entrywise rule sees of it, in units of its eps"},
    AtomicInfo{"gradient_over_eps_readout", "what an entrywise rule sees of it, in units of its eps"},
};

/// All of observable_table, in its order. Throws ConfigError where the table cannot be read. optimizer.eps = 0 is the idealisation that
/// takes eps -> 0 before N -> infinity; with any other value eps keeps the power of the table.
std::vector<ObservableExponents> observable_exponents(const RunSpec& spec);
std::vector<ObservableExponents> observable_exponents(const RunSpec& spec, const Parameterization& param);

/// The same of atomic_table.
std::vector<ObservableExponents> atomic_exponents(const RunSpec& spec, const Parameterization& param);

/// Why a factor N^amount is there: what averages out or grows, and the entry of the table that causes it. The words of every refusal.
std::string cause_text(Cause cause, double amount, const Parameterization& param, const Regime& regime);

/// What signal propagation starts from: sizes by the table's power laws, structure by the description.
template <class S>
SignalSetup<S> signal_setup(const RunSpec& spec, const Parameterization& param, const Regime& regime);

}  // namespace moe
