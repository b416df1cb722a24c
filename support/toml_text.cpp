#include "support/toml_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/locale/utf.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace moe {

namespace {

/// Follows strings and comments through TOML text as far as it takes to tell where characters beyond ASCII are allowed. On
/// text that is no TOML it may lose its way.
class TomlScanner {
 public:
  explicit TomlScanner(std::string_view text) : text_(text) {
    if (text_.substr(0, byte_order_mark.size()) == byte_order_mark) at_ = byte_order_mark.size();
  }

  /// The fault without its place, and where it is; nothing if there is none.
  std::optional<std::string> fault() {
    while (at_ < text_.size()) {
      if (static_cast<unsigned char>(text_[at_]) < 0x80) {
        take_ascii();
      } else if (auto refused = take_beyond_ascii()) {
        return refused;
      }
    }
    return std::nullopt;
  }
  int line() const { return line_; }
  int column() const { return column_; }

 private:
  enum class Inside { nothing, comment, string, multi_line_string };

  static constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";

  std::optional<std::string> take_beyond_ascii() {
    using Utf8 = boost::locale::utf::utf_traits<char>;
    const char* next = text_.data() + at_;
    const auto code = Utf8::decode(next, text_.data() + text_.size());
    if (code == boost::locale::utf::illegal || code == boost::locale::utf::incomplete)
      return fmt::format("byte 0x{:02X} is not UTF-8. Save the file as UTF-8", static_cast<unsigned char>(text_[at_]));
    const std::string_view bytes = text_.substr(at_, static_cast<std::size_t>(next - text_.data()) - at_);
    // Control characters, and the block that holds those which change the direction of what follows, only by number.
    const bool shown = code >= 0xA0 && (code < 0x2000 || code > 0x206F);
    const std::string name = fmt::format("U+{:04X}", code);
    const std::string character = shown ? fmt::format("'{}' ({})", bytes, name) : name;
    if (inside_ == Inside::nothing)
      return character + " stands outside quotes and comments, where TOML allows ASCII only. Quote it or remove it";
    if (trimming_)
      return fmt::format(R"({} follows a backslash. Write it as "\{}{:0{}X}")", character, code > 0xFFFF ? 'U' : 'u',
                         code, code > 0xFFFF ? 8 : 4);
    at_ += bytes.size();
    ++column_;
    return std::nullopt;
  }

  void take_ascii() {
    const char c = text_[at_];
    switch (inside_) {
      case Inside::nothing:
        if ((c == '"' || c == '\'') && may_open_string_) return open(c);
        if (c == '#') inside_ = Inside::comment;
        may_open_string_ = std::string_view(" \t\r\n=[{,.").find(c) != std::string_view::npos;
        break;
      case Inside::comment:
        if (c == '\n') leave();
        break;
      case Inside::string:
        if (c == quote_ || c == '\n') leave();  // a line break is an error that toml++ stops at
        if (c == '\\' && quote_ == '"' && (next() == '"' || next() == '\\')) step();
        break;
      case Inside::multi_line_string:
        if (c == quote_) return quotes_in_multi_line_string();
        if (!is_blank(c)) trimming_ = false;
        if (c == '\\' && quote_ == '"') {
          trimming_ = is_blank(next()) || static_cast<unsigned char>(next()) >= 0x80;
          if (next() == '"' || next() == '\\') step();
        }
        break;
    }
    step();
    if (c == '\n') may_open_string_ = true;
  }

  void open(char quote) {
    quote_ = quote;
    const std::size_t run = run_of_quotes();
    if (run == 2) {  // an empty string
      advance(2);
      may_open_string_ = false;
      return;
    }
    inside_ = run < 3 ? Inside::string : Inside::multi_line_string;
    trimming_ = false;
    advance(run < 3 ? 1 : 3);
  }

  /// Up to two quotes are content, three end the string, as do four and five, of which the first are content.
  void quotes_in_multi_line_string() {
    const std::size_t run = std::min<std::size_t>(run_of_quotes(), 5);
    trimming_ = false;
    if (run >= 3) leave();
    advance(run);
  }

  std::size_t run_of_quotes() const {
    const std::size_t end = std::min(text_.find_first_not_of(quote_, at_), text_.size());
    return end - at_;
  }

  /// Behind a string no other can open before a separator.
  void leave() {
    inside_ = Inside::nothing;
    may_open_string_ = false;
  }

  char next() const { return at_ + 1 < text_.size() ? text_[at_ + 1] : '\0'; }

  static bool is_blank(char c) { return std::string_view(" \t\r\n").find(c) != std::string_view::npos; }

  void advance(std::size_t bytes) {
    for (; bytes > 0; --bytes) step();
  }

  /// One ASCII character further.
  void step() {
    if (text_[at_++] == '\n') {
      ++line_;
      column_ = 1;
    } else {
      ++column_;
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int line_ = 1, column_ = 1;
  Inside inside_ = Inside::nothing;
  char quote_ = '"';
  bool may_open_string_ = true;  ///< a quote at this place starts a string
  bool trimming_ = false;        ///< behind a backslash and blanks, which toml++ skips one by one
};

}  // namespace

std::optional<std::string> unsafe_toml(std::string_view text, const std::string& place) {
  TomlScanner scanner(text);
  if (const auto fault = scanner.fault())
    return fmt::format("{}:{}:{}: {}", place, scanner.line(), scanner.column(), *fault);
  return std::nullopt;
}

namespace {

/// The text with every byte beyond ASCII as two hexadecimal digits: TOML where the text is TOML, as far as unsafe_toml() allows it, for
/// strings and comments take both.
std::string in_ascii(std::string_view text) {
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  std::string ascii;
  for (const char c : text)
    if (const auto byte = static_cast<unsigned char>(c); byte >= 0x80)
      ascii += fmt::format("{:02x}", byte);
    else
      ascii += c;
  return ascii;
}

std::optional<toml::table> parsed(std::string_view text, const std::string& place, std::string& fault) {
  try {
    return toml::parse(text, place);
  } catch (const toml::parse_error& error) {
    fault = fmt::format("{}:{}: {}. Correct the TOML there", place, error.source().begin.line, error.description());
    return std::nullopt;
  }
}

}  // namespace

std::optional<toml::table> parse_toml(std::string_view text, const std::string& place, Faults& faults) {
  // toml++ 3.3 runs into undefined behaviour at some characters beyond ASCII where it sees neither string nor comment. The scanner knows
  // where these are in valid text: the grammar is checked first, without such characters.
  std::string fault;
  const bool valid = parsed(in_ascii(text), place, fault).has_value();
  if (const auto unsafe = unsafe_toml(text, place)) {
    faults.add(*unsafe);
    return std::nullopt;
  }
  std::optional<toml::table> table;
  if (valid) table = parsed(text, place, fault);
  if (!table) faults.add(fault);
  return table;
}

std::optional<toml::table> read_toml_file(const std::string& path, const std::string& what, Faults& faults) {
  std::error_code error;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!std::filesystem::is_regular_file(path, error) || !file ||
      !(text << file.rdbuf() || file.peek() == std::ifstream::traits_type::eof())) {
    faults.add(fmt::format("{}: cannot be read as a {}. Give the path of a readable TOML file", path, what));
    return std::nullopt;
  }
  return parse_toml(text.str(), path, faults);
}

}  // namespace moe
