/// The one list of observables (theory section 7): same names and definitions in the limit and in finite networks.
/// RMS over units and samples unless said. The samples at step t are the training set, under mini-batches the batch of step t; at
/// t = T the batch that step T would take. v(0) of (T26) is that of the same samples at the initial weights.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "support/run_spec.hpp"

namespace moe {

struct ObservableInfo {
  const char* name;
  const char* description;
  bool standard;  ///< part of observables = "standard"
};

inline constexpr std::array observable_table = {
    ObservableInfo{"rms_h", "first preactivation h (T1)", true},
    ObservableInfo{"rms_phi", "features phi(h) (T1)", true},
    ObservableInfo{"rms_r", "router logits r, all experts (T2)", true},
    ObservableInfo{"rms_r_init", "part of r from the initial router, Q(0) phi(t)", true},
    ObservableInfo{"rms_r_effective", "part of r from the learned router, (Q(t)-Q(0)) phi(t)", true},
    ObservableInfo{"rms_u", "expert preactivations u over active (expert, token) pairs (T3)", true},
    ObservableInfo{"rms_u_all", "expert preactivations u over all experts", true},
    ObservableInfo{"rms_u_init", "A(0) phi(t), all experts", true},
    ObservableInfo{"rms_u_effective", "(A(t)-A(0)) phi(t), all experts", true},
    ObservableInfo{"rms_v", "expert features phi(u) over active pairs", true},
    ObservableInfo{"rms_v_all", "expert features phi(u) over all experts", true},
    ObservableInfo{"rms_y", "aggregated output before psi (T4)", true},
    ObservableInfo{"rms_y_init", "(1/K) sum G(t) B(0) v(0) (T26)", true},
    ObservableInfo{"rms_y_propagating", "(1/K) sum G(t) B(0) (v(t)-v(0)) (T26)", true},
    ObservableInfo{"rms_y_effective", "(1/K) sum G(t) (B(t)-B(0)) v(t) (T26)", true},
    ObservableInfo{"rms_f", "outputs (T5)", true},
    ObservableInfo{"rms_D", "backward field D of y (T6), (T28)", true},
    ObservableInfo{"rms_zeta", "backward field of v (T7), all experts", true},
    ObservableInfo{"rms_zeta_init", "B(0)^T D", true},
    ObservableInfo{"rms_zeta_effective", "(B(t)-B(0))^T D", true},
    ObservableInfo{"rms_rho", "backward field of the logits (T9), all experts", true},
    ObservableInfo{"rms_xi", "backward field of phi (T10), residual part included", true},
    ObservableInfo{"rms_xi_A_init", "A(0)^T part of xi", true},
    ObservableInfo{"rms_xi_A_effective", "(A(t)-A(0))^T part of xi", true},
    ObservableInfo{"rms_xi_Q_init", "Q(0)^T part of xi", true},
    ObservableInfo{"rms_xi_Q_effective", "(Q(t)-Q(0))^T part of xi", true},
    ObservableInfo{"router_entropy", "exp(H)/K with p_i = G_i / sum G, mean over tokens", true},
    ObservableInfo{"load_q99", "99 % quantile over experts of the load (share of tokens choosing it, divided by kappa)",
                   true},
    ObservableInfo{"load_max", "largest load of an expert", true},
    ObservableInfo{"ess_forward", "effective number of experts, weights sum_a (G v)^2, smallest over tokens", true},
    ObservableInfo{"ess_backward", "effective number of experts, weights sum_a ghat^2, smallest over tokens", true},
    ObservableInfo{"change_h", "RMS of h(t)-h(0)", true},
    ObservableInfo{"change_phi", "RMS of phi(t)-phi(0)", false},
    ObservableInfo{"change_r", "RMS of r(t)-r(0)", true},
    ObservableInfo{"change_u", "RMS of u(t)-u(0), all experts", true},
    ObservableInfo{"change_v", "RMS of v(t)-v(0), all experts", false},
    ObservableInfo{"change_y", "RMS of y(t)-y(0)", true},
    ObservableInfo{"change_f", "RMS of f(t)-f(0)", false},
    ObservableInfo{"change_D", "RMS of D(t)-D(0)", false},
    ObservableInfo{"change_zeta", "RMS of zeta(t)-zeta(0)", false},
    ObservableInfo{"change_rho", "RMS of rho(t)-rho(0)", false},
    ObservableInfo{"change_xi", "RMS of xi(t)-xi(0)", false},
};

/// Kernels that [output] kernels_at stores, (P, P) each: population averages over neurons or over (expert, hidden unit).
inline constexpr std::array kernel_table = {
    ObservableInfo{"Phi", "<phi phi> over neurons; of a block behind others or a norm: of what it reads", true},
    ObservableInfo{"GvGv", "<Gv Gv> over (expert, hidden unit), inactive experts count as zero", true},
    ObservableInfo{"DD", "<D D> over neurons", true},
    ObservableInfo{"ghatghat", "<ghat ghat> over (expert, hidden unit)", true},
};

/// Fields of the stream belong to no block: h, phi, f and xi. Everything else every block has of its own.
inline bool is_of_block(const std::string& name) {
  const std::string field = name.starts_with("rms_")      ? name.substr(4)
                            : name.starts_with("change_") ? name.substr(7)
                                                          : name;
  return field != "h" && field != "phi" && field != "f" && field != "xi";
}

/// A quantity as it is recorded: one block's where it belongs to blocks. In memory block 2 of three has "rms_y.2"; files have an axis
/// of blocks. With one block, and for what is the stream's, key and name are the same.
struct Recorded {
  std::string key, name;
  int block = 0;  ///< from 0
};
inline std::vector<Recorded> recorded(const std::string& name, int depth) {
  if (depth == 1 || !is_of_block(name)) return {{name, name, 0}};
  std::vector<Recorded> of_blocks;
  of_blocks.reserve(static_cast<std::size_t>(depth));
  for (int l = 0; l < depth; ++l) of_blocks.push_back({name + "." + std::to_string(l + 1), name, l});
  return of_blocks;
}
template <class Names>
std::vector<Recorded> recorded_all(const Names& names, int depth) {
  std::vector<Recorded> all;
  for (const auto& name : names)
    for (auto& one : recorded(name, depth)) all.push_back(std::move(one));
  return all;
}

/// change_* compares with t = 0 on the same samples: not defined under mini-batches.
inline bool needs_fixed_samples(const std::string& observable) { return observable.starts_with("change_"); }

/// Names selected by [output] observables, in table order; `standard`, `all`, `none` or a list. validate() has checked them.
/// What is not defined under mini-batches is left out there.
inline std::vector<std::string> selected_observables(const RunSpec& spec) {
  const auto& want = spec.output.observables;
  const bool all = want.size() == 1 && want[0] == "all", standard = want.size() == 1 && want[0] == "standard";
  std::vector<std::string> names;
  for (const auto& o : observable_table) {
    bool named = all || (standard && o.standard);
    for (const auto& w : want) named = named || w == o.name;
    if (spec.training.batch > 0 && needs_fixed_samples(o.name)) continue;
    if (named) names.emplace_back(o.name);
  }
  return names;
}

/// Observables that [output] observables names one by one although they are not defined under mini-batches: for warnings.
inline std::vector<std::string> undefined_observables(const RunSpec& spec) {
  std::vector<std::string> names;
  for (const auto& name : spec.output.observables)
    if (spec.training.batch > 0 && needs_fixed_samples(name)) names.push_back(name);
  return names;
}

}  // namespace moe
