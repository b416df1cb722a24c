/// From a base model to a target: which regime the path is in, and what to multiply every tensor's settings by.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "parameterizations/parameterization.hpp"
#include "regimes/regime.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Of a command line, and which of them it says.
struct GivenSizes {
  Sizes sizes;
  std::set<std::string> given;
};
/// "N=256,M=16,Ne=64,K=4,L=12". D is 1 unless said; every other size must be there, L apart (1). Faults name `flag`.
GivenSizes parse_sizes(const std::string& text, const std::string& flag, Faults& faults);

/// Where a path lies between the regimes.
struct PathKind {
  std::string regime;       ///< the regime, or the one of whose sizes the same ones grow
  bool exact = false;       ///< every size that grows does so in proportion to N, the others stay
  std::string description;  ///< one or two sentences
};
PathKind path_kind(const Sizes& base, const Sizes& target);

/// What a role's settings of the target are, in units of those of the base.
struct RoleMultipliers {
  std::string role, like;  ///< "expert_down"; which tensor of the theory it is, with which sizes
  std::optional<double>
      std;  ///< nothing: starts at a value of its own (norms at 1, biases at 0); 0: zero initialisation
  double lr = 1, eps = 1;
  double weight_decay = 1;  ///< of PyTorch's decoupled decay lr * weight_decay, so that the product stays
  bool shared = false;      ///< the experts start equal
};
std::vector<RoleMultipliers> role_multipliers(const RunSpec& spec, const Parameterization& param, const Sizes& base,
                                              const Sizes& target);

/// What of sections 3 and 4 is not the same at both ends: everything that a table should keep.
struct Drift {
  Tensor tensor;
  std::string quantity;
  double ratio;  ///< target over base
};
std::vector<Drift> drifts(const RunSpec& spec, const Parameterization& param, const Sizes& base, const Sizes& target);

/// Python source, self-contained: a name-to-role map in, PyTorch parameter groups out.
std::string python_snippet(const RunSpec& spec, const std::vector<RoleMultipliers>& multipliers, const Sizes& base,
                           const Sizes& target);

}  // namespace moe
