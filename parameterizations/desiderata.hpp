/// What one may ask of a parameterization: named conditions on size exponents, as .toml files in parameterizations/desiderata or given by
/// path (docs/parameterizations.md).
#pragma once

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "support/error.hpp"

namespace moe {

/// What becomes of a condition that no table satisfies together with the others.
enum class IfImpossible { fail, drop, zero };

/// Every quantity at every stage named has an exponent in [min, max]. Identically zero counts as the exponent minus infinity.
struct Condition {
  std::string id;                            ///< of a family; several conditions may share one
  std::string says;                          ///< in words
  std::vector<std::string> quantities;       ///< observables and atomic quantities by name
  std::array<bool, 3> at{true, true, true};  ///< init, first_step, late
  double min = -std::numeric_limits<double>::infinity(), max = std::numeric_limits<double>::infinity();
  IfImpossible if_impossible = IfImpossible::fail;  ///< zero: every quantity must be identically zero instead
  std::string optimizer = "any";                    ///< sgd: linear rules only; adam: entrywise rules only
};

struct Desiderata {
  std::string name, description;
  std::vector<Condition> conditions;
};

/// Loads `which` (a name in parameterizations/desiderata or the path of a .toml); conditions whose id is in `without` are left out, an id
/// there that no condition has is a fault. `known`: the quantities there are. Faults name file and line.
Desiderata load_desiderata(const std::string& which, const std::vector<std::string>& known,
                           const std::vector<std::string>& without, Faults& faults);

}  // namespace moe
