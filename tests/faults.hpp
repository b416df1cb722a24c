/// What is said of bad usage and configurations.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "support/error.hpp"
#include "tests/temporary_folder.hpp"

/// Writes a file of the folder and gives its path.
inline std::string write(const TemporaryFolder& folder, const std::string& name, const std::string& bytes) {
  write_bytes(folder / name, bytes);
  return folder / name;
}

/// Those that `call` throws.
template <class Call>
std::vector<std::string> thrown_faults(Call&& call) {
  try {
    call();
  } catch (const moe::ConfigError& error) {
    return error.faults;
  }
  return {};
}

/// Some fault holds all the pieces.
inline bool any_has(const std::vector<std::string>& faults, const std::vector<std::string>& pieces) {
  return std::any_of(faults.begin(), faults.end(), [&](const std::string& fault) {
    return std::all_of(pieces.begin(), pieces.end(), [&](const std::string& piece) { return contains(fault, piece); });
  });
}
