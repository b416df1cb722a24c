#include "validation/comparison_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "validation/power_law_fit.hpp"

namespace moe {

namespace {

const char* stage_name(Stage stage) {
  switch (stage) {
    case Stage::init: return "at init";
    case Stage::first_step: return "after one step";
    case Stage::late: break;
  }
  return "late";
}

std::string list(const std::vector<int>& values) { return fmt::format("{}", fmt::join(values, ", ")); }

/// "0.4123(12)": the error in units of the last digits of the value.
std::string with_error(double value, double error) {
  if (!std::isfinite(value)) return "-";
  if (!std::isfinite(error) || error <= 0) return fmt::format("{:.5g}", value);
  const int digits = std::clamp(1 - static_cast<int>(std::floor(std::log10(error))), 0, 9);
  const double last = error * std::pow(10, digits);
  if (digits == 0) return fmt::format("{:.0f}({:.0f})", value, error);
  return fmt::format("{:.{}f}({:.0f})", value, digits, last);
}

std::string observables_table(const Comparison& c) {
  std::string text =
      fmt::format("{:<20} {:<10} {:>22} {:>14} {:>14}  {:<7} {:>11}\n", "observable", "verdict",
                  "largest |z| / allowed", c.random_limit ? "N = S" : "N -> inf", "limit", "N^", "slope");
  for (const ObservableComparison& o : c.observables) {
    // Values and slope at the last step.
    const std::size_t last = o.steps.size() - 1;
    const std::string z = o.verdict == Verdict::not_judged
                              ? "-"
                              : fmt::format("{:.1f} / {:.1f} at t = {}", std::abs(o.worst_z),
                                            std::abs(o.worst_z) / std::max(o.worst_share, 1e-300), o.worst_step);
    text += fmt::format("{:<20} {:<10} {:>22} {:>14} {:>14}  {:<7} {:>11}\n", o.name, to_string(o.verdict), z,
                        with_error(o.extrapolated[last], o.extrapolated_error[last]),
                        with_error(o.limit_corrected[last], o.limit_corrected_error[last]),
                        fmt::format("{:g}{}", -o.power, o.squared ? " sq" : ""),
                        with_error(o.slope[last], o.slope_error[last]));
  }
  text += fmt::format(
      "Values and slopes (of log |deviation| against log N, where one is seen) are of t = {}; N^: power of the "
      "corrections, sq: of the mean square.\n",
      c.observables.empty() ? 0 : c.observables.front().steps.back());
  return text;
}

std::string exponents_table(const Comparison& c) {
  if (c.exponents.empty()) return "";
  std::string text = fmt::format("\n{:<32} {:<15} {:>5} {:>14} {:>10}  {}\n", "size exponent of", "stage", "t",
                                 "fitted", "predicted", "verdict");
  for (const ExponentComparison& x : c.exponents)
    text += fmt::format("{:<32} {:<15} {:>5} {:>14} {:>10}  {}\n", x.per.empty() ? x.name : x.name + " / " + x.per,
                        stage_name(x.stage), x.step, with_error(x.fitted, x.error),
                        x.predicted                        ? fmt::format("{:g}", *x.predicted)
                        : x.verdict == Verdict::not_judged ? "-"
                                                           : "zero",
                        to_string(x.verdict));
  return text;
}

}  // namespace

std::string comparison_report(const Comparison& c) {
  std::vector<int> widths;
  for (const NetworkShape& s : c.shapes) widths.push_back(s.N);
  std::string text = fmt::format(
      "Networks: N = {}; {} seeds. Limit: {} neurons, {} replicas{}.\n", list(widths), list(c.seeds), c.neurons,
      c.replicas, c.second_neurons > 0 ? fmt::format("; again with {} to measure its bias", c.second_neurons) : "");
  text +=
      fmt::format("Judged at {} comparisons, together wrong with probability {:g} at most if the theory is right.\n\n",
                  c.comparisons, c.level);
  text += observables_table(c);
  for (const ObservableComparison& o : c.observables)
    if (o.verdict == Verdict::deviates || o.verdict == Verdict::undecided)
      text += fmt::format("  {} {}: {}.\n", o.name, to_string(o.verdict), o.reason);
  text += exponents_table(c);
  for (const ExponentComparison& x : c.exponents)
    if (x.verdict == Verdict::deviates) text += fmt::format("  {} deviates: {}.\n", x.name, x.reason);
  for (std::size_t w = 0; w < c.diverged.size(); ++w)
    if (c.diverged[w] > 0)
      text += fmt::format("N = {}: {} seeds diverged and are left out.\n", c.shapes[w].N, c.diverged[w]);
  if (!c.notes.empty()) text += "\n";
  for (const std::string& note : c.notes) text += fmt::format("Note: {}.\n", note);
  text += fmt::format("\nVerdict: {}. {}.\n", to_string(c.overall), c.reason);
  return text;
}

std::string coordinate_table(const Comparison& c) {
  if (c.observables.empty()) return "";
  std::string text = fmt::format("{:<20} {:>6}", "observable", "t");
  for (const NetworkShape& s : c.shapes) text += fmt::format(" {:>12}", fmt::format("N = {}", s.N));
  text += fmt::format(" {:>12} {:>12}\n", "limit", "exponent");
  for (const ObservableComparison& o : c.observables) {
    if (!o.squared) continue;
    std::vector<std::size_t> rows = {0};  // init, first step, last
    if (o.steps.size() > 2) rows.push_back(1);
    if (o.steps.size() > 1) rows.push_back(o.steps.size() - 1);
    for (const std::size_t t : rows) {
      text += fmt::format("{:<20} {:>6}", t == 0 ? o.name : "", o.steps[t]);
      std::vector<double> N, value, error;
      for (std::size_t w = 0; w < c.shapes.size(); ++w) {
        const auto k = static_cast<Eigen::Index>(w), at = static_cast<Eigen::Index>(t);
        N.push_back(c.shapes[w].N), value.push_back(o.mean(k, at)), error.push_back(o.mean_error(k, at));
        text += fmt::format(" {:>12}", with_error(value.back(), error.back()));
      }
      const bool fits = std::all_of(error.begin(), error.end(), [](double e) { return e > 0; });
      const PowerLawFit fit = fits ? fit_power_law(N, value, error) : PowerLawFit{};
      text += fmt::format(" {:>12} {:>12}\n", with_error(o.limit[t], o.limit_error[t]),
                          fits ? with_error(fit.exponent, fit.error) : "-");
    }
  }
  return text;
}

}  // namespace moe
