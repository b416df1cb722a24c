/// README.md lists every configuration key and every program.
#include <doctest/doctest.h>

#include <filesystem>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "support/config_keys.hpp"
#include "tests/folders.hpp"
#include "tests/temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;

/// What stands in backticks in the first column of README's table rows. A row "`optimizer.beta1`, `beta2`" names both keys of its
/// section, a row "`optimizer.lr_scale.TENSOR`" those of all tensors.
std::set<std::string> documented_keys(const std::string& readme) {
  static const std::regex row(R"(^\| (`[a-z]+\.[^|]*) \|)"), quoted("`([^`]+)`");
  std::set<std::string> keys;
  std::istringstream in(readme);
  std::smatch match;
  for (std::string line; std::getline(in, line);) {
    if (!std::regex_search(line, match, row)) continue;
    const std::string column = match[1];
    std::string section;
    for (std::sregex_iterator it(column.begin(), column.end(), quoted), end; it != end; ++it) {
      std::string key = (*it)[1];
      if (key.find('.') == std::string::npos) key = section + key;
      section = key.substr(0, key.rfind('.') + 1);
      if (key.ends_with(".TENSOR")) {
        for (const char* tensor : moe::tensor_names) keys.insert(section + tensor);
      } else {
        keys.insert(key);
      }
    }
  }
  return keys;
}

TEST_CASE("README lists the configuration keys that exist, all of them and no other") {
  const auto documented = documented_keys(read_bytes(source_folder() + "/README.md"));
  std::set<std::string> existing;
  for (const auto& key : moe::config_keys()) existing.insert(key.path);
  CHECK(existing.size() > 50);
  for (const auto& key : existing) CHECK_MESSAGE(documented.contains(key), "README lacks the key " << key);
  for (const auto& key : documented)
    CHECK_MESSAGE(existing.contains(key), "README lists " << key << ", which is no key");
}

TEST_CASE("README lists the programs that were built") {
  const std::string readme = read_bytes(source_folder() + "/README.md");
  int programs = 0;
  for (const auto& entry : fs::directory_iterator(program_folder())) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name == "moe_tests") continue;
    ++programs;
    CHECK_MESSAGE(readme.find("| `" + name + "` |") != std::string::npos, "README lacks the program " << name);
  }
  CHECK(programs > 0);
}

}  // namespace
