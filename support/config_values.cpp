#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "support/config_keys.hpp"
#include "support/words.hpp"

namespace moe {

namespace {

template <class... F>
struct Overload : F... {
  using F::operator()...;
};
template <class... F>
Overload(F...) -> Overload<F...>;

template <class... F>
decltype(auto) visit_field(const Field& field, F... f) {
  return std::visit(Overload{f...}, field);
}

using Result = std::optional<Problem>;

Result expected(const std::string& what, const std::string& example) {
  return Problem{"is not " + what, "Write " + example};
}

Result assign_number(double& target, const WrittenValue& written) {
  if (const auto* x = std::get_if<double>(&written.value))
    target = *x;
  else if (const auto* n = std::get_if<std::int64_t>(&written.value))
    target = static_cast<double>(*n);
  else
    return expected("a number", "a number such as 0.5");
  return std::nullopt;
}

template <class Integer>
Result assign_integer(Integer& target, const WrittenValue& written) {
  const auto* n = std::get_if<std::int64_t>(&written.value);
  if (!n) return expected("an integer", "digits without point, quotes or exponent, at most 19 of them");
  if (!std::in_range<Integer>(*n))  // no key takes negative ones
    return Problem{"is out of range", fmt::format("Write an integer >= 0 and <= {}",
                                                  std::min<std::uint64_t>(std::numeric_limits<Integer>::max(),
                                                                          std::numeric_limits<std::int64_t>::max()))};
  target = static_cast<Integer>(*n);
  return std::nullopt;
}

Result unknown_word(const std::string& word, const std::vector<std::string>& words) {
  const std::string near = nearest(word, words);
  // Long lists (observables) are not repeated in full where a neighbour is found.
  const std::string all = words.size() > 12 && !near.empty() ? "" : " Use " + alternatives(words);
  return Problem{"is not known", near.empty() ? all.substr(1) : fmt::format("Did you mean \"{}\"?{}", near, all)};
}

Result assign_word(const EnumField& field, const WrittenValue& written) {
  const auto* word = std::get_if<std::string>(&written.value);
  if (!word) return Problem{"is not a word in quotes", "Use " + alternatives(field.names)};
  const auto it = std::find(field.names.begin(), field.names.end(), *word);
  if (it == field.names.end()) return unknown_word(*word, field.names);
  field.set(static_cast<std::size_t>(it - field.names.begin()));
  return std::nullopt;
}

Result assign_words(std::vector<std::string>& target, const WrittenValue& written) {
  if (const auto* one = std::get_if<std::string>(&written.value)) {
    target = {*one};
    return std::nullopt;
  }
  const auto* list = std::get_if<WrittenValue::List>(&written.value);
  std::vector<std::string> words;
  for (const auto& element : list ? *list : WrittenValue::List{})
    if (const auto* word = std::get_if<std::string>(&element.value)) words.push_back(*word);
  if (!list || words.size() != list->size())
    return expected("a name or a list of names", R"(text in quotes, or a list such as ["rms_h", "rms_u"])");
  target = std::move(words);
  return std::nullopt;
}

Result assign_integers(std::vector<int>& target, const WrittenValue& written) {
  const auto* list = std::get_if<WrittenValue::List>(&written.value);
  if (!list) return expected("a list of integers", "a list such as [64, 128]");
  std::vector<int> numbers(list->size());
  for (std::size_t i = 0; i < list->size(); ++i)
    if (auto problem = assign_integer(numbers[i], (*list)[i]))
      return Problem{fmt::format("has the element {}, which {}", (*list)[i].text(), problem->problem), problem->remedy};
  target = std::move(numbers);
  return std::nullopt;
}

Result assign_power_law(std::map<std::string, double>& target, const WrittenValue& written) {
  const auto* table = std::get_if<WrittenValue::Table>(&written.value);
  if (!table) return expected("a power law", "a table such as {const = 1.0, K = -1}");
  const std::vector<std::string> known(power_law_keys.begin(), power_law_keys.end());
  std::map<std::string, double> keys;
  for (const auto& [name, value] : *table) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      return Problem{fmt::format("has the unknown size '{}'", name), "Use " + alternatives(known)};
    if (auto problem = assign_number(keys[name], value))
      return Problem{fmt::format("has {} = {}, which {}", name, value.text(), problem->problem), problem->remedy};
  }
  target = std::move(keys);
  return std::nullopt;
}

/// The whole text as a number; "inf" and "nan" are numbers here and refused by check_value().
WrittenValue number_in(const std::string& text) {
  const char *const begin = text.data(), *const end = begin + text.size();
  std::int64_t n = 0;
  if (const auto r = std::from_chars(begin, end, n); r.ec == std::errc{} && r.ptr == end) return {n};
  double x = 0;
  if (const auto r = std::from_chars(begin, end, x); r.ec == std::errc{} && r.ptr == end) return {x};
  return {text};
}

std::string without(std::string text, char open, char close) {
  text = trimmed(std::move(text));
  if (text.size() >= 2 && text.front() == open && text.back() == close) text = trimmed(text.substr(1, text.size() - 2));
  return text;
}

WrittenValue power_law_in(const std::string& text) {
  WrittenValue::Table table;
  for (const std::string& piece : comma_separated(without(text, '{', '}'))) {
    const auto equals = piece.find('=');
    if (equals == std::string::npos) return {text};
    table.push_back({trimmed(piece.substr(0, equals)), number_in(trimmed(piece.substr(equals + 1)))});
  }
  return {table};
}

/// Shortest text that reads back as the same double, with a point or an exponent.
std::string number_text(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", x);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

/// A TOML basic string.
std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      result += {'\\', c};
    else if (code < 0x20 || code == 0x7f)
      result += fmt::format("\\u{:04X}", code);
    else
      result += c;
  }
  return result + '"';
}

/// True for well-formed UTF-8 (RFC 3629), which is all that TOML and HDF5 text may hold.
bool is_utf8(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80           ? 1
                               : (lead >> 5) == 0x6  ? 2
                               : (lead >> 4) == 0xe  ? 3
                               : (lead >> 3) == 0x1e ? 4
                                                     : 0;
    if (length == 0 || i + length > text.size()) return false;
    char32_t point = length == 1 ? lead : lead & (0x7fu >> length);
    for (std::size_t j = 1; j < length; ++j) {
      const auto next = static_cast<unsigned char>(text[i + j]);
      if ((next & 0xc0) != 0x80) return false;
      point = (point << 6) | (next & 0x3fu);
    }
    constexpr char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < least[length] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
    i += length;
  }
  return true;
}

template <class Range_, class Text>
std::string list_text(const Range_& range, Text text) {
  std::string result;
  for (const auto& element : range) {
    result += result.empty() ? "" : ", ";
    result += text(element);
  }
  return result;
}

Result check_number(const Range& range, double x) {
  if (!std::isfinite(x))
    return Problem{"is not finite", "Write a finite number" + (range.text().empty() ? "" : " " + range.text())};
  if (!range.contains(x)) return Problem{"is out of range", "Write a number " + range.text()};
  return std::nullopt;
}

template <class T>
bool has_duplicates(const std::vector<T>& list) {
  return std::set<T>(list.begin(), list.end()).size() != list.size();
}

Result check_integers(const Key& key, const std::vector<int>& list) {
  for (const int n : list)
    if (auto problem = check_number(key.range, n))
      return Problem{fmt::format("has the element {}, which {}", n, problem->problem), problem->remedy};
  if (has_duplicates(list)) return Problem{"has an element twice", "Write every element once"};
  return std::nullopt;
}

Result check_words(const Key& key, const std::vector<std::string>& list) {
  for (const auto& word : list)
    if (std::find(key.words.begin(), key.words.end(), word) == key.words.end()) {
      auto problem = unknown_word(word, key.words);
      problem->problem = fmt::format("has the element \"{}\", which {}", word, problem->problem);
      return problem;
    }
  if (has_duplicates(list)) return Problem{"has an element twice", "Write every element once"};
  return std::nullopt;
}

Result check_power_law(const std::map<std::string, double>& keys) {
  for (const auto& [name, value] : keys) {
    const Range range = name == "const" ? Range{.low = 0, .low_open = true} : Range{.low = -100, .high = 100};
    if (auto problem = check_number(range, value))
      return Problem{fmt::format("has {} = {}, which {}", name, number_text(value), problem->problem), problem->remedy};
  }
  return std::nullopt;
}

}  // namespace

std::string Range::text() const {
  const bool lower = std::isfinite(low), upper = std::isfinite(high);
  if (lower && upper) return fmt::format("in {}{}, {}{}", low_open ? "(" : "[", low, high, high_open ? ")" : "]");
  if (lower) return fmt::format("{} {}", low_open ? ">" : ">=", low);
  if (upper) return fmt::format("{} {}", high_open ? "<" : "<=", high);
  return "";
}

std::string WrittenValue::text() const {
  return std::visit(
      Overload{[](bool b) { return std::string(b ? "true" : "false"); },
               [](std::int64_t n) { return std::to_string(n); }, [](double x) { return number_text(x); },
               [](const std::string& s) { return quoted(s); },
               [](const List& list) {
                 return fmt::format("[{}]", list_text(list, [](const WrittenValue& v) { return v.text(); }));
               },
               [](const Table& table) {
                 return fmt::format("{{{}}}",
                                    list_text(table, [](const auto& e) { return e.name + " = " + e.value.text(); }));
               },
               [](const ForeignValue& other) { return other.text; }},
      value);
}

std::optional<Problem> assign(const Field& field, const WrittenValue& written) {
  return visit_field(
      field, [&](double* x) { return assign_number(*x, written); }, [&](int* n) { return assign_integer(*n, written); },
      [&](std::uint64_t* n) { return assign_integer(*n, written); },
      [&](bool* b) -> Result {
        const auto* value = std::get_if<bool>(&written.value);
        if (!value) return expected("a boolean", "true or false, without quotes");
        *b = *value;
        return std::nullopt;
      },
      [&](std::string* s) -> Result {
        const auto* value = std::get_if<std::string>(&written.value);
        if (!value) return expected("text", "text in quotes");
        *s = *value;
        return std::nullopt;
      },
      [&](const EnumField& e) { return assign_word(e, written); },
      [&](std::vector<int>* list) { return assign_integers(*list, written); },
      [&](std::vector<std::string>* list) { return assign_words(*list, written); },
      [&](std::map<std::string, double>* keys) { return assign_power_law(*keys, written); });
}

WrittenValue written_on_command_line(const Field& field, const std::string& text) {
  const auto number = [&](auto*) { return number_in(text); };
  const auto bare_word = [](const std::string& word) { return WrittenValue{without(word, '"', '"')}; };
  return visit_field(
      field, [&](double* x) { return number(x); }, [&](int* n) { return number(n); },
      [&](std::uint64_t* n) { return number(n); },
      [&](bool*) -> WrittenValue {
        if (text == "true" || text == "false") return {text == "true"};
        return {text};
      },
      [&](std::string*) { return bare_word(text); }, [&](const EnumField&) { return bare_word(text); },
      [&](std::vector<int>*) -> WrittenValue {
        WrittenValue::List list;
        for (const auto& piece : comma_separated(without(text, '[', ']'))) list.push_back(number_in(piece));
        return {list};
      },
      [&](std::vector<std::string>*) -> WrittenValue {
        WrittenValue::List list;
        for (const auto& piece : comma_separated(without(text, '[', ']'))) list.push_back(bare_word(piece));
        return {list};
      },
      [&](std::map<std::string, double>*) { return power_law_in(text); });
}

std::string value_as_toml(const Field& field) {
  return visit_field(
      field, [](const double* x) { return number_text(*x); }, [](const int* n) { return std::to_string(*n); },
      [](const std::uint64_t* n) { return std::to_string(*n); },
      [](const bool* b) { return std::string(*b ? "true" : "false"); }, [](const std::string* s) { return quoted(*s); },
      [](const EnumField& e) { return quoted(e.names.at(e.get())); },
      [](const std::vector<int>* list) {
        return fmt::format("[{}]", list_text(*list, [](int n) { return std::to_string(n); }));
      },
      [](const std::vector<std::string>* list) {
        return list->size() == 1 ? quoted(list->front()) : fmt::format("[{}]", list_text(*list, quoted));
      },
      [](const std::map<std::string, double>* keys) {
        return fmt::format("{{{}}}",
                           list_text(*keys, [](const auto& e) { return e.first + " = " + number_text(e.second); }));
      });
}

std::optional<Problem> check_value(const Key& key, const Field& field) {
  return visit_field(
      field, [&](const double* x) { return check_number(key.range, *x); },
      [&](const int* n) { return check_number(key.range, *n); },
      [&](const std::uint64_t* n) { return check_number(key.range, static_cast<double>(*n)); },
      [](const bool*) -> Result { return std::nullopt; },
      [&](const std::string* s) -> Result {
        if (!is_utf8(*s)) return Problem{"is not UTF-8 text", "Rename the file, or write its name in UTF-8"};
        if (key.words.empty() || key.stands_for_path(*s)) return std::nullopt;
        if (std::find(key.words.begin(), key.words.end(), *s) != key.words.end()) return std::nullopt;
        auto problem = unknown_word(*s, key.words);
        if (!key.path_ending.empty()) problem->remedy += fmt::format(", or a path ending in {}", key.path_ending);
        return problem;
      },
      [](const EnumField&) -> Result { return std::nullopt; },
      [&](const std::vector<int>* list) { return check_integers(key, *list); },
      [&](const std::vector<std::string>* list) { return check_words(key, *list); },
      [](const std::map<std::string, double>* keys) { return check_power_law(*keys); });
}

}  // namespace moe
