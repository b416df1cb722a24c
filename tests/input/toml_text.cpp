/// TOML text that must not reach toml++: characters beyond ASCII outside quotes and comments, bytes that are no UTF-8.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "support/toml_text.hpp"
#include "tests/folders.hpp"

using namespace moe;

namespace {

/// "" where the text may be parsed.
std::string unsafe(const std::string& text) { return unsafe_toml(text, "t.toml").value_or(""); }

std::string parsed_string(const std::string& text) {
  Faults faults;
  const auto table = parse_toml(text, "t.toml", faults);
  CHECK_MESSAGE(faults.empty(), (faults.empty() ? "" : faults.list()[0]));
  return table ? (*table)["a"].value_or(std::string("no string")) : "no table";
}

}  // namespace

TEST_CASE("a character beyond ASCII outside quotes and comments is refused with place, number and remedy") {
  // Found by fuzzing: toml++ 3.3 runs into undefined behaviour on these two where it looks for white space.
  CHECK(
      unsafe("a = 1\n  \xEF\xB9\xBF") ==
      "t.toml:2:3: '\xEF\xB9\xBF' (U+FE7F) stands outside quotes and comments, where TOML allows ASCII only. Quote it "
      "or remove it");
  CHECK(unsafe("\xEF\xBB\xBD").find("t.toml:1:1: '\xEF\xBB\xBD' (U+FEFD)") == 0);
  // By its table, every character from U+00A1 to U+0499.
  for (const char* text : {"gr\u00F6\u00DFe = 1", "a = 1\u00A1", "a = \u0499", "[mod\u00E9l]", "a = {b\u00E9 = 1}",
                           "a = [1, \u00E9]", "a.\u00E9 = 1", "# fine \u00E9\n\u00E9 = 1", "a = \"x\"\u00E9",
                           "a = '''x'''\u00E9", "a = \"\" \u00E9", "a = \"\"\u00E9", "a = ''\u00E9"})
    CHECK_MESSAGE(unsafe(text).find("stands outside quotes and comments") != std::string::npos, text);
  // Columns count characters, not bytes; what cannot be shown is named by its number alone.
  CHECK(unsafe("a = \"\u00E9\u00E9\" \u00E9").find("t.toml:1:10: ") == 0);
  CHECK(unsafe("\n\na\u202E").find("t.toml:3:2: U+202E stands") == 0);
  CHECK(unsafe("a\u0085").find("t.toml:1:2: U+0085 stands") == 0);
}

TEST_CASE(
    "text that is no TOML is refused without its characters beyond ASCII, whatever looks like a quote before them") {
  // Found by fuzzing: toml++ has left the string in which the scanner still is, and runs into undefined behaviour at U+FEF7.
  for (const char* text : {"-e=++t[\"\\+zneuronsa\xEF\xBB\xB7iz", ";e =2\"k0.'.=\xCC\x90\x04ula, n=\xD5\x90\x04nk"}) {
    Faults faults;
    CHECK(!parse_toml(text, "t.toml", faults));
    REQUIRE(faults.list().size() == 1);
    CHECK(faults.list()[0].find("t.toml:1") == 0);
  }
}

TEST_CASE("characters beyond ASCII inside quotes and comments are read") {
  CHECK(parsed_string("a = \"gr\u00F6\u00DFe\" # \u00E9") == "gr\u00F6\u00DFe");
  CHECK(parsed_string("a = '\u00E9\\'") == "\u00E9\\");
  CHECK(parsed_string("# \u00E9\r\na = \"\\\"\u00E9\\\\\"\n# \uFE7F") == "\"\u00E9\\");
  CHECK(parsed_string("a = \"\"\"\n\u00E9 \"\" \u00E9\\n\u00E9\\\\\u00E9\"\"\"\"\"") ==
        "\u00E9 \"\" \u00E9\n\u00E9\\\u00E9\"\"");
  CHECK(parsed_string("a = '''\u00E9 '' \u00E9\\'''") == "\u00E9 '' \u00E9\\");
  CHECK(parsed_string("a = \"\"\"x \\\n  y \u00E9\"\"\"") == "x y \u00E9");
  CHECK(parsed_string("\"b\u00E9\".'\u00E9' = 1\na=\"\u00E9\"") == "\u00E9");
  CHECK(parsed_string("b = ['\u00E9',\"\u00E9\"]\nc = {\"\u00E9\" = ''}\na = '\U0001F600'") == "\U0001F600");
  CHECK(parsed_string("\xEF\xBB\xBF"
                      "a = 'x'") == "x");  // a byte order mark
}

TEST_CASE("quotes that open no string do not hide a character from the check") {
  for (const char* text :
       {"a = 1\"\u00E9\"", "a\"\u00E9\" = 1", "a = \"x\"\"\u00E9\"", "a = 1'\u00E9'", "a = \"x\n\u00E9\"",
        "a = 'x\n\u00E9'", "a = \"\"\"x\"\"\"\"\"\"\u00E9\"", "a = \"x\\\n\u00E9\""})
    CHECK_MESSAGE(!unsafe(text).empty(), text);
  // Behind the backslash that ends a line toml++ takes what follows for white space.
  CHECK(unsafe("a = \"\"\"x \\\n  \u00E9\"\"\"")
            .find("t.toml:2:3: '\u00E9' (U+00E9) follows a backslash. Write it as \"\\u00E9\"") == 0);
  CHECK(unsafe("a = \"\"\"x \\\n  \U0001F600\"\"\"").find("Write it as \"\\U0001F600\"") != std::string::npos);
  CHECK(!unsafe("a = \"\"\"\\\u00E9\"\"\"").empty());
}

TEST_CASE("bytes that are no UTF-8 are refused wherever they stand") {
  for (const std::string bytes : {"\x80", "\xFF", "\xC3", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82"})
    for (const std::string& text : {"a = \"" + bytes + "\"", "# " + bytes, bytes, "a = '''" + bytes})
      CHECK_MESSAGE(unsafe(text).find("is not UTF-8. Save the file as UTF-8") != std::string::npos, text);
  CHECK(unsafe("# caf\xE9\n") == "t.toml:1:6: byte 0xE9 is not UTF-8. Save the file as UTF-8");
}

TEST_CASE("TOML comes in through one function only") {
  namespace fs = std::filesystem;
  int read = 0;
  for (const char* folder : {"support", "parameterizations", "regimes", "data", "dmft", "validation"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(source_folder()) / folder)) {
      if (entry.path().extension() != ".cpp" && entry.path().extension() != ".hpp") continue;
      std::ostringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      ++read;
      if (entry.path().filename() != "toml_text.cpp")
        CHECK_MESSAGE(text.str().find("toml::parse") == std::string::npos, entry.path().string());
    }
  }
  CHECK(read > 20);
}
