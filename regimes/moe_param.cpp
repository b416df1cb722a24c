/// moe_param: parameterizations before any training: tables, what to multiply settings by, limit constants, size exponents, desiderata.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <map>
#include <set>

#include "parameterizations/desiderata.hpp"
#include "regimes/derive.hpp"
#include "regimes/exponents.hpp"
#include "regimes/regime.hpp"
#include "regimes/transfer.hpp"
#include "support/config.hpp"
#include "support/ranks.hpp"
#include "support/report.hpp"
#include "support/result_file.hpp"
#include "support/whole_file.hpp"
#include "support/words.hpp"

namespace {

using moe::Report;
using moe::RunSpec;
using moe::Tensor;

const moe::ProgramInfo program{"moe_param",
                               "Parameterizations: tables, multipliers, limit constants, exponents, desiderata.",
                               "",
                               {{"--format", "WORD", ""},
                                {"--desiderata", "NAME|FILE", ""},
                                {"--without", "LIST", ""},
                                {"--base", "SIZES", ""},
                                {"--target", "SIZES", ""},
                                {"--sizes", "SIZES", ""}}};

constexpr const char* help = R"(usage: moe_param COMMAND [FLAGS]

  table        initial std, learning rate, eps, sharing: the power laws of a table. --sizes N=256,M=16,Ne=64,K=4,D=784[,L=12]:
               their values for a network of these sizes (D inputs) with the configuration's lr, eps and scales
  transfer     --base SIZES --target SIZES, SIZES as N=256,M=16,Ne=64,K=4,L=12: which regime the path is in, and what to multiply
               init std, learning rate, eps and decay of every role of a Transformer by. --format python: PyTorch parameter groups
  constants    constants of the limit, or why there is none
  exponents    size exponent of every observable and atomic term at t = 0, after one step and late, with the reason
  check        --desiderata D: does the table have what is asked for?
  derive       --desiderata D: all tables that have it
  list         the tables and desiderata that ship

Flags of this program:
  --format text|markdown|latex|json   (transfer: python too)
  --desiderata NAME|FILE.toml         a name in parameterizations/desiderata or a file (docs/parameterizations.md)
  --without ID[,ID...]                leave out the conditions of these ids
  --out FILE                          write the report there instead of printing it
All flags of the configuration count too, as for dmft_solve (dmft_solve --help), e.g. --regime II --param NAME|FILE.toml
--optimizer adam --gate softmax --residual --branch-exponent 0.5 --eps 0.
Exit status: 0 done, 1 a verdict is negative (no limit, a desideratum broken, no table found), 2 bad usage.
)";

struct Call {
  RunSpec spec;
  moe::Faults faults;                      ///< of the command line; a command adds its own before it throws them
  std::map<std::string, std::string> own;  ///< flags of this program that were given
  std::string python;                      ///< what transfer gives for --format python

  std::string flag(const std::string& name) const { return own.contains(name) ? own.at(name) : ""; }
};

std::string name_of(Tensor t) { return moe::tensor_names[static_cast<std::size_t>(t)]; }
std::string context(const RunSpec& spec, const std::string& param) {
  return fmt::format("{}, regime {}, {}", param, spec.model.regime, moe::to_string(spec.optimizer.name));
}

/// The table, once nothing is at fault.
moe::Parameterization table_of(Call& call) {
  moe::Parameterization param = moe::load_parameterization(call.spec, call.faults);
  call.faults.throw_if_any();
  return param;
}

bool entrywise(const RunSpec& spec) { return !moe::is_linear(spec.optimizer.name); }

/// Path along which sizes grow, as N ~ M ~ K.
std::string path_text(const RunSpec& spec) {
  const moe::Sizes& g = moe::regime_named(spec.model.regime).growth;
  std::string text = "N";
  if (g.M > 0) text += " ~ M ~ K";
  if (g.Ne > 0) text += " ~ N_e";
  return text;
}

/// What a network of --sizes starts and learns with.
moe::ReportTable numbers(Call& call, const moe::Parameterization& param, Report& report) {
  const auto [sizes, given] = moe::parse_sizes(call.flag("--sizes"), "--sizes", call.faults);
  if (!given.contains("D"))
    call.faults.add("command line: --sizes lacks D, the number of inputs. Write sizes as N=256,M=16,Ne=64,K=4,D=784");
  call.faults.throw_if_any();
  const moe::NetworkConstants values = moe::network_constants(call.spec, param, sizes);
  moe::ReportTable rows{
      "numbers", {"tensor", "init std", "learning rate"}, {}, fmt::format("At {}:", call.flag("--sizes"))};
  if (entrywise(call.spec)) rows.columns.emplace_back("eps");
  for (std::size_t i = 0; i < moe::tensor_names.size(); ++i) {
    rows.rows.push_back({moe::tensor_names[i], values.std.values[i], values.lr.values[i]});
    if (entrywise(call.spec)) rows.rows.back().emplace_back(values.eps.values[i]);
  }
  report.remarks.push_back(fmt::format("The sum over active experts has the prefactor {:.6g}.", values.aggregation));
  return rows;
}

int table(Call& call, Report& report) {
  const moe::Parameterization param = table_of(call);
  report.title = context(call.spec, param.name);
  report.notes.push_back(param.description);
  moe::ReportTable rows{"tensors", {"tensor", "init std", "lr / eta"}, {}, ""};
  if (entrywise(call.spec)) rows.columns.emplace_back("eps / eps");
  const bool decays = call.spec.optimizer.name == moe::OptimizerKind::adamw;
  if (decays) rows.columns.emplace_back("decay a step");
  rows.columns.emplace_back("shared");
  for (std::size_t i = 0; i < moe::tensor_names.size(); ++i) {
    const moe::TensorRule& rule = param.rule.values[i];
    std::vector<moe::Cell> row = {moe::tensor_names[i], rule.std.text(), rule.lr.text()};
    if (entrywise(call.spec)) row.emplace_back(rule.eps.text());
    if (decays) row.emplace_back("1 - eta * weight_decay");
    row.emplace_back(rule.shared ? "experts start equal" : "no");
    rows.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(rows));
  if (call.own.contains("--sizes")) report.tables.push_back(numbers(call, param, report));
  return 0;
}

int constants(Call& call, Report& report) {
  const moe::Parameterization param = table_of(call);
  const moe::Regime& regime = moe::regime_named(call.spec.model.regime);
  moe::Faults faults;
  const auto limit = moe::limit_constants(call.spec, param, regime, 1, faults);
  report.title = "Limit of " + context(call.spec, param.name);
  moe::ReportTable rows{"constants", {"tensor", "quantity", "law", "exponent", "limit"}, {}, ""};
  for (const auto& law : moe::size_laws(call.spec, param, regime)) {
    std::vector<moe::Cell> row = {name_of(law.tensor), law.quantity, law.law.text(), law.exponent};
    row.push_back(law.exponent > 0 ? moe::Cell("grows") : moe::Cell(law.limit));
    rows.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(rows));
  for (const auto& w : limit.warnings) report.remarks.push_back("Warning: " + w + ".");
  for (const auto& f : faults.list()) report.remarks.push_back(f + ".");
  report.notes.push_back(faults.empty()
                             ? fmt::format("The limit along {} exists.", path_text(call.spec))
                             : fmt::format("There is no limit of this form along {}.", path_text(call.spec)));
  return faults.empty() ? 0 : 1;
}

moe::Cell exponent_cell(const std::optional<double>& exponent) {
  if (!exponent) return {};
  if (*exponent == moe::unbounded) return "unbounded";
  return *exponent;
}

int exponents(Call& call, Report& report) {
  const moe::Parameterization param = table_of(call);
  report.title = "Size exponents of " + context(call.spec, param.name);
  report.notes.push_back(
      fmt::format("Exponent of N along {}, {}. \"-\": identically zero. Marked: v vanishes, ^ grows, with size.",
                  path_text(call.spec),
                  entrywise(call.spec) && call.spec.optimizer.eps == 0 ? "eps = 0 (taken before N to infinity)"
                                                                       : "t = 0, after one step, late"));
  std::map<std::string, std::vector<std::string>> reasons;
  std::vector<std::string> order;
  const auto add = [&](const char* name, const std::vector<moe::ObservableExponents>& list) {
    moe::ReportTable rows{name, {"quantity", "t = 0", "one step", "late", "mark"}, {}, ""};
    for (const auto& e : list) {
      std::string mark;
      const bool counts = e.name.starts_with("ess_");
      for (const auto& x : e.at) {
        if (x && *x < 0 && mark.find('v') == std::string::npos) mark += 'v';
        if (x && *x > 0 && !counts && mark.find('^') == std::string::npos) mark += '^';
      }
      rows.rows.push_back({e.name, exponent_cell(e.at[0]), exponent_cell(e.at[1]), exponent_cell(e.at[2]), mark});
      if (e.reason.empty() || counts) continue;
      if (reasons[e.reason].empty()) order.push_back(e.reason);
      reasons[e.reason].push_back(e.name);
    }
    report.tables.push_back(std::move(rows));
  };
  add("observables", moe::observable_exponents(call.spec, param));
  add("atomic", moe::atomic_exponents(call.spec, param));
  for (const auto& reason : order)
    report.remarks.push_back(fmt::format("{}: {}.", fmt::join(reasons[reason], ", "), reason));
  return 0;
}

moe::Desiderata desiderata_of(Call& call) {
  if (const std::string which = call.flag("--desiderata"); !which.empty())
    return moe::load_desiderata(which, moe::known_quantities(), moe::comma_separated(call.flag("--without")),
                                call.faults);
  call.faults.add("command line: --desiderata is missing. Give a name or a file");
  return {};
}

int check(Call& call, Report& report) {
  const moe::Desiderata desiderata = desiderata_of(call);
  const moe::Parameterization param = table_of(call);
  // Which conditions have to be relaxed depends on what other tables can do.
  moe::Conditions relaxed;
  std::vector<moe::Violation> broken;
  bool first = true;
  for (const auto& choice : moe::relaxations(desiderata, call.spec)) {
    auto list = moe::violations(desiderata, choice, call.spec, param);
    if (!first && list.size() >= broken.size()) continue;
    broken = std::move(list), relaxed = choice, first = false;
  }
  report.title = fmt::format("{} under {}", context(call.spec, param.name), desiderata.name);
  if (!desiderata.description.empty()) report.notes.push_back(desiderata.description);
  moe::ReportTable rows{"conditions", {"id", "says", "holds"}, {}, ""};
  std::set<const moe::Condition*> bad;
  for (const auto& v : broken) bad.insert(v.condition);
  for (const auto& c : desiderata.conditions) {
    const bool eased = std::find(relaxed.begin(), relaxed.end(), &c) != relaxed.end();
    const bool dropped = eased && c.if_impossible == moe::IfImpossible::drop;
    rows.rows.push_back({c.id,
                         c.says + (dropped ? " (no table can: dropped)"
                                   : eased ? " (no table can: zero instead)"
                                           : ""),
                         dropped || !moe::applies(c, call.spec) ? moe::Cell()
                         : bad.contains(&c)                     ? moe::Cell("NO")
                                                                : moe::Cell("yes")});
  }
  report.tables.push_back(std::move(rows));
  if (!broken.empty()) {
    moe::ReportTable list{"broken", {"id", "quantity", "stage", "exponent"}, {}, "Broken:"};
    std::map<std::string, std::string> reasons;
    for (const auto& v : broken) {
      list.rows.push_back({v.condition->id, v.quantity, v.stage,
                           v.exponent == moe::no_exponent ? moe::Cell("zero")
                           : v.exponent == moe::unbounded ? moe::Cell("unbounded")
                                                          : moe::Cell(v.exponent)});
      if (!v.reason.empty()) reasons.emplace(v.quantity, v.reason);
    }
    report.tables.push_back(std::move(list));
    for (const auto& [quantity, reason] : reasons) report.remarks.push_back(fmt::format("{}: {}.", quantity, reason));
  }
  report.remarks.push_back(broken.empty() ? "All conditions hold."
                                          : fmt::format("{} of the quantities asked for are off.", broken.size()));
  return broken.empty() ? 0 : 1;
}

/// "N^-1", "N^0 or N^0.5", "N^-1 and below, zero included".
std::string powers(const std::vector<double>& values, const std::vector<double>& space) {
  const auto one = [](double x) {
    return x == moe::no_exponent ? std::string("zero") : fmt::format("N^{:g}", x == 0 ? 0.0 : x);
  };
  if (values.size() > 2 && values.front() == moe::no_exponent &&
      std::equal(values.begin(), values.end(), space.begin()))
    return one(values.back()) + " and below, zero included";
  std::string text;
  for (const double x : values) text += (text.empty() ? "" : " or ") + one(x);
  return text;
}

/// Names of the tables in the folder that are among the solutions.
std::vector<std::string> known_solutions(const RunSpec& spec, const moe::Derivation& derivation) {
  std::vector<std::string> names;
  for (const std::string& name : moe::toml_names(moe::parameterizations_folder())) {
    RunSpec with = spec;
    with.model.param = name;
    moe::Faults faults;
    const auto param = moe::load_parameterization(with, faults);
    if (faults.empty() && moe::contains(derivation, with, param)) names.push_back(name);
  }
  return names;
}

/// Why neither structure works everywhere: the ratio of a matrix's two gains, which no std changes.
void add_ratios(const RunSpec& spec, Report& report) {
  moe::ReportTable rows{"gain_ratios",
                        {"tensor", "experts start", "s_beta^2 / s_chi^2", "exponent", "both gains of order one"},
                        {},
                        "The ratio of the two gains of a matrix is the same for every std:"};
  for (const auto& r : moe::gain_ratios(spec))
    rows.rows.push_back({name_of(r.tensor),
                         r.tensor == Tensor::router ? "-"
                         : r.shared                 ? "equal (shared)"
                                                    : "independent",
                         r.law.text(), r.exponent, r.exponent == 0 ? "possible" : "impossible"});
  report.tables.push_back(std::move(rows));
}

/// Why there is no table.
void add_conflicts(const moe::Desiderata& desiderata, const RunSpec& spec, Report& report) {
  const auto conflicts = moe::conflicts(desiderata, spec);
  moe::ReportTable rows{"conflicts",
                        {"set", "id", "says", "quantities"},
                        {},
                        conflicts.front().size() == 1 ? "Conditions that no table satisfies, each by itself:"
                                                      : "Conditions that no table satisfies together, by set:"};
  for (std::size_t k = 0; k < conflicts.size(); ++k)
    for (const auto* c : conflicts[k])
      rows.rows.push_back({static_cast<double>(k + 1), c->id,
                           c->says + (c->if_impossible == moe::IfImpossible::zero   ? " (or zero)"
                                      : c->if_impossible == moe::IfImpossible::drop ? " (or dropped)"
                                                                                    : ""),
                           fmt::format("{}", fmt::join(c->quantities, ", "))});
  report.tables.push_back(std::move(rows));
  report.remarks.emplace_back("No table in the space (half-integer powers within N^2 of order one) has all of this.");
}

/// Entries that are not the same in all solutions. Linear rules have no eps.
std::vector<std::string> open_entries(const moe::Derivation& derivation) {
  std::vector<std::string> open;
  const auto add_if_open = [&](const std::string& name, const auto& values_of) {
    std::set<double> all;
    for (const auto& box : derivation.boxes) all.insert(values_of(box).begin(), values_of(box).end());
    if (all.size() > 1) open.push_back(name);
  };
  for (std::size_t i = 0; i < moe::tensor_names.size(); ++i)
    for (const auto& [key, member] :
         {std::pair{".std", &moe::TableBox::std}, {".lr", &moe::TableBox::lr}, {".eps", &moe::TableBox::eps}})
      add_if_open(
          moe::tensor_names[i] + std::string(key),
          [&, m = member ](const moe::TableBox& box) -> const auto& { return (box.*m).values[i]; });
  add_if_open(
      "sharing of expert_in", [](const moe::TableBox& box) -> const auto& { return box.expert_in_shared; });
  add_if_open(
      "sharing of expert_out", [](const moe::TableBox& box) -> const auto& { return box.expert_out_shared; });
  return open;
}

int derive(Call& call, Report& report) {
  const moe::Desiderata desiderata = desiderata_of(call);
  call.faults.throw_if_any();
  const auto derivations = moe::derive(desiderata, call.spec);
  report.title = fmt::format("Tables with {} in regime {} under {}", desiderata.name, call.spec.model.regime,
                             moe::to_string(call.spec.optimizer.name));
  report.notes.push_back(fmt::format(
      "Exponents along {}: a power of N stands for any product of the sizes that grow together with the same total "
      "power. Multiplier-free (modulo the abc-symmetry), modulo constants.",
      path_text(call.spec)));
  for (const auto& d : derivations) {
    for (const auto* c : d.relaxed)
      report.notes.push_back(
          fmt::format("No table satisfies '{}' ({}) with the rest here, so {}.", c->says, c->id,
                      c->if_impossible == moe::IfImpossible::zero ? "these must be zero" : "it is dropped"));
    for (const auto& box : d.boxes) {
      moe::ReportTable rows{fmt::format("solution{}", report.tables.size() + 1), {"tensor", "init std", "lr"}, {}, ""};
      if (entrywise(call.spec)) rows.columns.emplace_back("eps");
      rows.columns.emplace_back("experts start");
      for (std::size_t i = 0; i < moe::tensor_names.size(); ++i) {
        const auto t = static_cast<Tensor>(i);
        std::vector<moe::Cell> row = {moe::tensor_names[i], powers(box.std[t], d.space.std[t]),
                                      powers(box.lr[t], d.space.lr[t])};
        if (entrywise(call.spec)) row.emplace_back(powers(box.eps[t], d.space.eps[t]));
        const std::vector<int>* sharing = t == Tensor::expert_in    ? &box.expert_in_shared
                                          : t == Tensor::expert_out ? &box.expert_out_shared
                                                                    : nullptr;
        row.emplace_back(!sharing ? moe::Cell()
                                  : moe::Cell(sharing->size() > 1     ? "independent or equal"
                                              : sharing->front() != 0 ? "equal (shared)"
                                                                      : "independent"));
        rows.rows.push_back(std::move(row));
      }
      report.tables.push_back(std::move(rows));
    }
    const auto names = known_solutions(call.spec, d);
    if (!names.empty())
      report.remarks.push_back(fmt::format("Among them, of the tables that ship: {}.", fmt::join(names, ", ")));
    const std::vector<std::string> open = open_entries(d);
    report.remarks.push_back(open.empty() ? "The table is unique."
                                          : fmt::format("All entries are unique but: {}.", fmt::join(open, ", ")));
    report.remarks.push_back(fmt::format(
        "Searched: {:.2g} tables (half-integer powers within N^2 of order one, zero initialisation, sharing); {} "
        "solution{}, {} evaluations of signal propagation.",
        d.tables_searched, d.solutions, d.solutions == 1 ? "" : "s", d.evaluations));
  }
  if (derivations.empty()) add_conflicts(desiderata, call.spec, report);
  add_ratios(call.spec, report);
  return derivations.empty() ? 1 : 0;
}

int transfer(Call& call, Report& report) {
  const auto sizes = [&](const char* flag) {
    if (call.own.contains(flag)) return moe::parse_sizes(call.flag(flag), flag, call.faults);
    call.faults.add(fmt::format("command line: {} is missing. Write sizes as N=256,M=16,Ne=64,K=4,L=12", flag));
    return moe::GivenSizes{};
  };
  const auto [base, of_base] = sizes("--base");
  const auto [target, of_target] = sizes("--target");
  // Depth may be left out, but not at one end: it would count as one block there.
  if (call.own.contains("--base") && call.own.contains("--target") && of_base.contains("L") != of_target.contains("L"))
    call.faults.add(fmt::format("command line: {} lacks L, which the other end has. Give the depth of both, or of none",
                                of_base.contains("L") ? "--target" : "--base"));
  const bool chosen = call.spec.origin.contains("model.regime");
  if (!call.faults.empty()) {
    if (!chosen) call.faults.set_aside("model.regime");  // sizes would have said it
    table_of(call);
  }
  const moe::PathKind kind = moe::path_kind(base, target);
  if (!chosen) call.spec.model.regime = kind.regime;
  const moe::Parameterization param = table_of(call);
  const auto multipliers = moe::role_multipliers(call.spec, param, base, target);
  call.python = moe::python_snippet(call.spec, multipliers, base, target);
  report.title =
      fmt::format("From {} to {} with {}", call.flag("--base"), call.flag("--target"), context(call.spec, param.name));
  report.notes.push_back(kind.description + ".");
  if (!kind.exact || kind.regime != call.spec.model.regime)
    report.notes.push_back(
        fmt::format("The multipliers follow the table of regime {}{}. What they leave changing with "
                    "size is listed at the end.",
                    call.spec.model.regime, chosen ? ", as asked for" : ""));
  moe::ReportTable rows{"multipliers", {"role", "init std", "lr"}, {}, "Multiply the base model's settings by:"};
  if (entrywise(call.spec)) rows.columns.emplace_back("eps");
  rows.columns.insert(rows.columns.end(), {"weight decay", "experts start", "like"});
  for (const auto& m : multipliers) {
    std::vector<moe::Cell> row = {m.role, m.std ? *m.std == 0 ? moe::Cell("zero") : moe::Cell(*m.std) : moe::Cell(),
                                  m.lr};
    if (entrywise(call.spec)) row.emplace_back(m.eps);
    row.emplace_back(m.weight_decay);
    row.emplace_back(m.shared ? moe::Cell("equal") : moe::Cell());
    row.emplace_back(m.like);
    rows.rows.push_back(std::move(row));
  }
  report.tables.push_back(std::move(rows));
  const double alpha = call.spec.model.branch_exponent;
  report.remarks.push_back(
      fmt::format("Residual branches: multiply their output by {:.6g} (L^-{:g}); the sum over experts "
                  "is divided by K, or the gates of a token sum to one.",
                  std::pow(target.L / base.L, -alpha), alpha));
  report.remarks.emplace_back(
      "Weight decay is that of PyTorch's decoupled lr * weight_decay, so that their product stays.");
  report.remarks.emplace_back(
      "Attention: if heads are added, nothing else changes; if they widen, divide logits by the width of a head and "
      "not "
      "by its root. Load-balancing coefficient and router temperature are scale-free: 1.");
  const auto list = moe::drifts(call.spec, param, base, target);
  const double kappa = target.K / target.M / (base.K / base.M);
  const bool sparser = std::abs(kappa - 1) > 1e-9;  // or denser
  std::string comments;
  for (const auto& note : report.notes) comments += "# " + note + "\n";
  for (const auto& d : list)
    comments += fmt::format("# Not the same at both ends: {} {}, {:.6g} times the base's.\n", name_of(d.tensor),
                            d.quantity, d.ratio);
  if (sparser) comments += fmt::format("# Not the same at both ends: kappa = K/M, {:.6g} times the base's.\n", kappa);
  call.python.insert(call.python.find('\n') + 1, comments);  // behind the line of sizes
  if (list.empty() && !sparser) {
    report.remarks.emplace_back("Every quantity of the limit is the same at both ends.");
  } else {
    moe::ReportTable drift{"drift",
                           {"tensor", "quantity", "target / base"},
                           {},
                           "Not the same at both ends (1 is what a table should keep along its path):"};
    for (const auto& d : list) drift.rows.push_back({name_of(d.tensor), d.quantity, d.ratio});
    if (sparser) drift.rows.push_back({moe::Cell(), "kappa = K/M", kappa});
    report.tables.push_back(std::move(drift));
  }
  return 0;
}

int list(Call& call, Report& report) {
  call.faults.throw_if_any();
  report.title = "What ships";
  const auto add = [&](const char* name, const std::string& folder, auto&& describe) {
    moe::ReportTable rows{name, {"name", "description"}, {}, ""};
    for (const std::string& n : moe::toml_names(folder)) rows.rows.push_back({n, describe(n)});
    report.tables.push_back(std::move(rows));
  };
  const std::string folder = moe::parameterizations_folder();
  add("tables", folder, [](const std::string& name) {
    std::string description;
    for (const char* regime : {"I", "III"}) {  // some tables cover one regime only
      RunSpec spec;
      spec.model.param = name;
      spec.model.regime = regime;
      moe::Faults faults;
      const auto param = moe::load_parameterization(spec, faults);
      if (!param.description.empty()) description = param.description;
    }
    return description;
  });
  add("desiderata", folder + "/desiderata", [](const std::string& name) {
    moe::Faults faults;
    return moe::load_desiderata(name, moe::known_quantities(), {}, faults).description;
  });
  return 0;
}

struct Command {
  int (*run)(Call&, Report&);
  std::vector<std::string> flags;  ///< of this program, that it uses beside --format
};
const std::map<std::string, Command> commands = {
    {"table", {table, {"--sizes"}}},
    {"transfer", {transfer, {"--base", "--target"}}},
    {"constants", {constants, {}}},
    {"exponents", {exponents, {}}},
    {"check", {check, {"--desiderata", "--without"}}},
    {"derive", {derive, {"--desiderata", "--without"}}},
    {"list", {list, {}}},
};

/// What a command would not look at must not be as good as heard.
void refuse_unused(const std::string& command, Call& call) {
  const auto& used = commands.at(command).flags;
  for (const auto& [flag, value] : call.own)
    if (flag != "--format" && std::find(used.begin(), used.end(), flag) == used.end())
      call.faults.add(fmt::format("command line: moe_param {} does not use {}. Leave it out; {} --help says who does",
                                  command, flag, program.name));
}

int run(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "--help";
  const std::vector<std::string> words(argv + std::min(argc, 2), argv + argc);
  if (command == "--help" || command == "help" || std::find(words.begin(), words.end(), "--help") != words.end()) {
    std::fputs(help, stdout);
    return 0;
  }
  Call call;
  moe::Faults& faults = call.faults;
  const bool known = commands.contains(command), asks_version = command == "--version";
  if (!known && !asks_version)
    faults.add(
        fmt::format("command line: there is no command '{}'. Use table, transfer, constants, exponents, check, derive "
                    "or list; {} --help explains",
                    command, program.name));
  const auto times = std::count_if(words.begin(), words.end(), [](const std::string& word) {
    return word.substr(0, word.find('=')) == "--desiderata";
  });
  if (times > 1)
    faults.add(
        fmt::format("command line: --desiderata is given {} times, and only one can be asked for. Give one; a "
                    "file that extends another has the conditions of both",
                    times));
  const int skipped = asks_version ? 0 : 1;
  const moe::Invocation invocation = moe::parse_command_line(program, argc - skipped, argv + skipped, faults);
  if (invocation.exit_code >= 0) return invocation.exit_code;
  call.spec = invocation.spec;
  call.own = invocation.own;
  std::vector<std::string> formats = {"text", "markdown", "latex", "json"};
  if (command == "transfer") formats.emplace_back("python");
  const std::string asked = call.own.contains("--format") ? call.flag("--format") : "text";
  const auto format = std::find(formats.begin(), formats.end(), asked);
  if (format == formats.end())
    faults.add(fmt::format("command line: --format {} is not known. Use {}", asked, fmt::join(formats, ", ")));
  const std::string& out = invocation.options.out;
  if (!out.empty()) moe::check_writable(out, faults);
  if (!known) faults.throw_if_any();
  refuse_unused(command, call);
  Report report;
  const int status = commands.at(command).run(call, report);
  const std::string text =
      asked == "python" ? call.python : render(report, static_cast<moe::ReportFormat>(format - formats.begin()));
  if (out.empty())
    std::fputs(text.c_str(), stdout);
  else
    moe::write_whole_file(out, "--out FILE", text);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  moe::open_standard_streams();
  try {
    moe::require_one_rank("moe_param");
    return moe::status_with_output("moe_param", run(argc, argv));
  } catch (const moe::ConfigError& error) {
    for (const auto& fault : error.faults) fmt::print(stderr, "moe_param: {}\n", fault);
    return 2;
  } catch (const std::exception& error) {
    fmt::print(stderr, "moe_param: {}\n", error.what());
    return 1;
  }
}
