#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>

#include "support/hdf5_file.hpp"

namespace moe {
namespace {

/// Processor time that one request may take: 2 s and a second for every MB of the file.
constexpr long request_s = 2;
constexpr std::size_t bytes_per_s = 1'000'000;

/// Longest text, list and array that the parent accepts: a child gone mad must not make it run out of memory.
constexpr std::uint64_t max_text = std::uint64_t{1} << 28, max_list = std::uint64_t{1} << 24;
constexpr std::uint64_t max_axes = 32, max_values = std::uint64_t{1} << 31;

enum class Request : std::uint64_t { open, has, members, read, attribute_text, attribute_number };

/// One end of the pipe between the two processes: whole numbers, texts and arrays of doubles, lengths first. `false`
/// when the other end is gone.
class Channel {
 public:
  explicit Channel(int fd) : fd_(fd) {}

  bool put(const void* data, std::size_t n) {
    for (const char* at = static_cast<const char*>(data); n > 0;) {
      const ssize_t done = ::send(fd_, at, n, MSG_NOSIGNAL);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return false;
      at += done;
      n -= static_cast<std::size_t>(done);
    }
    return true;
  }
  bool get(void* data, std::size_t n) {
    for (char* at = static_cast<char*>(data); n > 0;) {
      const ssize_t done = ::recv(fd_, at, n, 0);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) return false;
      at += done;
      n -= static_cast<std::size_t>(done);
    }
    return true;
  }
  bool put(std::uint64_t n) { return put(&n, sizeof n); }
  bool get(std::uint64_t& n) { return get(&n, sizeof n); }
  bool put(const std::string& text) { return put(text.size()) && put(text.data(), text.size()); }
  bool get(std::string& text) {
    std::uint64_t n = 0;
    if (!get(n) || n > max_text) return false;
    text.resize(n);
    return get(text.data(), n);
  }
  bool put(double x) { return put(&x, sizeof x); }
  bool get(double& x) { return get(&x, sizeof x); }
  bool put(bool b) { return put(std::uint64_t{b ? 1U : 0U}); }
  bool get(bool& b) {
    std::uint64_t n = 0;
    if (!get(n)) return false;
    b = n != 0;
    return true;
  }
  bool put(const H5Array& a) {
    if (!put(std::uint64_t{a.shape.size()})) return false;
    for (const std::size_t n : a.shape)
      if (!put(std::uint64_t{n})) return false;
    return put(std::uint64_t{a.values.size()}) && put(a.values.data(), a.values.size() * sizeof(double));
  }
  bool get(H5Array& a) {
    std::uint64_t n = 0;
    if (!get(n) || n > max_axes) return false;
    a.shape.resize(n);
    for (std::size_t& axis : a.shape) {
      if (!get(n)) return false;
      axis = n;
    }
    if (!get(n) || n > max_values) return false;
    a.values.resize(n);
    return get(a.values.data(), n * sizeof(double));
  }
  bool put(const std::vector<std::string>& list) {
    if (!put(std::uint64_t{list.size()})) return false;
    return std::ranges::all_of(list, [this](const std::string& text) { return put(text); });
  }
  bool get(std::vector<std::string>& list) {
    std::uint64_t n = 0;
    if (!get(n) || n > max_list) return false;
    list.resize(n);
    return std::ranges::all_of(list, [this](std::string& text) { return get(text); });
  }

 private:
  int fd_;
};

/// A crash of the child is an answer, not an event for this program's handlers, terminal or core files. It keeps no
/// other descriptor of its parent: one held by a sibling would hide that the other end is gone. Returns the new `fd`.
int prepare_child(int fd) {
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGPROF}) std::signal(signal, SIG_DFL);
  const rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  constexpr int kept = STDERR_FILENO + 1;
  if (fd != kept) ::dup2(fd, kept);
  ::close_range(kept + 1, ~0U, 0);
  const int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (null >= 0) ::dup2(null, STDERR_FILENO);
  return kept;
}

void limit_processor_time(long seconds) {
  const itimerval limit{{0, 0}, {seconds, 0}};
  ::setitimer(ITIMER_PROF, &limit, nullptr);
}

/// The child: answers requests until the parent closes its end. Each answer is a flag, then the value or the message.
[[noreturn]] void serve(int fd, const std::string& path, std::size_t file_bytes, long allowed_s) {
  Channel channel(prepare_child(fd));
  std::unique_ptr<h5::File> file;
  std::uint64_t request = 0;
  std::string object, name;
  bool connected = true;
  while (connected && channel.get(request) && channel.get(object) && channel.get(name)) {
    limit_processor_time(allowed_s);
    const auto answer = [&](const auto& value) { connected = channel.put(true) && channel.put(value); };
    try {
      switch (static_cast<Request>(request)) {
        case Request::open:
          file = std::make_unique<h5::File>(path, file_bytes);
          answer(true);
          break;
        case Request::has: answer(file->has(object)); break;
        case Request::members: answer(file->members(object)); break;
        case Request::read: answer(file->read(object)); break;
        case Request::attribute_text: answer(file->attribute_text(object, name)); break;
        case Request::attribute_number: answer(file->attribute_number(object, name)); break;
      }
    } catch (const std::exception& e) {
      connected = channel.put(false) && channel.put(std::string(e.what()));
    }
    H5Eclear2(H5E_DEFAULT);
  }
  ::_exit(0);
}

}  // namespace

/// The parent's side: the process that has the file open.
struct H5Reader::Impl {
  std::string path;
  std::mutex lock;
  int fd = -1;
  pid_t child = -1;
  long allowed_s = 0;
  std::string death;  ///< what ended the child, empty while it lives

  ~Impl() { end(); }

  /// Closes the pipe, on which the child leaves, and takes its exit status.
  int end() {
    int status = 0;
    if (fd >= 0) ::close(fd);
    fd = -1;
    if (child > 0)
      while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
      }
    child = -1;
    return status;
  }

  template <class Value>
  Value ask(Request request, const std::string& object, const std::string& name = "") {
    const std::lock_guard<std::mutex> guard(lock);
    bool good = false;
    Value value{};
    std::string message;
    Channel channel(fd);
    if (death.empty() && channel.put(static_cast<std::uint64_t>(request)) && channel.put(object) && channel.put(name) &&
        channel.get(good) && (good ? channel.get(value) : channel.get(message))) {
      if (!good) throw IoError(message);
      return value;
    }
    if (death.empty()) {
      const int status = end();
      const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
      death = signal == SIGPROF ? fmt::format("the HDF5 library was not done after {} s of processor time", allowed_s)
                                : fmt::format("the HDF5 library crashed on it (signal {})", signal);
    }
    throw IoError(fmt::format("io: cannot read {} in {}: {}. The file is damaged; write or fetch it again.",
                              object.empty() ? "the root" : object, path, death));
  }
};

H5Reader::H5Reader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  const auto refuse = [&](const std::string& problem, const std::string& remedy) {
    throw IoError(fmt::format("io: cannot read {}: {}. {}", path, problem, remedy));
  };
  // O_NONBLOCK: a named pipe must not hang the program.
  const int probe = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (probe < 0) refuse(std::strerror(errno), "Check the path; relative paths in a configuration start at its folder.");
  struct stat status {};
  const bool regular = ::fstat(probe, &status) == 0 && S_ISREG(status.st_mode);
  ::close(probe);
  if (!regular) refuse("it is not a regular file", "Give the path of an HDF5 file.");
  const auto file_bytes = static_cast<std::size_t>(status.st_size);
  impl_->allowed_s = request_s + static_cast<long>(file_bytes / bytes_per_s);

  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    refuse(std::strerror(errno), "Close other files.");
  {
    const h5::Library library;  // no other thread is inside the library while it is copied
    impl_->child = ::fork();
    if (impl_->child == 0) serve(ends[1], path, file_bytes, impl_->allowed_s);
  }
  const int fork_error = errno;
  ::close(ends[1]);
  impl_->fd = ends[0];
  if (impl_->child < 0) refuse(std::strerror(fork_error), "Free processes or memory.");
  impl_->ask<bool>(Request::open, "");
}

H5Reader::~H5Reader() = default;

void H5Reader::verify() const {
  if (const std::string problem = h5::checksum_problem(impl_->path); !problem.empty())
    throw IoError(
        fmt::format("io: {} was cut short or altered after it was written: {}. Use another copy, or write it again.",
                    impl_->path, problem));
}

bool H5Reader::has(const std::string& name) const { return impl_->ask<bool>(Request::has, name); }

std::vector<std::string> H5Reader::members(const std::string& group) const {
  return impl_->ask<std::vector<std::string>>(Request::members, group);
}

H5Array H5Reader::read(const std::string& name) const { return impl_->ask<H5Array>(Request::read, name); }

std::string H5Reader::attribute_text(const std::string& object, const std::string& name) const {
  return impl_->ask<std::string>(Request::attribute_text, object, name);
}

double H5Reader::attribute_number(const std::string& object, const std::string& name) const {
  return impl_->ask<double>(Request::attribute_number, object, name);
}

}  // namespace moe
