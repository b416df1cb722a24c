#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>

#include "support/hdf5_detail.hpp"

namespace moe::h5 {
namespace {

constexpr std::size_t piece_bytes = std::size_t{1} << 20;
constexpr std::size_t line_bytes = 24;

std::string line_of(uLong crc) { return fmt::format("moe-dmft crc32 {:08x}\n", crc); }

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return fd_; }

 private:
  int fd_;
};

/// Reads on from the descriptor's place until `n` bytes are there or the file ends; false on an error, with errno.
bool read_up_to(int fd, char* to, std::size_t n, std::size_t& got) {
  for (got = 0; got < n;) {
    const ssize_t done = ::read(fd, to + got, n - got);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return false;
    if (done == 0) break;
    got += static_cast<std::size_t>(done);
  }
  return true;
}

/// CRC-32 of the first `bytes` bytes; false with errno, 0 where the file ends before.
bool sum_of(int fd, std::size_t bytes, uLong& crc) {
  std::vector<char> piece(piece_bytes);
  crc = ::crc32_z(0, nullptr, 0);
  for (std::size_t left = bytes; left > 0;) {
    std::size_t got = 0;
    errno = 0;
    if (!read_up_to(fd, piece.data(), std::min(left, piece.size()), got) || got == 0) return false;
    crc = ::crc32_z(crc, reinterpret_cast<const Bytef*>(piece.data()), got);
    left -= got;
  }
  return true;
}

}  // namespace

int append_checksum(const std::string& path) {
  const Descriptor file(path, O_RDWR);
  struct stat status {};
  if (file < 0 || ::fstat(file, &status) != 0) return errno;
  uLong crc = 0;
  if (!sum_of(file, static_cast<std::size_t>(status.st_size), crc)) return errno != 0 ? errno : EIO;
  const std::string line = line_of(crc);
  const ssize_t written = ::write(file, line.data(), line.size());
  if (written < 0) return errno;
  return static_cast<std::size_t>(written) == line.size() ? 0 : ENOSPC;
}

std::string checksum_problem(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  struct stat status {};
  if (file < 0 || ::fstat(file, &status) != 0) return std::strerror(errno);
  const auto bytes = static_cast<std::size_t>(status.st_size);
  uLong crc = 0;
  if (bytes < line_bytes) return fmt::format("it has {} bytes", bytes);
  if (!sum_of(file, bytes - line_bytes, crc)) return errno != 0 ? std::strerror(errno) : "it became shorter";
  std::string line(line_bytes, '\0');
  std::size_t got = 0;
  if (!read_up_to(file, line.data(), line.size(), got)) return std::strerror(errno);
  const std::string expected = line_of(crc);
  if (line == expected) return "";
  if (!line.starts_with("moe-dmft crc32 ")) return "it does not end with its checksum";
  return fmt::format("its contents have the checksum {:08x}, not {}", crc, line.substr(15, 8));
}

}  // namespace moe::h5
