/// moe_train: trains finite networks with the configuration of the limit and writes their curves.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "data/dataset.hpp"
#include "parameterizations/parameterization.hpp"
#include "support/config.hpp"
#include "support/observable.hpp"
#include "support/progress.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "support/result_file.hpp"
#include "support/schedule.hpp"
#include "validation/network.hpp"
#include "validation/network_file.hpp"
#include "validation/network_jobs.hpp"
#include "validation/network_memory.hpp"
#include "validation/run_store.hpp"

namespace {

const moe::ProgramInfo program{
    "moe_train",
    "Trains finite Mixture-of-Experts networks at several widths and seeds on CPU or GPU, and writes their losses and "
    "observables.",
    "network.h5"};

/// "0.1234 +- 0.0012": mean and standard error over the runs whose vector is complete.
template <class Values>
std::string mean_and_error(const std::vector<moe::NetworkRun>& runs, Values&& values_of) {
  double n = 0, sum = 0, squares = 0;
  for (const auto& run : runs) {
    if (run.failure || values_of(run).empty()) continue;
    const double value = values_of(run).back();
    n += 1;
    sum += value;
    squares += value * value;
  }
  if (n == 0) return "-";
  const double mean = sum / n;
  if (n < 2) return fmt::format("{:.4f}", mean);
  const double variance = std::max(0.0, squares / n - mean * mean) * n / (n - 1);
  return fmt::format("{:.4f} +- {:.4f}", mean, std::sqrt(variance / n));
}

void print_summary(const moe::RunSpec& spec, const moe::Dataset& data,
                   const std::vector<std::vector<moe::NetworkRun>>& runs, const std::string& out) {
  fmt::print("Regime {}, {}, {} lr {}; {}; {}, {} seed{}, {}.\n", spec.model.regime, spec.model.param,
             moe::to_string(spec.optimizer.name), spec.optimizer.lr,
             data.description.empty() ? spec.data.source : data.description, moe::duration_text(spec.training),
             spec.network.seeds, spec.network.seeds == 1 ? "" : "s", moe::to_string(spec.sampling.precision));
  if (!spec.network.init_from.empty() && spec.network.seeds > 1)
    fmt::print("network.init_from gives every seed the same weights: the {} rows are equal.\n", spec.network.seeds);
  const bool tested = data.x_test.cols() > 0;
  fmt::print("{:>6} {:>6} {:>6} {:>6}  {:>18}  {:>18}", "N", "M", "N_e", "K", "final loss", "accuracy");
  if (tested) fmt::print("  {:>18}  {:>18}", "test loss", "test accuracy");
  fmt::print("\n");
  for (const auto& of_width : runs) {
    const moe::NetworkShape& s = of_width.front().shape;
    fmt::print("{:>6} {:>6} {:>6} {:>6}  {:>18}  {:>18}", s.N, s.M, s.Ne, s.K,
               mean_and_error(
                   of_width, [](const auto& r) -> auto& { return r.loss; }),
               mean_and_error(
                   of_width, [](const auto& r) -> auto& { return r.accuracy; }));
    if (tested)
      fmt::print("  {:>18}  {:>18}",
                 mean_and_error(
                     of_width, [](const auto& r) -> auto& { return r.test_loss; }),
                 mean_and_error(
                     of_width, [](const auto& r) -> auto& { return r.test_accuracy; }));
    fmt::print("\n");
  }
  if (spec.training.stop_at_loss > 0)
    for (const auto& of_width : runs) {
      std::vector<int> steps;
      for (const auto& run : of_width)
        if (run.converged_at >= 0) steps.push_back(run.converged_at);
      if (steps.empty()) continue;
      const auto [first, last] = std::minmax_element(steps.begin(), steps.end());
      fmt::print(
          "Converged: {} of {} networks of N = {} reached training.stop_at_loss = {:g}, at steps {} to {}, where they "
          "end.\n",
          steps.size(), of_width.size(), of_width.front().shape.N, spec.training.stop_at_loss, *first, *last);
    }
  fmt::print("Written: {}. One row per seed: h5dump -d /network/N{}/loss {}\n", out, runs.front().front().shape.N, out);
}

/// Work of one update, so that the time remaining counts wide networks for what they cost: 10^6 multiply-adds, at least 1.
long cost(const moe::RunSpec& spec, const moe::Dataset& data, int width) {
  const moe::NetworkShape s = moe::network_shape(spec, data, width);
  const double samples = spec.training.batch > 0 ? spec.training.batch : static_cast<double>(data.x.cols());
  return std::lround(std::max(1.0, 1e-6 * s.N * (3.0 * s.M + 6.0 * s.K * s.Ne) * samples));
}

std::atomic<int> interrupting_signal{0};
void on_interrupt(int signal) {
  interrupting_signal = signal;
  for (const int s : {SIGINT, SIGTERM}) std::signal(s, SIG_DFL);  // a second one ends the program at once
}

void warn(const std::string& problem) { fmt::print(stderr, "moe_train: warning: {}\n", problem); }

/// Trains what is not yet in the folder of kept runs, then writes `out` and deletes the folder. Throws TrainingInterrupted.
std::vector<std::vector<moe::NetworkRun>> train(const moe::Invocation& call, const moe::RunSpec& spec,
                                                const moe::Dataset& data, const std::string& folder,
                                                const std::string& out) {
  moe::Ranks& ranks = moe::ranks();
  // Ranks keep their networks in one folder, which the first makes and guards.
  std::optional<moe::RunStore> opened;
  const moe::RunStore::Options keeping{call.options.checkpoint.every_s, warn, ranks.first()};
  moe::Faults faults;
  if (ranks.first()) faults.collect([&] { opened.emplace(folder, spec, data, keeping); });
  faults.throw_if_any();
  ranks.any(false);
  if (!ranks.first()) opened.emplace(folder, spec, data, keeping);
  moe::RunStore& store = *opened;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, on_interrupt);

  std::map<std::pair<int, std::uint64_t>, moe::NetworkRun> finished;
  long work = 0, count = 0;
  for (const moe::NetworkJob& job : moe::own_network_jobs(spec)) {
    const int width = spec.network.widths[job.width];
    const std::uint64_t seed = spec.sampling.seed + job.seed;
    count += 1;
    if (auto run = store.load(width, seed))
      finished[{width, seed}] = std::move(*run);
    else
      work += cost(spec, data, width) * spec.training.steps;
  }
  if (!finished.empty() && !call.options.quiet)
    fmt::print("Continuing: {} of {} runs are in {}.\n", finished.size(), count, store.folder());

  moe::Progress progress("training (10^6 multiply-adds)", work, call.options.quiet);
  std::atomic<long> done = static_cast<long>(finished.size());
  moe::TrainOptions options;
  options.device = call.options.device;
  options.keep_outputs = moe::outputs_fit(spec, data);
  options.stored = [&](int width, std::uint64_t seed) -> std::optional<moe::NetworkRun> {
    const auto found = finished.find({width, seed});
    if (found == finished.end()) return std::nullopt;
    return std::move(found->second);
  };
  options.on_update = [&](int width, double loss) {
    progress.advance(cost(spec, data, width),
                     fmt::format("{} of {} runs, N = {} loss {:.4f}", done.load(), count, width, loss));
  };
  options.resume = [&](int width, std::uint64_t seed, const moe::TrainOptions::State& state) {
    return store.resume(width, seed, state);
  };
  options.on_resume = [&](int width, int steps) { progress.skip(cost(spec, data, width) * steps); };
  options.keep = [&](int width, std::uint64_t seed, const moe::TrainOptions::State& state) {
    const bool interrupted = interrupting_signal != 0;
    store.keep(width, seed, state, interrupted);
    if (interrupted) throw moe::TrainingInterrupted{};
  };
  options.on_run = [&](const moe::NetworkRun& run) {
    store.save(run);
    ++done;
  };
  auto runs = moe::train_networks(spec, data, call.options.threads, options);
  progress.finish();
  if (!ranks.first()) return runs;
  moe::write_network_file(out, program.name, spec, data, runs);
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);
  store.remove();
  return runs;
}

/// Until the result is complete, finished networks are kept as well, each as large as its rows of the result.
void require_room(const moe::RunSpec& spec, const moe::Dataset& data, const std::string& out, const std::string& folder,
                  bool folder_said) {
  const double result = moe::network_file_bytes(spec, data);
  if (!folder_said)
    return moe::require_disk(2 * result, out, "the result, with the networks that are kept until it is complete,",
                             "--out FILE");
  moe::require_disk(result, out, "the result", "--out FILE");
  moe::require_disk(result, folder, "what is kept of the networks until the result is complete", "--checkpoint FOLDER");
}

int run(int argc, char** argv) {
  moe::Faults faults;
  const moe::Invocation call = moe::parse_command_line(program, argc, argv, faults);
  if (call.exit_code >= 0) return call.exit_code;
  const moe::CheckpointOptions& checkpoint = call.options.checkpoint;
  moe::RunSpec spec = call.spec;
  if (!checkpoint.resume.empty()) {
    if (checkpoint.file != checkpoint.resume)
      faults.add(
          fmt::format("--checkpoint {}, --resume {}: moe_train goes on in the folder that it resumes. Give --resume "
                      "alone.",
                      checkpoint.file, checkpoint.resume));
    faults.collect([&] {
      const moe::RunSpec kept = moe::sweep_config(checkpoint.resume);
      if (call.spec.origin.empty()) spec = kept;  // with no key given, what was kept says what goes on
    });
  }
  const std::string& out = call.options.out;
  const std::string folder = checkpoint.file.empty() ? out + ".runs" : checkpoint.file;

  moe::check_writable(out, faults);
  moe::check_network_device(spec, call.options.device, faults);
  const std::unique_ptr<const moe::Dataset> loaded = moe::load_dataset(spec, faults);
  if (moe::rules_known(spec, faults)) {
    moe::check_networks(spec, loaded.get(), spec.network.widths, faults);
    if (loaded) {
      faults.collect([&] { moe::require_network_memory(spec, *loaded, call.options.threads, call.options.device); });
      faults.collect([&] { require_room(spec, *loaded, out, folder, !checkpoint.file.empty()); });
    }
  }
  faults.throw_if_any();
  const moe::Dataset& data = *loaded;
  if (const auto undefined = moe::undefined_observables(spec); !undefined.empty())
    fmt::print(stderr,
               "moe_train: output.observables: {} left out: the samples differ from step to step under mini-batches "
               "(training.batch = {})\n",
               fmt::join(undefined, ", "), spec.training.batch);

  if (const std::string jumps = moe::jumping_flow_warning(spec); !jumps.empty()) warn(jumps);
  std::vector<std::vector<moe::NetworkRun>> runs;
  try {
    runs = train(call, spec, data, folder, out);
  } catch (const moe::TrainingInterrupted&) {
    fmt::print(
        stderr,
        "\nmoe_train: interrupted; what was done is kept in {}. Continue with the same command, or with --resume {} "
        "--out {}\n",
        folder, folder, out);
    return 128 + interrupting_signal;
  }
  if (!call.options.quiet) print_summary(spec, data, runs, out);
  bool failed = false;
  for (const auto& of_width : runs)
    for (const auto& run : of_width)
      if (run.failure) {
        failed = true;
        fmt::print(stderr, "moe_train: N = {}, seed {} stopped: {}\n", run.shape.N, run.seed, run.failure->what());
      }
  if (failed) fmt::print(stderr, "moe_train: what these networks did before and the others are in {}\n", out);
  return failed ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) { return moe::guarded_main(program, run, argc, argv); }
