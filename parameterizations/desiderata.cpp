#include "parameterizations/desiderata.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "parameterizations/parameterization.hpp"
#include "support/toml_text.hpp"
#include "support/words.hpp"

namespace moe {

namespace {

namespace fs = std::filesystem;

const std::vector<std::string> stages = {"init", "first_step", "late"};

class Reader {
 public:
  Reader(const std::vector<std::string>& known, Faults& faults) : known_(known), faults_(faults) {}

  /// `depth` files that extend one another lead here.
  Desiderata read(const std::string& which, const fs::path& from, int depth = 0) {
    Desiderata result;
    const auto file = find(which, from);
    if (!file) return result;
    if (depth > 8) {
      faults_.add(fmt::format("{}: 'extends' goes round in a circle. Remove it from one of the files", *file));
      return result;
    }
    const auto parsed = read_toml_file(*file, "desiderata file", faults_);
    if (!parsed) return result;
    const toml::table& root = *parsed;
    file_ = *file;
    only_keys(root, {"name", "description", "extends", "without", "condition"});
    result.name = text(root, "name").value_or(fs::path(*file).stem().string());
    result.description = text(root, "description").value_or("");
    const auto without = list(root, "without");
    if (const auto base = text(root, "extends")) {
      result.conditions = read(*base, fs::path(*file).parent_path(), depth + 1).conditions;
      file_ = *file;
      leave_out(without, result, fmt::format("{}: without", *file));
    } else if (!without.empty()) {
      fault(*root.get("without"), "'without' says what to leave out of the file that 'extends' names. Add 'extends'");
    }
    const toml::array* conditions = root.get_as<toml::array>("condition");
    if (!conditions && root.contains("condition"))
      fault(*root.get("condition"), "'condition' is not a list of tables. Write [[condition]]");
    if (conditions)
      for (const auto& node : *conditions) {
        if (const auto* table = node.as_table())
          result.conditions.push_back(condition(*table));
        else
          fault(node, "'condition' is not a list of tables. Write [[condition]]");
      }
    return result;
  }

  void leave_out(const std::vector<std::string>& ids, Desiderata& desiderata, const std::string& place) {
    for (const auto& id : ids) {
      auto& all = desiderata.conditions;
      const auto gone = std::remove_if(all.begin(), all.end(), [&](const Condition& c) { return c.id == id; });
      if (gone == all.end()) {
        std::set<std::string> ids_there;
        for (const auto& c : all) ids_there.insert(c.id);
        faults_.add(fmt::format("{}: there is no condition '{}'. Use {}", place, id,
                                alternatives({ids_there.begin(), ids_there.end()})));
      }
      all.erase(gone, all.end());
    }
  }

 private:
  void fault(const toml::node& node, const std::string& sentence) {
    faults_.add(fmt::format("desiderata file {}:{}: {}", file_, node.source().begin.line, sentence));
  }

  std::optional<std::string> find(const std::string& which, const fs::path& from) {
    std::error_code ignored;
    if (fs::path(which).extension() == ".toml") {
      const fs::path path = fs::path(which).is_absolute() ? fs::path(which) : from / which;
      if (fs::is_regular_file(path, ignored)) return path.string();
      faults_.add(fmt::format(
          "desiderata: '{}' is not a file that can be read. Give the path of a .toml file, or a name", path.string()));
      return std::nullopt;
    }
    const fs::path folder = fs::path(parameterizations_folder()) / "desiderata";
    const std::vector<std::string> names = toml_names(folder.string());
    if (std::find(names.begin(), names.end(), which) != names.end()) return (folder / (which + ".toml")).string();
    faults_.add(fmt::format("desiderata: there is no '{}' in {}. Use {}, or a path ending in .toml", which,
                            folder.string(), alternatives(names)));
    return std::nullopt;
  }

  void only_keys(const toml::table& table, const std::vector<std::string>& keys) {
    for (auto&& [key, node] : table) {
      const std::string word(key.str());
      if (std::find(keys.begin(), keys.end(), word) != keys.end()) continue;
      const std::string near = nearest(word, keys);
      fault(node, fmt::format("unknown key '{}'. {}Known are {}", word,
                              near.empty() ? "" : fmt::format("Did you mean '{}'? ", near), alternatives(keys)));
    }
  }

  std::optional<std::string> text(const toml::table& table, const char* key) {
    const toml::node* node = table.get(key);
    if (!node) return std::nullopt;
    if (const auto* value = node->as_string()) return value->get();
    fault(*node, fmt::format("'{}' is not text. Put it in quotes", key));
    return std::nullopt;
  }

  std::vector<std::string> list(const toml::table& table, const char* key) {
    std::vector<std::string> words;
    const toml::node* node = table.get(key);
    if (!node) return words;
    const toml::array* array = node->as_array();
    if (!array) {
      fault(*node, fmt::format("'{}' is not a list of words. Write {} = [\"...\"]", key, key));
      return words;
    }
    for (const auto& item : *array) {
      if (const auto* word = item.as_string())
        words.push_back(word->get());
      else
        fault(item, fmt::format("'{}' holds something that is not a word. Write {} = [\"...\"]", key, key));
    }
    return words;
  }

  /// One of `words`; the first if the key is not there.
  std::size_t choice(const toml::table& table, const char* key, const std::vector<std::string>& words) {
    const auto word = text(table, key);
    if (!word) return 0;
    const auto found = std::find(words.begin(), words.end(), *word);
    if (found != words.end()) return static_cast<std::size_t>(found - words.begin());
    fault(*table.get(key), fmt::format("'{}' is \"{}\". Use {}", key, *word, alternatives(words)));
    return 0;
  }

  Condition condition(const toml::table& table) {
    only_keys(table, {"id", "says", "quantities", "at", "exponent", "if_impossible", "optimizer"});
    Condition c;
    c.id = text(table, "id").value_or("");
    c.says = text(table, "says").value_or("");
    if (c.id.empty()) fault(table, "a condition without 'id'. Name it, so that it can be reported and left out");
    c.quantities = list(table, "quantities");
    if (c.quantities.empty()) fault(table, "a condition without 'quantities'. List those that it is about");
    for (const auto& name : c.quantities) {
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      const std::string near = nearest(name, known_);
      fault(
          *table.get("quantities"),
          fmt::format("unknown quantity '{}'. {}Observables and atomic quantities are listed by the exponents command",
                      name, near.empty() ? "" : fmt::format("Did you mean '{}'? ", near)));
    }
    const auto at = list(table, "at");
    if (!at.empty()) c.at.fill(false);
    for (const auto& word : at) {
      const auto found = std::find(stages.begin(), stages.end(), word);
      if (found == stages.end())
        fault(*table.get("at"), fmt::format("unknown stage '{}'. Use {}", word, alternatives(stages)));
      else
        c.at[static_cast<std::size_t>(found - stages.begin())] = true;
    }
    exponent(table, c);
    c.if_impossible = static_cast<IfImpossible>(choice(table, "if_impossible", {"fail", "drop", "zero"}));
    const std::vector<std::string> families = {"any", "sgd", "adam"};
    c.optimizer = families[choice(table, "optimizer", families)];
    return c;
  }

  /// `exponent = 0`, or `exponent = {min = -0.5, max = 0}` with either of the two.
  void exponent(const toml::table& table, Condition& c) {
    const toml::node* node = table.get("exponent");
    const auto number = [&](const toml::node* of) -> std::optional<double> {
      if (!of) return std::nullopt;
      const auto value = of->is_number() ? of->value<double>() : std::nullopt;
      if (!value || !std::isfinite(*value)) fault(*of, "an exponent is not a finite number. Write one");
      return value;
    };
    if (!node) {
      fault(table, "a condition without 'exponent'. Write exponent = 0, or {min = ..., max = ...}");
    } else if (const auto* bounds = node->as_table()) {
      only_keys(*bounds, {"min", "max"});
      if (const auto low = number(bounds->get("min"))) c.min = *low;
      if (const auto high = number(bounds->get("max"))) c.max = *high;
      if (c.min > c.max) fault(*node, fmt::format("min = {} is above max = {}. Exchange them", c.min, c.max));
    } else if (const auto value = number(node)) {
      c.min = c.max = *value;
    }
  }

  const std::vector<std::string>& known_;
  Faults& faults_;
  std::string file_;
};

}  // namespace

Desiderata load_desiderata(const std::string& which, const std::vector<std::string>& known,
                           const std::vector<std::string>& without, Faults& faults) {
  const std::size_t before = faults.list().size();
  Reader reader(known, faults);
  Desiderata result = reader.read(which, fs::current_path());
  reader.leave_out(without, result, "--without on the command line");
  if (result.conditions.empty() && faults.list().size() == before)
    faults.add(fmt::format(
        "desiderata: '{}' has no condition{}, which any table would satisfy. Add a [[condition]], or extends = \"mu\"",
        which, without.empty() ? "" : " but what --without leaves out"));
  return result;
}

}  // namespace moe
