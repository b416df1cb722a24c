#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

#include "support/cpu.hpp"
#include "support/gpu.hpp"
#include "support/rank_results.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "validation/network.hpp"
#include "validation/network_jobs.hpp"
#include "validation/network_memory.hpp"
#include "validation/network_start.hpp"
#include "validation/trainer_run.hpp"

namespace moe {

namespace {

/// Gives the calling thread back the team of OpenMP threads that it had.
class KeepThreads {
 public:
  KeepThreads() : before_(omp_get_max_threads()) {}
  ~KeepThreads() { omp_set_num_threads(before_); }
  KeepThreads(const KeepThreads&) = delete;
  KeepThreads& operator=(const KeepThreads&) = delete;

 private:
  int before_;
};

NetworkRun train_on(const trainer::Team& team, const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                    const TrainOptions& options) {
  const KeepThreads guard;
  Faults faults;
  check_networks(spec, &data, {width}, faults);
  check_network_device(spec, options.device, faults);
  faults.throw_if_any();
  const NetworkShape shape = network_shape(spec, data, width);
  set_operation_threads(team.share());
  NetworkWeights start = start_weights(spec, data, width, seed, options.initial);
  if (options.device == Device::cuda)
    return trainer::train_on_gpu(spec, data, shape, std::move(start), seed, options, team);
  return spec.sampling.precision == Precision::float32
             ? trainer::train<float>(spec, data, shape, std::move(start), seed, options, team)
             : trainer::train<double>(spec, data, shape, std::move(start), seed, options, team);
}

/// Room in the memory of the GPU, which the networks that train at once share. One alone always finds room: whether it fits was asked
/// before the run.
class Room {
 public:
  /// Of a network while it trains.
  class Share {
   public:
    Share(Room& room, double bytes) : room_(room), bytes_(bytes) {
      std::unique_lock lock(room_.mutex_);
      room_.changed_.wait(lock, [&] { return room_.networks_ == 0 || bytes_ <= room_.free_; });
      room_.free_ -= bytes_;
      ++room_.networks_;
    }
    ~Share() {
      {
        const std::lock_guard lock(room_.mutex_);
        room_.free_ += bytes_;
        --room_.networks_;
      }
      room_.changed_.notify_all();
    }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

   private:
    Room& room_;
    double bytes_;
  };
  explicit Room(double bytes) : free_(bytes) {}

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  double free_;
  int networks_ = 0;
};

/// Every network from the rank that trained it.
void share(const RunSpec& spec, std::vector<std::vector<NetworkRun>>& runs) {
  if (!ranks().several()) return;
  const std::vector<NetworkJob> jobs = network_jobs(spec);
  std::vector<NetworkRun> list;
  list.reserve(jobs.size());
  for (const auto& [w, s] : jobs) list.push_back(std::move(runs[w][s]));
  share_results(list);
  for (std::size_t k = 0; k < jobs.size(); ++k) {
    const auto& [w, s] = jobs[k];
    runs[w][s] = std::move(list[k]);
    runs[w][s].seed = spec.sampling.seed + s;  // all its digits, which an archive does not keep
  }
}

}  // namespace

NetworkRun train_network(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                         const TrainOptions& options) {
  trainer::Team team;
  team.threads = thread_count(options.threads);
  return train_on(team, spec, data, width, seed, options);
}

std::vector<NetworkJob> network_jobs(const RunSpec& spec) {
  std::vector<std::size_t> order(spec.network.widths.size());
  for (std::size_t w = 0; w < order.size(); ++w) order[w] = w;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return spec.network.widths[a] > spec.network.widths[b]; });
  std::vector<NetworkJob> jobs;
  for (const std::size_t w : order)
    for (std::size_t s = 0; s < static_cast<std::size_t>(spec.network.seeds); ++s) jobs.push_back({w, s});
  return jobs;
}

std::vector<NetworkJob> own_network_jobs(const RunSpec& spec) {
  std::vector<NetworkJob> own;
  const auto all = network_jobs(spec);
  for (std::size_t k = 0; k < all.size(); ++k)
    if (ranks().mine(k)) own.push_back(all[k]);
  return own;
}

std::vector<std::vector<NetworkRun>> train_networks(const RunSpec& spec, const Dataset& data, int threads,
                                                    const TrainOptions& options) {
  std::vector<NetworkJob> jobs;
  const auto seeds = static_cast<std::size_t>(spec.network.seeds);
  std::vector<std::vector<NetworkRun>> runs(spec.network.widths.size(), std::vector<NetworkRun>(seeds));
  for (const NetworkJob& job : own_network_jobs(spec)) {
    std::optional<NetworkRun> stored;
    if (options.stored) stored = options.stored(spec.network.widths[job.width], spec.sampling.seed + job.seed);
    if (stored)
      runs[job.width][job.seed] = std::move(*stored);
    else
      jobs.push_back(job);
  }

  keep_freed_memory();
  trainer::Team team;
  team.threads = thread_count(threads);
  const std::size_t workers = std::min(jobs.size(), static_cast<std::size_t>(team.threads));
  team.running = static_cast<int>(workers);

  const bool on_gpu = options.device == Device::cuda;
  Room room(on_gpu ? gpu::device().free_bytes : std::numeric_limits<double>::infinity());
  std::atomic<std::size_t> next = 0;
  std::exception_ptr error;
  std::atomic<bool> interrupted = false;
  std::mutex error_mutex;
  const auto work = [&] {
    for (std::size_t k = next++; k < jobs.size(); k = next++) {
      try {
        const int width = spec.network.widths[jobs[k].width];
        TrainOptions own = options;
        if (options.on_update) own.on_step = [&options, width](int, double loss) { options.on_update(width, loss); };
        own.keep_weights = spec.output.weights;
        const Room::Share share(room, on_gpu ? gpu_network_bytes(spec, data, width) : 0);
        NetworkRun run = train_on(team, spec, data, width, spec.sampling.seed + jobs[k].seed, own);
        if (options.on_run) options.on_run(run);
        runs[jobs[k].width][jobs[k].seed] = std::move(run);
      } catch (const TrainingInterrupted&) {
        interrupted = true;
        next = jobs.size();
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next = jobs.size();
      }
    }
    --team.running;
  };
  {
    std::vector<std::jthread> pool;
    for (std::size_t k = 0; k < workers; ++k) pool.emplace_back(work);
  }
  if (error) std::rethrow_exception(error);
  if (ranks().any(interrupted)) throw TrainingInterrupted{};
  share(spec, runs);
  return runs;
}

}  // namespace moe
