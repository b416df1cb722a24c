/// A comparison as text for people.
#pragma once

#include <string>

#include "validation/comparison.hpp"

namespace moe {

/// Verdict, one line an observable, size exponents, notes. Ends with a line break.
std::string comparison_report(const Comparison& comparison);

/// Root mean squares against width, the limit beside them, one block a step: the coordinate check of one parameterization.
std::string coordinate_table(const Comparison& comparison);

}  // namespace moe
