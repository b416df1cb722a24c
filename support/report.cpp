#include "support/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <string_view>

namespace moe {

namespace {

std::string printed(const Cell& cell) {
  if (const auto* words = std::get_if<std::string>(&cell)) return *words;
  if (const auto* number = std::get_if<double>(&cell)) return fmt::format("{:.6g}", *number == 0 ? 0.0 : *number);
  return "-";
}

/// Letters of a table's width: UTF-8 continuation bytes take no room.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

std::string as_text(const ReportTable& table) {
  std::vector<std::size_t> widths;
  for (const auto& column : table.columns) widths.push_back(width(column));
  for (const auto& row : table.rows)
    for (std::size_t k = 0; k < row.size(); ++k) widths[k] = std::max(widths[k], width(printed(row[k])));
  const auto line = [&](const auto& cells, auto&& text) {
    std::string out = "  ";
    for (std::size_t k = 0; k < cells.size(); ++k) {
      const std::string words = text(cells[k]);
      out += words + std::string(widths[k] - width(words) + 2, ' ');
    }
    out.erase(out.find_last_not_of(' ') + 1);
    return out + "\n";
  };
  std::string out = table.caption.empty() ? "" : table.caption + "\n";
  out += line(table.columns, [](const std::string& s) { return s; });
  for (const auto& row : table.rows) out += line(row, printed);
  return out;
}

std::string as_markdown(const ReportTable& table) {
  const auto line = [](const auto& cells, auto&& text) {
    std::string out = "|";
    for (const auto& cell : cells) out += " " + text(cell) + " |";
    return out + "\n";
  };
  const auto escaped = [](const Cell& cell) { return std::regex_replace(printed(cell), std::regex("\\|"), "\\|"); };
  std::string out = table.caption.empty() ? "" : table.caption + "\n\n";
  out += line(table.columns, [](const std::string& s) { return s; });
  out += line(table.columns, [](const std::string&) { return std::string("---"); });
  for (const auto& row : table.rows) out += line(row, escaped);
  return out;
}

/// Special characters escaped, powers such as N_e^-0.5 and s_chi^2 in math.
std::string in_latex(const std::string& text) {
  static const std::regex power(R"(\b([A-Za-z]+)(?:_([A-Za-z]+))?\^(-?[0-9.]*[0-9](?:/[0-9]+)?))");
  static const std::map<std::string, std::string> symbols = {{"Ne", "N_e"}, {"chi", "\\chi"}, {"beta", "\\beta"}};
  const auto symbol = [](const std::string& name) {
    const auto found = symbols.find(name);
    return found == symbols.end() ? name : found->second;
  };
  std::string out;
  const auto escape = [&](auto from, auto to) {
    for (; from != to; ++from) {
      const char c = *from;
      if (std::string_view("&%$#_{}").find(c) != std::string_view::npos)
        out += std::string("\\") + c;
      else if (c == '~')
        out += "$\\sim$";
      else if (c == '^')
        out += "\\textasciicircum{}";
      else if (c == '\\')
        out += "\\textbackslash{}";
      else if (c == '<' || c == '>' || c == '|')
        out += fmt::format("${}$", c);
      else
        out += c;
    }
  };
  auto from = text.begin();
  for (std::sregex_iterator it(text.begin(), text.end(), power), end; it != end; ++it) {
    escape(from, (*it)[0].first);
    const std::string index = (*it)[2].matched ? fmt::format("_{{{}}}", symbol((*it)[2].str())) : "";
    out += fmt::format("${}{}^{{{}}}$", symbol((*it)[1].str()), index, (*it)[3].str());
    from = (*it)[0].second;
  }
  escape(from, text.end());
  return out;
}

std::string as_latex(const ReportTable& table) {
  const auto line = [](const auto& cells, auto&& text) {
    std::string out;
    for (const auto& cell : cells) out += (out.empty() ? "" : " & ") + in_latex(text(cell));
    return out + " \\\\\n";
  };
  std::string out = table.caption.empty() ? "" : in_latex(table.caption) + "\n\n";
  out += fmt::format("\\begin{{tabular}}{{{}}}\n\\hline\n", std::string(table.columns.size(), 'l'));
  out += line(table.columns, [](const std::string& s) { return s; }) + "\\hline\n";
  for (const auto& row : table.rows) out += line(row, printed);
  return out + "\\hline\n\\end{tabular}\n";
}

std::string as_json(const Report& report) {
  nlohmann::ordered_json root;
  root["title"] = report.title;
  root["notes"] = report.notes;
  for (const auto& table : report.tables) {
    auto rows = nlohmann::ordered_json::array();
    for (const auto& row : table.rows) {
      nlohmann::ordered_json object;
      for (std::size_t k = 0; k < row.size(); ++k) {
        const auto* number = std::get_if<double>(&row[k]);
        auto& value = object[table.columns[k]];
        if (number && std::isfinite(*number))
          value = *number;
        else if (!std::holds_alternative<std::monostate>(row[k]))
          value = printed(row[k]);
      }
      rows.push_back(std::move(object));
    }
    root[table.name] = std::move(rows);
  }
  root["remarks"] = report.remarks;
  return root.dump(2) + "\n";
}

}  // namespace

std::string render(const Report& report, ReportFormat format) {
  if (format == ReportFormat::json) return as_json(report);
  const bool latex = format == ReportFormat::latex;
  const auto sentence = [&](const std::string& text) { return (latex ? in_latex(text) : text) + "\n"; };
  std::string out = format == ReportFormat::markdown ? "**" + report.title + "**\n" : sentence(report.title);
  const auto paragraphs = [&](const std::vector<std::string>& list) {
    for (const auto& text : list) out += (format == ReportFormat::text ? "" : "\n") + sentence(text);
  };
  paragraphs(report.notes);
  for (const auto& table : report.tables)
    out += "\n" + (latex ? as_latex(table) : format == ReportFormat::markdown ? as_markdown(table) : as_text(table));
  if (!report.remarks.empty() && format == ReportFormat::text) out += "\n";
  paragraphs(report.remarks);
  return out;
}

}  // namespace moe
