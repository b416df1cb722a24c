/// The labels (T1), (T2), ... agree between the sources, docs/theory.md and docs/equations.md.
#include <doctest/doctest.h>

#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/folders.hpp"
#include "tests/temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;

const fs::path source_root = source_folder();

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> list;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) list.push_back(line);
  return list;
}

/// Labels that a text cites; "(T15)-(T19)" cites all five.
std::set<int> cited(const std::string& text) {
  static const std::regex label(R"(\(T(\d+)\)(?:(?:-|\s+to\s+)\(T(\d+)\))?)");
  std::set<int> labels;
  for (std::sregex_iterator it(text.begin(), text.end(), label), end; it != end; ++it) {
    const int first = std::stoi((*it)[1]);
    const int last = (*it)[2].matched ? std::stoi((*it)[2]) : first;
    for (int k = first; k <= last; ++k) labels.insert(k);
  }
  return labels;
}

/// Labels that stand at the end of a displayed equation of theory.md, with the number of times they do.
std::map<int, int> defined() {
  static const std::regex display(R"(^    .*\(T(\d+)\)$)");
  std::map<int, int> count;
  std::smatch match;
  for (const auto& line : lines(read_bytes(source_root / "docs/theory.md"))) {
    if (std::regex_match(line, match, display)) ++count[std::stoi(match[1])];
  }
  return count;
}

/// Every source file of the project outside tests/docs, relative to the root.
std::vector<fs::path> source_files() {
  std::vector<fs::path> files;
  for (const char* folder : {"support", "parameterizations", "regimes", "data", "dmft", "validation", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(source_root / folder)) {
      const fs::path relative = fs::relative(entry.path(), source_root);
      const std::string kind = relative.extension().string();
      if (relative.string().starts_with("tests/docs/")) continue;
      if (kind == ".hpp" || kind == ".cpp" || kind == ".cu" || kind == ".cuh") files.push_back(relative);
    }
  }
  return files;
}

/// One row of equations.md: "| (T4) | `file`: `name`, `name`; `file` | `tests/..` |".
struct Row {
  int label = 0;
  std::string code, tests;
  /// The equation is not in the code by itself; the column says why.
  bool absent() const { return code.starts_with("not yet") || code.starts_with("as (T"); }
};

std::vector<Row> rows() {
  static const std::regex row(R"(^\| \(T(\d+)\) \| (.*) \| (.*) \| (.*) \|$)");
  std::vector<Row> list;
  std::smatch match;
  for (const auto& line : lines(read_bytes(source_root / "docs/equations.md"))) {
    if (std::regex_match(line, match, row)) list.push_back({std::stoi(match[1]), match[3], match[4]});
  }
  return list;
}

/// A file and the names that a column says are in it.
struct Place {
  std::string file;
  std::vector<std::string> names;
};

std::vector<Place> places(const std::string& column) {
  static const std::regex quoted("`([^`]+)`");
  std::vector<Place> list;
  for (std::sregex_iterator it(column.begin(), column.end(), quoted), end; it != end; ++it) {
    const std::string text = (*it)[1];
    if (text.find('/') != std::string::npos) {
      list.push_back({text, {}});
    } else {
      REQUIRE_MESSAGE(!list.empty(), "a name without a file in the column: " << column);
      list.back().names.push_back(text);
    }
  }
  return list;
}

TEST_CASE("theory.md defines every label once, without gaps") {
  const auto count = defined();
  REQUIRE(!count.empty());
  int expected = 1;
  for (const auto& [label, times] : count) {
    INFO("(T", label, ")");
    CHECK(label == expected++);
    CHECK(times == 1);
  }
  CHECK(count.size() == 32);
}

TEST_CASE("every label that a source file cites is defined in theory.md") {
  const auto count = defined();
  std::size_t citations = 0;
  for (const auto& file : source_files()) {
    for (const int label : cited(read_bytes(source_root / file))) {
      ++citations;
      CHECK_MESSAGE(count.contains(label), file.string() << " cites (T" << label << "), which docs/theory.md lacks");
    }
  }
  CHECK(citations > 50);
}

TEST_CASE("equations.md has one row for every label of theory.md and names files and functions that exist") {
  const auto count = defined();
  std::map<int, int> seen;
  for (const auto& row : rows()) {
    INFO("docs/equations.md, row (T", row.label, ")");
    ++seen[row.label];
    CHECK(count.contains(row.label));
    for (const auto& column : {row.code, row.tests}) {
      for (const auto& place : places(column)) {
        INFO("file ", place.file);
        const bool exists = fs::is_regular_file(source_root / place.file);
        CHECK(exists);
        if (!exists) continue;
        const std::string text = read_bytes(source_root / place.file);
        for (const auto& name : place.names) {
          CHECK_MESSAGE(text.find(name.substr(name.rfind(':') + 1)) != std::string::npos, "no '" << name << "' there");
        }
      }
    }
  }
  CHECK(seen.size() == count.size());
  for (const auto& [label, times] : seen) CHECK_MESSAGE(times == 1, "(T" << label << ") has " << times << " rows");
}

TEST_CASE("the files that equations.md names for a label cite it, and tests stand beside") {
  for (const auto& row : rows()) {
    INFO("docs/equations.md, row (T", row.label, ")");
    if (row.absent()) continue;
    const auto code = places(row.code), tests = places(row.tests);
    CHECK(!code.empty());
    CHECK(!tests.empty());
    for (const auto& place : code) {
      const auto labels = cited(read_bytes(source_root / place.file));
      CHECK_MESSAGE(labels.contains(row.label), place.file << " does not cite (T" << row.label << ")");
    }
    for (const auto& place : tests) CHECK_MESSAGE(place.file.starts_with("tests/"), place.file << " is no test");
  }
}

}  // namespace
