/// Ranks by MPI. A library of its own (build/lib/dmft_mpi.so), loaded by ranks.cpp when a launcher has started several processes:
/// loading MPI would double the time that a program takes to start.
#include <mpi.h>

#include <algorithm>

#include "support/ranks.hpp"

namespace {

/// MPI counts in int.
constexpr std::size_t largest_message = std::size_t{1} << 30;

class Mpi final : public moe::RankTransport {
 public:
  Mpi() {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);  // the main thread alone calls it
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &count_);
    MPI_Comm machine = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
    MPI_Comm_size(machine, &on_this_machine_);
    MPI_Comm_rank(machine, &number_on_machine_);
    MPI_Comm_free(&machine);
  }
  Mpi(const Mpi&) = delete;
  Mpi& operator=(const Mpi&) = delete;
  ~Mpi() override { MPI_Finalize(); }

  int rank() const override { return rank_; }
  int count() const override { return count_; }
  int on_this_machine() const override { return on_this_machine_; }
  int number_on_machine() const override { return number_on_machine_; }

  // An error of MPI ends all ranks with its own message: the default handler of the communicator.
  void sum(double* values, std::size_t count) override {
    for (std::size_t at = 0; at < count; at += largest_message)
      MPI_Allreduce(MPI_IN_PLACE, values + at, piece(count - at), MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  }
  void smallest(std::int64_t* values, std::size_t count) override {
    MPI_Allreduce(MPI_IN_PLACE, values, piece(count), MPI_INT64_T, MPI_MIN, MPI_COMM_WORLD);
  }
  void broadcast(void* bytes, std::size_t count, int from) override {
    for (std::size_t at = 0; at < count; at += largest_message)
      MPI_Bcast(static_cast<char*>(bytes) + at, piece(count - at), MPI_BYTE, from, MPI_COMM_WORLD);
  }

 private:
  static int piece(std::size_t count) { return static_cast<int>(std::min(count, largest_message)); }

  int rank_ = 0, count_ = 1, on_this_machine_ = 1, number_on_machine_ = 0;
};

}  // namespace

extern "C" moe::RankTransport* moe_open_mpi() { return new Mpi; }
