#include "support/error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

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

void Faults::add(const std::string& key, const std::string& value, const std::string& place, const IoError& error) {
  constexpr std::string_view kind = "io: ";
  std::string_view why = error.what();
  if (why.starts_with(kind)) why.remove_prefix(kind.size());
  list_.push_back(fmt::format("{} = {} ({}): {}", key, value, place, why));
}

bool Faults::collect(const std::function<void()>& check) {
  std::vector<std::string> more;
  try {
    check();
    return true;
  } catch (const ConfigError& error) {
    more = error.faults;
  } catch (const IoError& error) {
    more = {error.what()};
  }
  for (std::string& fault : more)
    if (!refused(fault.substr(0, fault.find(" = "))) && std::find(list_.begin(), list_.end(), fault) == list_.end())
      list_.push_back(std::move(fault));
  return false;
}

bool Faults::refused(const std::string& key) const {
  return std::find(refused_.begin(), refused_.end(), key) != refused_.end();
}

void Faults::throw_if_any() const {
  if (!list_.empty()) throw ConfigError(list_);
}

}  // namespace moe
