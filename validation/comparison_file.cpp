#include "validation/comparison_file.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "support/config.hpp"
#include "support/config_keys.hpp"
#include "support/observable.hpp"
#include "support/result_file.hpp"

namespace moe {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Datasets of one group; empty ones are left out.
class GroupWriter {
 public:
  GroupWriter(H5Writer& file, std::string group) : file_(file), group_(std::move(group)) {}

  void steps(const std::string& name, const std::vector<int>& values, const std::string& description) {
    write_steps(file_, group_ + "/" + name, values, description);
  }
  void per_width(const std::string& name, const std::vector<int>& values, const std::string& description) {
    const std::vector<std::int64_t> wide(values.begin(), values.end());
    file_.dataset(group_ + "/" + name, {wide.size()}, wide.data(), description, {"width"});
  }
  void curve(const std::string& name, const std::vector<double>& values, const std::string& description) {
    if (!values.empty()) file_.dataset(group_ + "/" + name, {values.size()}, values.data(), description, {"step"});
  }
  void table(const std::string& name, const MatrixXd& values, const std::string& description) {
    if (values.size() == 0) return;
    const RowMajor rows = values;
    file_.dataset(group_ + "/" + name, {static_cast<std::size_t>(rows.rows()), static_cast<std::size_t>(rows.cols())},
                  rows.data(), description, {"width", "step"});
  }
  template <class Value>
  void attribute(const std::string& name, const Value& value) {
    file_.attribute(group_, name, value);
  }

 private:
  H5Writer& file_;
  std::string group_;
};

void write_observable(H5Writer& file, const std::string& group, const ObservableComparison& o) {
  GroupWriter out(file, group + "/observables/" + o.name);
  out.steps("steps", o.steps, "steps of this observable");
  out.curve("limit", o.limit, "limit, mean over replicas");
  out.curve("limit_error", o.limit_error, "standard error of that mean");
  out.curve("limit_corrected", o.limit_corrected, "limit without its bias of order 1/S (random limit: as it is)");
  out.curve("limit_corrected_error", o.limit_corrected_error, "its error, what is not known of the bias included");
  out.table("mean", o.mean, "networks, mean over seeds");
  out.table("mean_error", o.mean_error, "standard error of that mean");
  out.table("deviation_z", o.deviation_z, "(mean - limit_corrected) in combined standard errors");
  out.curve("slope", o.slope, "slope of log |mean - limit_corrected| against log N; NaN where no deviation is seen");
  out.curve("slope_error", o.slope_error, "its standard error");
  out.curve("extrapolated", o.extrapolated, "networks extrapolated to infinite N (random limit: to N = S)");
  out.curve("extrapolated_error", o.extrapolated_error, "its error, what is not known of higher orders included");
  out.curve("z", o.z, "(extrapolated - limit_corrected) in combined errors, in the units that are compared");
  out.curve("degrees", o.degrees, "degrees of freedom of the combined error");
  out.curve("error", o.error, "that combined error, of the square where extrapolated_as is square");
  out.curve("bound", o.bound, "what |z| may reach; NaN at steps that are not judged");
  out.table("variance", o.variance, "networks, variance over seeds");
  out.curve("limit_variance", o.limit_variance, "limit, variance over replicas");
  out.curve("variance_z", o.variance_z, "log of the ratio of variances at N = S in standard errors");
  out.curve("variance_bound", o.variance_bound, "what |variance_z| may reach; NaN at steps that are not judged");
  out.attribute("description", o.description);
  out.attribute("verdict", std::string(to_string(o.verdict)));
  out.attribute("reason", o.reason);
  out.attribute("correction_power", -o.power);
  out.attribute("extrapolated_as", std::string(o.squared ? "square" : "value"));
  out.attribute("worst_step", std::int64_t{o.worst_step});
  out.attribute("worst_z", o.worst_z);
  out.attribute("worst_share", o.worst_share);
  out.attribute("resolution", o.resolution);
  out.attribute("size", o.size);
}

void write_exponents(H5Writer& file, const std::string& group, const std::vector<ExponentComparison>& exponents) {
  for (const ExponentComparison& x : exponents) {
    const std::string path = group + "/exponents/" + x.name + "/" + stage_names[static_cast<std::size_t>(x.stage)];
    const auto scalar = [&](const char* name, double value, const char* description) {
      file.dataset(path + "/" + name, {}, &value, description, {});
    };
    scalar("fitted", x.fitted, "power of N of the mean over seeds");
    scalar("error", x.error, "its standard error");
    if (x.predicted) scalar("predicted", *x.predicted, "power of N that the parameterization predicts");
    file.dataset(path + "/value", {x.value.size()}, x.value.data(), "mean over seeds", {"width"});
    file.dataset(path + "/value_error", {x.value_error.size()}, x.value_error.data(), "standard error of that mean",
                 {"width"});
    file.attribute(path, "step", std::int64_t{x.step});
    file.attribute(path, "divided_by", x.per);
    file.attribute(path, "verdict", std::string(to_string(x.verdict)));
    file.attribute(path, "reason", x.reason);
  }
}

/// Keys that say how something is computed, recorded or found, and not what.
bool says_how(const std::string& path) {
  for (const char* prefix : {"sampling.", "network.", "output."})
    if (path.starts_with(prefix)) return true;
  return path == "data.path" || path == "training.eval_every" || path == "training.test_every" || path == "data.test";
}

std::vector<int> steps_beside(const H5Reader& file, const std::string& name, std::size_t count) {
  std::vector<int> steps(count);
  for (std::size_t k = 0; k < count; ++k) steps[k] = static_cast<int>(k);
  if (!file.has(name)) return steps;
  const H5Array stored = file.read(name);
  for (std::size_t k = 0; k < std::min(count, stored.values.size()); ++k) steps[k] = static_cast<int>(stored.values[k]);
  return steps;
}

/// The dataset of steps that belongs to a curve, below the group that holds the curves.
std::string step_list_of(const std::string& group, const std::string& curve) {
  if (curve == "batch_loss") return "";
  if (curve.starts_with("test_")) return group + "/test_steps";
  if (curve == "loss" || curve == "accuracy") return group + "/eval_steps";
  return group + "/observables/observe_steps";
}

std::string path_of(const std::string& group, const std::string& curve) {
  const bool top = curve == "batch_loss" || curve == "loss" || curve == "accuracy" || curve.starts_with("test_");
  return group + (top ? "/" : "/observables/") + curve;
}

std::vector<std::string> curve_names() {
  std::vector<std::string> names = {"loss", "batch_loss", "test_loss", "accuracy", "test_accuracy"};
  for (const auto& info : observable_table) names.emplace_back(info.name);
  return names;
}

std::vector<int> read_steps(const H5Reader& file, const std::string& group, const std::string& curve,
                            std::size_t count) {
  const std::string list = step_list_of(group, curve);
  return steps_beside(file, list.empty() ? group + "/none" : list, count);
}

/// Size of the axis of blocks, which stands at place `axis` of a curve of a deep network.
int blocks_of(const H5Array& curve, std::size_t axis) {
  return curve.shape.size() > axis ? static_cast<int>(curve.shape[axis]) : 1;
}

void read_limit(const H5Reader& file, Evidence& e) {
  e.limit.replicas = static_cast<int>(file.attribute_number("/limit", "replicas"));
  e.limit.neurons = static_cast<int>(file.attribute_number("/limit", "neurons"));
  const std::string matching = file.attribute_text("/limit", "moment_matching");
  e.limit.matching = matching.starts_with("on");
  e.limit.lists_hold = !matching.starts_with("on,");
  e.limit.random_limit = file.attribute_text("/limit", "random_limit").starts_with("yes");
  e.limit.status = file.attribute_text("/limit", "status");
  for (const std::string& name : curve_names()) {
    const std::string path = path_of("/limit", name);
    if (!file.has(path) || !file.has(path + "_sem")) continue;
    const H5Array mean = file.read(path), sem = file.read(path + "_sem");
    const auto parts = recorded(name, blocks_of(mean, 1));
    const std::size_t L = parts.size(), n = mean.shape.at(0);
    for (std::size_t l = 0; l < L; ++l) {
      Curve curve;
      for (std::size_t t = 0; t < n; ++t)
        curve.mean.push_back(mean.values[t * L + l]), curve.sem.push_back(sem.values.at(t * L + l));
      e.limit.curves[parts[l].key] = std::move(curve);
      e.steps[parts[l].key] = read_steps(file, "/limit", name, n);
    }
  }
}

/// Columns of `table` at the steps that the limit has too; the limit's lists are cut to those that all networks have.
void read_networks(const H5Reader& file, Evidence& e) {
  std::map<std::string, std::vector<int>> steps;
  double last_step = HUGE_VAL;  // that every network has: rows of those that converged end there
  for (const std::string& member : file.members("/network")) {
    const std::string group = "/network/" + member;
    NetworkSamples n;
    const auto number = [&](const char* name) { return static_cast<int>(file.attribute_number(group, name)); };
    n.shape = {number("N"), number("M"), number("N_e"), number("K"), 0, 0, 1};
    const std::vector<double> failed = file.read(group + "/failed_step").values;
    std::vector<Index> finished;
    for (std::size_t s = 0; s < failed.size(); ++s)
      if (failed[s] < 0) finished.push_back(static_cast<Index>(s));
    n.diverged = static_cast<int>(failed.size() - finished.size());
    if (file.has(group + "/converged_step"))
      for (const double step : file.read(group + "/converged_step").values)
        if (step >= 0) last_step = std::min(last_step, step);
    for (const std::string& name : curve_names()) {
      const std::string path = path_of(group, name);
      if (!file.has(path)) continue;
      const H5Array stored = file.read(path);
      if (stored.shape.size() < 2 || stored.shape[0] != failed.size()) continue;
      const auto parts = recorded(name, blocks_of(stored, 2));
      const auto L = static_cast<Index>(parts.size()), T = static_cast<Index>(stored.shape[1]);
      const RowMajor all = Eigen::Map<const RowMajor>(stored.values.data(), static_cast<Index>(stored.shape[0]), T * L);
      for (const Recorded& part : parts) {
        n.curves[part.key] = all(finished, Eigen::seqN(part.block, T, L));
        steps[part.key] = read_steps(file, group, name, stored.shape[1]);
      }
    }
    e.networks.push_back(std::move(n));
  }
  std::stable_sort(e.networks.begin(), e.networks.end(),
                   [](const auto& a, const auto& b) { return a.shape.N < b.shape.N; });

  for (auto& [name, list] : e.steps) {
    if (!steps.contains(name)) continue;
    std::vector<Index> in_limit, in_networks;
    std::vector<int> common;
    for (std::size_t k = 0; k < list.size(); ++k) {
      const auto found = std::find(steps[name].begin(), steps[name].end(), list[k]);
      if (found == steps[name].end() || list[k] > last_step) continue;
      common.push_back(list[k]);
      in_limit.push_back(static_cast<Index>(k));
      in_networks.push_back(found - steps[name].begin());
    }
    Curve cut;
    for (const Index k : in_limit) {
      cut.mean.push_back(e.limit.curves[name].mean[static_cast<std::size_t>(k)]);
      cut.sem.push_back(e.limit.curves[name].sem[static_cast<std::size_t>(k)]);
    }
    e.limit.curves[name] = std::move(cut);
    for (NetworkSamples& n : e.networks)
      if (const auto it = n.curves.find(name); it != n.curves.end())
        it->second = MatrixXd(it->second(Eigen::all, in_networks));
    list = std::move(common);
  }
}

/// What was trained on, where the file holds it.
std::optional<Dataset> stored_data(const H5Reader& file) {
  if (!file.has("/data/x") || !file.has("/data/y")) return std::nullopt;
  const auto columns = [&](const char* name) {
    const H5Array rows = file.read(name);
    return Eigen::MatrixXd(Eigen::Map<const Eigen::MatrixXd>(rows.values.data(), static_cast<Index>(rows.shape.at(1)),
                                                             static_cast<Index>(rows.shape.at(0))));
  };
  Dataset data;
  data.x = columns("/data/x"), data.y = columns("/data/y");
  return data;
}

void require_group(const H5Reader& file, const std::string& path, const std::string& group, const char* flag,
                   const char* program) {
  if (file.has(group)) return;
  throw IoError(fmt::format("io: {} has no {}: it is no result of {} or dmft_validate. Give another file with {}.",
                            path, group, program, flag));
}

}  // namespace

void write_comparison(H5Writer& file, const std::string& group, const Comparison& c) {
  GroupWriter out(file, group);
  std::vector<int> N, M, Ne, K;
  for (const NetworkShape& s : c.shapes) N.push_back(s.N), M.push_back(s.M), Ne.push_back(s.Ne), K.push_back(s.K);
  out.per_width("widths", N, "width N of each row");
  out.per_width("M", M, "experts");
  out.per_width("N_e", Ne, "width of an expert");
  out.per_width("K", K, "active experts of a token");
  out.per_width("seeds", c.seeds, "seeds that finished");
  out.per_width("diverged", c.diverged, "seeds that diverged and are left out");
  for (const ObservableComparison& o : c.observables) write_observable(file, group, o);
  write_exponents(file, group, c.exponents);
  out.attribute("verdict", std::string(to_string(c.overall)));
  out.attribute("reason", c.reason);
  out.attribute("level", c.level);
  out.attribute("comparisons", std::int64_t{c.comparisons});
  out.attribute("replicas", std::int64_t{c.replicas});
  out.attribute("neurons", std::int64_t{c.neurons});
  out.attribute("random_limit", std::string(c.random_limit ? "yes" : "no"));
  out.attribute("neurons_of_second_solve", std::int64_t{c.second_neurons});
  out.attribute("notes", fmt::format("{}", fmt::join(c.notes, "\n")));
}

std::vector<std::string> differing_keys(const RunSpec& limit, const RunSpec& networks) {
  std::vector<std::string> list;
  RunSpec a = limit, b = networks;
  for (const Key& key : config_keys()) {
    if (says_how(key.path)) continue;
    const std::string x = value_as_toml(key.field(a)), y = value_as_toml(key.field(b));
    if (x != y) list.push_back(fmt::format("{} = {} and {}", key.path, x, y));
  }
  return list;
}

Evidence read_evidence(const std::string& limit_path, const std::string& networks_path, bool force) {
  std::optional<H5Reader> limit_file, networks_file;
  Faults faults;
  const auto open = [&](std::optional<H5Reader>& file, const std::string& path, const char* group, const char* flag,
                        const char* program) {
    faults.collect([&] {
      file.emplace(path).verify();
      require_group(*file, path, group, flag, program);
    });
  };
  open(limit_file, limit_path, "/limit", "--limit", "dmft_solve");
  open(networks_file, networks_path, "/network", "--networks", "moe_train");
  faults.throw_if_any();
  const H5Reader &limit = *limit_file, &networks = *networks_file;
  Evidence e;
  e.spec = read_config_text(limit.attribute_text("/", "config"), limit_path);
  const RunSpec of_networks = read_config_text(networks.attribute_text("/", "config"), networks_path);
  const std::vector<std::string> different = differing_keys(e.spec, of_networks);
  if (!different.empty() && !force) {
    for (const std::string& key : different)
      faults.add(
          fmt::format("comparison: {} and {} are of different runs: {}. Compare files of one configuration, or "
                      "say --force to compare them all the same",
                      limit_path, networks_path, key));
    faults.throw_if_any();
  }
  for (const std::string& key : different) e.notes.push_back("limit and networks differ (--force): " + key);
  read_limit(limit, e);
  read_networks(networks, e);
  const std::optional<Dataset> data = stored_data(limit);
  note_small_eps(e, data ? &*data : nullptr);
  if (e.limit.status != "complete") e.notes.push_back("the limit is not complete: " + e.limit.status);
  return e;
}

}  // namespace moe
