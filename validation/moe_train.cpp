/// moe_train: trains finite networks with the configuration of the limit and writes their curves.
#include <fmt/format.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <map>
#include <optional>
#include <utility>

#include "data/dataset.hpp"
#include "support/config.hpp"
#include "support/observable.hpp"
#include "support/progress.hpp"
#include "validation/network.hpp"
#include "validation/network_file.hpp"
#include "validation/network_memory.hpp"
#include "validation/run_store.hpp"

namespace {

const moe::ProgramInfo program{
    "moe_train",
    "Trains finite Mixture-of-Experts networks at several widths and seeds on the CPU, and writes their losses and "
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
  fmt::print("Regime {}, {}, {} lr {}; {}; {} steps, {} seed{}, {}.\n", spec.model.regime, spec.model.param,
             moe::to_string(spec.optimizer.name), spec.optimizer.lr,
             data.description.empty() ? spec.data.source : data.description, spec.training.steps, spec.network.seeds,
             spec.network.seeds == 1 ? "" : "s", moe::to_string(spec.sampling.precision));
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
  fmt::print("Written: {}. One row per seed: h5dump -d /network/N{}/loss {}\n", out, runs.front().front().shape.N, out);
}

/// Work of one update, so that the time remaining counts wide networks for what they cost: 10^6 multiply-adds, at least 1.
long cost(const moe::RunSpec& spec, const moe::Dataset& data, int width) {
  const moe::NetworkShape s = moe::network_shape(spec, data, width);
  const double samples = spec.training.batch > 0 ? spec.training.batch : static_cast<double>(data.x.cols());
  return std::lround(std::max(1.0, 1e-6 * s.N * (3.0 * s.M + 6.0 * s.K * s.Ne) * samples));
}

std::string interrupted_text;  // composed before the signal, written by its handler
void on_interrupt(int signal) {
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, interrupted_text.data(), interrupted_text.size());
  ::_exit(128 + signal);
}

/// Trains what is not yet in the folder of finished runs beside `out`, then writes `out` and deletes the folder.
std::vector<std::vector<moe::NetworkRun>> train(const moe::Invocation& call, const moe::Dataset& data,
                                                const std::string& out) {
  const moe::RunSpec& spec = call.spec;
  moe::RunStore store(out, moe::sweep_identity(spec, data));
  interrupted_text = fmt::format("\nmoe_train: interrupted; finished runs are kept in {}, the same command continues\n",
                                 store.folder());
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, on_interrupt);

  std::map<std::pair<int, std::uint64_t>, moe::NetworkRun> finished;
  long work = 0, count = 0;
  for (const int width : spec.network.widths)
    for (int s = 0; s < spec.network.seeds; ++s) {
      const std::uint64_t seed = spec.sampling.seed + static_cast<std::uint64_t>(s);
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
  options.on_run = [&](const moe::NetworkRun& run) {
    store.save(run);
    ++done;
  };
  auto runs = moe::train_networks(spec, data, call.options.threads, options);
  progress.finish();
  moe::write_network_file(out, program.name, spec, data, runs);
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);
  store.remove();
  return runs;
}

int run(int argc, char** argv) {
  const moe::Invocation call = moe::parse_command_line(program, argc, argv);
  if (call.exit_code >= 0) return call.exit_code;
  const moe::RunSpec& spec = call.spec;
  const std::string out = call.options.out.empty() ? program.default_out : call.options.out;

  const moe::Dataset data = moe::load_dataset(spec);
  moe::Faults faults;
  moe::check_networks(spec, data, spec.network.widths, faults);
  if (call.options.device == moe::Device::cuda)
    faults.add("--device cuda: finite networks are trained on the CPU. Say --device cpu or leave it out.");
  if (!call.options.checkpoint.file.empty())
    faults.add("--checkpoint, --resume: moe_train does not have them yet. Leave them out.");
  faults.throw_if_any();
  if (const auto undefined = moe::undefined_observables(spec); !undefined.empty())
    fmt::print(stderr,
               "moe_train: output.observables: {} left out: the samples differ from step to step under mini-batches "
               "(training.batch = {})\n",
               fmt::join(undefined, ", "), spec.training.batch);

  moe::require_network_memory(spec, data, call.options.threads);
  { const moe::H5Writer probe(out); }  // a name that cannot be written is a fault before the training, not after it
  const auto runs = train(call, data, out);
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
