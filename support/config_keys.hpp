/// The table of configuration keys: all that the command line, TOML reading, --help, --print-config and the range
/// checks know of a key stands in one row.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "support/run_spec.hpp"

namespace moe {

/// Names that `model.regime` may have; regimes/regime.cpp has one row for each.
inline constexpr std::array regime_names = {"I", "II", "III"};

/// Keys of a power law in files: parameterization tables and `model.aggregation`.
inline constexpr std::array power_law_keys = {"const", "N", "M", "Ne", "K", "D", "L"};

/// An enumeration seen through its names, in enumerator order.
struct EnumField {
  std::vector<std::string> names;
  std::function<std::size_t()> get;
  std::function<void(std::size_t)> set;
};

/// The member of a RunSpec that a key stands for.
using Field = std::variant<double*, int*, std::uint64_t*, bool*, std::string*, EnumField, std::vector<int>*,
                           std::vector<std::string>*, std::map<std::string, double>*>;

/// Allowed interval of a number, or of every element of a list of numbers. Numbers must be finite besides.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false, high_open = false;

  bool contains(double x) const { return (low_open ? x > low : x >= low) && (high_open ? x < high : x <= high); }
  /// "[0, 1)", ">= 1".
  std::string text() const;
};

struct Key {
  std::string path;  ///< full name, "model.expert_width"
  std::function<Field(RunSpec&)> field;
  std::string help;  ///< what it is, when it is used, its unit
  Range range;
  std::vector<std::string> words;  ///< strings: allowed words; lists of strings: allowed elements; empty: any
  std::string path_ending;         ///< strings: a value that ends so is a path, "*" any non-empty value; empty: none is
  std::vector<std::string>
      flags;  ///< "--expert-width"; none when the leaf name is not unique and no short name stands for it

  std::string section() const { return path.substr(0, path.rfind('.')); }
  std::string leaf() const { return path.substr(path.rfind('.') + 1); }
  bool stands_for_path(const std::string& value) const;
};

/// All keys in the order of the file format.
const std::vector<Key>& config_keys();
/// The row of a full name, or nullptr.
const Key* find_config_key(const std::string& path);

/// A value of a kind that no key has, such as a date.
struct ForeignValue {
  std::string text;
};

/// A value as written by a user, before it is known to fit its key.
struct WrittenValue {
  struct Entry;
  using List = std::vector<WrittenValue>;
  using Table = std::vector<Entry>;
  std::variant<bool, std::int64_t, double, std::string, List, Table, ForeignValue> value;
  std::string text() const;
};

/// One key of a table. No std::pair: it would ask for the complete type too early.
struct WrittenValue::Entry {
  std::string name;
  WrittenValue value;
};

/// What is wrong with a value and what to do about it.
struct Problem {
  std::string problem, remedy;
};

/// Stores a written value. One of the wrong type, an unknown word or an integer beyond the key's type leaves the field
/// as it was and comes back as a problem. Ranges are checked by check_value().
std::optional<Problem> assign(const Field& field, const WrittenValue& written);

/// What a command line means for this field: "0.1", "true", "64,128", "K=-1,const=2". Text that does not read as the
/// field's type stays text, so that assign() can say what was expected.
WrittenValue written_on_command_line(const Field& field, const std::string& text);

/// The value as TOML, exact: reading it gives the same value back.
std::string value_as_toml(const Field& field);

/// Finite and in range, words known, elements allowed and none of them twice.
std::optional<Problem> check_value(const Key& key, const Field& field);

}  // namespace moe
