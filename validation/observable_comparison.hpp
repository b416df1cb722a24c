/// One observable of networks against its limit: deviations, powers of N, extrapolation, verdict. The statistics are explained in
/// docs/validation.md.
#pragma once

#include <Eigen/Core>
#include <string>
#include <vector>

#include "validation/evidence.hpp"
#include "validation/extrapolation.hpp"

namespace moe {

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
  std::vector<double> error;  ///< of that difference, in the units that are compared (the square of a root mean square)
  std::vector<double> bound;  ///< that |z| may reach; NaN at steps that are not judged
  Eigen::MatrixXd variance;   ///< over seeds; random limit only, like the next three
  std::vector<double> limit_variance, variance_z, variance_bound;
  double size = 0;       ///< largest value, of limit and networks, to which differences are relative
  double power = 1;      ///< corrections are taken as N^-power
  bool squared = false;  ///< a root mean square: extrapolated as its square
  Verdict verdict = Verdict::not_judged;
  std::string reason;
  int worst_step = -1;     ///< of the judged steps
  double worst_z = 0;      ///< z there (random limit: of mean or variance)
  double worst_share = 0;  ///< |z| / bound there: deviates above 1
  double resolution = 0;   ///< relative difference that would have been seen (median over judged steps)
};

/// What is compared: losses, accuracies, observables.
struct Quantity {
  std::string name, description;
  bool squared = false;         ///< a root mean square
  const char* not_judged = "";  ///< why, if so
  bool judged() const { return *not_judged == '\0'; }
};
/// `depth`: observables of blocks are compared block by block.
std::vector<Quantity> all_quantities(int depth);

/// 0, 1, 2, 4, 8, ... as far as they are among `steps`, and the last: steps far enough apart to say different things.
std::vector<int> judged_steps(const std::vector<int>& steps);

/// Everything but bounds and verdict, of a quantity that networks and limit have.
ObservableComparison compare_observable(const Evidence& evidence, const Quantity& quantity);

/// Bounds at the level of a single comparison, and what follows. `random`: variances are judged too. S: samples of the limit.
void judge(ObservableComparison& comparison, double level, bool random, int S);

}  // namespace moe
