#include "dmft/matched_draws.hpp"

#include <algorithm>

namespace moe {

namespace {

/// Directions that the first D of P samples may have; D = wbar Delta has no more than outputs where nothing but a linear psi follows.
int directions_of_D(const RunSpec& spec, const StepShape& step) {
  const ModelSpec& m = spec.model;
  const bool linear = m.depth == 1 && m.norm == Norm::none && m.post_activation == Activation::identity;
  return linear ? std::min(step.outputs, step.samples) : step.samples;
}

/// Of what one matrix A or B of these experts answers on.
int sites_of_experts(const RunSpec& spec, const SampleCounts& counts, bool shared) {
  const bool per_expert = !regime_named(spec.model.regime).experts_sampled;
  return per_expert || shared ? counts.hidden : counts.experts * counts.hidden;
}

/// What the neurons' list of a block begins with: W_in, which is plain where it is long, wbar and the router of explicit experts.
int first_on_neurons(const RunSpec& spec, const LimitConstants& c, const SampleCounts& counts, const StepShape& step) {
  int draws = step.inputs <= counts.neurons / 4 ? step.inputs : 0;
  if (c.readout_var > 0) draws += step.outputs;
  if (!regime_named(spec.model.regime).experts_sampled && c.explicit_router_var > 0) draws += counts.experts;
  return draws;
}

}  // namespace

bool lists_hold_first_step(const RunSpec& spec, const LimitConstants& c, const SampleCounts& counts,
                           const StepShape& step) {
  const bool per_expert = !regime_named(spec.model.regime).experts_sampled;
  const int P = step.samples, L = spec.model.depth;
  const auto matrices = [&](bool shared) { return per_expert && !shared ? counts.experts : 1; };
  const auto fits = [](int draws, int sites) { return draws <= sites / 2; };

  int on_neurons = first_on_neurons(spec, c, counts, step);  // the list of one block; all are alike
  if (c.expert_out.chi2 > 0) on_neurons += P * matrices(c.expert_out_shared);
  // On the way back to the first block the others draw for A^T and Q^T.
  if (L > 1 && c.expert_in.beta2 > 0) on_neurons += P * matrices(c.expert_in_shared);
  if (L > 1 && !per_expert && c.router.beta2 > 0) on_neurons += P;

  const int of_A = c.expert_in.chi2 > 0 ? P : 0, of_B = c.expert_out.beta2 > 0 ? directions_of_D(spec, step) : 0;
  const auto sites = [&](bool shared) { return sites_of_experts(spec, counts, shared); };
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
