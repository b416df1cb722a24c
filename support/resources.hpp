/// What the machine has for this process: cores, memory and room for a file.
#pragma once

#include <string>

namespace moe {

/// `threads` as a user said, or all hardware threads where nothing (0) was said.
int thread_count(int threads);

/// Bytes, and who grants them: "MemAvailable", "the control group", "the address space limit (ulimit -v)".
struct AvailableMemory {
  double bytes = 0;
  std::string source;
};

/// The least of what the kernel calls available (PROC/meminfo), what the limits of this process's control groups leave
/// (version 2 and version 1, every level up to the root; file pages that can be dropped count as free), and what
/// RLIMIT_AS leaves. Infinite where nothing can be read. The arguments are for tests.
AvailableMemory available_memory(const std::string& proc = "/proc", const std::string& cgroups = "/sys/fs/cgroup");

/// What is free in the memory of the GPU.
AvailableMemory gpu_memory();

/// Bytes that an unprivileged user may still write into the folder of `path`; infinite where the system does not say.
double free_disk(const std::string& path);

/// Throws IoError where the file system of `path` has no room for `bytes`. `what` is "the result", `flag` "--out FILE".
void require_disk(double bytes, const std::string& path, const std::string& what, const std::string& flag);

/// Asks the C library to keep freed arrays instead of handing them back to the system: steps allocate the same scratch again and
/// again, and fresh pages cost as much as the arithmetic on them. Once per process.
void keep_freed_memory();
/// Asks it to hand every large array back when it is freed: those of many sizes, and of threads that come and go, do not fit into each
/// other's places, and a run that fits into memory would not. Once per process.
void hand_back_freed_memory();

/// Hands what is freed at present back to the system, even where the C library was told to keep it (keep_freed_memory).
void return_freed_memory();

/// "1.5 GiB", "23 MiB".
std::string bytes_text(double bytes);

}  // namespace moe
