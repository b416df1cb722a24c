/// What the fuzz targets share: files in memory that a reader opens by name, and what may come out of a reader.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "support/error.hpp"

namespace moe::fuzz {

[[noreturn]] inline void fail(const char* what, const std::string& detail) {
  std::fprintf(stderr, "fuzz: %s: %s\n", what, detail.c_str());
  std::abort();
}

/// A folder of this process in memory (/dev/shm where there is one), gone when the process ends.
class Folder {
 public:
  Folder() {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::path base = fs::is_directory("/dev/shm", error) ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string name = (base / "moe-fuzz-XXXXXX").string();
    if (!::mkdtemp(name.data())) fail("cannot make a folder", name);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }
  void make(const std::string& name) const { std::filesystem::create_directories(path_ / name); }

 private:
  std::filesystem::path path_;
};

inline void write(const std::string& path, const void* data, std::size_t size) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0 || ::write(fd, data, size) != static_cast<ssize_t>(size)) fail("cannot write", path);
  ::close(fd);
}

/// A reader may succeed or refuse with a sentence of ours. Anything else that leaves it is a finding.
template <class Read>
void read_or_refuse(Read&& read) {
  try {
    read();
  } catch (const ConfigError& error) {
    if (error.faults.empty()) fail("a refusal without a fault", error.what());
  } catch (const IoError& error) {
    if (std::string(error.what()).rfind("io: ", 0) != 0) fail("a refusal that does not say io:", error.what());
  }
}

/// The files of a data set of which the fuzzer replaces one per input: the first byte says which.
template <std::size_t n>
struct FileSet {
  std::string names[n], good[n];

  std::size_t replace_one(const Folder& folder, const std::uint8_t* data, std::size_t size) const {
    const std::size_t which = size == 0 ? 0 : data[0] % n;
    write(folder / names[which], data + (size > 0), size - (size > 0));
    return which;
  }
  void restore(const Folder& folder, std::size_t which) const {
    write(folder / names[which], good[which].data(), good[which].size());
  }
  void restore_all(const Folder& folder) const {
    for (std::size_t i = 0; i < n; ++i) restore(folder, i);
  }
};

}  // namespace moe::fuzz
