/// A co-scaling regime is a value: which sizes grow, hence which populations are sampled and which matrices are
/// stacked.
#pragma once

#include <string>
#include <vector>

#include "parameterizations/parameterization.hpp"
#include "parameterizations/power_law.hpp"
#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

struct Regime {
  std::string name;
  Sizes growth;          ///< exponent of each size in N along the regime's path: 0 or 1 here
  bool experts_sampled;  ///< M grows: experts are a population; otherwise explicit, one Gaussian operator per expert
  bool hidden_sampled;   ///< N_e grows: hidden units are a population; otherwise explicit
  int default_neurons;   ///< sampling.neurons when nothing is said
};

/// I, II or III; throws std::out_of_range for another name (validate() reports it to users before).
const Regime& regime_named(const std::string& name);

/// Integer sizes of the network of width N that a spec describes: M = round(rho_M N) and N_e = round(rho_e N) where
/// they grow, K = max(1, round(kappa M)), halves away from zero; soft routing has K = M. Throws ConfigError where M or
/// N_e would be 0.
Sizes network_sizes(const RunSpec& spec, int N, int D);

/// kappa of the description: active_fraction with top-K, 1 with soft routing.
double active_fraction(const RunSpec& spec);

/// (SX, SY) independent parts of one initial Gaussian matrix: theory section 4.
struct GaussianConstants {
  double chi2 = 0;   ///< s_chi^2: variance of a forward answer per unit of <x x>
  double beta2 = 0;  ///< s_beta^2: variance of a backward answer per unit of <z z>
  /// False leaves the responses out, as if gradients were independent of the matrices they pass: wrong, and there to show by how much.
  bool responses = true;
};

/// Everything that the limit needs to know of parameterization, regime and multipliers. All values are the limits of
/// the normalised quantities of theory sections 3 and 4, with init_scale, lr_scale, aggregation and output scale taken
/// in.
struct LimitConstants {
  GaussianConstants router;        ///< Q; not used where router_is_explicit
  GaussianConstants expert_in;     ///< A: stacked, shared or of one expert
  GaussianConstants expert_out;    ///< B
  double input_var = 1;            ///< D Var W_in
  double readout_var = 1;          ///< N^2 Var W_out (0 with readout_init = zero)
  double explicit_router_var = 0;  ///< N^2 Var Q where experts are explicit (regime I)
  bool expert_in_shared = false;
  bool expert_out_shared = false;
  PerTensor<double> lr;               ///< eta of section 3, 0 = frozen
  PerTensor<double> eps;              ///< normalised eps of an entrywise rule
  std::vector<std::string> warnings;  ///< frozen tensors and the like, one sentence each
};

/// Limit constants along the regime's path, by the power laws alone. A positive exponent of a variance or a learning
/// rate is a fault that names tensor, quantity and exponent ("no limit of this form"). Sharing where the hidden units
/// do not grow, and signSGD where a gradient vanishes, are faults too.
LimitConstants limit_constants(const RunSpec& spec, const Parameterization& param, const Regime& regime, int D,
                               Faults& faults);

/// The variances, learning rates and eps of theory sections 3 and 4 as power laws in the sizes, with init_scale, lr_scale,
/// aggregation and output scale taken in.
struct NormalLaws {
  struct Sides {
    PowerLaw chi2, beta2;
  };
  PowerLaw input;    ///< D Var W_in
  PowerLaw readout;  ///< N^2 Var W_out
  Sides router, expert_in, expert_out;
  PowerLaw explicit_router;  ///< N^2 Var Q
  PerTensor<PowerLaw> lr, eps;
};
NormalLaws normal_laws(const RunSpec& spec, const Parameterization& param, const Regime& regime);

/// A quantity of the limit as a power law in the sizes, before it is taken along the regime's path: for tables of
/// exponents.
struct SizeLaw {
  Tensor tensor;
  std::string quantity;  ///< "s_chi^2", "s_beta^2", "D Var W_in", "normalised learning rate", "normalised eps", ...
  PowerLaw law;
  double exponent = 0;  ///< in N along the regime's path; 0 for a law that is identically zero
  double limit = 0;     ///< along the path, where the exponent is not positive
};
/// Everything that enters the limit (theory section 4), in the order of the tensors; eps only for entrywise rules.
std::vector<SizeLaw> size_laws(const RunSpec& spec, const Parameterization& param, const Regime& regime);

/// Trainable tensors whose gradient at t = 0 vanishes with size (theory section 5): there an entrywise rule with small
/// eps and the limit N -> infinity do not commute.
std::vector<Tensor> vanishing_gradients(const RunSpec& spec, const Regime& regime, const LimitConstants& constants);

/// Numbers of one finite network. Throws ConfigError where a power law leaves the range of numbers. init_scale and
/// lr_scale are taken in; aggregation prefactor and output scale are not.
struct NetworkConstants {
  PerTensor<double> std, lr, eps;
  bool expert_in_shared = false, expert_out_shared = false;
  double aggregation = 1;  ///< prefactor c of sum_i G_i B_i v_i
};
NetworkConstants network_constants(const RunSpec& spec, const Parameterization& param, const Sizes& sizes);

/// Sample counts of the limit in the network's true ratios (theory section 6), or what the spec says. sample_counts
/// throws ConfigError where a population would be empty.
struct SampleCounts {
  int neurons = 0, experts = 0, hidden = 0;  ///< experts = M in I, hidden = N_e in II
  int active = 0;                            ///< K_S
  double kappa() const { return static_cast<double>(active) / experts; }
};
SampleCounts sample_counts(const RunSpec& spec, const Regime& regime);

}  // namespace moe
