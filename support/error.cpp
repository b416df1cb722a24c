#include "support/error.hpp"

#include <fmt/format.h>

namespace moe {

namespace {
std::string joined(const std::vector<std::string>& list) {
  std::string text = fmt::format("{} configuration fault{}:", list.size(), list.size() == 1 ? "" : "s");
  for (const auto& sentence : list) text += "\n  - " + sentence;
  return text;
}
}  // namespace

ConfigError::ConfigError(std::vector<std::string> list) : Error(joined(list)), faults(std::move(list)) {}

NumericsError::NumericsError(int step_, std::string field_, const std::string& detail_)
    : Error(fmt::format("numerics: {} at step {}: {}", field_, step_, detail_)),
      step(step_),
      field(std::move(field_)),
      detail(detail_) {}

void Faults::add(const std::string& key, const std::string& value, const std::string& place, const std::string& problem,
                 const std::string& remedy) {
  list_.push_back(fmt::format("{} = {} ({}) {}. {}", key, value, place, problem, remedy));
}

void Faults::throw_if_any() const {
  if (!list_.empty()) throw ConfigError(list_);
}

}  // namespace moe
