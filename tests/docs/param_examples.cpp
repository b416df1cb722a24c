/// The examples of docs/parameterizations.md say what the program says; files that it shows are there by the name in their first line.
#include <doctest/doctest.h>
#include <unistd.h>

#include <sstream>
#include <string>
#include <vector>

#include "tests/folders.hpp"
#include "tests/program.hpp"

namespace {

/// Runs "moe_param WORD...", in `folder`.
ProgramRun run_command(const std::string& command, const std::string& folder) {
  std::istringstream words(command);
  std::vector<std::string> arguments;
  for (std::string word; words >> word;) arguments.push_back(word);
  REQUIRE(arguments.at(0) == "moe_param");
  arguments.erase(arguments.begin());
  return run_program("moe_param", arguments, [&] {
    if (::chdir(folder.c_str()) != 0) ::_exit(126);
  });
}

}  // namespace

TEST_CASE("every call of moe_param in README runs") {
  std::istringstream in(read_bytes(source_folder() + "/README.md"));
  int calls = 0;
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("    ./run moe_param ")) continue;
    const ProgramRun run = run_command(line.substr(10), source_folder());
    CHECK_MESSAGE(run.status == 0, line << "\n" << run.text);
    ++calls;
  }
  CHECK(calls >= 3);
}

TEST_CASE("every example of docs/parameterizations.md is what moe_param prints") {
  const TemporaryFolder folder;
  std::istringstream in(read_bytes(source_folder() + "/docs/parameterizations.md"));
  int examples = 0, files = 0;
  std::string line, command, expected;
  bool inside = false, file = false;
  const auto compare = [&] {
    if (command.empty()) return;
    const ProgramRun run = run_command(command, folder.path().string());
    CAPTURE(command);
    // Lines may be left out at "...".
    std::istringstream wanted(expected);
    std::size_t at = 0;
    bool gap = false;
    for (std::string part; std::getline(wanted, part);) {
      if (part == "...") {
        gap = true;
        continue;
      }
      const std::size_t found = run.text.find(part + "\n", at);
      CHECK_MESSAGE((found == at || (gap && found != std::string::npos)), "'" << part << "' in\n" << run.text);
      if (found == std::string::npos) return;
      at = found + part.size() + 1;
      gap = false;
    }
    if (!gap) CHECK_MESSAGE(at == run.text.size(), run.text.substr(at));
    ++examples;
  };
  while (std::getline(in, line)) {
    if (line.starts_with("```")) {
      if (inside) compare();
      if (file) {
        REQUIRE(expected.starts_with("# "));
        write_bytes(folder / expected.substr(2, expected.find('\n') - 2), expected);
        ++files;
      }
      const bool begins = !inside && !file;
      inside = begins && line == "```console";
      file = begins && line == "```toml";
      command.clear();
      expected.clear();
    } else if (file) {
      expected += line + "\n";
    } else if (inside && line.starts_with("$ ")) {
      compare();
      command = line.substr(2);
      expected.clear();
    } else if (inside) {
      expected += line + "\n";
    }
  }
  CHECK(examples >= 8);
  CHECK(files >= 2);
}
