#include "validation/lr_sweep.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "support/random.hpp"
#include "validation/statistics.hpp"

namespace moe {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Best {
  double x = 0, loss = 0;
  bool at_edge = false;
};

/// Mean losses at log learning rates, equally spaced, with infinities; between them one smooth curve: from one rate to the next the two
/// parabolas through either end and its neighbours, mixed with weights that pass linearly from the one to the other. Where a neighbour
/// lacks or diverged there is one parabola, or the straight line.
struct Losses {
  std::vector<double> x, y;

  bool finite(std::size_t k) const { return k < y.size() && std::isfinite(y[k]); }

  /// Coefficients, lowest first, of the curve between rates k and k + 1, both finite, as a cubic in s = (x - x_k) / (x_k+1 - x_k).
  std::array<double, 4> cubic(std::size_t k) const {
    const double rise = y[k + 1] - y[k];
    // A parabola with second difference d through both ends is y_k + rise s + d s (s - 1) / 2.
    const bool before = k > 0 && finite(k - 1), after = finite(k + 2);
    double left = before ? rise - (y[k] - y[k - 1]) : 0, right = after ? (y[k + 2] - y[k + 1]) - rise : 0;
    if (!before) left = right;
    if (!after) right = left;
    // y_k + rise s + ((1 - s) left + s right) s (s - 1) / 2
    return {y[k], rise - left / 2, left - right / 2, (right - left) / 2};
  }

  static double value(const std::array<double, 4>& c, double s) { return c[0] + s * (c[1] + s * (c[2] + s * c[3])); }

  /// Loss at a log learning rate; infinite beside a rate that diverges, and outside.
  double at(double place) const {
    for (std::size_t k = 0; k < x.size(); ++k) {
      if (place == x[k]) return y[k];
      if (k + 1 < x.size() && place > x[k] && place < x[k + 1])
        return finite(k) && finite(k + 1) ? value(cubic(k), (place - x[k]) / (x[k + 1] - x[k])) : infinity;
    }
    return infinity;
  }

  /// The lowest point of the curve. At the edge: no finite rate on both sides of the lowest one.
  Best best() const {
    const std::size_t k = static_cast<std::size_t>(std::min_element(y.begin(), y.end()) - y.begin());
    if (!finite(k)) return {std::nan(""), infinity, true};
    Best lowest{x[k], y[k], k == 0 || !finite(k - 1) || !finite(k + 1)};
    for (std::size_t i = 0; i + 1 < x.size(); ++i) {
      if (!finite(i) || !finite(i + 1)) continue;
      const std::array<double, 4> c = cubic(i);
      for (const double s : stationary(c)) {
        if (!(s > 0) || !(s < 1) || !(value(c, s) < lowest.loss)) continue;
        lowest.x = x[i] + s * (x[i + 1] - x[i]);
        lowest.loss = value(c, s);
      }
    }
    return lowest;
  }

 private:
  /// Where the cubic's derivative c1 + 2 c2 s + 3 c3 s^2 is zero; NaN for a root that does not exist.
  static std::array<double, 2> stationary(const std::array<double, 4>& c) {
    const double root = std::sqrt(c[2] * c[2] - 3 * c[1] * c[3]);
    // The sum that does not cancel; q = 0 only where c1 = 0 too.
    const double q = -(c[2] + std::copysign(root, c[2]));
    return {c[1] / q, q / (3 * c[3])};
  }
};

/// Means of a curve whose runs are chosen with replacement, the same ones at every eta.
class Resampler {
 public:
  Resampler(const SweepCurve& curve, std::uint32_t stream) : curve_(curve), stream_(stream) {}

  std::vector<double> means(std::uint64_t draw) const {
    const std::size_t n = curve_.runs.front().size();
    std::vector<double> counts(n, 0.0);
    for (std::size_t k = 0; k < n; ++k) counts[uniform_bits(StreamKey{0x5eed, 0, stream_, 0}, draw * n + k) % n] += 1;
    const double enlarge = n > 1 ? std::sqrt(static_cast<double>(n) / static_cast<double>(n - 1)) : 0;
    std::vector<double> result;
    for (std::size_t e = 0; e < curve_.runs.size(); ++e) {
      if (!std::isfinite(curve_.mean[e])) {
        result.push_back(infinity);
        continue;
      }
      double drawn = 0;
      for (std::size_t k = 0; k < n; ++k) drawn += counts[k] * curve_.runs[e][k] / static_cast<double>(n);
      result.push_back(curve_.mean[e] + enlarge * (drawn - curve_.mean[e]));
    }
    return result;
  }

 private:
  const SweepCurve& curve_;
  std::uint32_t stream_;
};

Interval interval(double value, std::vector<double> draws) {
  draws.erase(std::remove_if(draws.begin(), draws.end(), [](double d) { return std::isnan(d); }), draws.end());
  if (draws.empty()) return {value, std::nan(""), std::nan("")};
  std::sort(draws.begin(), draws.end());
  const auto quantile = [&](double q) {
    return draws[static_cast<std::size_t>(q * static_cast<double>(draws.size() - 1))];
  };
  // A loss that is lost is never negative: where it is near zero, noise in the optimum only adds to it.
  return {value, std::fmin(value, quantile(0.16)), std::fmax(value, quantile(0.84))};
}

double half_width(const Interval& i) { return (i.high - i.low) / 2; }

std::string fixed_text(const Interval& i, int decimals) {
  return fmt::format("{:.{}f} ({:.{}f} .. {:.{}f})", i.value, decimals, i.low, decimals, i.high, decimals);
}

std::string rate_text(const Interval& i) { return fmt::format("{:.3g} ({:.3g} .. {:.3g})", i.value, i.low, i.high); }

const char* criterion_text(SweepCriterion criterion) {
  switch (criterion) {
    case SweepCriterion::tail: return "mean loss over the last tenth of the steps (mini-batches: of the batches)";
    case SweepCriterion::final: return "training loss at the end";
    case SweepCriterion::test: break;
  }
  return "test loss at the end";
}

}  // namespace

const char* to_string(SweepCriterion criterion) {
  switch (criterion) {
    case SweepCriterion::tail: return "tail";
    case SweepCriterion::final: return "final";
    case SweepCriterion::test: break;
  }
  return "test";
}

std::optional<SweepCriterion> sweep_criterion(const std::string& name) {
  for (const auto criterion : {SweepCriterion::tail, SweepCriterion::final, SweepCriterion::test})
    if (name == to_string(criterion)) return criterion;
  return std::nullopt;
}

double criterion_value(SweepCriterion criterion, int steps, const std::vector<int>& eval_steps,
                       const std::vector<double>& loss, const std::vector<double>& batch_loss,
                       const std::vector<double>& test_loss) {
  double value = infinity;
  if (criterion == SweepCriterion::test) {
    if (!test_loss.empty()) value = test_loss.back();
  } else if (criterion == SweepCriterion::final) {
    if (!loss.empty()) value = loss.back();
  } else if (!batch_loss.empty()) {
    const std::size_t n = std::max<std::size_t>(1, batch_loss.size() / 10);
    value = 0;
    for (std::size_t k = batch_loss.size() - n; k < batch_loss.size(); ++k)
      value += batch_loss[k] / static_cast<double>(n);
  } else if (!loss.empty()) {
    double sum = 0, n = 0;
    for (std::size_t k = 0; k < loss.size(); ++k)
      if (k + 1 == loss.size() || eval_steps[k] > 0.9 * steps) sum += loss[k], n += 1;
    value = sum / n;
  }
  return std::isfinite(value) ? value : infinity;
}

std::vector<double> parse_sweep(const std::string& text, Faults& faults) {
  double low = 0, high = 0;
  int count = 0;
  const char *at = text.data(), *const end = text.data() + text.size();
  const auto read = [&](auto& value, bool last) {
    const auto result = std::from_chars(at, end, value);
    at = result.ptr;
    return result.ec == std::errc{} && (last ? at == end : at != end && *at++ == ':');
  };
  const bool reads = read(low, false) && read(high, false) && read(count, true);
  if (!reads || !(low > 0) || !(high > low) || !std::isfinite(high) || count < 3 || count > 1000) {
    faults.add("lr-sweep", text, "--lr-sweep on the command line", "is no sweep LOW:HIGH:COUNT of learning rates",
               "Write 0 < LOW < HIGH and a count from 3 to 1000, e.g. 0.03:3:9");
    return {};
  }
  std::vector<double> eta;
  eta.reserve(static_cast<std::size_t>(count));
  for (int k = 0; k < count; ++k) eta.push_back(low * std::pow(high / low, static_cast<double>(k) / (count - 1)));
  return eta;
}

SweepCurve sweep_curve(std::vector<std::vector<double>> runs) {
  SweepCurve curve;
  for (const auto& of_eta : runs) {
    const auto diverged =
        static_cast<int>(std::count_if(of_eta.begin(), of_eta.end(), [](double v) { return !std::isfinite(v); }));
    curve.diverged.push_back(diverged);
    const statistics::Moments m = diverged > 0 ? statistics::Moments{} : statistics::moments(of_eta);
    curve.mean.push_back(diverged > 0 ? infinity : m.mean);
    curve.error.push_back(diverged > 0 ? std::nan("") : m.mean_error);
  }
  curve.runs = std::move(runs);
  return curve;
}

void analyse(LrSweep& sweep, int resamples) {
  std::vector<double> x;
  for (const double eta : sweep.eta) x.push_back(std::log(eta));
  const std::size_t W = sweep.widths.size();
  std::vector<const SweepCurve*> curves;  // widths, then the limit
  for (const SweepCurve& curve : sweep.networks) curves.push_back(&curve);
  curves.push_back(&sweep.limit);

  /// Everything that is read off one set of curves.
  struct Reading {
    std::vector<Best> best;
    std::vector<double> lost_largest, lost_limit;
  };
  const auto read = [&](const std::vector<Losses>& losses) {
    Reading r;
    for (const Losses& l : losses) r.best.push_back(l.best());
    for (std::size_t w = 0; w < W; ++w) {
      r.lost_largest.push_back(losses[W - 1].at(r.best[w].x) - r.best[W - 1].loss);
      r.lost_limit.push_back(losses[W].at(r.best[w].x) - r.best[W].loss);
    }
    return r;
  };
  std::vector<Losses> as_measured;
  as_measured.reserve(curves.size());
  for (const SweepCurve* curve : curves) as_measured.push_back({x, curve->mean});
  const Reading centre = read(as_measured);

  std::vector<Reading> draws;
  for (int d = 0; d < resamples; ++d) {
    std::vector<Losses> drawn;
    drawn.reserve(curves.size());
    for (std::size_t k = 0; k < curves.size(); ++k)
      drawn.push_back(
          {x, Resampler(*curves[k], static_cast<std::uint32_t>(k + 1)).means(static_cast<std::uint64_t>(d))});
    draws.push_back(read(drawn));
  }
  const auto of = [&](auto&& get) {
    std::vector<double> values;
    values.reserve(draws.size());
    for (const Reading& r : draws) values.push_back(get(r));
    return interval(get(centre), std::move(values));
  };
  const auto optimum = [&](std::size_t k) {
    return Optimum{of([&](const Reading& r) { return std::exp(r.best[k].x); }),
                   of([&](const Reading& r) { return r.best[k].loss; }), centre.best[k].at_edge};
  };
  sweep.optimum.clear(), sweep.drift.clear(), sweep.lost_largest.clear(), sweep.lost_limit.clear();
  for (std::size_t w = 0; w < W; ++w) {
    sweep.optimum.push_back(optimum(w));
    sweep.drift.push_back(of([&](const Reading& r) { return (r.best[w].x - r.best[W].x) / std::log(2.0); }));
    sweep.lost_largest.push_back(of([&](const Reading& r) { return r.lost_largest[w]; }));
    sweep.lost_limit.push_back(of([&](const Reading& r) { return r.lost_limit[w]; }));
  }
  sweep.limit_optimum = optimum(W);
}

void write_lr_sweep(H5Writer& file, const LrSweep& s) {
  const std::size_t W = s.widths.size(), E = s.eta.size();
  const std::vector<std::int64_t> widths(s.widths.begin(), s.widths.end());
  file.dataset("/lr_sweep/eta", {E}, s.eta.data(), "learning rates optimizer.lr", {"eta"});
  file.dataset("/lr_sweep/widths", {W}, widths.data(), "widths N of the networks", {"width"});
  std::vector<double> loss, error;
  std::vector<std::int64_t> diverged;
  for (const SweepCurve& curve : s.networks) {
    loss.insert(loss.end(), curve.mean.begin(), curve.mean.end());
    error.insert(error.end(), curve.error.begin(), curve.error.end());
    diverged.insert(diverged.end(), curve.diverged.begin(), curve.diverged.end());
  }
  const std::string what = criterion_text(s.criterion);
  file.dataset("/lr_sweep/loss", {W, E}, loss.data(), what + ", mean over seeds; infinite where one diverged",
               {"width", "eta"});
  file.dataset("/lr_sweep/loss_error", {W, E}, error.data(), "standard error of that mean", {"width", "eta"});
  file.dataset("/lr_sweep/diverged", {W, E}, diverged.data(), "seeds that diverged", {"width", "eta"});
  file.dataset("/lr_sweep/limit_loss", {E}, s.limit.mean.data(), what + ", in the limit, mean over replicas", {"eta"});
  file.dataset("/lr_sweep/limit_loss_error", {E}, s.limit.error.data(), "standard error of that mean", {"eta"});

  // Run by run, so that a file can be read anew: another interpolation, other quantiles.
  std::vector<double> runs, limit_runs;
  for (const SweepCurve& curve : s.networks)
    for (const auto& of_eta : curve.runs) runs.insert(runs.end(), of_eta.begin(), of_eta.end());
  for (const auto& of_eta : s.limit.runs) limit_runs.insert(limit_runs.end(), of_eta.begin(), of_eta.end());
  file.dataset("/lr_sweep/seed_loss", {W, E, s.networks.front().runs.front().size()}, runs.data(),
               what + ", of each seed; infinite where it diverged", {"width", "eta", "seed"});
  file.dataset("/lr_sweep/replica_loss", {E, s.limit.runs.front().size()}, limit_runs.data(),
               what + ", of each replica of the limit", {"eta", "replica"});

  const auto per_width = [&](const std::string& name, const std::string& description, auto&& get) {
    std::vector<double> values;
    for (std::size_t w = 0; w < W; ++w) values.push_back(get(w));
    file.dataset("/lr_sweep/" + name, {W}, values.data(), description, {"width"});
  };
  const auto intervals = [&](const std::string& name, const std::string& description, auto&& get) {
    per_width(name, description, [&](std::size_t w) { return get(w).value; });
    per_width(name + "_low", "16 % quantile of its resampled values", [&](std::size_t w) { return get(w).low; });
    per_width(name + "_high", "84 % quantile of its resampled values", [&](std::size_t w) { return get(w).high; });
  };
  intervals("optimum", "learning rate of the smallest loss", [&](std::size_t w) { return s.optimum[w].eta; });
  per_width("optimum_loss", "loss there", [&](std::size_t w) { return s.optimum[w].loss.value; });
  per_width("optimum_loss_error", "its error", [&](std::size_t w) { return half_width(s.optimum[w].loss); });
  per_width("optimum_at_edge", "1: at the edge of the rates that did not diverge",
            [&](std::size_t w) { return s.optimum[w].at_edge ? 1.0 : 0.0; });
  intervals("drift", "log2 of optimum / limit_optimum", [&](std::size_t w) { return s.drift[w]; });
  intervals("lost_largest", "loss that this width's optimum costs at the largest width",
            [&](std::size_t w) { return s.lost_largest[w]; });
  intervals("lost_limit", "loss that this width's optimum costs in the limit",
            [&](std::size_t w) { return s.lost_limit[w]; });
  const auto scalar = [&](const std::string& name, double value, const std::string& description) {
    file.dataset("/lr_sweep/limit_" + name, {}, &value, description, {});
  };
  scalar("optimum", s.limit_optimum.eta.value, "learning rate of the smallest loss in the limit");
  scalar("optimum_low", s.limit_optimum.eta.low, "16 % quantile of its resampled values");
  scalar("optimum_high", s.limit_optimum.eta.high, "84 % quantile of its resampled values");
  scalar("optimum_loss", s.limit_optimum.loss.value, "loss there");
  scalar("optimum_loss_error", half_width(s.limit_optimum.loss), "its error");
  scalar("optimum_at_edge", s.limit_optimum.at_edge ? 1 : 0, "1: at the edge of the rates that did not diverge");
  file.attribute("/lr_sweep", "criterion", std::string(to_string(s.criterion)));
  file.attribute("/lr_sweep", "criterion_text", what);
}

std::string lr_sweep_report(const LrSweep& s) {
  std::string text = fmt::format("Learning-rate sweep: {}.\n{:>10}", criterion_text(s.criterion), "lr");
  for (const int N : s.widths) text += fmt::format(" {:>17}", fmt::format("N = {}", N));
  text += fmt::format(" {:>17}\n", "limit");
  const auto cell = [](const SweepCurve& curve, std::size_t e) {
    return std::isfinite(curve.mean[e]) ? fmt::format("{:.4f} +- {:.4f}", curve.mean[e], curve.error[e])
                                        : fmt::format("{} diverged", curve.diverged[e]);
  };
  for (std::size_t e = 0; e < s.eta.size(); ++e) {
    text += fmt::format("{:>10.4g}", s.eta[e]);
    for (const SweepCurve& curve : s.networks) text += fmt::format(" {:>17}", cell(curve, e));
    text += fmt::format(" {:>17}\n", cell(s.limit, e));
  }
  text +=
      "\nBest learning rate and the loss there; its distance to the limit's in octaves; the loss that it costs at "
      "other "
      "sizes.\nIn parentheses the middle 68 % of resampled runs.\n";
  text += fmt::format("{:>10} {:>25} {:>17} {:>23} {:>26} {:>26}\n", "", "best lr  ", "loss", "octaves",
                      fmt::format("lost at N = {}", s.widths.back()), "lost in the limit");
  const auto line = [&](const std::string& who, const Optimum& o, const std::string& rest) {
    text += fmt::format("{:>10} {:>25} {:>17}{}\n", who, rate_text(o.eta) + (o.at_edge ? " *" : "  "),
                        fmt::format("{:.4f} +- {:.4f}", o.loss.value, half_width(o.loss)), rest);
  };
  for (std::size_t w = 0; w < s.widths.size(); ++w)
    line(fmt::format("N = {}", s.widths[w]), s.optimum[w],
         fmt::format(" {:>23} {:>26} {:>26}", fixed_text(s.drift[w], 2), fixed_text(s.lost_largest[w], 4),
                     fixed_text(s.lost_limit[w], 4)));
  line("limit", s.limit_optimum, "");
  const Optimum &small = s.optimum.front(), &limit = s.limit_optimum;
  const bool edge =
      limit.at_edge || std::any_of(s.optimum.begin(), s.optimum.end(), [](const Optimum& o) { return o.at_edge; });
  if (edge)
    text += "* the first or the last rate that did not diverge: the optimum may lie beyond it. Widen the sweep.\n";
  const auto share = [&](double lost) {
    const double percent = 100 * lost / limit.loss.value;
    return fmt::format("{:.{}f} %", percent, percent < 10 ? 1 : 0);
  };
  text += fmt::format("\nTuned at N = {}, the limit loses {} of its best loss, at most {} (84 %).\n", s.widths.front(),
                      share(s.lost_limit.front().value), share(s.lost_limit.front().high));
  text += fmt::format("From N = {} to the limit the best loss changes by {:+.4f} +- {:.4f}.\n", s.widths.front(),
                      limit.loss.value - small.loss.value, std::hypot(half_width(limit.loss), half_width(small.loss)));
  return text + "\n";
}

}  // namespace moe
