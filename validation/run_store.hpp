/// Finished runs of a sweep, kept beside the result file until it is complete: FILE.runs/ holds one HDF5 file per network and what the
/// sweep was asked. A killed sweep loses the runs in progress and nothing else.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "data/dataset.hpp"
#include "support/run_spec.hpp"
#include "validation/network.hpp"

namespace moe {

/// What two sweeps must have in common for one to continue the other: every key of the configuration, the numbers of the
/// parameterization at every width, a checksum of the data, the version of the program. Names as in messages.
std::map<std::string, std::string> sweep_identity(const RunSpec& spec, const Dataset& data);

class RunStore {
 public:
  /// Opens or makes the folder of the result file `out`, for this process alone. Throws ConfigError when the runs in it are of another
  /// sweep, naming every difference, and IoError when it cannot be used or another process works on it.
  RunStore(const std::string& out, const std::map<std::string, std::string>& identity);
  ~RunStore();
  RunStore(const RunStore&) = delete;
  RunStore& operator=(const RunStore&) = delete;

  /// The run of this width and seed as save() was given it, if there is one. A damaged file counts as none.
  std::optional<NetworkRun> load(int width, std::uint64_t seed) const;
  /// Atomic: a kill leaves the whole run or nothing. Thread-safe.
  void save(const NetworkRun& run) const;
  /// Deletes folder and runs: the result file is complete.
  void remove();

  const std::string& folder() const { return folder_; }

 private:
  std::string path_of(int width, std::uint64_t seed) const;
  std::string folder_;
  int lock_ = -1;
};

}  // namespace moe
