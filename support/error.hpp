/// Errors of the project. Every message says what failed with its values, where the value came from, and what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace moe {

/// Base of everything the programs catch at top level.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Bad usage or configuration (exit status 2). `faults` lists every violation found, one sentence each.
struct ConfigError : Error {
  explicit ConfigError(std::vector<std::string> list);
  std::vector<std::string> faults;
};

/// A run that failed numerically (exit status 1): NaN, infinity, divergence. `step` is the training step, `field` the array.
struct NumericsError : Error {
  NumericsError(int step_, std::string field_, const std::string& detail_);
  int step;
  std::string field, detail;
};

/// A device, library or memory problem (exit status 1).
struct BackendError : Error {
  using Error::Error;
};

/// A file that cannot be read or written, with its path and what was expected (exit status 1).
struct IoError : Error {
  using Error::Error;
};

/// Collects configuration faults so that a user sees all of them at once.
class Faults {
 public:
  /// `place` is a file and line or "command line"; `remedy` an imperative sentence.
  void add(const std::string& key, const std::string& value, const std::string& place, const std::string& problem,
           const std::string& remedy);
  void add(std::string sentence) { list_.push_back(std::move(sentence)); }
  bool empty() const { return list_.empty(); }
  const std::vector<std::string>& list() const { return list_; }
  /// Throws ConfigError with everything collected so far, if there is anything.
  void throw_if_any() const;

 private:
  std::vector<std::string> list_;
};

}  // namespace moe
