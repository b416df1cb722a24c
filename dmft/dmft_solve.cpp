/// dmft_solve: the infinite-size training curve of a Mixture-of-Experts.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>

#include "data/dataset.hpp"
#include "dmft/kernel_iteration.hpp"
#include "dmft/limit_file.hpp"
#include "dmft/memory_estimate.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/progress.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "support/result_file.hpp"
#include "support/schedule.hpp"

namespace {

const moe::ProgramInfo program{
    "dmft_solve",
    "Solves the infinite-size limit (DMFT) of Mixture-of-Experts training: loss, outputs and observables "
    "with standard errors.",
    "limit.h5",
    {{"--scratch", "FOLDER",
      "for kernels of --method iterate that do not fit into memory; default: the folder of the result"}}};

constexpr double gigabyte = 1 << 30;

std::atomic<bool> interrupted{false};
void on_interrupt(int) {
  interrupted = true;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);  // a second one ends the program at once
}

bool iterated(const moe::LimitResult& r) { return r.summary.contains("iteration_floor"); }

void print_iteration(const moe::LimitResult& r) {
  const double batches = r.summary.at("site_batches"), draws = r.summary.at("iteration_draws");
  const auto& loss = r.diagnostics.at("iteration_last_loss");
  const auto& change = r.diagnostics.at("iteration_loss_change");
  const auto& kernel_change = r.diagnostics.at("iteration_kernel_change");
  fmt::print(
      "Kernel iteration: {} neurons and {} experts with {} hidden units each in a batch, {} batch{} in each of {} "
      "replicas, drawn plainly{}.\n",
      r.counts.neurons, r.counts.experts, r.counts.hidden, batches, batches > 1 ? "es" : "", r.replicas,
      draws > 1 ? fmt::format(" {} times", draws) : "");
  fmt::print("{:>10}  {:>12}  {:>14} {:>15}\n", "iteration", "last loss", "change/scatter", "of kernels");
  for (std::size_t k = 0; k < loss.size(); ++k)
    fmt::print("{:>10}  {:>12.5f}  {:>14.2f} {:>15.2f}\n", k + 1, loss[k], change[k], kernel_change[k]);
  fmt::print("Monte Carlo floor at iteration {}.\n", r.summary.at("iteration_floor"));
  if (r.interrupted) {
    fmt::print("No certificate: interrupted before fresh random numbers were drawn for it.\n");
    return;
  }
  if (r.random_limit) {
    fmt::print(
        "No certificate: the limit is random, fresh random numbers are another realisation; errors are over these.\n");
    return;
  }
  double worst = 0;
  std::size_t which = 0;
  const auto &residual = r.diagnostics.at("kernel_residual"), &noise = r.diagnostics.at("kernel_residual_noise");
  for (std::size_t k = 0; k < residual.size(); ++k)
    if (noise[k] > 0 && residual[k] / noise[k] > worst) worst = residual[k] / noise[k], which = k;
  fmt::print(
      "Certificate: fresh random numbers change no kernel by more than {:.1f} of its sampling error (<{}>, {:.1e}).\n",
      worst, moe::kernel_names[which], residual[which]);
}

void print_summary(const moe::RunSpec& spec, const moe::Dataset& data, const moe::LimitResult& r,
                   const moe::MemoryEstimate& memory, const std::string& out) {
  fmt::print("Limit of regime {}, {}, {} lr {}; {}; {}.\n", spec.model.regime, spec.model.param,
             moe::to_string(spec.optimizer.name), spec.optimizer.lr,
             data.description.empty() ? spec.data.source : data.description, moe::duration_text(spec.training));
  if (iterated(r))
    print_iteration(r);
  else
    fmt::print("Samples: {} neurons, {} experts, {} hidden units each; {} replica{}{}{}.\n", r.counts.neurons,
               r.counts.experts, r.counts.hidden, r.replicas, r.replicas == 1 ? "" : "s",
               !r.matching    ? ", drawn plainly"
               : r.lists_hold ? ", moment matching"
                              : ", moment matching with short lists",
               r.random_limit ? "; the limit is random: errors are over realisations" : "");
  if (!iterated(r) && memory.total() > gigabyte)
    fmt::print("Memory: at most about {}, {} replica{} at once.\n", moe::bytes_text(memory.total()), memory.concurrent,
               memory.concurrent > 1 ? "s" : "");
  const bool tested = !r.test_loss.mean.empty();
  const bool flows = spec.training.dynamics == moe::Dynamics::flow;
  const auto with_error = [&](const moe::Curve& curve, std::size_t k) {
    return r.replicas == 1 ? fmt::format("{:>21.5f}", curve.mean[k])
                           : fmt::format("{:>10.5f} +- {:.5f}", curve.mean[k], curve.sem[k]);
  };
  fmt::print("{:>8}  {:>21}  {:>9}", flows ? "time" : "step", "loss", "accuracy");
  if (tested) fmt::print("  {:>21}  {:>13}", "test loss", "test accuracy");
  fmt::print("\n");
  std::size_t next_test = 0;
  const std::size_t rows = r.loss.mean.size(), stride = std::max<std::size_t>(1, (rows + 8) / 10);
  for (std::size_t k = 0; k < rows; ++k) {
    if (k % stride != 0 && k + 1 != rows) continue;
    fmt::print("{:>8.6g}  {}  {:>9.4f}", moe::time_of(spec.training, r.eval_steps[k]), with_error(r.loss, k),
               r.accuracy.mean[k]);
    while (next_test < r.test_steps.size() && r.test_steps[next_test] < r.eval_steps[k]) ++next_test;
    if (next_test < r.test_steps.size() && r.test_steps[next_test] == r.eval_steps[k])
      fmt::print("  {}  {:>13.4f}", with_error(r.test_loss, next_test), r.test_accuracy.mean[next_test]);
    fmt::print("\n");
  }
  if (r.converged_at >= 0)
    fmt::print("Converged: a replica's loss reached training.stop_at_loss = {:g} at {} {:g}, where the curves end.\n",
               spec.training.stop_at_loss, flows ? "time" : "step", moe::time_of(spec.training, r.converged_at));
  fmt::print("{:.1f} s. Written: {}\n", r.seconds, out);
  fmt::print("Plot it: ./run dmft_plot {} --format png\n", out);
}

/// What kernel iteration begins with, and how it goes on from there.
std::string start_text(const moe::SamplingSpec& s, const moe::IterationMemory& memory) {
  if (memory.passed == s.site_batches) return "one pass through time that closes every step";
  if (memory.passed > 0)
    return fmt::format(
        "one pass through time over {} of {} batches of a replica, as many as fit at once; every other iteration is a "
        "pass again, with what all batches were seen to change",
        memory.passed, s.site_batches);
  if (s.start == moe::Start::automatic)
    return "zero kernels, as the sites of a replica do not fit at once for a pass through time";
  std::string text = "zero kernels";
  if (s.window > 0) text += fmt::format(", the horizon growing by {} step{}", s.window, s.window > 1 ? "s" : "");
  if (s.damping > 0) text += fmt::format(", damping {:g}", s.damping);
  if (s.anderson > 0)
    text += fmt::format(", Anderson acceleration over {} past iterate{}", s.anderson, s.anderson > 1 ? "s" : "");
  return text;
}

/// Where kernels are, and what they need.
std::string kernels_text(const moe::RunSpec& spec, const moe::IterationMemory& memory,
                         const moe::AvailableMemory& available, const std::string& scratch) {
  const std::string kernels = fmt::format("{} kernels of {:.0f} x {:.0f} in {} replicas", memory.arrays, memory.queries,
                                          memory.queries, spec.sampling.replicas);
  if (memory.scratch == 0) return fmt::format("{} need about {}", kernels, moe::bytes_text(memory.kernels));
  const std::string beside =
      memory.kernels > 0 ? fmt::format("; paths of sites need about {}", moe::bytes_text(memory.kernels)) : "";
  return fmt::format(
      "{} are kept in a file in {}, which will have about {}, as of the {} that are available ({}) they would leave "
      "too "
      "little to sample, or a pass less than half of its batches{}",
      kernels, scratch, moe::bytes_text(memory.scratch), moe::bytes_text(available.bytes), available.source, beside);
}

/// Refuses what this machine cannot hold, in memory or in the folders of the result and of kernels.
moe::MemoryEstimate require_resources(const moe::RunSpec& spec, const moe::Dataset& data, const moe::LimitSpec& limit,
                                      const moe::ProgramOptions& options, const std::string& scratch) {
  if (spec.sampling.method == moe::Method::iterate) {
    const bool on_gpu = options.device == moe::Device::cuda;
    const moe::AvailableMemory available = moe::available_memory();
    const moe::IterationMemory memory =
        moe::iteration_memory(spec, limit, moe::iteration_step(spec, data), options.threads, available.bytes,
                              on_gpu ? std::optional(moe::gpu_memory().bytes) : std::nullopt);
    if (!options.quiet)
      fmt::print(stderr, "dmft_solve: {}; sampling {}{}, {} batch{} at once; {:.3g} sites per iteration. Start: {}\n",
                 kernels_text(spec, memory, available, scratch), moe::bytes_text(memory.sampling),
                 on_gpu ? " and " + moe::bytes_text(memory.card) + " on the GPU" : "", memory.samplers,
                 memory.samplers > 1 ? "es" : "", memory.sites, start_text(spec.sampling, memory));
    if (const std::string& file = options.checkpoint.file; !file.empty())
      moe::require_disk(memory.checkpoint, file, "a checkpoint", "--checkpoint FILE");
    if (memory.total() <= available.bytes)  // else solve_limit says what would fit
      moe::require_disk(memory.scratch, scratch + "/kernels", "kernels that do not fit into memory",
                        "--scratch FOLDER");
    return {};
  }
  moe::MemoryEstimate estimate = moe::memory_estimate(limit, moe::solve_sizes(spec, data, options.threads));
  if (options.device != moe::Device::cuda)
    moe::require_memory(estimate, spec, limit);  // else solve_limit asks the card
  moe::require_disk(estimate.output, options.out, "the result", "--out FILE");
  return estimate;
}

int run(int argc, char** argv) {
  moe::Faults faults;
  const moe::Invocation call = moe::parse_command_line(program, argc, argv, faults);
  if (call.exit_code >= 0) return call.exit_code;
  // A checkpoint says what it is of: with no key given, that is what goes on.
  const moe::CheckpointOptions& checkpoint = call.options.checkpoint;
  if (checkpoint.every_said && checkpoint.file.empty())
    faults.add("--checkpoint-every: there is no checkpoint to write. Name its file with --checkpoint FILE");
  moe::RunSpec spec = call.spec;
  if (!checkpoint.resume.empty())
    faults.collect([&] {
      const moe::RunSpec kept = moe::checkpoint_config(checkpoint.resume);
      if (call.spec.origin.empty()) spec = kept;
    });
  const std::string& out = call.options.out;
  const auto said = call.own.find("--scratch");
  const std::string beside = std::filesystem::path(out).parent_path().string();
  const std::string scratch = said != call.own.end() ? said->second : beside.empty() ? "." : beside;
  const moe::Ranks& ranks = moe::ranks();
  if (ranks.several() && !checkpoint.file.empty() && spec.sampling.method == moe::Method::sweep)
    faults.add(
        fmt::format("--checkpoint, --resume: replicas of a sweep that are spread over {} processes are not kept. "
                    "Start one process, or "
                    "use sampling.method = \"iterate\", which keeps its iterations",
                    ranks.count()));

  moe::check_writable(out, faults);
  if (!checkpoint.file.empty()) moe::check_writable(checkpoint.file, faults, moe::checkpoint_flag);
  const std::unique_ptr<const moe::Dataset> loaded = moe::load_dataset(spec, faults);
  std::optional<moe::LimitSpec> limit;
  if (moe::rules_known(spec, faults)) limit = moe::checked_limit(spec, loaded.get(), faults);
  moe::MemoryEstimate memory;
  std::optional<moe::Checkpoints> checkpoints;
  if (loaded && limit) {
    faults.collect([&] { memory = require_resources(spec, *loaded, *limit, call.options, scratch); });
    moe::CheckpointOptions kept = checkpoint;
    if (!ranks.first()) kept.file.clear();  // the first keeps the iterations of all
    faults.collect([&] {
      checkpoints.emplace(kept, moe::solve_identity(spec, *loaded, program.name), [](const std::string& problem) {
        fmt::print(stderr, "dmft_solve: warning: no checkpoint: {} The run goes on.\n", problem);
      });
    });
  }
  faults.throw_if_any();
  const moe::Dataset& data = *loaded;
  const bool iterates = spec.sampling.method == moe::Method::iterate;
  const std::string jumps = moe::jumping_flow_warning(spec);  // before it takes its time
  if (!jumps.empty()) fmt::print(stderr, "dmft_solve: warning: {}\n", jumps);
  moe::Progress progress("solving",
                         iterates ? static_cast<long>(spec.sampling.draws) * moe::most_iterations(spec)
                                  : static_cast<long>(ranks.share(static_cast<std::size_t>(spec.sampling.replicas))) *
                                        (spec.training.steps + 1L),
                         call.options.quiet);
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, on_interrupt);
  moe::SolveOptions options;
  options.checkpoints = &*checkpoints;
  options.on_resume = [&](int, int steps) { progress.skip(steps); };
  options.threads = call.options.threads;
  options.device = call.options.device;
  options.scratch = scratch;
  options.interrupt = &interrupted;
  options.on_step = [&](int, int step, double loss) {
    progress.advance(1, fmt::format("{} {} loss {:.4f}", iterates ? "iteration" : "step", step, loss));
  };
  moe::LimitResult result;
  try {
    result = moe::solve_limit(spec, data, options);
  } catch (const moe::IterationInterrupted& ended) {
    progress.finish();
    fmt::print(stderr, "dmft_solve: {}. {}\n", ended.what(),
               checkpoint.file.empty() ? "With --checkpoint FILE it could be continued"
                                       : fmt::format("Continue with --resume {0} --checkpoint {0}", checkpoint.file));
    return 1;
  }
  progress.finish();

  if (ranks.first()) moe::write_limit_file(out, program.name, spec, data, result);
  for (const auto& warning : result.warnings)
    if (warning != jumps) fmt::print(stderr, "dmft_solve: warning: {}\n", warning);
  if (!call.options.quiet) print_summary(spec, data, result, memory, out);
  if (result.failure) {
    fmt::print(stderr, "dmft_solve: {}. What was computed before is in {}\n", result.failure->what(), out);
    return 1;
  }
  if (result.interrupted) {
    fmt::print(
        stderr, "dmft_solve: interrupted; what was computed is in {}{}\n", out,
        checkpoint.file.empty() ? "" : fmt::format(". Continue with --resume {0} --checkpoint {0}", checkpoint.file));
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return moe::guarded_main(program, run, argc, argv); }
