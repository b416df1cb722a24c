/// Checkpoints of a program that runs several jobs side by side (replicas of the limit, networks of a sweep): one file that is
/// replaced at intervals and from which the run continues as if it had never been interrupted.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/archive.hpp"
#include "support/config.hpp"

namespace moe {

/// What a checkpoint belongs to. A run continues only from one of the same.
struct RunIdentity {
  std::string program;              ///< "dmft_solve"
  const RunSpec* spec = nullptr;    ///< compared key by key
  std::vector<std::string> unused;  ///< sections and keys that the program does not use, which may differ: "network"
  std::string data;                 ///< digest of what is trained on
  std::string constants;            ///< what the parameterization came to, as text
};

/// Every key of a configuration with its value as TOML, the intervals that were not said with what they come to: what two runs must
/// have in common for one to continue the other.
std::map<std::string, std::string> identifying_values(const RunSpec& spec);

/// Digest of arrays, for RunIdentity::data.
std::string digest(const std::vector<const Eigen::MatrixXd*>& arrays);

/// Chooses the file, for messages.
inline constexpr const char* checkpoint_flag = "--checkpoint FILE";

/// Configuration that a checkpoint was written with: `dmft_solve --resume FILE` needs to say no more.
RunSpec checkpoint_config(const std::string& file);

/// Jobs are numbered from 0. Each is saved by its own worker between two of its steps, so that workers never wait for each other's
/// steps: a checkpoint begins when it is due and is complete when every job that was running then has added itself. All members may
/// be called from several threads.
class Checkpoints {
 public:
  using State = std::function<void(Archive&)>;

  /// Opens and verifies options.resume. Throws ConfigError listing the keys that differ between it and this run, IoError when it is
  /// cut short, altered or not a checkpoint. `on_problem` hears of a checkpoint that could not be written: the run goes on, and the
  /// one before stays.
  Checkpoints(CheckpointOptions options, RunIdentity identity, std::function<void(const std::string&)> on_problem = {});
  ~Checkpoints();
  Checkpoints(const Checkpoints&) = delete;
  Checkpoints& operator=(const Checkpoints&) = delete;

  /// What is saved of a job, or nothing when it has to begin. Called once by its worker before its first step.
  std::optional<Archive> begin(int job);
  /// The worker stands between two steps: writes `state` when a checkpoint is due or, with `now`, in any case.
  void between_steps(int job, const State& state, bool now = false);
  /// The job is done. `result` is kept and has to stay callable as long as this object lives.
  void finish(int job, State result);
  /// The job ends before its first step and has nothing to save: no checkpoint waits for it.
  void leave(int job);

 private:
  using Clock = std::chrono::steady_clock;
  void start_file();
  void add(int job, const State& state);
  void commit_if_complete();
  void give_up_file(const std::string& reason);

  CheckpointOptions options_;
  RunIdentity identity_;
  std::function<void(const std::string&)> on_problem_;
  std::unique_ptr<H5Reader> resume_;

  std::mutex mutex_;
  Clock::time_point last_;
  std::set<int> running_;
  std::set<int> saved_;  ///< in the file that the run continues from, and not begun yet
  std::vector<std::pair<int, State>> finished_;
  std::unique_ptr<H5Writer> file_;  ///< being written
  std::set<int> awaited_;           ///< jobs that have still to add themselves to it
};

}  // namespace moe
