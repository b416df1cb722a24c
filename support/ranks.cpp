#include "support/ranks.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <optional>

#include "support/resources.hpp"

namespace moe {

namespace {

/// What a launcher says in the environment of each process that it starts.
struct Launch {
  std::string name;
  int rank = 0, count = 1;
};

std::optional<int> number_in_environment(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return std::nullopt;
  return std::atoi(text);
}

/// SLURM_NTASKS is set in a batch script too, which is one process; SLURM_STEP_NUM_TASKS in those that srun starts.
constexpr struct {
  const char *name, *count, *rank;
} launchers[] = {{"mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                 {"a launcher of processes (PMI)", "PMI_SIZE", "PMI_RANK"},
                 {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}};

Launch launch() {
  for (const auto& known : launchers)
    if (const auto count = number_in_environment(known.count))
      return {known.name, number_in_environment(known.rank).value_or(0), *count};
  return {};
}

/// What all ranks are about to do when they meet: they must agree.
enum Meeting : std::int64_t { meeting_sum, meeting_least, meeting_broadcast, meeting_end };

int status_of(const std::exception_ptr& error, std::string& text) {
  try {
    std::rethrow_exception(error);
  } catch (const OtherRankFailed& e) {
    text = e.what();
    return e.status;
  } catch (const ConfigError& e) {
    text = e.what();
    return 2;
  } catch (const std::bad_alloc&) {
    const AvailableMemory left = available_memory();
    text = fmt::format(
        "memory: the system refused an array, {} being left ({}). Take fewer --threads, or smaller batches or fewer "
        "samples (data, sampling, network); what a checkpoint has kept can be continued",
        bytes_text(left.bytes), left.source);
    return 1;
  } catch (const std::exception& e) {
    text = e.what();
    return 1;
  }
}

bool is_of_other(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const OtherRankFailed&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

Ranks& ranks() {
  static Ranks all;
  return all;
}

std::string rank_file() {
  return (std::filesystem::temp_directory_path() / fmt::format("moe-rank-{}-{}.h5", ranks().rank(), ::getpid()))
      .string();
}

std::vector<char> take_file(const std::string& path) {
  std::vector<char> bytes;
  {
    std::ifstream in(path, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  std::filesystem::remove(path);
  if (bytes.empty()) throw IoError(fmt::format("io: {} is gone. Name another folder in TMPDIR.", path));
  return bytes;
}

void put_file(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream out(path, std::ios::binary);
  if (!out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush())
    throw IoError(fmt::format("io: cannot write {}. Free some space there, or name another folder in TMPDIR.", path));
}

void forget_launcher() {
  for (const auto& known : launchers) ::unsetenv(known.count);
}

void require_one_rank(const std::string& program) {
  const Launch here = launch();
  if (here.count <= 1) return;
  if (here.rank > 0) std::exit(2);  // the first says it
  throw ConfigError(
      {fmt::format("{} started {} processes of {}, which would all do the same: it has nothing to share "
                   "out. Start it without {}",
                   here.name, here.count, program, here.name)});
}

void Ranks::start(const std::string& program) {
  const Launch here = launch();
  if (here.count <= 1) return;
  const auto refuse = [&](const std::string& why) {
    if (here.rank > 0) std::exit(2);  // the first says it
    throw ConfigError({fmt::format("{} started {} processes of {}, which cannot work together: {}", here.name,
                                   here.count, program, why)});
  };
  const std::string module =
      std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "lib/dmft_mpi.so";
  if (!std::filesystem::exists(module))
    refuse(
        "this build has no MPI (DMFT_MPI). Install libopenmpi-dev and openmpi-bin and build again, or start one "
        "process");
  // Global, as MPI's own plugins look for its symbols.
  void* const library = ::dlopen(module.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) refuse(fmt::format("{}", ::dlerror()));
  using Open = RankTransport* (*)();
  const auto open = reinterpret_cast<Open>(::dlsym(library, "moe_open_mpi"));
  if (open == nullptr) refuse(fmt::format("{} is of another version", module));
  std::unique_ptr<RankTransport> transport(open());
  if (transport->count() != here.count)
    refuse(fmt::format("MPI sees {} of them. Start them with the mpirun of openmpi-bin, or with srun --mpi=pmix",
                       transport->count()));
  transport_ = std::move(transport);
  if (first()) return;
  // One voice: what the others would say is the same, and what they fail with goes to the first.
  stdout = std::fopen("/dev/null", "w");
  stderr = std::fopen("/dev/null", "w");
}

/// All ranks agree on what they do next, or learn which of them has failed.
void Ranks::meet(std::int64_t what) {
  std::array<std::int64_t, 3> least = {count(), what, -what};
  transport_->smallest(least.data(), least.size());
  if (least[0] < count()) tell_failure(static_cast<int>(least[0]), "", 0);
  if (least[1] != what || least[2] != -what) {
    std::fputs("ranks: they went different ways, which is a fault of this program\n", stderr);
    std::abort();
  }
}

/// The message of the failed rank, on all. `here` and `status` are its own.
void Ranks::tell_failure(int failed, const std::string& here, int status) {
  std::array<std::int64_t, 2> sizes = {static_cast<std::int64_t>(here.size()), status};
  transport_->broadcast(sizes.data(), sizeof sizes, failed);
  std::string text = rank() == failed ? here : std::string(static_cast<std::size_t>(sizes[0]), ' ');
  transport_->broadcast(text.data(), text.size(), failed);
  throw OtherRankFailed(failed == 0 ? text : fmt::format("{} (rank {} of {})", text, failed, count()),
                        static_cast<int>(sizes[1]));
}

void Ranks::sum(const std::vector<std::span<double>>& arrays) {
  if (!several()) return;
  meet(meeting_sum);
  constexpr std::size_t small = std::size_t{1} << 16;
  std::vector<double> together;
  for (const auto& array : arrays)
    if (array.size() > small)
      transport_->sum(array.data(), array.size());
    else
      together.insert(together.end(), array.begin(), array.end());
  transport_->sum(together.data(), together.size());
  auto from = together.begin();
  for (const auto& array : arrays)
    if (array.size() <= small) {
      std::copy_n(from, array.size(), array.begin());
      from += static_cast<std::ptrdiff_t>(array.size());
    }
}

std::int64_t Ranks::least(std::int64_t here) {
  if (!several()) return here;
  meet(meeting_least);
  transport_->smallest(&here, 1);
  return here;
}

void Ranks::broadcast(std::vector<char>& bytes, int from) {
  if (!several()) return;
  meet(meeting_broadcast);
  auto size = static_cast<std::int64_t>(bytes.size());
  transport_->broadcast(&size, sizeof size, from);
  bytes.resize(static_cast<std::size_t>(size));
  transport_->broadcast(bytes.data(), bytes.size(), from);
}

int Ranks::finish(const std::string& program, int status, const std::exception_ptr& error) {
  std::string text;
  if (error) status = status_of(error, text);
  if (several()) {
    try {
      if (!error) {
        meet(meeting_end);
      } else if (!is_of_other(error)) {
        // In the place of the meeting that the others come to: with several failed ones, the first of them is heard.
        std::array<std::int64_t, 3> least = {rank(), meeting_end, -meeting_end};
        transport_->smallest(least.data(), least.size());
        tell_failure(static_cast<int>(least[0]), text, status);
      }
    } catch (const OtherRankFailed& failure) {
      text = failure.what();
      status = failure.status;
    }
  }
  if (!text.empty()) fmt::print(stderr, "{}: {}\n", program, text);
  std::fflush(nullptr);
  transport_.reset();
  return status;
}

}  // namespace moe
