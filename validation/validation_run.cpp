#include "validation/validation_run.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <limits>

#include "dmft/matched_draws.hpp"
#include "dmft/memory_estimate.hpp"
#include "support/progress.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "validation/network_file.hpp"
#include "validation/network_jobs.hpp"
#include "validation/network_memory.hpp"

namespace moe {

std::atomic<bool> interrupted{false};

namespace {

void on_interrupt(int) {
  interrupted = true;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);
}

/// Was any rank interrupted? A call of all.
bool ended() {
  if (ranks().any(interrupted)) interrupted = true;
  return interrupted;
}

LimitSpec limit_of(const RunSpec& spec, const Dataset& data) {
  Faults faults;
  const std::optional<LimitSpec> limit = checked_limit(spec, &data, faults);
  faults.throw_if_any();
  return *limit;
}

int neurons_of(const RunSpec& spec, const Dataset& data) { return limit_of(spec, data).block.counts.neurons; }

/// Work of limit and networks in units of a million multiplications, for the time that remains: a replica of the limit costs about
/// half of the network with as many neurons.
struct Costs {
  const RunSpec& spec;
  const Dataset& data;

  long of_step(int N) const {
    const Sizes s = network_sizes(spec, N, static_cast<int>(data.x.rows()));
    const double P = spec.training.batch > 0 ? spec.training.batch : static_cast<double>(data.x.cols());
    return std::max(1L, std::lround(s.N * (s.M * s.Ne + s.M + s.D) * P / 1e6));
  }
  long of_limit_step(int S) const { return (of_step(S) + 1) / 2; }
  long of_limit(int S) const {
    return static_cast<long>(spec.sampling.replicas) * (spec.training.steps + 1L) * of_limit_step(S);
  }
  long of_networks() const {
    long total = 0;
    for (const int N : spec.network.widths)
      total += static_cast<long>(spec.network.seeds) * spec.training.steps * of_step(N);
    return total;
  }
};

LimitResult solve(const RunSpec& spec, const Dataset& data, const ProgramOptions& asked, Progress& progress,
                  const std::string& name) {
  const long cost = Costs{spec, data}.of_limit_step(neurons_of(spec, data));
  SolveOptions options;
  options.threads = asked.threads;
  options.device = asked.device;
  options.interrupt = &interrupted;
  options.on_step = [&](int, int step, double loss) {
    progress.advance(cost, fmt::format("{}, step {} loss {:.4f}", name, step, loss));
  };
  return solve_limit(spec, data, options);
}

/// The networks of one width; nothing after an interrupt.
std::optional<std::vector<NetworkRun>> train(RunSpec spec, const Dataset& data, int N, bool keep_outputs,
                                             const ProgramOptions& asked, Progress& progress, const std::string& name) {
  spec.network.widths = {N};
  const long cost = Costs{spec, data}.of_step(N);
  TrainOptions options;
  options.device = asked.device;
  options.keep_outputs = keep_outputs;
  options.on_step = [&](int, double loss) {
    if (interrupted) throw TrainingInterrupted{};
    progress.advance(cost, fmt::format("{}N = {}, loss {:.4f}", name, N, loss));
  };
  options.keep = [](int, std::uint64_t, const TrainOptions::State&) {  // also within a long interval of a flow
    if (interrupted) throw TrainingInterrupted{};
  };
  try {
    return train_networks(spec, data, asked.threads, options).at(0);
  } catch (const TrainingInterrupted&) {
    interrupted = true;
    return std::nullopt;
  }
}

}  // namespace

void on_signals() {
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, on_interrupt);
}

std::optional<RunSpec> second_solve(const RunSpec& spec, const Dataset& data) {
  if (has_random_limit(spec)) return std::nullopt;
  const LimitSpec limit = limit_of(spec, data);
  const StepShape step = step_shape(spec, data);
  const BlockSpec& block = limit.block;
  const int S = block.counts.neurons;
  int fewer = S / 2;
  const bool lists = spec.sampling.matching != Matching::off && !block.starts_dense;
  if (lists && lists_hold_first_step(spec, block.constants, block.counts, step))
    fewer = matched_neurons(spec, block.constants, step, S / 2, 4 * S / 5);
  if (fewer == 0) return std::nullopt;
  RunSpec second = spec;
  second.sampling.neurons = fewer;
  for (int* said : {&second.sampling.experts, &second.sampling.hidden})
    if (*said > 0) *said = std::max(1, static_cast<int>(std::lround(static_cast<double>(*said) * fewer / S)));
  second.sampling.seed = spec.sampling.seed + 1000003;
  return second;
}

void check_run(const RunSpec& spec, const Dataset* data, const ProgramOptions& options, Faults& faults) {
  check_network_device(spec, options.device, faults);
  if (!rules_known(spec, faults)) return;
  const std::optional<LimitSpec> limit = checked_limit(spec, data, faults);
  check_networks(spec, data, spec.network.widths, faults);
  if (data == nullptr || !limit) return;
  MemoryEstimate estimate = memory_estimate(*limit, solve_sizes(spec, *data, options.threads));
  faults.collect([&] {
    if (spec.sampling.method == Method::iterate) return;  // solve_limit knows what it needs
    if (options.device == Device::cuda)
      require_gpu_memory(estimate, spec, *limit, gpu_memory());
    else
      require_memory(estimate, spec, *limit);
  });
  faults.collect([&] { require_network_memory(spec, *data, options.threads, options.device); });
  faults.collect([&] {
    require_disk(estimate.output + network_file_bytes(spec, *data), options.out, "the result", "--out FILE");
  });
}

ValidationRun run_validation(RunSpec spec, const Dataset& data, const ProgramOptions& options,
                             const std::string& label) {
  spec.training.stop_at_loss = 0;  // curves are compared step by step, to the last
  const std::optional<RunSpec> second = second_solve(spec, data);
  const Costs costs{spec, data};
  const long total = costs.of_limit(neurons_of(spec, data)) + (second ? costs.of_limit(second->sampling.neurons) : 0) +
                     costs.of_networks();
  Progress progress(label, total, options.quiet);
  ValidationRun run;
  run.limit = solve(spec, data, options, progress, "limit");
  if (ended() || run.limit->failure) return run;
  if (second)
    run.second = solve(*second, data, options, progress, fmt::format("limit, {} neurons", second->sampling.neurons));
  if (ended()) return run;
  for (const int N : spec.network.widths) {
    auto of_width = train(spec, data, N, outputs_fit(spec, data), options, progress, "");
    if (!of_width) return run;
    run.runs.push_back(std::move(*of_width));
  }
  progress.finish();
  run.complete = !run.second || !run.second->failure;
  return run;
}

LrSweep run_lr_sweep(const RunSpec& spec, const Dataset& data, const ProgramOptions& options,
                     const std::vector<double>& eta, SweepCriterion criterion) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  RunSpec one = spec;
  one.output.observables = {"none"};
  one.training.stop_at_loss = 0;
  std::sort(one.network.widths.begin(), one.network.widths.end());
  const Costs costs{one, data};
  Progress progress("sweeping",
                    static_cast<long>(eta.size()) * (costs.of_limit(neurons_of(one, data)) + costs.of_networks()),
                    options.quiet);
  LrSweep sweep;
  sweep.criterion = criterion;
  sweep.widths = one.network.widths;
  std::vector<std::vector<double>> of_limit;
  std::vector<std::vector<std::vector<double>>> of_width(one.network.widths.size());
  for (const double lr : eta) {
    one.optimizer.lr = lr;
    const std::string name = fmt::format("lr {:.3g}, ", lr);
    const LimitResult limit = solve(one, data, options, progress, name + "limit");
    std::vector<std::vector<NetworkRun>> networks;
    for (const int N : one.network.widths) {
      if (ended()) break;
      if (auto runs = train(one, data, N, false, options, progress, name)) networks.push_back(std::move(*runs));
    }
    if (ended()) break;
    std::vector<double> values;
    for (std::size_t r = 0; r < limit.loss_per_replica.size(); ++r)
      values.push_back(limit.failure
                           ? infinity
                           : criterion_value(criterion, one.training.steps, limit.eval_steps, limit.loss_per_replica[r],
                                             limit.batch_loss_per_replica[r], limit.test_loss_per_replica[r]));
    values.resize(static_cast<std::size_t>(one.sampling.replicas), infinity);
    of_limit.push_back(std::move(values));
    for (std::size_t w = 0; w < networks.size(); ++w) {
      std::vector<double> losses;
      for (const NetworkRun& r : networks[w])
        losses.push_back(r.failure ? infinity
                                   : criterion_value(criterion, one.training.steps, r.eval_steps, r.loss, r.batch_loss,
                                                     r.test_loss));
      of_width[w].push_back(std::move(losses));
    }
    sweep.eta.push_back(lr);
  }
  progress.finish();
  sweep.limit = sweep_curve(std::move(of_limit));
  for (auto& runs : of_width) sweep.networks.push_back(sweep_curve(std::move(runs)));
  if (sweep.eta.size() >= 3) analyse(sweep);
  return sweep;
}

}  // namespace moe
