/// The computations behind dmft_validate: limit, limit with fewer samples, networks; the same over learning rates.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "validation/lr_sweep.hpp"
#include "validation/network.hpp"

namespace moe {

/// Set by SIGINT and SIGTERM once on_signals() was called: computations finish their step and return what they have. A second signal
/// ends the program.
extern std::atomic<bool> interrupted;
void on_signals();

/// The same limit from fewer samples, drawn anew: the difference measures its bias. Half as many; more where lists of draws would not
/// hold the first step's, whose bias is of another kind; none where less than a fifth could be saved, and none where the limit is
/// random: networks of as many neurons are compared with that.
std::optional<RunSpec> second_solve(const RunSpec& spec, const Dataset& data);

/// Faults of what cannot run, or what memory of solver or trainer, or the file system of the result, cannot hold. Without data what
/// does not depend on it is looked at.
void check_run(const RunSpec& spec, const Dataset* data, const ProgramOptions& options, Faults& faults);

/// What was computed; after an interrupt or a limit that diverged only parts of it.
struct ValidationRun {
  std::optional<LimitResult> limit, second;
  std::vector<std::vector<NetworkRun>> runs;  ///< [width][seed]
  bool complete = false;
};

/// One progress over everything, labelled `label`.
ValidationRun run_validation(RunSpec spec, const Dataset& data, const ProgramOptions& options,
                             const std::string& label);

/// Limit and networks at every learning rate, the smallest first; without observables. After an interrupt only the rates that were
/// finished. Diverged runs count as infinite losses.
LrSweep run_lr_sweep(const RunSpec& spec, const Dataset& data, const ProgramOptions& options,
                     const std::vector<double>& eta, SweepCriterion criterion);

}  // namespace moe
