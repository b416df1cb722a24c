#include "validation/run_store.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <regex>

#include "support/checkpoint.hpp"
#include "support/config.hpp"
#include "support/config_keys.hpp"
#include "support/hdf5.hpp"
#include "support/result_file.hpp"
#include "validation/network_start.hpp"

namespace moe {

namespace {

namespace fs = std::filesystem;

/// Chooses the folder, for messages.
constexpr const char* folder_flag = "--checkpoint FOLDER";

[[noreturn]] void fail(const std::string& folder, const std::string& what, const std::string& reason) {
  throw IoError(
      fmt::format("io: cannot keep runs in {}: {}: {}. Check permissions and free space, or choose another folder with "
                  "{}.",
                  folder, what, reason, folder_flag));
}

/// Of states and finished runs in their files: a change of it makes older ones unreadable.
constexpr int layout_version = 2;

/// The group of a file that holds the run.
constexpr const char* run_group = "/run";
/// How names of files begin.
constexpr const char *finished = "", *in_progress = "in_progress_";

/// Files that this store makes, and what is left of one being written by a process that was killed.
bool is_ours(const std::string& name) {
  static const std::regex ours(R"((lock|(sweep|(in_progress_)?N[0-9]+_seed[0-9]+)\.h5(\.tmp-[0-9]+)?))");
  return std::regex_match(name, ours);
}

std::string sweep_file(const std::string& folder) { return folder + "/sweep.h5"; }

}  // namespace

std::map<std::string, std::string> sweep_identity(const RunSpec& spec, const Dataset& data) {
  std::map<std::string, std::string> identity = identifying_values(spec);
  identity["version of the program"] = program_version();
  identity["layout of what is kept"] = fmt::format("{}", layout_version);
  identity["checksum of the data"] = digest({&data.x, &data.y, &data.x_test, &data.y_test});
  for (const int width : spec.network.widths) {
    const NetworkConstants c = constants_at(spec, network_shape(spec, data, width));
    for (std::size_t t = 0; t < num_tensors; ++t)
      identity[fmt::format("{} at N = {}", tensor_names[t], width)] =
          fmt::format("std {} lr {} eps {}", c.std.values[t], c.lr.values[t], c.eps.values[t]);
    identity[fmt::format("prefactor and sharing at N = {}", width)] =
        fmt::format("{} {} {}", c.aggregation, c.expert_in_shared, c.expert_out_shared);
  }
  return identity;
}

RunSpec sweep_config(const std::string& folder) {
  if (!fs::exists(sweep_file(folder)))
    throw IoError(
        fmt::format("io: there are no runs in {} to go on from. Give --resume the folder that --checkpoint or OUT.runs "
                    "named; once the "
                    "result file is complete, it is deleted.",
                    folder));
  const H5Reader file(sweep_file(folder));
  file.verify();
  return read_config_text(file.attribute_text("/", "config"), sweep_file(folder));
}

RunStore::RunStore(std::string folder, const RunSpec& spec, const Dataset& data, Options options)
    : folder_(std::move(folder)), options_(std::move(options)) {
  if (!options_.guards) return;
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) fail(folder_, "making the folder", error.message());
  lock_ = ::open((folder_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) fail(folder_, "making the file lock", std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw IoError(
        fmt::format("io: another process keeps its runs in {}. Wait for it, or choose another folder with {}.", folder_,
                    folder_flag));
  }
  try {
    const auto identity = sweep_identity(spec, data);
    const std::string path = sweep_file(folder_);
    if (!fs::exists(path)) {
      H5Writer file(path, folder_flag);
      write_root_attributes(file, "sweep", "moe_train", spec);
      for (const auto& [key, value] : identity) file.attribute("/", key, value);
      file.commit();
      return;
    }
    const H5Reader file(path);
    file.verify();
    std::vector<std::string> differences;
    for (const auto& [key, value] : identity) {
      std::string stored = "absent";
      try {
        stored = file.attribute_text("/", key);
      } catch (const IoError&) {  // a key that the stored sweep did not have
      }
      if (stored != value) differences.push_back(fmt::format("{} = {} there, {} here", key, stored, value));
    }
    // Numbers of the parameterization follow the keys: they are news only where no key differs.
    const auto is_key = [](const std::string& text) {
      return find_config_key(text.substr(0, text.find(' '))) != nullptr;
    };
    if (std::any_of(differences.begin(), differences.end(), is_key)) std::erase_if(differences, std::not_fn(is_key));
    if (!differences.empty())
      throw ConfigError({fmt::format(
          "{} holds runs of another configuration: {}. Give the same one to continue it, choose another folder "
          "with {}, or delete it.",
          folder_, fmt::join(differences, "; "), folder_flag)});
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

RunStore::~RunStore() {
  if (lock_ >= 0) ::close(lock_);
}

std::string RunStore::path_of(const char* kind, int width, std::uint64_t seed) const {
  return fmt::format("{}/{}N{}_seed{}.h5", folder_, kind, width, seed);
}

void RunStore::problem(const IoError& error, const std::string& consequence) const {
  if (options_.on_problem) options_.on_problem(fmt::format("{} {}", error.what(), consequence));
}

std::unique_ptr<H5Reader> RunStore::whole(const std::string& path) const {
  if (!fs::exists(path)) return nullptr;
  try {
    auto file = std::make_unique<H5Reader>(path);
    file->verify();
    return file;
  } catch (const IoError& error) {
    problem(error, "Its network is trained anew.");
    return nullptr;
  }
}

void RunStore::save(const NetworkRun& run) {
  const std::string path = path_of(finished, run.shape.N, run.seed);
  const std::string state = path_of(in_progress, run.shape.N, run.seed);
  try {
    H5Writer file(path, folder_flag);
    Archive archive(file, run_group);
    const_cast<NetworkRun&>(run).transfer(
        archive);  // one description for both ways; an archive that is written only reads it
    file.attribute("/", "failed_step", std::int64_t{run.failure ? run.failure->step : -1});
    if (run.failure) {
      file.attribute("/", "failed_field", run.failure->field);
      file.attribute("/", "failure", run.failure->detail);
    }
    file.commit();
    std::error_code absent;
    fs::remove(state, absent);
  } catch (const IoError& error) {
    problem(error, "The training goes on, with this network in memory: it is lost only if the program ends early.");
  }
}

std::optional<NetworkRun> RunStore::load(int width, std::uint64_t seed) const {
  const auto file = whole(path_of(finished, width, seed));
  if (!file) return std::nullopt;
  NetworkRun run;
  Archive archive(*file, run_group);
  run.transfer(archive);
  if (const double step = file->attribute_number("/", "failed_step"); step >= 0)
    run.failure = NumericsError(static_cast<int>(step), file->attribute_text("/", "failed_field"),
                                file->attribute_text("/", "failure"));
  return run;
}

bool RunStore::resume(int width, std::uint64_t seed, const TrainOptions::State& state) {
  const std::string path = path_of(in_progress, width, seed);
  {
    const std::lock_guard lock(mutex_);
    saved_[path] = Clock::now();
  }
  const auto file = whole(path);
  if (!file) return false;
  Archive archive(*file, run_group);
  state(archive);
  return true;
}

void RunStore::keep(int width, std::uint64_t seed, const TrainOptions::State& state, bool now) {
  const std::string path = path_of(in_progress, width, seed);
  {
    const std::lock_guard lock(mutex_);
    const auto [last, unknown] = saved_.try_emplace(path, Clock::now());
    if (!now && std::chrono::duration<double>(Clock::now() - last->second).count() < options_.every_s) return;
  }
  try {
    H5Writer file(path, folder_flag);
    Archive archive(file, run_group);
    state(archive);
    file.commit();
  } catch (const IoError& error) {
    problem(error, "The training goes on; should the program end early, this network continues from its last state.");
  }
  const std::lock_guard lock(mutex_);
  saved_[path] = Clock::now();
}

void RunStore::remove() {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_, ignored))
    if (is_ours(entry.path().filename().string())) fs::remove(entry.path(), ignored);
  fs::remove(folder_, ignored);  // only if nothing else is in it
}

}  // namespace moe
