/// Runs one of the built programs as a user does: its exit status, what it printed, its peak memory.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include "tests/folders.hpp"
#include "tests/temporary_folder.hpp"

/// About how much longer code runs under the sanitizers: steps that are there only to make a run last are divided by it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int slowdown = 10;
#else
inline constexpr int slowdown = 1;
#endif

struct ProgramRun {
  int status = -1;        ///< exit status, or 128 + signal
  std::string text;       ///< standard output and standard error
  double peak_bytes = 0;  ///< largest resident set
};

/// A program that is running.
class RunningProgram {
 public:
  /// `prepare` runs in the child before the program starts.
  RunningProgram(const std::string& name, std::vector<std::string> arguments, const std::function<void()>& prepare = {})
      : log_(folder_ / "log") {
    arguments.insert(arguments.begin(), program_folder() + "/" + name);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    write_bytes(log_, "");  // there before the child opens it, which may be killed first
    pid_ = ::fork();
    if (pid_ != 0) return;
    const int log = ::open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    if (prepare) prepare();
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  void send(int signal) const { ::kill(pid_, signal); }
  std::string text() const { return read_bytes(log_); }

  ProgramRun wait() {
    int status = 0;
    rusage usage{};
    while (::wait4(pid_, &status, 0, &usage) < 0 && errno == EINTR) {
    }
    ProgramRun run;
    run.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    run.text = text();
    run.peak_bytes = static_cast<double>(usage.ru_maxrss) * 1024;
    return run;
  }

 private:
  TemporaryFolder folder_;
  std::string log_;
  pid_t pid_ = -1;
};

inline ProgramRun run_program(const std::string& name, std::vector<std::string> arguments,
                              const std::function<void()>& prepare = {}) {
  return RunningProgram(name, std::move(arguments), prepare).wait();
}
