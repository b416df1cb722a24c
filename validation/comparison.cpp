#include "validation/comparison.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace moe {

namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

void require(const Evidence& e) {
  Faults faults;
  if (e.networks.size() < 2)
    faults.add(
        fmt::format("comparison: {} width of networks is not enough: what they tend to is extrapolated from at "
                    "least two. Give more with network.widths (--widths 64,128,256)",
                    e.networks.size()));
  for (const NetworkSamples& n : e.networks)
    if (n.seeds() < 2)
      faults.add(
          fmt::format("comparison: {} finished seed at width {} gives no error. At least two are needed "
                      "(network.seeds)",
                      n.seeds(), n.shape.N));
  if (e.limit.replicas < 2)
    faults.add(
        fmt::format("comparison: {} replica of the limit gives no error. At least two are needed "
                    "(sampling.replicas)",
                    e.limit.replicas));
  faults.throw_if_any();
}

/// `over_eps`: Evidence::over_eps_at_largest; above 1 networks have not come to where N -> infinity is with this eps.
void conclude(Comparison& c, double over_eps, double eps) {
  const bool eps_matters = over_eps > 1;
  std::vector<const ObservableComparison*> deviating, undecided;
  std::size_t judged = 0;
  bool loss_undecided = false;
  for (const auto& o : c.observables) {
    judged += o.verdict != Verdict::not_judged ? 1 : 0;
    if (o.verdict == Verdict::deviates) deviating.push_back(&o);
    if (o.verdict == Verdict::undecided) {
      undecided.push_back(&o);
      loss_undecided = loss_undecided || o.name == "loss";
    }
  }
  std::stable_sort(deviating.begin(), deviating.end(),
                   [](const auto* a, const auto* b) { return a->worst_share > b->worst_share; });
  std::vector<std::string> exponents;
  for (const auto& x : c.exponents)
    if (x.verdict == Verdict::deviates) exponents.push_back(x.name);
  if (!deviating.empty() || !exponents.empty()) {
    std::vector<std::string> names;
    for (std::size_t k = 0; k < std::min<std::size_t>(deviating.size(), 5); ++k) names.push_back(deviating[k]->name);
    c.overall = eps_matters ? Overall::not_comparable : Overall::negative;
    if (!deviating.empty())
      c.reason = fmt::format("{} of {} observables deviate, worst first: {}{}", deviating.size(), judged,
                             fmt::join(names, ", "), deviating.size() > names.size() ? ", ..." : "");
    if (!exponents.empty())
      c.reason += fmt::format("{}size exponents off: {}", c.reason.empty() ? "" : "; ", fmt::join(exponents, ", "));
    if (eps_matters)
      c.reason +=
          "; with this eps N -> infinity and eps -> 0 do not commute (docs/theory.md, section 5), so that this says "
          "nothing against the limit. " +
          (std::isfinite(over_eps) ? fmt::format("At these widths an eps above {:.1g} can be compared", over_eps * eps)
                                   : std::string("A larger eps can be compared"));
    return;
  }
  if (judged == 0 || loss_undecided || 2 * undecided.size() > judged) {
    c.overall = Overall::undecided;
    c.reason = judged == 0 ? "nothing could be judged"
                           : fmt::format(
                                 "errors of {} of {} observables{} are too large to tell. More seeds, larger "
                                 "widths or more replicas help",
                                 undecided.size(), judged, loss_undecided ? ", the loss among them," : "");
    return;
  }
  c.overall = Overall::positive;
  c.reason = fmt::format("{} of {} observables agree with the limit, {} undecided", judged - undecided.size(), judged,
                         undecided.size());
}

}  // namespace

const char* to_string(Overall overall) {
  switch (overall) {
    case Overall::positive: return "positive";
    case Overall::negative: return "negative";
    case Overall::undecided: return "undecided";
    case Overall::not_comparable: break;
  }
  return "not comparable";
}

Comparison compare(const Evidence& e) {
  require(e);
  Comparison c;
  for (const NetworkSamples& n : e.networks) {
    c.shapes.push_back(n.shape);
    c.seeds.push_back(static_cast<int>(n.seeds()));
    c.diverged.push_back(n.diverged);
  }
  c.replicas = e.limit.replicas, c.neurons = e.limit.neurons;
  c.random_limit = e.limit.random_limit, c.second_neurons = e.second ? e.second->neurons : 0;
  c.notes = e.notes, c.level = comparison_level;

  std::vector<Quantity> compared;
  for (const Quantity& q : all_quantities(e.spec.model.depth)) {
    const auto has = [&](const auto& samples) { return samples.curves.contains(q.name); };
    if (!has(e.limit) || !e.steps.contains(q.name) || e.steps.at(q.name).empty() ||
        !std::all_of(e.networks.begin(), e.networks.end(), has))
      continue;
    compared.push_back(q);
    c.observables.push_back(compare_observable(e, q));
    if (!q.judged()) continue;
    const int tests_a_step = c.random_limit ? 2 : 1;
    c.comparisons += tests_a_step * static_cast<int>(judged_steps(c.observables.back().steps).size());
  }
  for (std::size_t k = 0; k < compared.size(); ++k) {
    ObservableComparison& o = c.observables[k];
    if (compared[k].judged()) {
      judge(o, c.level / c.comparisons, c.random_limit, e.limit.neurons);
    } else {
      o.bound.assign(o.steps.size(), nan);
      o.reason = compared[k].not_judged;
    }
  }
  c.exponents = compare_exponents(e, observable_exponents(e.spec));
  conclude(c, e.over_eps_at_largest, e.spec.optimizer.eps);
  return c;
}

}  // namespace moe
