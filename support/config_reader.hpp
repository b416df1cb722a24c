/// Steps that reading a file and reading a command line share.
#pragma once

#include <filesystem>
#include <string>

#include "support/config_keys.hpp"
#include "support/error.hpp"

namespace moe {

/// Stores a value with its place, or reports why it does not fit. Paths are made absolute against `folder`; an empty
/// folder leaves them as they are.
void assign_or_report(const Key& key, const WrittenValue& value, const std::string& place,
                      const std::filesystem::path& folder, RunSpec& spec, Faults& faults);

/// A fault that suggests the known keys nearest to `path`.
void report_unknown_key(const std::string& path, const std::string& value, const std::string& place, Faults& faults);

/// Reads a TOML file on top of `spec`, without the checks of validate().
void read_config_file(const std::string& path, RunSpec& spec, Faults& faults);

}  // namespace moe
