/// Networks against their limit, observable by observable: deviations, powers of N, extrapolation, verdicts. The statistics are
/// explained in docs/validation.md.
#pragma once

#include <Eigen/Core>
#include <optional>
#include <string>
#include <vector>

#include "regimes/exponents.hpp"
#include "validation/evidence.hpp"
#include "validation/observable_comparison.hpp"

namespace moe {

/// Fitted against predicted power of N of an observable at one stage of training.
struct ExponentComparison {
  std::string name;
  Stage stage = Stage::late;
  int step = 0;
  std::string per;                  ///< observable that it was divided by, seed by seed; empty: none
  std::optional<double> predicted;  ///< empty: identically zero, or not predicted, which the verdict says
  std::optional<double> at_most;    ///< predicted power that falling through eps may still hide; empty: nothing does
  double fitted = 0, error = 0;
  std::vector<double> value, value_error;  ///< per width
  Verdict verdict = Verdict::undecided;
  std::string reason;
};

/// What all verdicts come to. `not_comparable`: deviations where N -> infinity and eps -> 0 do not commute.
enum class Overall { positive, negative, undecided, not_comparable };
const char* to_string(Overall overall);

struct Comparison {
  std::vector<NetworkShape> shapes;
  std::vector<int> seeds, diverged;
  int replicas = 0, neurons = 0;
  int second_neurons = 0;  ///< of the solve that measures the bias; 0: none
  bool random_limit = false;
  int comparisons = 0;  ///< that share the level
  double level = 0;     ///< probability that a right theory is called wrong somewhere, at most
  std::vector<ObservableComparison> observables;
  std::vector<ExponentComparison> exponents;
  std::vector<std::string> notes;
  Overall overall = Overall::undecided;
  std::string reason;
};

/// Level of the whole comparison: Bonferroni divides it among observables and judged steps.
inline constexpr double comparison_level = 0.01;

/// Compares. Throws ConfigError when fewer than two widths, seeds or replicas are there.
Comparison compare(const Evidence& evidence);

/// Fitted powers of N of the atomic terms (rms_*_init, _propagating, _effective) that `of_table` speaks of, at t = 0, t = 1 and the last step. Seed by seed, learned parts are
/// divided by what they are proportional to where learning itself is delayed with size (theory section 7).
std::vector<ExponentComparison> compare_exponents(const Evidence& evidence,
                                                  const std::vector<ObservableExponents>& of_table);

}  // namespace moe
