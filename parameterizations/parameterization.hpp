/// Parameterizations are data: .toml files in this folder or given by path. No code knows "muP" or "MSSP".
#pragma once

#include <string>

#include "parameterizations/power_law.hpp"
#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// What the table says of one tensor: lr multiplies optimizer.lr * lr_scale, eps multiplies optimizer.eps.
struct TensorRule {
  PowerLaw std;
  PowerLaw lr;
  PowerLaw eps;
  bool shared = false;       ///< experts start equal
  bool names_depth = false;  ///< lr or eps names L itself, so (T29) does not apply
};

/// The table resolved for one regime and one optimizer family ("sgd" for linear rules, "adam" for entrywise ones).
struct Parameterization {
  std::string name;
  std::string description;
  PerTensor<TensorRule> rule;
};

/// Loads `param` (a name in the parameterizations folder, or a path ending in .toml). Faults: unknown keys, missing tensors
/// or tables for this regime and optimizer, named with the file and line. Returns what could be read.
Parameterization load_parameterization(const RunSpec& spec, Faults& faults);

/// Folder of the tables that ship with the project: beside the executable's source tree, see .cpp.
std::string parameterizations_folder();

}  // namespace moe
