/// What a program has to say as sentences and tables, rendered as text, Markdown, LaTeX or JSON.
#pragma once

#include <string>
#include <variant>
#include <vector>

namespace moe {

/// Nothing, words, or a number. Nothing is "-" in print and null in JSON; an infinite number is its words in JSON.
using Cell = std::variant<std::monostate, std::string, double>;

struct ReportTable {
  std::string name;  ///< one word, its key in JSON
  std::vector<std::string> columns;
  std::vector<std::vector<Cell>> rows;
  std::string caption;
};

struct Report {
  std::string title;
  std::vector<std::string> notes;  ///< sentences before the tables
  std::vector<ReportTable> tables;
  std::vector<std::string> remarks;  ///< sentences after them
};

enum class ReportFormat { text, markdown, latex, json };

std::string render(const Report& report, ReportFormat format);

}  // namespace moe
