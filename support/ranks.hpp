/// Processes of one run, started side by side by mpirun or srun: ranks. They all take the same way through a program and share out what
/// is independent in it (batches of sites, replicas, networks). The first alone speaks and writes files. A program that was started by
/// itself is one rank, and nothing here costs it anything: MPI is loaded for a launcher only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "support/error.hpp"

namespace moe {

/// What carries numbers between ranks: MPI (ranks_mpi.cpp). Every rank has to make the same calls in the same order.
class RankTransport {
 public:
  RankTransport() = default;
  RankTransport(const RankTransport&) = delete;
  RankTransport& operator=(const RankTransport&) = delete;
  virtual ~RankTransport() = default;
  virtual int rank() const = 0;
  virtual int count() const = 0;
  virtual int on_this_machine() const = 0;
  virtual int number_on_machine() const = 0;  ///< of this one, from 0
  virtual void sum(double* values, std::size_t count) = 0;
  virtual void smallest(std::int64_t* values, std::size_t count) = 0;
  virtual void broadcast(void* bytes, std::size_t count, int from) = 0;
};

/// Another rank failed: this one ends with it. Said by the first rank.
struct OtherRankFailed : Error {
  OtherRankFailed(const std::string& what, int status_) : Error(what), status(status_) {}
  int status;
};

class Ranks {
 public:
  int rank() const { return transport_ ? transport_->rank() : 0; }
  int count() const { return transport_ ? transport_->count() : 1; }
  bool several() const { return count() > 1; }
  bool first() const { return rank() == 0; }
  int on_this_machine() const { return transport_ ? transport_->on_this_machine() : 1; }
  int number_on_machine() const { return transport_ ? transport_->number_on_machine() : 0; }

  /// Which rank does job `number` of a list, and how many of `jobs` are this one's.
  int owner(std::size_t number) const { return static_cast<int>(number % static_cast<std::size_t>(count())); }
  bool mine(std::size_t number) const { return owner(number) == rank(); }
  std::size_t share(std::size_t jobs) const {
    return (jobs + static_cast<std::size_t>(count() - 1 - rank())) / static_cast<std::size_t>(count());
  }

  /// The following are calls of all ranks. Each throws OtherRankFailed on every rank where one has failed before.
  /// values := their sum over ranks, the same on all. Small arrays travel together.
  void sum(const std::vector<std::span<double>>& arrays);
  /// The smallest of what the ranks have.
  std::int64_t least(std::int64_t here);
  /// Is it so on any rank?
  bool any(bool here) { return least(here ? 0 : 1) == 0; }
  /// bytes := those of rank `from`.
  void broadcast(std::vector<char>& bytes, int from);

  /// Loads MPI where a launcher has started several processes. Throws ConfigError where it cannot.
  void start(const std::string& program);
  /// The end of a rank's run, with what it failed with: the first rank says it. Returns the status of all.
  int finish(const std::string& program, int status, const std::exception_ptr& error);

 private:
  void meet(std::int64_t what);
  [[noreturn]] void tell_failure(int failed, const std::string& here, int status);

  std::unique_ptr<RankTransport> transport_;
};

/// The ranks that this process is one of.
Ranks& ranks();

/// A file of this rank's own among the temporary ones: its name, its bytes (and it is gone), and how it comes to be there.
std::string rank_file();
std::vector<char> take_file(const std::string& path);
void put_file(const std::string& path, const std::vector<char>& bytes);

/// For a process that starts another program, which is one by itself.
void forget_launcher();

/// Refuses to run as several ranks, by name: for programs that would do the same on each.
void require_one_rank(const std::string& program);

}  // namespace moe
