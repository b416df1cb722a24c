/// Which tables have what one asks for: a single one checked, or all of them found by search.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "parameterizations/desiderata.hpp"
#include "parameterizations/parameterization.hpp"
#include "regimes/regime.hpp"
#include "support/run_spec.hpp"

namespace moe {

using Conditions = std::vector<const Condition*>;

/// Names that conditions may use: observables, atomic quantities, gains, learning rates and eps.
std::vector<std::string> known_quantities();

/// Is it about the rule of `spec`?
bool applies(const Condition& condition, const RunSpec& spec);

/// A condition that a table breaks, by one quantity at one stage.
struct Violation {
  const Condition* condition;
  std::string quantity, stage;
  double exponent;     ///< -infinity: identically zero; infinity: grows with every step
  std::string reason;  ///< of exponents.hpp; empty where the exponent is zero and should not be
};

/// Tables reduced to exponents along the regime's path: all that matters modulo constants, modulo the sizes that grow together, and, since
/// a table has no multipliers, modulo the abc-symmetry. One value of every entry, or several that are all solutions whatever the other
/// entries of the box.
struct TableBox {
  PerTensor<std::vector<double>> std, lr, eps;  ///< ascending; minus infinity for zero initialisation
  std::vector<int> expert_in_shared, expert_out_shared;
};

struct Derivation {
  Conditions relaxed;           ///< those that no table satisfies together with the others
  std::vector<TableBox> boxes;  ///< disjoint; together all solutions
  std::size_t solutions = 0;    ///< tables in all boxes
  std::size_t evaluations = 0;  ///< of signal propagation, on intervals or single tables
  double tables_searched = 0;   ///< size of the space
  TableBox space;               ///< all exponents tried, per entry
};

/// Checks one table. `relaxed`: conditions of the same desiderata that are, in this regime.
std::vector<Violation> violations(const Desiderata& desiderata, const Conditions& relaxed, const RunSpec& spec,
                                  const Parameterization& param);

/// All tables in the space of half-integer exponents (within two powers of N of the normalised order one; zero initialisation; sharing)
/// that satisfy the desiderata in the regime, under the rule and with the model of `spec`. If there is none, the conditions that may be
/// relaxed are, as few as needed; every such smallest set that has solutions gives one Derivation. Search by intervals: a partial table
/// whose sizes, with everything else between its bounds, cannot meet a condition is discarded with all its completions. Throws ConfigError
/// if the conditions leave so much to search that one choice of sharing takes more than `budget` evaluations of signal propagation (the
/// default is half a minute).
std::vector<Derivation> derive(const Desiderata& desiderata, const RunSpec& spec, std::size_t budget = 1'000'000);

/// Conditions as `derive` takes them back, without listing tables: the smallest sets that have to be relaxed for tables to be there; the
/// first if it is not decided soon. Where no set helps, conditions that no table satisfies together with those before them are left out of
/// the question.
std::vector<Conditions> relaxations(const Desiderata& desiderata, const RunSpec& spec);

/// Where `derive` finds nothing: every single condition that no table satisfies (relaxed, if it may be); if there is none, every pair; else
/// one set that no table satisfies, after leaving out, one after the other, conditions that are not needed for that.
std::vector<Conditions> conflicts(const Desiderata& desiderata, const RunSpec& spec);

/// Is the table, reduced to exponents, in one of the boxes?
bool contains(const Derivation& derivation, const RunSpec& spec, const Parameterization& param);

/// s_beta^2 / s_chi^2 of a matrix, which no std changes: what independent and shared experts can achieve.
struct GainRatio {
  Tensor tensor;
  bool shared;
  PowerLaw law;
  double exponent;
};
std::vector<GainRatio> gain_ratios(const RunSpec& spec);

}  // namespace moe
