/// Errors of the project. Every message says what failed with its values, where the value came from, and what to do.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace moe {

/// Base of everything the programs catch at top level.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Bad usage or configuration: what is refused before anything runs (exit status 2). `faults` lists every violation found, one
/// sentence each.
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

/// A file that cannot be read or written, with its path and what was expected (exit status 1; before the run a fault like others).
struct IoError : Error {
  using Error::Error;
};

/// Collects configuration faults so that a user sees all of them at once.
class Faults {
 public:
  /// `place` is a file and line or "command line"; `remedy` an imperative sentence.
  void add(const std::string& key, const std::string& value, const std::string& place, const std::string& problem,
           const std::string& remedy);
  /// The key names a file that cannot be read.
  void add(const std::string& key, const std::string& value, const std::string& place, const IoError& error);
  void add(std::string sentence) { list_.push_back(std::move(sentence)); }
  /// Does what may throw ConfigError or IoError and takes over what it says, but for what is listed already. False if it threw.
  bool collect(const std::function<void()>& check);
  /// This key was refused, and its default stands for it: what collect() hears of it is not listed besides.
  void set_aside(const std::string& key) { refused_.push_back(key); }
  bool refused(const std::string& key) const;
  bool empty() const { return list_.empty(); }
  const std::vector<std::string>& list() const { return list_; }
  /// Throws ConfigError with everything collected so far, if there is anything.
  void throw_if_any() const;

 private:
  std::vector<std::string> list_, refused_;
};

}  // namespace moe
