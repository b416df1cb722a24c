#include "dmft/matched_draws.hpp"

#include <algorithm>

namespace moe {

bool lists_hold_first_step(const RunSpec& spec, const LimitConstants& c, const SampleCounts& counts,
                           const StepShape& step) {
  const bool per_expert = !regime_named(spec.model.regime).experts_sampled;
  const int P = step.samples, L = spec.model.depth;
  // Directions that a block of P queries may have; D = wbar Delta has no more than outputs where nothing but a linear psi follows.
  const bool linear = L == 1 && spec.model.norm == Norm::none && spec.model.post_activation == Activation::identity;
  const int of_D = linear ? std::min(step.outputs, P) : P;
  const auto matrices = [&](bool shared) { return per_expert && !shared ? counts.experts : 1; };
  const auto fits = [](int draws, int sites) { return draws <= sites / 2; };

  int on_neurons = 0;                                                // the list of one block; all are alike
  if (step.inputs <= counts.neurons / 4) on_neurons += step.inputs;  // W_in; drawn plainly otherwise
  if (c.readout_var > 0) on_neurons += step.outputs;
  if (per_expert && c.explicit_router_var > 0) on_neurons += counts.experts;
  if (c.expert_out.chi2 > 0) on_neurons += P * matrices(c.expert_out_shared);
  // On the way back to the first block the others draw for A^T and Q^T.
  if (L > 1 && c.expert_in.beta2 > 0) on_neurons += P * matrices(c.expert_in_shared);
  if (L > 1 && !per_expert && c.router.beta2 > 0) on_neurons += P;

  const int of_A = c.expert_in.chi2 > 0 ? P : 0, of_B = c.expert_out.beta2 > 0 ? of_D : 0;
  const auto sites = [&](bool shared) {  // what one list of A or B lives on
    return per_expert || shared ? counts.hidden : counts.experts * counts.hidden;
  };
  const bool one_list = c.expert_in_shared == c.expert_out_shared || per_expert;
  const bool hidden_fit = one_list ? fits(of_A + of_B, sites(c.expert_in_shared))
                                   : fits(of_A, sites(c.expert_in_shared)) && fits(of_B, sites(c.expert_out_shared));
  const bool experts_fit = per_expert || c.router.chi2 == 0 || fits(P, counts.experts);
  return fits(on_neurons, counts.neurons) && hidden_fit && experts_fit;
}

int matched_neurons(const RunSpec& spec, const LimitConstants& constants, const StepShape& step, int least, int most) {
  RunSpec candidate = spec;
  for (int S = least; S <= most; S += 32) {
    candidate.sampling.neurons = S;
    if (lists_hold_first_step(spec, constants, sample_counts(candidate, regime_named(spec.model.regime)), step))
      return S;
  }
  return 0;
}

}  // namespace moe
