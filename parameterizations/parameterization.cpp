#include "parameterizations/parameterization.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>
#include <vector>

#include "support/config_keys.hpp"
#include "support/toml_text.hpp"
#include "support/words.hpp"

namespace moe {

namespace {

namespace fs = std::filesystem;

constexpr std::array optimizer_families = {"sgd", "adam"};
constexpr std::array rule_keys = {"std", "lr", "eps", "shared"};

template <std::size_t n>
std::vector<std::string> words(const std::array<const char*, n>& names, bool with_any = false) {
  std::vector<std::string> list(names.begin(), names.end());
  if (with_any) list.emplace_back("any");
  return list;
}

/// A rule as far as one section REGIME.OPTIMIZER.TENSOR, or several merged, state it.
struct PartialRule {
  std::optional<PowerLaw> std, lr, eps;
  std::optional<bool> shared;
  bool lr_names_depth = false, eps_names_depth = false;
};

/// Sections by "REGIME.OPTIMIZER", each with what it says of every tensor.
using Sections = std::map<std::string, PerTensor<PartialRule>>;

/// Reads one table file; every fault carries the file and the line.
class TableReader {
 public:
  TableReader(std::string file, Faults& faults) : file_(std::move(file)), faults_(faults) {}

  Sections read(const toml::table& root, Parameterization& param) {
    Sections sections;
    for (auto&& [key_node, node] : root) {
      const std::string key(key_node.str());
      if (key == "name" || key == "description") {
        std::string& text = key == "name" ? param.name : param.description;
        if (const auto* value = node.as_string())
          text = value->get();
        else
          wrong_type(key, node, "text");
        continue;
      }
      const auto regimes = words(regime_names, true);
      const bool regime_known = known(key, regimes, key, node, "regime");
      if (!regime_known && !node.is_table()) continue;
      // Below an unknown name there may be more faults: the section is read, and left out.
      PerTensor<PartialRule> left_out;
      for_each_table(key, node, [&](const std::string& optimizer, const std::string& path, const toml::node& inner) {
        const bool is_known = known(optimizer, words(optimizer_families, true), path, inner, "optimizer of a table");
        if (is_known || inner.is_table())
          read_section(path, inner, is_known && regime_known ? sections[path] : left_out);
      });
    }
    return sections;
  }

 private:
  std::string place(const toml::node& node) const { return fmt::format("{}:{}", file_, node.source().begin.line); }

  void wrong_type(const std::string& path, const toml::node& node, const std::string& expected) {
    faults_.add(path, value_text(node), place(node), fmt::format("is not {}", expected),
                fmt::format("Write {} there", expected));
  }

  static std::string value_text(const toml::node& node) {
    if (node.is_table()) return "{...}";
    if (node.is_array()) return "[...]";
    std::string text;
    node.visit([&](const auto& value) {
      if constexpr (toml::is_string<decltype(value)>)
        text = '"' + value.get() + '"';
      else if constexpr (toml::is_boolean<decltype(value)>)
        text = value.get() ? "true" : "false";
      else if constexpr (toml::is_number<decltype(value)>)
        text = fmt::format("{}", value.get());
      else
        text = "a date or time";
    });
    return text;
  }

  bool known(const std::string& word, const std::vector<std::string>& candidates, const std::string& path,
             const toml::node& node, const std::string& what) {
    if (std::find(candidates.begin(), candidates.end(), word) != candidates.end()) return true;
    const std::string near = nearest(word, candidates);
    faults_.add(path, value_text(node), place(node), fmt::format("has the unknown {} '{}'", what, word),
                near.empty() ? fmt::format("Use {}", alternatives(candidates))
                             : fmt::format("Did you mean '{}'? Known are {}", near, alternatives(candidates)));
    return false;
  }

  template <class Visit>
  void for_each_table(const std::string& path, const toml::node& node, Visit visit) {
    const auto* table = node.as_table();
    if (!table) {
      wrong_type(path, node, "a table");
      return;
    }
    for (auto&& [key, inner] : *table) visit(std::string(key.str()), fmt::format("{}.{}", path, key.str()), inner);
  }

  void read_section(const std::string& section, const toml::node& node, PerTensor<PartialRule>& rules) {
    for_each_table(section, node, [&](const std::string& tensor, const std::string& path, const toml::node& inner) {
      PartialRule left_out;
      const bool is_known = known(tensor, words(tensor_names), path, inner, "tensor");
      if (!is_known && !inner.is_table()) return;
      const auto index =
          static_cast<std::size_t>(std::find(tensor_names.begin(), tensor_names.end(), tensor) - tensor_names.begin());
      PartialRule& rule = is_known ? rules.values[index] : left_out;
      for_each_table(path, inner, [&](const std::string& key, const std::string& key_path, const toml::node& value) {
        if (known(key, words(rule_keys), key_path, value, "key")) read_key(key, key_path, value, index, rule);
      });
    });
  }

  void read_key(const std::string& key, const std::string& path, const toml::node& node, std::size_t tensor,
                PartialRule& rule) {
    if (key == "shared") {
      const auto* value = node.as_boolean();
      const bool once = tensor == static_cast<std::size_t>(Tensor::input) ||
                        tensor == static_cast<std::size_t>(Tensor::router) ||
                        tensor == static_cast<std::size_t>(Tensor::readout);
      if (!value)
        wrong_type(path, node, "true or false");
      else if (value->get() && once)
        faults_.add(path, "true", place(node), "shares a tensor that exists once",
                    "Only expert_in and expert_out can be shared: remove the line");
      else
        rule.shared = value->get();
      return;
    }
    const auto law = read_power_law(path, node);
    if (!law) return;
    (key == "std" ? rule.std : key == "lr" ? rule.lr : rule.eps) = law;
    const auto* table = node.as_table();
    if (key == "lr") rule.lr_names_depth = table->contains("L");
    if (key == "eps") rule.eps_names_depth = table->contains("L");
  }

  std::optional<PowerLaw> read_power_law(const std::string& path, const toml::node& node) {
    if (!node.is_table()) {
      faults_.add(path, value_text(node), place(node), "is not a power law",
                  "Write a table such as {const = 1.0, N = -0.5}");
      return std::nullopt;
    }
    std::map<std::string, double> keys;
    bool sound = true;
    for_each_table(path, node, [&](const std::string& key, const std::string& key_path, const toml::node& value) {
      if (!known(key, words(power_law_keys), key_path, value, "size")) {
        sound = false;
        return;
      }
      const auto number = value.is_number() ? value.value<double>() : std::nullopt;
      if (!number || !std::isfinite(*number) || (key == "const" && *number < 0)) {
        wrong_type(key_path, value, key == "const" ? "a finite number >= 0" : "a finite number");
        sound = false;
        return;
      }
      keys[key] = *number;
    });
    if (!sound) return std::nullopt;
    return power_law(keys);
  }

  std::string file_;
  Faults& faults_;
};

/// For each key REGIME.OPTIMIZER wins over REGIME.any, that over any.OPTIMIZER, that over any.any.
PerTensor<PartialRule> merged(const Sections& sections, const std::string& regime, const std::string& optimizer) {
  PerTensor<PartialRule> rules;
  for (const std::string& section :
       {fmt::format("{}.{}", regime, optimizer), regime + ".any", "any." + optimizer, std::string("any.any")}) {
    const auto found = sections.find(section);
    if (found == sections.end()) continue;
    for (std::size_t i = 0; i < rules.values.size(); ++i) {
      PartialRule& rule = rules.values[i];
      const PartialRule& more = found->second.values[i];
      if (!rule.std) rule.std = more.std;
      if (!rule.lr && more.lr) {
        rule.lr = more.lr;
        rule.lr_names_depth = more.lr_names_depth;
      }
      if (!rule.eps && more.eps) {
        rule.eps = more.eps;
        rule.eps_names_depth = more.eps_names_depth;
      }
      if (!rule.shared) rule.shared = more.shared;
    }
  }
  return rules;
}

/// "I.adam": regimes and optimizers for which the file states learning rates of its own.
std::string covered(const Sections& sections) {
  std::vector<std::string> list;
  for (const auto& [section, rules] : sections)
    if (std::any_of(rules.values.begin(), rules.values.end(), [](const PartialRule& r) { return r.lr.has_value(); }))
      list.push_back(section);
  return alternatives(list);
}

/// The file of `model.param`, or nothing after a fault that lists the tables there are.
std::optional<std::string> table_file(const RunSpec& spec, Faults& faults) {
  const std::string& param = spec.model.param;
  const std::string place = spec.place("model.param");
  std::error_code ignored;
  if (fs::path(param).extension() == ".toml") {
    if (fs::is_regular_file(param, ignored)) return param;
    faults.add("model.param", '"' + param + '"', place, "is not a file that can be read",
               "Give the path of a parameterization file, or the name of a table that ships with the program");
    return std::nullopt;
  }
  const fs::path folder = parameterizations_folder();
  const std::vector<std::string> names = toml_names(folder.string());
  if (std::find(names.begin(), names.end(), param) != names.end()) return (folder / (param + ".toml")).string();
  if (names.empty()) {
    faults.add("model.param", '"' + param + '"', place,
               fmt::format("cannot be found: {} holds no tables", folder.string()),
               "Build the program again where its sources are, or give a path ending in .toml");
    return std::nullopt;
  }
  const std::string near = nearest(param, names);
  faults.add("model.param", '"' + param + '"', place, fmt::format("is no table in {}", folder.string()),
             fmt::format("{}Use {}, or a path ending in .toml",
                         near.empty() ? "" : fmt::format("Did you mean '{}'? ", near), alternatives(names)));
  return std::nullopt;
}

/// Regime and optimizer say which sections count.
bool rules_are_known(const Faults& faults) {
  return !faults.refused("model.regime") && !faults.refused("optimizer.name");
}

}  // namespace

std::vector<std::string> toml_names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().extension() == ".toml") names.push_back(entry.path().stem().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string parameterizations_folder() {
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    const fs::path beside = executable.parent_path().parent_path().parent_path() / "parameterizations";
    if (fs::is_directory(beside, error)) return beside.string();
  }
  return MOE_PARAMETERIZATIONS_FOLDER;
}

DepthLaws depth_laws(const TensorRule& rule, OptimizerKind optimizer, double branch_exponent) {
  DepthLaws laws;
  if (rule.names_depth) return laws;
  const bool linear = is_linear(optimizer);
  laws.lr.exponents.L = linear ? 2 * branch_exponent - 1 : branch_exponent - 1;
  laws.eps.exponents.L = linear ? 0 : -branch_exponent;
  return laws;
}

Parameterization load_parameterization(const RunSpec& spec, Faults& faults) {
  Parameterization param;
  const auto file = table_file(spec, faults);
  if (!file) return param;

  const auto root = read_toml_file(*file, "parameterization file", faults);
  if (!root) return param;
  const std::size_t before = faults.list().size();
  const Sections sections = TableReader(*file, faults).read(*root, param);
  if (param.name.empty()) param.name = fs::path(*file).stem().string();

  if (!rules_are_known(faults)) return param;
  const bool entrywise = !is_linear(spec.optimizer.name);
  const bool uses_eps = entrywise && spec.optimizer.name != OptimizerKind::signsgd;
  const std::string optimizer = optimizer_families[entrywise ? 1 : 0];
  const std::string wanted = spec.model.regime + "." + optimizer;
  const auto rules = merged(sections, spec.model.regime, optimizer);

  const bool no_rates =
      std::none_of(rules.values.begin(), rules.values.end(), [](const PartialRule& r) { return r.lr.has_value(); });
  if (no_rates && faults.list().size() == before) {
    const std::string covers = covered(sections);
    faults.add("model.param", '"' + spec.model.param + '"', spec.place("model.param"),
               fmt::format(
                   "gives no learning rates for {} in regime {}: {} {}", optimizer, spec.model.regime, *file,
                   covers.empty() ? "states none" : fmt::format("states them for {} only, as its source does", covers)),
               fmt::format("Choose a regime and an optimizer that it covers, or add [{}.TENSOR] sections to a table of "
                           "your own",
                           wanted));
    return param;
  }
  // A file with faults of its own may lack a key because that key could not be read: not reported a second time.
  const bool file_is_sound = faults.list().size() == before;
  for (std::size_t i = 0; i < rules.values.size(); ++i) {
    const PartialRule& rule = rules.values[i];
    const auto require = [&](const char* key, bool present) {
      if (present || !file_is_sound) return;
      faults.add(
          fmt::format("{}.{}.{} is missing in {}: no {} of {} for regime {} with {}. Add it to [{}.{}] or to an "
                      "'any' section",
                      wanted, tensor_names[i], key, *file, key, tensor_names[i], spec.model.regime, optimizer, wanted,
                      tensor_names[i]));
    };
    require("std", rule.std.has_value());
    require("lr", rule.lr.has_value());
    require("eps", rule.eps.has_value() || !uses_eps);
    TensorRule& result = param.rule.values[i];
    result.std = rule.std.value_or(PowerLaw{});
    result.lr = rule.lr.value_or(PowerLaw{});
    result.eps = rule.eps.value_or(PowerLaw{});
    result.shared = rule.shared.value_or(false);
    result.names_depth = rule.lr_names_depth || (entrywise && rule.eps_names_depth);
  }
  return param;
}

Parameterization load_parameterization(const RunSpec& spec) {
  Faults faults;
  Parameterization param = load_parameterization(spec, faults);
  faults.throw_if_any();
  return param;
}

bool rules_known(const RunSpec& spec, Faults& faults) {
  if (rules_are_known(faults)) return true;
  load_parameterization(spec, faults);
  return false;
}

}  // namespace moe
