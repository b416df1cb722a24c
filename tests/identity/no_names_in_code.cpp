/// Parameterizations are data: no C++ file may decide anything by the name of one.
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "tests/folders.hpp"

namespace {

namespace fs = std::filesystem;

/// The text without comments. (String literals stay: a comparison with a name is what is looked for.)
std::string without_comments(const std::string& source) {
  std::string code;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source.compare(i, 2, "//") == 0) {
      i = std::min(source.find('\n', i), source.size());
      code += '\n';
    } else if (source.compare(i, 2, "/*") == 0) {
      const auto end = source.find("*/", i + 2);
      i = end == std::string::npos ? source.size() : end + 1;
    } else {
      code += source[i];
    }
  }
  return code;
}

/// Identifier-like words, in lower case.
std::set<std::string> words_of(const std::string& code) {
  std::set<std::string> words;
  std::string word;
  for (const char c : code + " ") {
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '_') {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else {
      words.insert(word);
      word.clear();
    }
  }
  return words;
}

}  // namespace

TEST_CASE("no source outside of tests names a parameterization") {
  const fs::path root = source_folder();
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(root / "parameterizations"))
    if (entry.path().extension() == ".toml") names.insert(entry.path().stem().string());
  REQUIRE(names.count("mssp") == 1);
  // run_spec.hpp: the default of model.param, and ReadoutInit::mup, which is the file format's word for "as the
  // parameterization says"; enum_names.hpp spells that word.
  const std::set<std::string> allowed = {"support/run_spec.hpp:mssp", "support/run_spec.hpp:mup",
                                         "support/enum_names.hpp:mup"};
  int read = 0;
  for (const char* folder : {"support", "parameterizations", "regimes", "data", "dmft", "validation"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const auto extension = entry.path().extension();
      if (extension != ".cpp" && extension != ".hpp" && extension != ".cu" && extension != ".cuh") continue;
      std::ostringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      ++read;
      const auto words = words_of(without_comments(text.str()));
      for (const auto& name : names) {
        const std::string found = fs::relative(entry.path(), root).string() + ":" + name;
        CHECK_MESSAGE((words.count(name) == 0 || allowed.count(found) == 1), found);
      }
    }
  }
  CHECK(read > 20);
  CHECK(words_of(without_comments("if (param == \"mup\") // mssp\n")).count("mup") == 1);
  CHECK(words_of(without_comments("if (param == \"x\") // mssp\n")).count("mssp") == 0);
}
