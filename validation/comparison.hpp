/// Networks against their limit, observable by observable: deviations, powers of N, extrapolation, verdicts. The statistics are
/// explained in docs/validation.md.
#pragma once

#include <Eigen/Core>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dmft/solve.hpp"
#include "validation/network.hpp"
#include "validation/power_law_fit.hpp"

namespace moe {

#if __has_include("regimes/exponents.hpp")
#include "regimes/exponents.hpp"
#else
enum class Stage { init, first_step, late };
#endif

/// Curves of all seeds of one width: (seeds, steps) by name - "loss", "batch_loss", "test_loss", "accuracy", "test_accuracy" and the
/// observables. Seeds that diverged are left out and counted.
struct NetworkSamples {
  NetworkShape shape;
  std::map<std::string, Eigen::MatrixXd> curves;
  int diverged = 0;
  Eigen::Index seeds() const { return curves.empty() ? 0 : curves.begin()->second.rows(); }
};

/// Means over replicas by the same names.
struct LimitSamples {
  std::map<std::string, Curve> curves;
  int replicas = 0, neurons = 0;
  bool matching = true, random_limit = false;
  std::string status = "complete";
};

/// Everything a comparison is made of. `half` is a second solve with half the samples, which measures the limit's bias.
struct Evidence {
  RunSpec spec;
  std::map<std::string, std::vector<int>> steps;  ///< of every curve, by name
  std::vector<NetworkSamples> networks;           ///< at least two widths, ascending
  LimitSamples limit;
  std::optional<LimitSamples> half;
  std::vector<std::string> notes;  ///< what the reader of the report has to know, one sentence each
  bool eps_matters = false;        ///< entrywise rule, small eps, a gradient that vanishes with size (theory section 5)
};

enum class Verdict { agrees, deviates, undecided, not_judged };
const char* to_string(Verdict verdict);

/// One observable at all of its steps. Vectors have one entry a step; matrices (widths, steps). NaN where not defined.
struct ObservableComparison {
  std::string name, description;
  std::vector<int> steps;
  std::vector<double> limit, limit_error;                      ///< mean over replicas, standard error
  std::vector<double> limit_corrected, limit_corrected_error;  ///< without its bias of order 1/S, all errors
  Eigen::MatrixXd mean, mean_error;                            ///< of the networks
  Eigen::MatrixXd deviation_z;                                 ///< (mean - limit_corrected) in combined errors
  std::vector<double> slope, slope_error;                      ///< of log |deviation| against log N, where it is seen
  std::vector<double> extrapolated, extrapolated_error;        ///< networks at N = infinity; random limit: at N = S
  std::vector<double> z, degrees;                              ///< extrapolated against limit_corrected
  std::vector<double> bound;                                   ///< that |z| may reach; NaN at steps that are not judged
  Eigen::MatrixXd variance;                                    ///< over seeds; random limit only, like the next three
  std::vector<double> limit_variance, variance_z, variance_bound;
  double power = 1;      ///< corrections are taken as N^-power
  bool squared = false;  ///< a root mean square: extrapolated as its square
  Verdict verdict = Verdict::not_judged;
  std::string reason;
  int worst_step = -1;     ///< of the judged steps
  double worst_z = 0;      ///< z there (random limit: of mean or variance)
  double worst_share = 0;  ///< |z| / bound there: deviates above 1
  double resolution = 0;   ///< relative difference that would have been seen (median over judged steps)
};

/// Fitted against predicted power of N of an observable at one stage of training.
struct ExponentComparison {
  std::string name;
  Stage stage = Stage::late;
  int step = 0;
  std::string per;  ///< observable that it was divided by, seed by seed; empty: none
  std::optional<double> predicted;
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
  bool random_limit = false, half_solve = false;
  std::vector<int> judged_steps;  ///< of the observables
  int comparisons = 0;            ///< that share the level
  double level = 0;               ///< probability that a right theory is called wrong somewhere, at most
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

/// 0, 1, 2, 4, 8, ... as far as they are among `steps`, and the last: steps far enough apart to say different things.
std::vector<int> judged_steps(const std::vector<int>& steps);

/// Sets Evidence::eps_matters out of the description, with a note that says so.
void note_small_eps(Evidence& evidence);

/// Evidence out of what was computed in this process.
NetworkSamples network_samples(const std::vector<NetworkRun>& runs);
LimitSamples limit_samples(const LimitResult& result);
Evidence evidence_of(const RunSpec& spec, const std::vector<std::vector<NetworkRun>>& runs, const LimitResult& limit,
                     const LimitResult* half);

}  // namespace moe
