/// Learning-rate transfer: loss against learning rate for networks of several widths and for the limit, their optima, and what one
/// size's optimum costs another.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dmft/solve.hpp"
#include "support/hdf5.hpp"
#include "validation/network.hpp"

namespace moe {

/// Which loss is to be small: mean over the last tenth of the steps (under mini-batches of the batches' losses), the training loss at the
/// end, the test loss at the end.
enum class SweepCriterion { tail, final, test };

/// The value of one run's curves. `loss` at `eval_steps`; `batch_loss` may be empty. Not finite: infinity.
double criterion_value(SweepCriterion criterion, int steps, const std::vector<int>& eval_steps,
                       const std::vector<double>& loss, const std::vector<double>& batch_loss,
                       const std::vector<double>& test_loss);

/// "0.03:3:9" -> 9 learning rates, equally spaced in log. Faults name what is wrong with the text.
std::vector<double> parse_sweep(const std::string& text, Faults& faults);

/// Losses at one size.
struct SweepCurve {
  std::vector<std::vector<double>>
      runs;                         ///< [eta][run], infinity where it diverged; a run has the same seed at every eta
  std::vector<double> mean, error;  ///< [eta]; infinite where a run diverged
  std::vector<int> diverged;        ///< [eta]
};
SweepCurve sweep_curve(std::vector<std::vector<double>> runs);

/// A number and the middle 68 % of its resampled values, widened to hold the number itself.
struct Interval {
  double value = 0, low = 0, high = 0;
};

struct Optimum {
  Interval eta, loss;
  bool at_edge = false;  ///< of the rates that were tried and did not diverge: the optimum may lie beyond
};

struct LrSweep {
  SweepCriterion criterion = SweepCriterion::tail;
  std::vector<double> eta;
  std::vector<int> widths;  ///< ascending
  std::vector<SweepCurve> networks;
  SweepCurve limit;
  std::vector<Optimum> optimum;  ///< of every width
  Optimum limit_optimum;
  std::vector<Interval> drift;  ///< log2(optimum / limit_optimum)
  std::vector<Interval> lost_largest,
      lost_limit;  ///< loss that a width's optimum costs at the largest width, in the limit
};

/// Fills everything below `limit` from eta, widths, networks and limit. Runs are resampled with replacement, the same choice of seeds at
/// every eta (they share their initial weights), deviations enlarged by sqrt(n/(n-1)). Between rates losses are those of one smooth curve in
/// log eta through all of them, and an optimum is that curve's lowest point, so that no cost is negative.
void analyse(LrSweep& sweep, int resamples = 2000);

/// Writes /lr_sweep.
void write_lr_sweep(H5Writer& file, const LrSweep& sweep);

/// Losses, optima, drift and what is lost, as text.
std::string lr_sweep_report(const LrSweep& sweep);

const char* to_string(SweepCriterion criterion);
std::optional<SweepCriterion> sweep_criterion(const std::string& name);

}  // namespace moe
