/// Runs of a sweep, kept in a folder until the result file is complete: one HDF5 file per network that is finished, one per network in
/// progress, and what the sweep was asked. A killed sweep loses what networks in progress did since their states were saved.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "data/dataset.hpp"
#include "support/error.hpp"
#include "support/run_spec.hpp"
#include "validation/network.hpp"

namespace moe {

/// What two sweeps must have in common for one to continue the other: every key of the configuration, the numbers of the
/// parameterization at every width, a checksum of the data, the version of the program. Names as in messages.
std::map<std::string, std::string> sweep_identity(const RunSpec& spec, const Dataset& data);

/// Configuration of the sweep whose runs are in `folder`. Throws IoError where there are none, or what was kept is not whole.
RunSpec sweep_config(const std::string& folder);

/// Files are written beside and renamed: at any moment each is whole, as its checksum tells. Members may be called from several threads.
class RunStore {
 public:
  struct Options {
    double every_s = 60;  ///< least time between two states of a network; 0: after every step
    /// Hears of a file that is not whole, whose network begins anew, and of one that could not be written: the run goes on.
    std::function<void(const std::string&)> on_problem = {};
    bool guards = true;  ///< makes the folder and keeps other programs out; off for all ranks of a run but the first
  };

  /// Opens or makes the folder, for this process alone. Throws ConfigError when the runs in it are of another sweep, naming every
  /// difference, and IoError when it cannot be used, or another process works on it.
  RunStore(std::string folder, const RunSpec& spec, const Dataset& data, Options options);
  ~RunStore();
  RunStore(const RunStore&) = delete;
  RunStore& operator=(const RunStore&) = delete;

  /// The finished run of this width and seed, as save() was given it, if there is one.
  std::optional<NetworkRun> load(int width, std::uint64_t seed) const;
  void save(const NetworkRun& run);

  /// Loads the state of a network in progress; false where there is none. TrainOptions::resume.
  bool resume(int width, std::uint64_t seed, const TrainOptions::State& state);
  /// Saves it when that is due or, with `now`, in any case. TrainOptions::keep.
  void keep(int width, std::uint64_t seed, const TrainOptions::State& state, bool now = false);

  /// Deletes the runs, and the folder if nothing else is in it: the result file is complete.
  void remove();

  const std::string& folder() const { return folder_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::string path_of(const char* kind, int width, std::uint64_t seed) const;
  void problem(const IoError& error, const std::string& consequence) const;
  /// The file, if it is there and whole.
  std::unique_ptr<H5Reader> whole(const std::string& path) const;

  std::string folder_;
  Options options_;
  int lock_ = -1;
  std::mutex mutex_;
  std::map<std::string, Clock::time_point> saved_;  ///< when the state in progress last was, by its path
};

}  // namespace moe
