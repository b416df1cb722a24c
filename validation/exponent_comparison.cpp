#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

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

/// Predicted power of `name` at a stage, by itself or over that of `per`; nothing: identically zero.
std::optional<double> power_of(const std::vector<ObservableExponents>& predicted, const std::string& name, Stage stage,
                               const std::string& per = "") {
  const auto found = std::ranges::find(predicted, name, [](const ObservableExponents& o) { return o.name; });
  const std::optional<double> power =
      found == predicted.end() ? std::nullopt : found->at[static_cast<std::size_t>(stage)];
  if (per.empty() || !power) return power;
  const std::optional<double> divisor = power_of(predicted, per, stage);
  return divisor ? std::optional(*power - *divisor) : std::nullopt;
}

/// Predictions are those of one block, whose stream moves by phi alone and comes back as D alone. In a stack what the blocks before
/// have learned moves what a block reads, and what those behind have learned moves what comes back to it: where that is of a larger
/// power, a term that is predicted to be smaller than order one is not predicted.
bool moved_by_others(const std::vector<ObservableExponents>& predicted, Stage stage, int block, int depth) {
  const auto larger = [&](const char* others, const char* own) {
    const auto power = [&](const char* name) { return power_of(predicted, name, stage).value_or(-HUGE_VAL); };
    return stage != Stage::init && power(others) > power(own);
  };
  return (block > 0 && larger("change_y", "change_phi")) || (block + 1 < depth && larger("change_xi", "change_D"));
}

/// AdamW: W(t) - W(0) holds what has decayed of W(0), which answers as W(0) does.
std::vector<ObservableExponents> with_decay(std::vector<ObservableExponents> predicted, const RunSpec& spec) {
  const OptimizerSpec& o = spec.optimizer;
  if (o.name != OptimizerKind::adamw || o.lr * o.weight_decay == 0) return predicted;
  constexpr std::string_view effective = "effective";
  for (ObservableExponents& of : predicted) {
    if (!of.name.ends_with(effective)) continue;
    const std::string term = of.name.substr(0, of.name.size() - effective.size());
    for (const ObservableExponents& initial : predicted)
      if (initial.name == term + "init" || initial.name == term + "propagating")
        for (std::size_t stage = 1; stage < num_stages; ++stage)
          if (initial.at[stage]) of.at[stage] = std::max(of.at[stage].value_or(-HUGE_VAL), *initial.at[stage]);
  }
  return predicted;
}

/// Where gradients fall through eps: a rule takes full steps above it, with the powers of eps = 0, and steps like g/(g + eps) on the way.
class AboveEps {
 public:
  explicit AboveEps(const Evidence& e) : over_eps_(e.over_eps_at_smallest) {
    RunSpec full = e.spec;
    full.optimizer.eps = 0;
    if (over_eps_ > 0) full_steps_ = with_decay(observable_exponents(full), full);
  }
  /// The largest local power of N on the way to `predicted`; none where that is the power of full steps, too.
  std::optional<double> at_most(const std::string& name, Stage stage, const std::string& per,
                                std::optional<double> predicted) const {
    const std::optional<double> power = power_of(full_steps_, name, stage, per);
    if (!predicted || !power || *power <= *predicted) return std::nullopt;
    return *power + (*predicted - *power) / (1 + over_eps_);
  }

 private:
  double over_eps_;
  std::vector<ObservableExponents> full_steps_;
};

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
  const double allowed = allowance + bound * x.error;
  const double above = x.fitted - std::clamp(x.fitted, *x.predicted, x.at_most.value_or(*x.predicted));
  const std::string said =
      fmt::format("{:.3f} +- {:.3f} fitted, {:g} predicted{}", x.fitted, x.error, *x.predicted,
                  x.at_most ? fmt::format(", up to {:.2g} while gradients fall through eps", *x.at_most) : "");
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

std::vector<ExponentComparison> compare_exponents(const Evidence& e, const std::vector<ObservableExponents>& of_table) {
  const std::vector<ObservableExponents> predicted = with_decay(of_table, e.spec);
  const AboveEps above_eps(e);
  double fewest = HUGE_VAL;
  for (const NetworkSamples& n : e.networks) fewest = std::min(fewest, static_cast<double>(n.seeds()));
  const auto atomic =
      std::count_if(predicted.begin(), predicted.end(), [](const auto& o) { return is_atomic(o.name); });
  const double bound = statistics::two_sided_bound(
      comparison_level / std::max<double>(1, num_stages * static_cast<double>(atomic)), fewest - 1);
  std::vector<ExponentComparison> list;
  // With a residual stream every block of a stack reads and gets back fields of the same powers as one alone.
  const int depth = e.spec.model.depth;
  if (depth > 1 && !e.spec.model.residual) return {};
  for (const ObservableExponents& of : predicted)
    for (const Recorded& one : recorded(of.name, depth)) {
      const auto has = [&](const std::string& name) {
        return std::all_of(e.networks.begin(), e.networks.end(),
                           [&](const NetworkSamples& n) { return n.curves.contains(name); });
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
        const bool unpredicted =
            depth > 1 && x.predicted.value_or(-1) < 0 && moved_by_others(predicted, stage, one.block, depth);
        if (unpredicted) x.predicted.reset();
        x.fitted = x.error = std::nan("");
        std::string base = stage == Stage::late && x.predicted ? proportional_to(of.name) : "";
        if (!base.empty()) {
          x.per = recorded(base, depth)[is_of_block(base) ? static_cast<std::size_t>(one.block) : 0].key;
          const std::optional<double> power = power_of(predicted, of.name, stage, base);
          if (has(x.per) && power && std::isfinite(*power))
            x.predicted = power;
          else
            x.per.clear(), base.clear();
        }
        x.at_most = above_eps.at_most(of.name, stage, base, x.predicted);
        std::vector<double> N;
        for (const NetworkSamples& n : e.networks) {
          Eigen::VectorXd values = n.curves.at(one.key).col(static_cast<Eigen::Index>(*at));
          if (!x.per.empty()) values.array() /= n.curves.at(x.per).col(static_cast<Eigen::Index>(*at)).array();
          const statistics::Moments m = statistics::moments({values.data(), values.data() + values.size()});
          N.push_back(n.shape.N);
          x.value.push_back(m.mean), x.value_error.push_back(m.mean_error);
        }
        if ((x.predicted || unpredicted) &&
            std::all_of(x.value_error.begin(), x.value_error.end(), [](double v) { return v > 0; })) {
          const PowerLawFit fit = fit_power_law(N, x.value, x.value_error);
          x.fitted = fit.exponent, x.error = fit.error;
        }
        if (unpredicted) {
          x.verdict = Verdict::not_judged;
          x.reason = "not predicted: what other blocks have learned moves this one by more than its own";
        } else {
          judge(x, x.per.empty() ? largest : 1, bound);
        }
        list.push_back(std::move(x));
      }
    }
  return list;
}

}  // namespace moe
