#include "regimes/derive.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "regimes/exponents.hpp"
#include "regimes/signal.hpp"
#include "support/observable.hpp"

namespace moe {

namespace {

// The space, in half powers of N around the normalised order one; zero initialisation is one more value of a std.
constexpr int lowest = -4, highest_std = 3, highest_rate = 4;

/// Evaluations of signal propagation that may go into the question whether there is a table: a part of a second.
constexpr std::size_t question_budget = 1000;

/// A table that is all ones: what it leaves in the setup are the powers of the units and of the structure.
Parameterization unit_table(bool in_shared, bool out_shared) {
  Parameterization param;
  param.name = "unit";
  param.rule[Tensor::expert_in].shared = in_shared;
  param.rule[Tensor::expert_out].shared = out_shared;
  return param;
}

enum class Entry { std, lr, eps };

struct Variable {
  Entry entry;
  Tensor tensor;
  std::vector<double> domain;  ///< ascending, minus infinity first where zero is a value
};

using Propagation = SignalPropagation<SizeInterval>;

/// Bounds on the sizes of named quantities of all tables that agree with a partial one.
class Bounds {
 public:
  Bounds(const RunSpec& spec, bool in_shared, bool out_shared)
      : base_(signal_setup<Size>(spec, unit_table(in_shared, out_shared), regime_named(spec.model.regime))) {}

  const SignalSetup<Size>& base() const { return base_; }

  Propagation of(const PerTensor<SizeInterval>& std, const PerTensor<SizeInterval>& lr,
                 const PerTensor<SizeInterval>& eps) const {
    const auto lift = [](Size s) { return SizeInterval{s, s}; };
    const auto gains = [&](const Gains<Size>& g, const SizeInterval& x) {
      return Gains<SizeInterval>{lift(g.chi) * x, lift(g.beta) * x};
    };
    SignalSetup<SizeInterval> s;
    static_cast<SignalModel&>(s) = static_cast<const SignalModel&>(base_);
    s.neurons = lift(base_.neurons);
    s.experts = lift(base_.experts);
    s.hidden = lift(base_.hidden);
    s.input = lift(base_.input) * std[Tensor::input];
    s.readout = lift(base_.readout) * std[Tensor::readout];
    s.router = gains(base_.router, std[Tensor::router]);
    s.expert_in = gains(base_.expert_in, std[Tensor::expert_in]);
    s.expert_out = gains(base_.expert_out, std[Tensor::expert_out]);
    for (std::size_t i = 0; i < tensor_names.size(); ++i) {
      s.lr.values[i] = lift(base_.lr.values[i]) * lr.values[i];
      s.eps.values[i] = lift(base_.eps.values[i]) * eps.values[i];
    }
    return Propagation(s);
  }

 private:
  SignalSetup<Size> base_;
};

/// One quantity at one stage and what it has to be.
struct Demand {
  std::size_t quantity;
  double min, max;
};

std::size_t index_of(const NamedSizes<SizeInterval>& sizes, const std::string& name) {
  for (std::size_t k = 0; k < sizes.size(); ++k)
    if (name == sizes[k].first) return k;
  throw std::out_of_range("no quantity '" + name + "' in signal propagation");
}

/// Demands by stage, and what they say about the largest sizes, by the index of the quantity. What may not exceed a size late in training
/// may not do so at any step after the first.
struct Demands {
  std::array<std::vector<Demand>, num_stages> of;
  Propagation::Limits limits;
};

/// Can any table between the bounds meet all demands? Steps are taken as far as needed to see that none can.
bool feasible(Propagation bounds, const Demands& demands) {
  bounds.limit_to(demands.limits);
  std::vector<double> before;  // the step before the last: what then still grows has no bound
  for (int t = 0, stage = 0; stage < num_stages; ++t) {
    const auto& sizes = bounds.step();
    const auto& asked = demands.of[static_cast<std::size_t>(std::min(t, num_stages - 1))];
    for (const Demand& d : asked)
      if (sizes[d.quantity].second.low.exponent > d.max + zero_exponent) return false;
    if (t == late_step<SizeInterval> - 1)
      for (const auto& d : asked) before.push_back(sizes[d.quantity].second.high.exponent);
    if (t < step_of_stage<SizeInterval>[static_cast<std::size_t>(stage)]) continue;
    for (std::size_t k = 0; k < asked.size(); ++k) {
      const SizeInterval& x = sizes[asked[k].quantity].second;
      if (x.high.exponent < asked[k].min - zero_exponent) return false;
      if (t == late_step<SizeInterval> && x.low.exponent > before[k] + zero_exponent && asked[k].max < unbounded)
        return false;
    }
    ++stage;
  }
  return true;
}

/// Do all tables between the bounds meet all demands? False where bounds are too wide to tell.
bool certain(Propagation bounds, const Demands& demands) {
  std::vector<double> before;
  for (int t = 0; t <= late_step<SizeInterval>; ++t) {
    const auto& sizes = bounds.step();
    const auto& asked = demands.of[static_cast<std::size_t>(std::min(t, num_stages - 1))];
    const bool of_stage = std::find(step_of_stage<SizeInterval>.begin(), step_of_stage<SizeInterval>.end(), t) !=
                          step_of_stage<SizeInterval>.end();
    for (std::size_t k = 0; k < asked.size(); ++k) {
      const SizeInterval& x = sizes[asked[k].quantity].second;
      if (x.high.exponent > asked[k].max || (of_stage && x.low.exponent < asked[k].min)) return false;
      if (t == late_step<SizeInterval> && x.high.exponent > before[k] && asked[k].max < unbounded) return false;
      if (t == late_step<SizeInterval> - 1) before.push_back(x.low.exponent);
    }
  }
  return true;
}

/// Demands of all conditions; of those in `relaxed`, what takes their place.
Demands demands_of(const Conditions& conditions, const Conditions& relaxed, const NamedSizes<SizeInterval>& names) {
  Demands demands;
  for (const Condition* c : conditions) {
    const bool instead = std::find(relaxed.begin(), relaxed.end(), c) != relaxed.end();
    if (instead && c->if_impossible == IfImpossible::drop) continue;
    for (const auto& name : c->quantities)
      for (std::size_t stage = 0; stage < num_stages; ++stage)
        if (c->at[stage])
          demands.of[stage].push_back(
              {index_of(names, name), instead ? no_exponent : c->min, instead ? no_exponent : c->max});
  }
  for (std::size_t stage = 0; stage < num_stages; ++stage) {
    auto& highest = demands.limits.highest[stage];
    highest.assign(names.size(), unbounded);
    for (const Demand& d : demands.of[stage]) highest[d.quantity] = std::min(highest[d.quantity], d.max);
  }
  // What may not grow any more at the last step was there the step before.
  auto& floor = demands.limits.lowest;
  floor.assign(names.size(), no_exponent);
  for (const Demand& d : demands.of.back())
    if (d.max < unbounded) floor[d.quantity] = std::max(floor[d.quantity], d.min);
  return demands;
}

enum class Answer { yes, no, unknown };

/// Branch and bound over the entries of the table for one choice of sharing. Each entry has an interval of values left; values at its ends
/// that no completion can have are cut off, and the entry with the fewest values left is tried next.
class Search {
 public:
  using Found = std::function<void(const std::vector<double>&)>;

  Search(const RunSpec& spec, bool in_shared, bool out_shared) : bounds_(spec, in_shared, out_shared) {
    const auto& base = bounds_.base();
    const auto add = [&](Entry entry, Tensor t, Size unit, int highest) {
      Variable v{entry, t, {}};
      if (entry == Entry::std || unit.is_zero()) v.domain.push_back(no_exponent);
      for (int k = lowest; k <= highest && !unit.is_zero(); ++k) v.domain.push_back(k / 2.0 - unit.exponent);
      variables_.push_back(std::move(v));
    };
    add(Entry::std, Tensor::input, base.input, highest_std);
    add(Entry::std, Tensor::router, base.router.chi, highest_std);
    add(Entry::std, Tensor::expert_in, base.expert_in.chi, highest_std);
    add(Entry::std, Tensor::expert_out, base.expert_out.chi, highest_std);
    add(Entry::std, Tensor::readout, base.readout, highest_std);
    for (std::size_t i = 0; i < tensor_names.size(); ++i) {
      add(Entry::lr, static_cast<Tensor>(i), base.lr.values[i], highest_rate);
      if (!base.linear) add(Entry::eps, static_cast<Tensor>(i), base.eps.values[i], highest_rate);
    }
  }

  const std::vector<Variable>& variables() const { return variables_; }

  NamedSizes<SizeInterval> names() const { return sizes(everything()).step(); }

  /// Calls `found` with the value of every variable, for every solution. Returns the number of evaluations.
  /// Throws if they exceed `budget`.
  std::size_t run(const Demands& demands, std::size_t budget, const Found& found) {
    evaluations_ = 0;
    budget_ = budget;
    lists_all_ = true;
    descend(everything(), demands, found);
    if (evaluations_ < budget_) return evaluations_;
    throw ConfigError(
        {fmt::format("derive: {} evaluations of signal propagation do not come to an end: the conditions leave too "
                     "many tables. Add conditions, such as extends = \"mu\"",
                     budget_)});
  }

  /// Is there a solution? Unknown if `budget` evaluations do not tell.
  Answer any(const Demands& demands, std::size_t budget) {
    evaluations_ = 0;
    budget_ = budget;
    lists_all_ = false;
    bool some = false;
    descend(everything(), demands, [&](const std::vector<double>&) {
      some = true;
      budget_ = 0;
    });
    return some ? Answer::yes : evaluations_ < budget_ ? Answer::no : Answer::unknown;
  }

 private:
  /// Values left of every variable: domain[first], ..., domain[last].
  struct Left {
    int first, last;
    int count() const { return last - first + 1; }
  };
  using Ranges = std::vector<Left>;

  Ranges everything() const {
    Ranges ranges;
    for (const auto& v : variables_) ranges.push_back({0, static_cast<int>(v.domain.size()) - 1});
    return ranges;
  }

  static double tables(const Ranges& ranges) {
    double product = 1;
    for (const Left& left : ranges) product *= left.count();
    return product;
  }

  Propagation sizes(const Ranges& ranges) const {
    PerTensor<SizeInterval> std, lr, eps;
    eps.values.fill(SizeInterval::one());  // linear rules have none
    for (std::size_t k = 0; k < variables_.size(); ++k) {
      const Variable& v = variables_[k];
      const auto value = [&](int index) { return Size{v.domain[static_cast<std::size_t>(index)]}; };
      (v.entry == Entry::std  ? std
       : v.entry == Entry::lr ? lr
                              : eps)[v.tensor] = {value(ranges[k].first), value(ranges[k].last)};
    }
    return bounds_.of(std, lr, eps);
  }

  bool possible(const Ranges& ranges, const Demands& demands) {
    if (evaluations_ >= budget_) return false;
    ++evaluations_;
    return feasible(sizes(ranges), demands);
  }

  /// Cuts impossible values off the ends. False: nothing is left.
  bool narrow(Ranges& ranges, const Demands& demands) {
    for (bool changed = true; changed;) {
      changed = false;
      for (std::size_t k = 0; k < ranges.size(); ++k) {
        for (int Left::*end : {&Left::last, &Left::first}) {
          while (ranges[k].count() > 1) {
            Ranges only = ranges;
            only[k].first = only[k].last = ranges[k].*end;
            if (possible(only, demands)) break;
            ranges[k].*end += end == &Left::last ? -1 : 1;
            changed = true;
          }
        }
      }
    }
    return possible(ranges, demands);
  }

  /// Initialisations decide most, eps least; of one kind, the entry with fewer values left.
  bool before(std::size_t k, std::size_t other, const Ranges& ranges) const {
    const Entry a = variables_[k].entry, b = variables_[other].entry;
    return a != b ? a < b : ranges[k].count() < ranges[other].count();
  }

  void descend(Ranges ranges, const Demands& demands, const Found& found) {
    if (!possible(ranges, demands) || !narrow(ranges, demands)) return;
    // Where all that is left are solutions, each takes an evaluation.
    if (lists_all_ && tables(ranges) > static_cast<double>(budget_) && certain(sizes(ranges), demands)) {
      evaluations_ = budget_;
      return;
    }
    std::size_t next = ranges.size();
    for (std::size_t k = 0; k < ranges.size(); ++k)
      if (ranges[k].count() > 1 && (next == ranges.size() || before(k, next, ranges))) next = k;
    if (next == ranges.size()) {
      std::vector<double> values;
      for (std::size_t k = 0; k < ranges.size(); ++k)
        values.push_back(variables_[k].domain[static_cast<std::size_t>(ranges[k].first)]);
      found(values);
      return;
    }
    const Left all = ranges[next];
    for (int value = all.first; value <= all.last; ++value) {
      ranges[next] = {value, value};
      descend(ranges, demands, found);
    }
  }

  Bounds bounds_;
  std::vector<Variable> variables_;
  std::size_t evaluations_ = 0, budget_ = 0;
  bool lists_all_ = false;
};

/// One for each choice of sharing.
std::vector<Search> all_searches(const RunSpec& spec) {
  std::vector<Search> searches;
  for (const bool in_shared : {false, true})
    for (const bool out_shared : {false, true}) searches.emplace_back(spec, in_shared, out_shared);
  return searches;
}

Conditions applicable(const Desiderata& desiderata, const RunSpec& spec) {
  Conditions result;
  for (const auto& c : desiderata.conditions)
    if (applies(c, spec)) result.push_back(&c);
  return result;
}

bool can_relax(const Condition& c) { return c.if_impossible != IfImpossible::fail; }

/// Calls `visit` with every choice of `count` of the conditions that may be relaxed, until it says that this is enough.
void for_each_relaxation(const Conditions& conditions, std::size_t count,
                         const std::function<bool(const Conditions&)>& visit) {
  Conditions relaxable;
  for (const Condition* c : conditions)
    if (can_relax(*c)) relaxable.push_back(c);
  if (count > relaxable.size()) return;
  std::vector<bool> chosen(relaxable.size(), false);
  std::fill(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(count), true);
  do {
    Conditions relaxed;
    for (std::size_t k = 0; k < relaxable.size(); ++k)
      if (chosen[k]) relaxed.push_back(relaxable[k]);
    if (visit(relaxed)) return;
  } while (std::prev_permutation(chosen.begin(), chosen.end()));
}

/// Is there a table at all?
class Question {
 public:
  explicit Question(const RunSpec& spec) : searches_(all_searches(spec)), names_(searches_.front().names()) {}

  Answer ask(const Conditions& conditions, const Conditions& relaxed) {
    const auto demands = demands_of(conditions, relaxed, names_);
    auto answer = Answer::no;
    for (auto& search : searches_) {
      const auto here = search.any(demands, question_budget);
      if (here == Answer::yes) return here;
      if (here == Answer::unknown) answer = here;
    }
    return answer;
  }
  /// With some of the conditions relaxed, or none.
  Answer ask_any_relaxation(const Conditions& conditions) {
    auto answer = Answer::no;
    for (std::size_t count = 0; count <= conditions.size() && answer != Answer::yes; ++count)
      for_each_relaxation(conditions, count, [&](const Conditions& relaxed) {
        const auto here = ask(conditions, relaxed);
        if (here != Answer::no) answer = here;
        return here == Answer::yes;
      });
    return answer;
  }

 private:
  std::vector<Search> searches_;
  NamedSizes<SizeInterval> names_;
};

/// Values by variable; the first two are sharing.
using Box = std::vector<std::vector<double>>;

/// Unites boxes that differ in one entry only, until none are left.
void unite(std::vector<Box>& boxes) {
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t v = 0; !boxes.empty() && v < boxes.front().size(); ++v) {
      std::map<Box, std::set<double>> by_rest;
      for (const auto& box : boxes) {
        Box rest = box;
        rest[v].clear();
        by_rest[rest].insert(box[v].begin(), box[v].end());
      }
      changed = changed || by_rest.size() < boxes.size();
      boxes.clear();
      for (const auto& [rest, values] : by_rest) {
        Box box = rest;
        box[v].assign(values.begin(), values.end());
        boxes.push_back(std::move(box));
      }
    }
  }
}

TableBox table_box(const Box& box, const std::vector<Variable>& variables) {
  TableBox result;
  for (const double s : box[0]) result.expert_in_shared.push_back(s != 0 ? 1 : 0);
  for (const double s : box[1]) result.expert_out_shared.push_back(s != 0 ? 1 : 0);
  for (std::size_t k = 0; k < variables.size(); ++k) {
    const Variable& v = variables[k];
    (v.entry == Entry::std ? result.std : v.entry == Entry::lr ? result.lr : result.eps)[v.tensor] = box[k + 2];
  }
  return result;
}

}  // namespace

bool applies(const Condition& c, const RunSpec& spec) {
  return c.optimizer == "any" || (c.optimizer == "sgd") == is_linear(spec.optimizer.name);
}

std::vector<std::string> known_quantities() {
  std::vector<std::string> names;
  for (const auto& o : observable_table)
    if (const std::string name = o.name; name.starts_with("rms_") || name.starts_with("change_")) names.push_back(name);
  for (const auto& a : atomic_table) names.emplace_back(a.name);
  return names;
}

std::vector<Derivation> derive(const Desiderata& desiderata, const RunSpec& spec, std::size_t budget) {
  std::vector<Search> searches = all_searches(spec);
  const auto names = searches.front().names();
  const Conditions conditions = applicable(desiderata, spec);
  std::vector<Derivation> result;
  for (std::size_t count = 0; count <= conditions.size() && result.empty(); ++count)
    for_each_relaxation(conditions, count, [&](const Conditions& relaxed) {
      Derivation derivation;
      derivation.relaxed = relaxed;
      const auto demands = demands_of(conditions, relaxed, names);
      std::vector<Box> boxes;
      for (std::size_t s = 0; s < searches.size(); ++s) {
        double tables = 1;
        for (const auto& v : searches[s].variables()) tables *= static_cast<double>(v.domain.size());
        derivation.tables_searched += tables;
        derivation.evaluations += searches[s].run(demands, budget, [&](const std::vector<double>& values) {
          Box box = {{s / 2 == 0 ? 0.0 : 1.0}, {s % 2 == 0 ? 0.0 : 1.0}};
          for (const double v : values) box.push_back({v});
          boxes.push_back(std::move(box));
        });
      }
      derivation.solutions = boxes.size();
      unite(boxes);
      for (const auto& box : boxes) derivation.boxes.push_back(table_box(box, searches.front().variables()));
      Box space = {{0, 1}, {0, 1}};
      for (const auto& v : searches.front().variables()) space.push_back(v.domain);
      derivation.space = table_box(space, searches.front().variables());
      if (!derivation.boxes.empty()) result.push_back(std::move(derivation));
      return false;
    });
  return result;
}

std::vector<Conditions> relaxations(const Desiderata& desiderata, const RunSpec& spec) {
  Question question(spec);
  const auto smallest = [&question](const Conditions& conditions) {
    std::vector<Conditions> result;
    for (std::size_t count = 0; count <= conditions.size() && result.empty(); ++count)
      for_each_relaxation(conditions, count, [&](const Conditions& relaxed) {
        if (question.ask(conditions, relaxed) != Answer::no) result.push_back(relaxed);
        return false;
      });
    return result;
  };
  const Conditions all = applicable(desiderata, spec);
  if (std::none_of(all.begin(), all.end(), [](const Condition* c) { return can_relax(*c); })) return {{}};
  auto result = smallest(all);
  if (!result.empty()) return result;
  // A condition that no table satisfies with those before it must not relax the others.
  Conditions possible;
  for (const Condition* c : all) {
    possible.push_back(c);
    if (question.ask_any_relaxation(possible) == Answer::no) possible.pop_back();
  }
  return smallest(possible);
}

std::vector<Conditions> conflicts(const Desiderata& desiderata, const RunSpec& spec) {
  const Conditions all = applicable(desiderata, spec);
  Question question(spec);
  std::vector<Conditions> result;
  const auto excluded = [&](const Conditions& conditions) {
    if (question.ask_any_relaxation(conditions) == Answer::no) result.push_back(conditions);
  };
  for (const Condition* c : all) excluded({c});
  if (!result.empty()) return result;
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = i + 1; j < all.size(); ++j) excluded({all[i], all[j]});
  if (!result.empty()) return result;
  // More than two: one set, after leaving out, one by one, all that are not needed.
  Conditions rest = all;
  for (std::size_t k = 0; k < rest.size();) {
    Conditions fewer = rest;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(k));
    if (question.ask_any_relaxation(fewer) == Answer::no)
      rest = std::move(fewer);
    else
      ++k;
  }
  return {rest};
}

std::vector<Violation> violations(const Desiderata& desiderata, const Conditions& relaxed, const RunSpec& spec,
                                  const Parameterization& param) {
  auto list = observable_exponents(spec, param);
  for (auto& e : atomic_exponents(spec, param)) list.push_back(std::move(e));
  std::map<std::string, const ObservableExponents*> by_name;
  for (const auto& e : list) by_name[e.name] = &e;

  std::vector<Violation> result;
  for (const auto& c : desiderata.conditions) {
    if (!applies(c, spec)) continue;
    const bool instead = std::find(relaxed.begin(), relaxed.end(), &c) != relaxed.end();
    if (instead && c.if_impossible == IfImpossible::drop) continue;
    const double min = instead ? no_exponent : c.min, max = instead ? no_exponent : c.max;
    for (const auto& name : c.quantities)
      for (std::size_t stage = 0; stage < num_stages; ++stage) {
        if (!c.at[stage]) continue;
        const ObservableExponents& e = *by_name.at(name);
        const double exponent = e.at[stage].value_or(no_exponent);
        if (exponent <= max + zero_exponent && exponent >= min - zero_exponent) continue;
        result.push_back({&c, name, stage_names[stage], exponent, e.reason});
      }
  }
  return result;
}

bool contains(const Derivation& derivation, const RunSpec& spec, const Parameterization& param) {
  const Sizes& growth = regime_named(spec.model.regime).growth;
  const bool zero_readout = spec.model.readout_init == ReadoutInit::zero;
  const auto has = [&](const std::vector<double>& values, const PowerLaw& law) {
    const double exponent = law.constant == 0 ? no_exponent : snapped(law.exponent_along(growth));
    return std::any_of(values.begin(), values.end(), [&](double v) {
      return v == exponent || std::abs(v - exponent) < zero_exponent;  // of infinities: the first
    });
  };
  const auto allows = [](const std::vector<int>& values, bool shared) {
    return std::find(values.begin(), values.end(), static_cast<int>(shared)) != values.end();
  };
  return std::any_of(derivation.boxes.begin(), derivation.boxes.end(), [&](const TableBox& box) {
    if (!allows(box.expert_in_shared, param.rule[Tensor::expert_in].shared)) return false;
    if (!allows(box.expert_out_shared, param.rule[Tensor::expert_out].shared)) return false;
    for (std::size_t i = 0; i < tensor_names.size(); ++i) {
      const TensorRule& rule = param.rule.values[i];
      const bool given = zero_readout && static_cast<Tensor>(i) == Tensor::readout;
      if (!given && !has(box.std.values[i], rule.std)) return false;
      if (!has(box.lr.values[i], rule.lr)) return false;
      if (!is_linear(spec.optimizer.name) && !has(box.eps.values[i], rule.eps)) return false;
    }
    return true;
  });
}

std::vector<GainRatio> gain_ratios(const RunSpec& spec) {
  const Regime& regime = regime_named(spec.model.regime);
  std::vector<GainRatio> result;
  for (const bool shared : {false, true}) {
    const NormalLaws laws = normal_laws(spec, unit_table(shared, shared), regime);
    const auto add = [&](Tensor t, const NormalLaws::Sides& sides) {
      PowerLaw law = sides.beta2 * sides.chi2.pow(-1);
      law.constant = 1;
      result.push_back({t, shared, law, snapped(law.exponent_along(regime.growth))});
    };
    if (!shared) add(Tensor::router, laws.router);
    add(Tensor::expert_in, laws.expert_in);
    add(Tensor::expert_out, laws.expert_out);
  }
  return result;
}

}  // namespace moe
