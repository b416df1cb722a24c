#include "support/whole_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "support/error.hpp"

namespace moe {

namespace {

/// Makes what was written to `path` durable. Returns 0 or errno.
int sync_path(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
  if (fd < 0) return errno;
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  return error;
}

/// Removes TARGET.tmp-PID files that killed runs left: those that no process has locked, as the HDF5 library does while it writes.
void remove_abandoned(const std::string& target) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(target).parent_path();
  const std::string prefix = fs::path(target).filename().string() + ".tmp-";
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator(folder.empty() ? fs::path(".") : folder, ec)) {
    const std::string name = entry.path().filename().string();
    if (name.size() <= prefix.size() || !name.starts_with(prefix) ||
        name.find_first_not_of("0123456789", prefix.size()) != std::string::npos)
      continue;
    const int fd = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
    ::close(fd);
  }
}

}  // namespace

WholeFile::WholeFile(std::string path, std::string flag) : path_(std::move(path)), flag_(std::move(flag)) {
  target_ = resolve_target();
  temporary_ = fmt::format("{}.tmp-{}", target_, ::getpid());
  remove_abandoned(target_);
}

void WholeFile::fail(const std::string& what, const std::string& reason) const {
  throw IoError(
      fmt::format("io: cannot write {}: {}: {}. Check permissions and free space of its folder, or choose another one "
                  "with {}.",
                  path_, what, reason, flag_));
}

std::string WholeFile::resolve_target() const {
  namespace fs = std::filesystem;
  if (path_.empty()) throw IoError(fmt::format("io: cannot write a file with an empty name. Give one with {}.", flag_));
  std::error_code ec;
  const fs::file_status link = fs::symlink_status(path_, ec);
  fs::path target = path_;
  if (fs::is_symlink(link)) {
    target = fs::canonical(path_, ec);
    if (ec) fail("it is a symbolic link that leads nowhere", ec.message());
  }
  const fs::file_status status = fs::status(target, ec);
  if (fs::exists(status) && !fs::is_regular_file(status))
    fail("the name is taken", fs::is_directory(status) ? "it is a folder" : "it is not a regular file");
  // Renaming would replace it all the same, and root may write anywhere: what was made read-only was made so on purpose.
  const fs::perms writable = fs::perms::owner_write | fs::perms::group_write | fs::perms::others_write;
  if (fs::exists(status) && (status.permissions() & writable) == fs::perms::none)
    fail("the name is taken", "the file is read-only");
  fs::path folder = target.parent_path();
  if (folder.empty()) folder = ".";
  if (!fs::is_directory(folder, ec)) fail(fmt::format("folder {} does not exist", folder.string()), "create it first");
  return target.string();
}

int WholeFile::open() const {
  const int fd = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) fail("temporary file " + temporary_, std::strerror(errno));
  return fd;
}

void WholeFile::put_in_place() const {
  if (const int e = sync_path(temporary_, O_RDONLY)) fail("fsync", std::strerror(e));
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail("rename of " + temporary_, std::strerror(errno));
  // The rename itself must survive a power cut; some file systems cannot sync folders, which loses nothing of the file.
  const std::string folder = std::filesystem::path(target_).parent_path().string();
  sync_path(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
}

void write_whole_file(const std::string& path, const std::string& flag, const std::string& text) {
  const WholeFile file(path, flag);
  std::FILE* const out = ::fdopen(file.open(), "wb");
  const bool written = std::fwrite(text.data(), 1, text.size(), out) == text.size();
  try {
    if (std::fclose(out) != 0 || !written) file.fail("its text", std::strerror(errno));
    file.put_in_place();
  } catch (...) {
    ::unlink(file.temporary().c_str());
    throw;
  }
}

}  // namespace moe
