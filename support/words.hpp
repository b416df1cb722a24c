/// Words as users write them: lists with commas between, and the known word that is nearest to a misspelt one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace moe {

/// `text` without blanks at its ends.
inline std::string trimmed(std::string text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && is_space(text.back())) text.pop_back();
  while (!text.empty() && is_space(text.front())) text.erase(text.begin());
  return text;
}

/// "a, b": a and b, trimmed. Nothing between two commas is an empty word, for the reader to refuse; an empty text is an empty list.
inline std::vector<std::string> comma_separated(const std::string& text) {
  std::vector<std::string> list;
  if (trimmed(text).empty()) return list;
  for (std::size_t from = 0; from <= text.size();) {
    const std::size_t comma = std::min(text.find(',', from), text.size());
    list.push_back(trimmed(text.substr(from, comma - from)));
    from = comma + 1;
  }
  return list;
}

/// Edit distance: insertions, deletions, substitutions and swaps of neighbouring letters cost one each.
inline std::size_t edit_distance(const std::string& a, const std::string& b) {
  const std::size_t n = b.size();
  std::vector<std::size_t> before(n + 1), above(n + 1), row(n + 1);
  for (std::size_t j = 0; j <= n; ++j) above[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= n; ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before = above;
    above = row;
  }
  return above[n];
}

/// The nearest candidate, or "" when nothing is near (more than a third of the letters differ). Words longer than 64
/// letters have no neighbour: hostile input must not cost time.
inline std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return "";
  std::string best;
  std::size_t least = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < least) {
      least = distance;
      best = candidate;
    }
  }
  return best;
}

/// "a, b or c".
inline std::string alternatives(const std::vector<std::string>& words) {
  std::string text;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i > 0) text += i + 1 == words.size() ? " or " : ", ";
    text += words[i];
  }
  return text;
}

}  // namespace moe
