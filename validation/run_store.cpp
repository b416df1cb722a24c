#include "validation/run_store.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "support/checkpoint.hpp"
#include "support/hdf5.hpp"
#include "support/result_file.hpp"
#include "validation/network_start.hpp"

namespace moe {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& folder, const std::string& what, const std::string& reason) {
  throw IoError(fmt::format(
      "io: cannot keep finished runs in {}: {}: {}. Check permissions and free space, or choose another file with "
      "--out.",
      folder, what, reason));
}

/// The group of a file that holds the run.
constexpr const char* run_group = "/run";

}  // namespace

std::map<std::string, std::string> sweep_identity(const RunSpec& spec, const Dataset& data) {
  std::map<std::string, std::string> identity = identifying_values(spec);
  identity["version of the program"] = program_version();
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

RunStore::RunStore(const std::string& out, const std::map<std::string, std::string>& identity)
    : folder_(out + ".runs") {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) fail(folder_, "making the folder", error.message());
  lock_ = ::open((folder_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) fail(folder_, "making the file lock", std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw IoError(
        fmt::format("io: another process writes the runs of {}. Wait for it, or choose another file with --out.", out));
  }
  try {
    const std::string path = folder_ + "/sweep.h5";
    if (!fs::exists(path)) {
      H5Writer file(path);
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
    if (!differences.empty())
      throw ConfigError(
          {fmt::format("{} holds finished runs of another configuration: {}. Give the same one to continue it, choose "
                       "another file with --out, or delete the folder.",
                       folder_, fmt::join(differences, "; "))});
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

RunStore::~RunStore() {
  if (lock_ >= 0) ::close(lock_);
}

std::string RunStore::path_of(int width, std::uint64_t seed) const {
  return fmt::format("{}/N{}_seed{}.h5", folder_, width, seed);
}

void RunStore::save(const NetworkRun& run) const {
  H5Writer file(path_of(run.shape.N, run.seed));
  Archive archive(file, run_group);
  const_cast<NetworkRun&>(run).transfer(
      archive);  // one description for both ways; an archive that is written only reads it
  file.attribute("/", "failed_step", std::int64_t{run.failure ? run.failure->step : -1});
  if (run.failure) {
    file.attribute("/", "failed_field", run.failure->field);
    file.attribute("/", "failure", run.failure->detail);
  }
  file.commit();
}

std::optional<NetworkRun> RunStore::load(int width, std::uint64_t seed) const {
  const std::string path = path_of(width, seed);
  if (!fs::exists(path)) return std::nullopt;
  try {
    const H5Reader file(path);
    file.verify();
    NetworkRun run;
    Archive archive(file, run_group);
    run.transfer(archive);
    if (const double step = file.attribute_number("/", "failed_step"); step >= 0)
      run.failure = NumericsError(static_cast<int>(step), file.attribute_text("/", "failed_field"),
                                  file.attribute_text("/", "failure"));
    return run;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void RunStore::remove() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

}  // namespace moe
