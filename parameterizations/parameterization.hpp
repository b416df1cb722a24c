/// Parameterizations are data: .toml files in this folder or given by path. No code knows "muP" or "MSSP".
#pragma once

#include <string>
#include <vector>

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

/// Powers of L that a stack of L blocks asks of the lr and eps of a block's tensors: L^(2 alpha - 1) for linear rules, L^(alpha - 1) and
/// L^-alpha for entrywise ones, alpha = branch_exponent; none if the table names L itself. (T29)
struct DepthLaws {
  PowerLaw lr, eps;
};
DepthLaws depth_laws(const TensorRule& rule, OptimizerKind optimizer, double branch_exponent);

/// The table resolved for one regime and one optimizer family ("sgd" for linear rules, "adam" for entrywise ones).
struct Parameterization {
  std::string name;
  std::string description;
  PerTensor<TensorRule> rule;
};

/// Loads `param` (a name in the parameterizations folder, or a path ending in .toml). Faults: unknown keys, missing tensors
/// or tables for this regime and optimizer, named with the file and line; where one of these two was refused, of the file alone.
/// Returns what could be read.
Parameterization load_parameterization(const RunSpec& spec, Faults& faults);
/// Throws ConfigError with the faults.
Parameterization load_parameterization(const RunSpec& spec);
/// Are regime and optimizer known? If not, faults of the table's file are added: more cannot be said of it.
bool rules_known(const RunSpec& spec, Faults& faults);

/// Folder of the tables that ship with the project: beside the executable's source tree, see .cpp.
std::string parameterizations_folder();
/// Names of the .toml files in a folder, without the ending, sorted.
std::vector<std::string> toml_names(const std::string& folder);

}  // namespace moe
