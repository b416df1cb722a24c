#include "support/resources.hpp"

#include <fmt/format.h>
#include <malloc.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

#include "support/error.hpp"
#include "support/gpu.hpp"
#include "support/ranks.hpp"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr double infinite = std::numeric_limits<double>::infinity();

/// The number in a file of one number; infinite if there is none ("max", no such file).
double number_in(const fs::path& file) {
  std::ifstream in(file);
  double value = 0;
  return in >> value ? value : infinite;
}

/// The number after `key` in a file of lines "key 123" or "key: 123 kB"; `missing` if there is none.
double number_after(const fs::path& file, const std::string& key, double missing) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name, unit;
    double value = 0;
    if (!(words >> name >> value) || (name != key && name != key + ":")) continue;
    return words >> unit && unit == "kB" ? value * 1024 : value;
  }
  return missing;
}

/// What one control group and its ancestors leave. `group` begins with '/'.
double left_in_group(const fs::path& hierarchy, const std::string& group, const char* limit, const char* usage,
                     const char* droppable) {
  double left = infinite;
  const fs::path root = hierarchy.lexically_normal();
  for (fs::path folder = (root / fs::path(group).relative_path()).lexically_normal();; folder = folder.parent_path()) {
    const double allowed = number_in(folder / limit);
    const double used = number_in(folder / usage);
    // Version 1 writes a number near 2^63 where there is no limit.
    if (allowed < 0x1p62 && std::isfinite(used))
      left = std::min(left, allowed - used + number_after(folder / "memory.stat", droppable, 0));
    if (folder == root || !folder.has_relative_path() || folder == folder.parent_path()) return std::max(0.0, left);
  }
}

double left_in_groups(const fs::path& proc, const fs::path& cgroups) {
  double left = infinite;
  std::ifstream in(proc / "self/cgroup");
  for (std::string line; std::getline(in, line);) {  // NUMBER:CONTROLLERS:PATH
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") {
      for (const fs::path& hierarchy : {cgroups, cgroups / "unified"})
        left = std::min(left, left_in_group(hierarchy, group, "memory.max", "memory.current", "inactive_file"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      left = std::min(left, left_in_group(cgroups / "memory", group, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                          "total_inactive_file"));
    }
  }
  return left;
}

double left_in_address_space(const fs::path& proc) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return infinite;
  return std::max(0.0, static_cast<double>(limit.rlim_cur) - number_after(proc / "self/status", "VmSize", 0));
}

std::string shared_by(int processes) { return processes > 1 ? fmt::format(", shared by {} processes", processes) : ""; }

}  // namespace

int thread_count(int threads) {
  if (threads > 0) return threads;
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  if (!ranks().several()) return cores;
  // A launcher may have bound this rank to its own cores; else those of the machine are for all ranks on it.
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  const int bound = ::sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : cores;
  return bound < cores ? bound : std::max(1, cores / ranks().on_this_machine());
}

AvailableMemory available_memory(const std::string& proc, const std::string& cgroups) {
  const AvailableMemory candidates[] = {
      {number_after(fs::path(proc) / "meminfo", "MemAvailable", infinite), "MemAvailable"},
      {left_in_groups(proc, cgroups), "the control group"},
      {left_in_address_space(proc), "the address space limit (ulimit -v)"}};
  AvailableMemory least = *std::min_element(std::begin(candidates), std::end(candidates),
                                            [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  least.bytes /= ranks().on_this_machine();
  least.source += shared_by(ranks().on_this_machine());
  return least;
}

AvailableMemory gpu_memory() {
  const gpu::Device card = gpu::device();
  return {card.free_bytes, "the memory of " + card.name + shared_by(card.ranks)};
}

double free_disk(const std::string& path) {
  fs::path folder = fs::path(path).parent_path();
  if (folder.empty()) folder = ".";
  struct statvfs status {};
  if (::statvfs(folder.c_str(), &status) != 0 || status.f_blocks == 0) return infinite;
  return static_cast<double>(status.f_bavail) * static_cast<double>(status.f_frsize);
}

void require_disk(double bytes, const std::string& path, const std::string& what, const std::string& flag) {
  const double free = free_disk(path);
  if (bytes <= free) return;
  throw IoError(fmt::format(
      "io: {} will have about {}, and the file system of {} has {} left. Free some, or choose another place "
      "with {}.",
      what, bytes_text(bytes), path, bytes_text(free), flag));
}

void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

void hand_back_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);  // also keeps the library from raising it
}

void return_freed_memory() { malloc_trim(0); }

std::string bytes_text(double bytes) {
  static constexpr const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  std::size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(units); ++unit) bytes /= 1024;
  return bytes < 10 && unit > 0 ? fmt::format("{:.1f} {}", bytes, units[unit])
                                : fmt::format("{:.0f} {}", bytes, units[unit]);
}

}  // namespace moe
