#include "support/config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "support/config_keys.hpp"
#include "support/config_reader.hpp"
#include "support/gpu.hpp"
#include "support/toml_text.hpp"
#include "support/words.hpp"

namespace moe {

namespace {

namespace fs = std::filesystem;

/// All section names: "model", "model.init_scale", ...
std::vector<std::string> section_names() {
  std::vector<std::string> names;
  for (const auto& key : config_keys())
    if (std::find(names.begin(), names.end(), key.section()) == names.end()) names.push_back(key.section());
  return names;
}

WrittenValue written(const toml::node& node) {
  WrittenValue result;
  node.visit([&result](const auto& value) {
    using Node = std::remove_cvref_t<decltype(value)>;
    if constexpr (std::is_same_v<Node, toml::table>) {
      WrittenValue::Table table;
      for (auto&& [key, inner] : value) table.push_back({std::string(key.str()), written(inner)});
      result.value = std::move(table);
    } else if constexpr (std::is_same_v<Node, toml::array>) {
      WrittenValue::List list;
      for (const auto& inner : value) list.push_back(written(inner));
      result.value = std::move(list);
    } else if constexpr (toml::is_string<Node> || toml::is_boolean<Node> || toml::is_number<Node>) {
      result.value = value.get();
    } else {
      std::ostringstream text;
      text << value;
      result.value = ForeignValue{text.str()};
    }
  });
  return result;
}

class TomlReader {
 public:
  TomlReader(RunSpec& spec, Faults& faults, std::string place, fs::path folder)
      : spec_(spec), faults_(faults), place_(std::move(place)), folder_(std::move(folder)) {}

  void read(const toml::table& table, const std::string& prefix = "") {
    for (const auto& [name, entry] : in_file_order(table)) {
      const toml::node& node = *entry;
      const std::string path = prefix.empty() ? name : fmt::format("{}.{}", prefix, name);
      const std::string place = fmt::format("{}:{}", place_, node.source().begin.line);
      const WrittenValue value = written(node);
      if (const Key* key = find_config_key(path)) {
        assign_or_report(*key, value, place, folder_, spec_, faults_);
      } else if (is_section(path)) {
        if (const auto* inner = node.as_table())
          read(*inner, path);
        else
          faults_.add(path, value.text(), place, "is not a section",
                      fmt::format("Write [{}] and its keys below", path));
      } else {
        report_unknown_key(path, value.text(), place, faults_);
      }
    }
  }

 private:
  using Entry = std::pair<std::string, const toml::node*>;

  static std::vector<Entry> in_file_order(const toml::table& table) {
    std::vector<Entry> entries;
    for (auto&& [name, node] : table) entries.emplace_back(std::string(name.str()), &node);
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return a.second->source().begin.line < b.second->source().begin.line;
    });
    return entries;
  }

  static bool is_section(const std::string& path) {
    static const std::vector<std::string> sections = section_names();
    return std::find(sections.begin(), sections.end(), path) != sections.end();
  }

  RunSpec& spec_;
  Faults& faults_;
  std::string place_;
  fs::path folder_;
};

/// Combinations of single values that are all allowed.
void check_combinations(const RunSpec& spec, Faults& faults) {
  const auto fault = [&](const std::string& key, const std::string& value, const std::string& problem,
                         const std::string& remedy) { faults.add(key, value, spec.place(key), problem, remedy); };
  if (spec.training.batch > spec.data.train)
    fault("training.batch", std::to_string(spec.training.batch),
          fmt::format("is larger than data.train = {}", spec.data.train),
          "Lower it or raise data.train; 0 is the full batch");
  if (spec.training.dynamics == Dynamics::flow) {
    if (spec.optimizer.name != OptimizerKind::sgd)
      fault("optimizer.name", to_string(spec.optimizer.name),
            "has no gradient flow: training.dynamics = \"flow\" is the limit lr -> 0 of gradient descent",
            "Use sgd, or dynamics = \"gd\"");
    if (spec.training.batch > 0)
      fault("training.batch", std::to_string(spec.training.batch), "does not go with training.dynamics = \"flow\"",
            "Use the full batch, 0");
    if (spec.model.routing == Routing::topk && spec.model.balance_bias != 0)
      fault("model.balance_bias", fmt::format("{:g}", spec.model.balance_bias),
            "moves once a step, and training.dynamics = \"flow\" has no steps", "Use 0, or dynamics = \"gd\"");
    if (spec.training.stepper == Stepper::dopri5 && spec.sampling.precision == Precision::float32 &&
        spec.training.rtol < 1e-5)
      fault("training.rtol", fmt::format("{:g}", spec.training.rtol),
            "is below what sampling.precision = \"float32\" resolves, 1e-5", "Raise it or use float64");
  }
  // Set for one kind of run, and without effect in the others: silence would be taken for an effect.
  const SamplingSpec& s = spec.sampling;
  for (const auto& [key, value] :
       {std::pair{"sampling.window", static_cast<double>(s.window)}, std::pair{"sampling.damping", s.damping},
        std::pair{"sampling.anderson", static_cast<double>(s.anderson)}})
    if (value != 0 && (s.method != Method::iterate || s.start != Start::zero))
      fault(key, fmt::format("{:g}", value),
            "acts on kernel iterations that start from zero kernels, and on nothing else",
            R"(Add sampling.method = "iterate" and sampling.start = "zero", or leave it out)");
  for (const auto& [key, steps] : {std::pair{"output.kernels_at", &spec.output.kernels_at},
                                   std::pair{"output.distributions_at", &spec.output.distributions_at}})
    for (const int step : *steps)
      if (step > spec.training.steps)
        fault(key, std::to_string(step), fmt::format("is beyond training.steps = {}", spec.training.steps),
              "Remove that step or raise training.steps");
  if (spec.network.widths.empty())
    fault("network.widths", "[]", "names no width", "Write at least one, e.g. [64, 128, 256]");
  const auto& observables = spec.output.observables;
  for (const auto& name : observables)
    if (observables.size() > 1 && (name == "standard" || name == "all" || name == "none"))
      fault("output.observables", '"' + name + '"', "stands in a list",
            fmt::format("Write observables = \"{}\" or a list of names of single observables", name));
}

}  // namespace

void assign_or_report(const Key& key, const WrittenValue& value, const std::string& place, const fs::path& folder,
                      RunSpec& spec, Faults& faults) {
  const Field field = key.field(spec);
  if (const auto problem = assign(field, value)) {
    faults.add(key.path, value.text(), place, problem->problem, problem->remedy);
    return;
  }
  spec.origin[key.path] = place;
  auto* const* text = std::get_if<std::string*>(&field);
  if (text && !folder.empty() && key.stands_for_path(**text))
    **text = fs::absolute(folder / **text).lexically_normal().string();
}

void report_unknown_key(const std::string& path, const std::string& value, const std::string& place, Faults& faults) {
  std::vector<std::string> near, all;
  const std::string leaf = path.substr(path.rfind('.') + 1);
  for (const auto& key : config_keys()) {
    all.push_back(key.path);
    if (key.leaf() == leaf) near.push_back(key.path);
  }
  const auto sections = section_names();
  all.insert(all.end(), sections.begin(), sections.end());
  if (near.empty()) {
    // The section is often right and the key misspelt, or the key right and the section missing.
    if (const std::string whole = nearest(path, all); !whole.empty()) near.push_back(whole);
  }
  if (near.empty()) {
    std::vector<std::string> leaves;
    for (const auto& key : config_keys()) leaves.push_back(key.leaf());
    if (const std::string word = nearest(leaf, leaves); !word.empty())
      for (const auto& key : config_keys())
        if (key.leaf() == word) near.push_back(key.path);
  }
  faults.add(path, value, place, "is an unknown key",
             near.empty() ? "Remove it; --help lists all keys" : fmt::format("Did you mean {}?", alternatives(near)));
}

void read_config_file(const std::string& path, RunSpec& spec, Faults& faults) {
  const auto table = read_toml_file(path, "configuration file", faults);
  if (!table) return;
  const fs::path folder = fs::path(path).parent_path();
  TomlReader(spec, faults, path, folder.empty() ? fs::path(".") : folder).read(*table);
}

RunSpec read_config(const std::string& path) {
  RunSpec spec;
  Faults faults;
  read_config_file(path, spec, faults);
  validate(spec, faults);
  faults.throw_if_any();
  return spec;
}

RunSpec read_config_text(const std::string& text, const std::string& place) {
  RunSpec spec;
  Faults faults;
  if (const auto table = parse_toml(text, place, faults)) TomlReader(spec, faults, place, {}).read(*table);
  validate(spec, faults);
  faults.throw_if_any();
  return spec;
}

void validate(const RunSpec& spec, Faults& faults) {
  RunSpec copy = spec;
  for (const auto& key : config_keys()) {
    const Field field = key.field(copy);
    if (const auto problem = check_value(key, field))
      faults.add(key.path, value_as_toml(field), spec.place(key.path), problem->problem, problem->remedy);
  }
  check_combinations(spec, faults);
}

void refuse_unavailable(Device device, Faults& faults) {
  if (device != Device::cuda) return;
  if (const gpu::Device card = gpu::device(); !card.present)
    faults.add(fmt::format("--device cuda: {}. Say --device cpu or leave it out", card.why_not));
}

std::string print_config(const RunSpec& spec) {
  RunSpec copy = spec;
  std::string text, section;
  for (const auto& key : config_keys()) {
    if (key.path == "output.observe_every" && spec.output.observe_every == 1 && !spec.origin.contains(key.path))
      continue;
    if (key.section() != section) {
      text += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", key.section());
      section = key.section();
    }
    text += fmt::format("{} = {}\n", key.leaf(), value_as_toml(key.field(copy)));
  }
  return text;
}

}  // namespace moe
