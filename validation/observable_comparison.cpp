#include "validation/observable_comparison.hpp"

#include <fmt/format.h>

#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <limits>

#include "regimes/regime.hpp"
#include "support/observable.hpp"
#include "validation/power_law_fit.hpp"

namespace moe {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

/// Limit and networks may be computed in single precision: differences below this share of an observable's largest value say nothing.
constexpr double rounding = 1e-5;
/// N^-1/2 is preferred to 1/N when it fits better by this much in chi^2, the mean over judged steps (they are correlated).
constexpr double preference = 4;
/// An observable whose judged differences could hide more than this, relative to its size, is undecided.
constexpr double coarsest_resolution = 0.25;

/// Standard deviation that is granted to the limit's bias, in units of an observable: c/S of its value and a tenth of that of its
/// largest value. Measured biases are at most 15/S of the value, 10/S where lists of draws hold the first step (docs/results.md); with
/// a second solve to measure them the allowance is wide, without one it is what was measured.
double bias_share(const Evidence& e) {
  const Regime& regime = regime_named(e.spec.model.regime);
  const bool all_grow = regime.experts_sampled && regime.hidden_sampled;
  const double c = e.second ? 20 : !all_grow ? 5 : e.limit.lists_hold ? 10 : 15;
  return c / e.limit.neurons;
}

/// One observable at one step in the units in which it is extrapolated: itself, or its square.
struct Point {
  std::vector<WidthMean> widths;
  LimitMean limit;
};

/// Names of what the root mean square `name` is a term or a change of: rms_y.2 and rms_y of rms_y_init.2 and change_y.2.
std::vector<std::string> sums_with(const std::string& name) {
  const std::size_t begin = name.find('_') + 1, end = name.find_first_of("_.", begin), block = name.find('.');
  if (!name.starts_with("rms_") && !name.starts_with("change_")) return {};
  const std::string sum = "rms_" + name.substr(begin, end == std::string::npos ? end : end - begin);
  if (block == std::string::npos) return {sum};
  return {sum, sum + name.substr(block)};
}

class Comparer {
 public:
  Comparer(const Evidence& evidence, const Quantity& quantity)
      : e_(evidence), q_(quantity), steps_(evidence.steps.at(quantity.name)) {
    for (std::size_t t = 0; t < steps_.size(); ++t) points_.push_back(point(t));
    const auto judged = judged_steps(steps_);
    for (std::size_t t = 0; t < steps_.size(); ++t)
      if (std::binary_search(judged.begin(), judged.end(), steps_[t])) judged_.push_back(t);
    for (const Point& p : points_) {
      largest_ = std::max(largest_, std::abs(p.limit.full));
      for (const WidthMean& w : p.widths) largest_any_ = std::max(largest_any_, std::abs(w.mean));
    }
    largest_any_ = std::max(largest_any_, largest_);
    for (const std::string& sum : sums_with(quantity.name))
      if (const auto found = e_.limit.curves.find(sum); found != e_.limit.curves.end())
        for (const double value : found->second.mean) largest_sum_ = std::max(largest_sum_, value * value);
  }

  ObservableComparison run() const {
    ObservableComparison c;
    c.name = q_.name, c.description = q_.description, c.steps = steps_, c.squared = q_.squared;
    c.power = favoured_power();
    c.size = largest_any_ > noise_floor() ? shown(largest_any_) : 0;
    const auto widths = static_cast<Index>(e_.networks.size()), n = static_cast<Index>(steps_.size());
    for (MatrixXd* m : {&c.mean, &c.mean_error, &c.deviation_z}) *m = MatrixXd::Constant(widths, n, nan);
    for (std::size_t t = 0; t < steps_.size(); ++t) step(c, t);
    if (e_.limit.random_limit) variances(c);
    return c;
  }

 private:
  /// A relative difference of the observable is this many times as large in the units that are compared.
  double unit_power() const { return q_.squared ? 2 : 1; }
  double noise_floor() const { return std::max(rounding * largest_any_, rounding * rounding * largest_sum_); }

  /// Bases of a sweep leave out less than the tolerance of what a query has changed. Of mini-batches, whose samples come and go, the tolerance
  /// of the query itself: what y has of features that moved may then be off by that much of y.
  double left_out() const {
    const SamplingSpec& sampling = e_.spec.sampling;
    const bool in_bases = sampling.method == Method::sweep && sampling.form != Form::dense;
    return in_bases && e_.spec.training.batch > 0 && q_.name.starts_with("rms_y_propagating")
               ? sampling.tolerance * sampling.tolerance * largest_sum_
               : 0;
  }

  /// What neither statistics nor extrapolation know of.
  double unresolved() const { return std::hypot(noise_floor(), left_out()); }

  std::vector<double> seeds_of(std::size_t width, std::size_t t) const {
    const MatrixXd& table = e_.networks[width].curves.at(q_.name);
    const Eigen::VectorXd column = table.col(static_cast<Index>(t));
    return {column.data(), column.data() + column.size()};
  }

  Point point(std::size_t t) const {
    Point p;
    for (std::size_t w = 0; w < e_.networks.size(); ++w) {
      std::vector<double> values = seeds_of(w, t);
      if (q_.squared)
        for (double& v : values) v *= v;
      const statistics::Moments m = statistics::moments(values);
      p.widths.push_back(
          {static_cast<double>(e_.networks[w].shape.N), m.mean, m.mean_error, static_cast<double>(values.size())});
    }
    const auto in_units = [&](const LimitSamples& samples, double& value, double& error, double& replicas) {
      const Curve& curve = samples.curves.at(q_.name);
      if (t >= curve.mean.size()) return;
      const double m = curve.mean[t], s = curve.sem[t], R = samples.replicas;
      replicas = R;
      // Mean of squares over replicas, and its error for normal replicas.
      value = q_.squared ? m * m + (R - 1) * s * s : m;
      error = q_.squared ? std::sqrt(4 * m * m * s * s + 2 * R * s * s * s * s) : s;
    };
    in_units(e_.limit, p.limit.full, p.limit.full_error, p.limit.full_replicas);
    if (e_.second && e_.second->curves.contains(q_.name)) {
      p.limit.ratio = static_cast<double>(e_.limit.neurons) / e_.second->neurons;
      in_units(*e_.second, p.limit.second, p.limit.second_error, p.limit.second_replicas);
    }
    return p;
  }

  double favoured_power() const {
    if (e_.networks.size() < 3 || judged_.empty()) return 1;
    double better = 0;
    for (const std::size_t t : judged_)
      better += extrapolate(points_[t].widths, 1).chi2 - extrapolate(points_[t].widths, 0.5).chi2;
    return better / static_cast<double>(judged_.size()) > preference ? 0.5 : 1;
  }

  Estimate limit_at(std::size_t t, const Extrapolation& networks, double power) const {
    const LimitMean& limit = points_[t].limit;
    if (compares_at_S()) return {limit.full, {limit.full_error * limit.full_error, limit.full_replicas - 1}, 0};
    double prior = bias_share(e_) * unit_power() * (std::abs(limit.full) + 0.1 * largest_);
    // Plain draws have the law of a network of N = S: its own correction is the bias.
    if (!e_.limit.matching)
      prior = std::max(
          prior, 2 * std::abs(networks.correction) * std::pow(points_[t].widths.front().N / e_.limit.neurons, power));
    return without_bias(limit, prior, power);
  }

  /// A random limit is drawn plainly and has, from S samples, the law of networks of N = S: compared there and not at infinity.
  bool compares_at_S() const { return e_.limit.random_limit && !e_.limit.matching; }

  /// Where gradients fall through eps, what an entrywise rule makes of them falls by no power of N: their squared steps are
  /// <(s z / (1 + s |z|))^2> with z normal and s ~ N^-1/2. Of these the extrapolation leaves about 2 s, s at the largest width, of what
  /// separates that width from it, for two to four widths that double and s up to 1.
  double crossing(const Point& p, const Extrapolation& networks) const {
    if (compares_at_S()) return 0;
    return 2 * std::min(e_.over_eps_at_largest, 1.0) * std::abs(p.widths.back().mean - networks.at_infinity.value);
  }

  double shown(double value) const { return q_.squared ? std::sqrt(std::max(value, 0.0)) : value; }
  double shown_error(double value, double error) const {
    return q_.squared ? (shown(value + error) - shown(value - error)) / 2 : error;
  }

  void step(ObservableComparison& c, std::size_t t) const {
    const Point& p = points_[t];
    const Extrapolation networks = extrapolate(p.widths, c.power, compares_at_S() ? e_.limit.neurons : 0);
    const Estimate& I = networks.at_infinity;
    const Estimate L = limit_at(t, networks, c.power);
    const double systematic = std::hypot(std::hypot(I.systematic, L.systematic), unresolved(), crossing(p, networks));
    const statistics::Variance error =
        statistics::sum({I.statistical, L.statistical, {systematic * systematic, infinity}});
    const double difference = I.value - L.value;
    c.z.push_back(difference == 0 ? 0 : difference / std::sqrt(error.value));
    c.degrees.push_back(error.degrees);
    c.error.push_back(std::sqrt(error.value));

    const Curve& limit = e_.limit.curves.at(q_.name);
    c.limit.push_back(limit.mean[t]), c.limit_error.push_back(limit.sem[t]);
    c.limit_corrected.push_back(shown(L.value)), c.limit_corrected_error.push_back(shown_error(L.value, L.error()));
    c.extrapolated.push_back(shown(I.value)), c.extrapolated_error.push_back(shown_error(I.value, I.error()));

    std::vector<double> N, deviation, errors;
    for (std::size_t w = 0; w < p.widths.size(); ++w) {
      const auto k = static_cast<Index>(w), at = static_cast<Index>(t);
      const statistics::Moments m = statistics::moments(seeds_of(w, t));
      c.mean(k, at) = m.mean, c.mean_error(k, at) = m.mean_error;
      const double gap = p.widths[w].mean - L.value;
      const double noise = std::hypot(p.widths[w].error, L.error(), unresolved());
      c.deviation_z(k, at) = gap == 0 ? 0 : gap / noise;
      N.push_back(p.widths[w].N), deviation.push_back(m.mean - c.limit_corrected.back());
      errors.push_back(std::hypot(m.mean_error, c.limit_corrected_error.back()));
    }
    constexpr double seen = 3;  // errors: a deviation below has no slope
    const bool resolved = std::abs(deviation.front()) > seen * errors.front() &&
                          std::all_of(errors.begin(), errors.end(), [](double v) { return v > 0; });
    const PowerLawFit fit = resolved ? fit_power_law(N, deviation, errors) : PowerLawFit{nan, nan, nan};
    c.slope.push_back(fit.exponent), c.slope_error.push_back(fit.error);
  }

  /// Variances over seeds at N = S, by a power law through the widths, against those over replicas; compared as logarithms.
  void variances(ObservableComparison& c) const {
    const auto n = static_cast<Index>(steps_.size());
    c.variance = MatrixXd::Constant(static_cast<Index>(e_.networks.size()), n, nan);
    for (std::size_t t = 0; t < steps_.size(); ++t) {
      double kurtosis = 0, total = 0;
      std::vector<statistics::Moments> moments;
      for (std::size_t w = 0; w < e_.networks.size(); ++w) {
        moments.push_back(statistics::moments(seeds_of(w, t)));
        const auto seeds = static_cast<double>(e_.networks[w].seeds());
        kurtosis += seeds * moments.back().excess_kurtosis, total += seeds;
        c.variance(static_cast<Index>(w), static_cast<Index>(t)) = moments.back().variance;
      }
      kurtosis = std::max(kurtosis / total, -1.0);
      const double R = e_.limit.replicas, sem = c.limit_error[t];
      c.limit_variance.push_back(R * sem * sem);
      // Of a logarithm of a variance of n values, with the kurtosis of all networks.
      const auto log_error2 = [&](double count) { return 2 / (count - 1) + kurtosis / count; };
      Eigen::MatrixXd A(static_cast<Index>(moments.size()), 2);
      Eigen::VectorXd f(A.rows());
      bool scatters = sem > noise_floor_raw();
      for (std::size_t w = 0; w < moments.size(); ++w) {
        const auto k = static_cast<Index>(w);
        scatters = scatters && std::sqrt(moments[w].variance) > noise_floor_raw();
        const double error = std::sqrt(log_error2(static_cast<double>(e_.networks[w].seeds())));
        const double x = std::log(static_cast<double>(e_.networks[w].shape.N) / e_.limit.neurons);
        A.row(k) << 1 / error, x / error;
        f(k) = std::log(moments[w].variance) / error;
      }
      if (!scatters) {
        c.variance_z.push_back(nan);
        continue;
      }
      const Eigen::Matrix2d covariance = (A.transpose() * A).inverse();
      const double at_S = (covariance * A.transpose() * f)(0);
      c.variance_z.push_back((at_S - std::log(c.limit_variance.back())) / std::sqrt(covariance(0, 0) + log_error2(R)));
    }
  }
  double noise_floor_raw() const { return rounding * (q_.squared ? std::sqrt(largest_any_) : largest_any_); }

  const Evidence& e_;
  const Quantity& q_;
  const std::vector<int>& steps_;
  std::vector<Point> points_;
  std::vector<std::size_t> judged_;
  double largest_ = 0, largest_any_ = 0;  ///< of the limit, of limit and networks
  double largest_sum_ = 0;                ///< mean square of what it is a term of or a change of, whose rounding it has
};

std::string number(double value, double error) { return fmt::format("{:.4g} +- {:.2g}", value, error); }

double median(std::vector<double> values) {
  if (values.empty()) return nan;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Smallest difference from the limit that is beyond the bound at step index t, as a share of the observable's size.
double seen_difference(const ObservableComparison& c, std::size_t t) {
  if (c.size == 0) return 0;
  const double beyond = c.bound[t] * c.error[t], limit = c.limit_corrected[t];
  return (c.squared ? std::sqrt(limit * limit + beyond) - limit : beyond) / c.size;
}

}  // namespace

std::vector<Quantity> all_quantities(int depth) {
  static constexpr const char* share = "a share of few samples, not a smooth function of the outputs";
  static constexpr const char* extreme = "an extreme over experts, whose number differs between networks and limit";
  std::vector<Quantity> list = {{"loss", "training loss"},
                                {"batch_loss", "loss of each step's own batch"},
                                {"test_loss", "test loss"},
                                {"accuracy", "share of training samples classified rightly", false, share},
                                {"test_accuracy", "share of test samples classified rightly", false, share}};
  for (const auto& info : observable_table) {
    const std::string name = info.name;
    const bool squared = name.starts_with("rms_") || name.starts_with("change_");
    const bool no_limit = name.starts_with("ess_") || name.starts_with("load_");
    for (const Recorded& one : recorded(name, depth)) {
      const std::string where = one.key == name ? "" : fmt::format(" (block {})", one.block + 1);
      list.push_back({one.key, info.description + where, squared, no_limit ? extreme : ""});
    }
  }
  return list;
}

ObservableComparison compare_observable(const Evidence& evidence, const Quantity& quantity) {
  return Comparer(evidence, quantity).run();
}

void judge(ObservableComparison& c, double level, bool random, int S) {
  const std::size_t n = c.steps.size();
  c.bound.assign(n, nan);
  if (random) c.variance_bound.assign(n, nan);
  std::vector<double> resolutions;
  bool worst_is_variance = false;
  std::size_t worst = n;
  const std::vector<int> judged = judged_steps(c.steps);
  for (std::size_t t = 0; t < n; ++t) {
    if (!std::binary_search(judged.begin(), judged.end(), c.steps[t])) continue;
    c.bound[t] = statistics::two_sided_bound(level, c.degrees[t]);
    const auto consider = [&](double z, double bound, bool variance) {
      if (std::isnan(z)) return;
      const double share = std::abs(z) / bound;
      if (worst != n && share <= c.worst_share) return;
      c.worst_share = share, c.worst_z = z, worst = t, worst_is_variance = variance;
    };
    consider(c.z[t], c.bound[t], false);
    if (random) {
      c.variance_bound[t] = statistics::two_sided_bound(level, infinity);
      consider(c.variance_z[t], c.variance_bound[t], true);
    }
    if (c.steps[t] > 0) resolutions.push_back(seen_difference(c, t));
  }
  if (worst == n) {
    c.verdict = Verdict::not_judged, c.reason = "it has no step to be judged at";
    return;
  }
  c.worst_step = c.steps[worst];
  c.resolution = resolutions.empty() ? rounding : median(resolutions);
  const double bound = worst_is_variance ? c.variance_bound[worst] : c.bound[worst];
  const std::string where = random ? fmt::format("networks at N = {}", S) : "networks extrapolated to infinite N";
  const std::string largest =
      fmt::format("largest deviation {:.1f} of its error{} at t = {}, {:.1f} allowed", std::abs(c.worst_z),
                  worst_is_variance ? " (of the variance)" : "", c.worst_step, bound);
  if (c.worst_share > 1) {
    c.verdict = Verdict::deviates;
    c.reason =
        worst_is_variance
            ? fmt::format(
                  "at t = {} its variance over seeds differs from {:.3g} over replicas by {:.1f} errors, "
                  "{:.1f} allowed",
                  c.worst_step, c.limit_variance[worst], std::abs(c.worst_z), bound)
            : fmt::format("at t = {} {} give {}, the limit {}: {:.1f} of their errors, {:.1f} allowed", c.worst_step,
                          where, number(c.extrapolated[worst], c.extrapolated_error[worst]),
                          number(c.limit_corrected[worst], c.limit_corrected_error[worst]), std::abs(c.worst_z), bound);
  } else if (c.resolution > coarsest_resolution) {
    c.verdict = Verdict::undecided;
    c.reason = fmt::format("errors too large to tell: only a difference of {:.0f} % would be seen ({})",
                           100 * c.resolution, largest);
  } else {
    c.verdict = Verdict::agrees;
    c.reason = fmt::format("{}; a difference of {:.2g} % would be seen", largest, 100 * c.resolution);
  }
}

const char* to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::agrees: return "agrees";
    case Verdict::deviates: return "deviates";
    case Verdict::undecided: return "undecided";
    case Verdict::not_judged: break;
  }
  return "not judged";
}

std::vector<int> judged_steps(const std::vector<int>& steps) {
  std::vector<int> judged;
  for (const int t : steps)
    if ((t & (t - 1)) == 0 || t == steps.back()) judged.push_back(t);
  return judged;
}

}  // namespace moe
