/// How many neurons a solve needs for moment matching to be of one kind: lists of draws that hold what the first step draws.
#pragma once

#include "dmft/limit_spec.hpp"

namespace moe {

/// True where the lists of all populations, half as long as the population (theory section 6), hold everything that is drawn up to
/// the first answers of B^T. Where they do not, matched and plain draws mix from the start, which biases backward fields by several
/// per cent, and leaves out zeta where hidden units are no more than samples (docs/results.md).
bool lists_hold_first_step(const RunSpec& spec, const LimitConstants& constants, const SampleCounts& counts,
                           const StepShape& step);

/// The fewest neurons from `least` on, in steps of 32, for which they do; 0 if that takes more than `most`.
int matched_neurons(const RunSpec& spec, const LimitConstants& constants, const StepShape& step, int least, int most);

}  // namespace moe
