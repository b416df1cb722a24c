#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "support/observable.hpp"
#include "validation/comparison.hpp"
#include "validation/power_law_fit.hpp"
#include "validation/statistics.hpp"

namespace moe {

namespace {

/// Corrections of higher order in 1/N at practical widths: an exponent may be off by this much beyond its error.
constexpr double allowance = 0.15;
/// An error of the fit above this leaves the exponent undecided: 0 and -1/2 could not be told apart.
constexpr double coarsest = 0.1;
/// Values below are rounding.
constexpr double zero = 1e-6;

/// What a late value is divided by, seed by seed (theory section 7): backward fields are proportional to the error that is left to
/// learn; the propagating part of the aggregation to what v has learned.
std::string proportional_to(const std::string& name) {
  if (name == "rms_y_propagating") return "change_v";
  for (const char* backward : {"rms_zeta", "rms_rho", "rms_xi"})
    if (name.starts_with(backward)) return "rms_D";
  return "";
}

/// Index of the stage's step among `steps`; none where it was not observed.
std::optional<std::size_t> step_of(Stage stage, const std::vector<int>& steps) {
  if (stage == Stage::late) return steps.size() < 2 ? std::nullopt : std::optional(steps.size() - 1);
  const int wanted = stage == Stage::init ? 0 : 1;
  const auto found = std::find(steps.begin(), steps.end(), wanted);
  if (found == steps.end()) return std::nullopt;
  return static_cast<std::size_t>(found - steps.begin());
}

/// Parts of a sum that have one origin each (T26): sums of them cross over from one power to another.
bool is_atomic(const std::string& name) {
  return std::ranges::any_of(std::array{"_init", "_propagating", "_effective"},
                             [&](const char* ending) { return name.ends_with(ending); });
}

/// `bound`: errors of the fit that are allowed.
void judge(ExponentComparison& x, double largest, double bound) {
  if (!x.predicted) {
    const bool vanishes = std::all_of(x.value.begin(), x.value.end(), [&](double v) { return v <= zero * largest; });
    x.fitted = x.error = std::nan("");
    x.verdict = vanishes ? Verdict::agrees : Verdict::deviates;
    x.reason = vanishes ? "zero at every width, as predicted"
                        : fmt::format("{:.3g} at the smallest width, and zero is predicted", x.value.front());
    return;
  }
  const bool scatters = std::all_of(x.value_error.begin(), x.value_error.end(), [](double e) { return e > 0; });
  if (x.value.front() <= zero * largest || !scatters) {
    x.fitted = x.error = std::nan("");
    x.verdict = Verdict::not_judged;
    x.reason = x.value.front() <= zero * largest ? "zero in these networks" : "the same for every seed";
    return;
  }
  const double above = x.fitted - *x.predicted, allowed = allowance + bound * x.error;
  const std::string said = fmt::format("{:.3f} +- {:.3f} fitted, {:g} predicted", x.fitted, x.error, *x.predicted);
  if (above > allowed || (above < -allowed && x.stage == Stage::init)) {
    x.verdict = Verdict::deviates, x.reason = said;
  } else if (above < -allowed) {
    // Correlations grow out of zero: an order-one part that is small is hidden by a larger one that vanishes, until N is large.
    x.verdict = Verdict::undecided, x.reason = said + ": at these widths a part that vanishes may hide one that stays";
  } else if (x.error > coarsest) {
    x.verdict = Verdict::undecided, x.reason = said + ": the error is too large to tell";
  } else {
    x.verdict = Verdict::agrees, x.reason = said;
  }
}

}  // namespace

std::vector<ExponentComparison> compare_exponents(const Evidence& e,
                                                  const std::vector<ObservableExponents>& predicted) {
  double fewest = HUGE_VAL;
  for (const NetworkSamples& n : e.networks) fewest = std::min(fewest, static_cast<double>(n.seeds()));
  const auto atomic =
      std::count_if(predicted.begin(), predicted.end(), [](const auto& o) { return is_atomic(o.name); });
  const double bound = statistics::two_sided_bound(
      comparison_level / std::max<double>(1, num_stages * static_cast<double>(atomic)), fewest - 1);
  std::vector<ExponentComparison> list;
  // Predictions are those of one block. With a residual stream every block of a stack reads and gets back fields of the same powers.
  const int depth = e.spec.model.depth;
  if (depth > 1 && !e.spec.model.residual) return {};
  for (const ObservableExponents& of : predicted)
    for (const Recorded& one : recorded(of.name, depth)) {
      const auto has = [&](const std::string& name) {
        return std::all_of(e.networks.begin(), e.networks.end(),
                           [&](const NetworkSamples& n) { return n.curves.contains(name); });
      };
      const auto per = [&](const std::string& name) {
        const std::string base = proportional_to(name);
        return base.empty() ? base
                            : recorded(base, depth)[is_of_block(base) ? static_cast<std::size_t>(one.block) : 0].key;
      };
      if (!is_atomic(of.name) || !e.steps.contains(one.key) || !has(one.key)) continue;
      const std::vector<int>& steps = e.steps.at(one.key);
      double largest = 0;
      for (const NetworkSamples& n : e.networks)
        largest = std::max(largest, n.curves.at(one.key).cwiseAbs().maxCoeff());
      for (const Stage stage : {Stage::init, Stage::first_step, Stage::late}) {
        const auto at = step_of(stage, steps);
        if (!at || (stage == Stage::first_step && e.spec.training.dynamics == Dynamics::flow)) continue;
        ExponentComparison x;
        x.name = one.key, x.stage = stage, x.step = steps[*at];
        x.predicted = of.at[static_cast<std::size_t>(stage)];
        if (x.predicted && !std::isfinite(*x.predicted)) continue;  // it grows with every step: no power of N
        if (stage == Stage::late && x.predicted) x.per = per(of.name);
        if (!x.per.empty() && !has(x.per)) x.per.clear();
        std::vector<double> N;
        for (const NetworkSamples& n : e.networks) {
          Eigen::VectorXd values = n.curves.at(one.key).col(static_cast<Eigen::Index>(*at));
          if (!x.per.empty()) values.array() /= n.curves.at(x.per).col(static_cast<Eigen::Index>(*at)).array();
          const statistics::Moments m = statistics::moments({values.data(), values.data() + values.size()});
          N.push_back(n.shape.N);
          x.value.push_back(m.mean), x.value_error.push_back(m.mean_error);
        }
        if (x.predicted && std::all_of(x.value_error.begin(), x.value_error.end(), [](double v) { return v > 0; })) {
          const PowerLawFit fit = fit_power_law(N, x.value, x.value_error);
          x.fitted = fit.exponent, x.error = fit.error;
        }
        judge(x, x.per.empty() ? largest : 1, bound);
        list.push_back(std::move(x));
      }
    }
  return list;
}

}  // namespace moe
