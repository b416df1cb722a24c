/// dmft_solve: the infinite-size training curve of a Mixture-of-Experts.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>

#include "data/dataset.hpp"
#include "dmft/limit_file.hpp"
#include "dmft/memory_estimate.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "support/progress.hpp"
#include "support/resources.hpp"
#include "support/schedule.hpp"

namespace {

const moe::ProgramInfo program{
    "dmft_solve",
    "Solves the infinite-size limit (DMFT) of Mixture-of-Experts training: loss, outputs and observables "
    "with standard errors.",
    "limit.h5"};

constexpr double gigabyte = 1 << 30;

std::atomic<bool> interrupted{false};
void on_interrupt(int) {
  interrupted = true;
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_DFL);  // a second one ends the program at once
}

void print_summary(const moe::RunSpec& spec, const moe::Dataset& data, const moe::LimitResult& r,
                   const moe::MemoryEstimate& memory, const std::string& out) {
  fmt::print("Limit of regime {}, {}, {} lr {}; {}; {}.\n", spec.model.regime, spec.model.param,
             moe::to_string(spec.optimizer.name), spec.optimizer.lr,
             data.description.empty() ? spec.data.source : data.description, moe::duration_text(spec.training));
  fmt::print("Samples: {} neurons, {} experts, {} hidden units each; {} replicas{}{}.\n", r.counts.neurons,
             r.counts.experts, r.counts.hidden, r.replicas,
             !r.matching    ? ", drawn plainly"
             : r.lists_hold ? ", moment matching"
                            : ", moment matching with short lists",
             r.random_limit ? "; the limit is random: errors are over realisations" : "");
  if (memory.total() > gigabyte)
    fmt::print("Memory: at most about {}, {} replica{} at once.\n", moe::bytes_text(memory.total()), memory.concurrent,
               memory.concurrent > 1 ? "s" : "");
  const bool tested = !r.test_loss.mean.empty();
  fmt::print("{:>8}  {:>20}  {:>9}", "step", "loss", "accuracy");
  if (tested) fmt::print("  {:>20}  {:>13}", "test loss", "test accuracy");
  fmt::print("\n");
  std::size_t next_test = 0;
  const std::size_t rows = r.loss.mean.size(), stride = std::max<std::size_t>(1, (rows + 8) / 10);
  for (std::size_t k = 0; k < rows; ++k) {
    if (k % stride != 0 && k + 1 != rows) continue;
    fmt::print("{:>8}  {:>10.5f} +- {:.5f}  {:>9.4f}", r.eval_steps[k], r.loss.mean[k], r.loss.sem[k],
               r.accuracy.mean[k]);
    while (next_test < r.test_steps.size() && r.test_steps[next_test] < r.eval_steps[k]) ++next_test;
    if (next_test < r.test_steps.size() && r.test_steps[next_test] == r.eval_steps[k])
      fmt::print("  {:>10.5f} +- {:.5f}  {:>13.4f}", r.test_loss.mean[next_test], r.test_loss.sem[next_test],
                 r.test_accuracy.mean[next_test]);
    fmt::print("\n");
  }
  if (r.converged_at >= 0)
    fmt::print("Converged: a replica's loss reached training.stop_at_loss = {:g} at step {}, where the curves end.\n",
               spec.training.stop_at_loss, r.converged_at);
  fmt::print("{:.1f} s. Written: {}\n", r.seconds, out);
  fmt::print("Plot it: dmft_plot {} --format png\n", out);
}

/// Refuses what this machine cannot hold, in memory or in the folder of the result.
moe::MemoryEstimate require_resources(const moe::RunSpec& spec, const moe::Dataset& data, int threads,
                                      const std::string& out) {
  moe::Faults faults;
  std::vector<std::string> warnings;  // solve_limit reports them
  const moe::LimitSpec limit = moe::limit_spec(spec, moe::step_shape(spec, data), faults, warnings);
  faults.throw_if_any();
  moe::MemoryEstimate estimate = moe::memory_estimate(limit, moe::solve_sizes(spec, data, threads));
  moe::require_memory(estimate, spec, limit);
  if (const double free = moe::free_disk(out); estimate.output > free)
    throw moe::IoError(fmt::format(
        "io: the result will have about {}, and the file system of {} has {} left. Free some, or choose another file "
        "with --out.",
        moe::bytes_text(estimate.output), out, moe::bytes_text(free)));
  return estimate;
}

int run(int argc, char** argv) {
  const moe::Invocation call = moe::parse_command_line(program, argc, argv);
  if (call.exit_code >= 0) return call.exit_code;
  // A checkpoint says what it is of: with no key given, that is what goes on.
  const moe::CheckpointOptions& checkpoint = call.options.checkpoint;
  const bool from_checkpoint = !checkpoint.resume.empty() && call.spec.origin.empty();
  const moe::RunSpec spec = from_checkpoint ? moe::checkpoint_config(checkpoint.resume) : call.spec;
  const std::string out = call.options.out.empty() ? program.default_out : call.options.out;

  { const moe::H5Writer probe(out); }  // a name that cannot be written is a fault before the solve, not after it
  const moe::Dataset data = moe::load_dataset(spec);
  const moe::MemoryEstimate memory = require_resources(spec, data, call.options.threads, out);
  moe::Progress progress("solving", static_cast<long>(spec.sampling.replicas) * (spec.training.steps + 1L),
                         call.options.quiet);
  const moe::RunIdentity identity = moe::solve_identity(spec, data, program.name);
  moe::Checkpoints checkpoints(checkpoint, identity, [](const std::string& problem) {
    fmt::print(stderr, "dmft_solve: warning: no checkpoint: {} The run goes on.\n", problem);
  });
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, on_interrupt);
  moe::SolveOptions options;
  options.checkpoints = &checkpoints;
  options.on_resume = [&](int, int steps) { progress.skip(steps); };
  options.threads = call.options.threads;
  options.interrupt = &interrupted;
  options.on_step = [&](int, int step, double loss) {
    progress.advance(1, fmt::format("step {} loss {:.4f}", step, loss));
  };
  const moe::LimitResult result = moe::solve_limit(spec, data, options);
  progress.finish();

  moe::write_limit_file(out, program.name, spec, data, result);
  for (const auto& warning : result.warnings) fmt::print(stderr, "dmft_solve: warning: {}\n", warning);
  if (!call.options.quiet) print_summary(spec, data, result, memory, out);
  if (result.failure) {
    fmt::print(stderr, "dmft_solve: {}. What was computed before is in {}\n", result.failure->what(), out);
    return 1;
  }
  if (result.interrupted) {
    fmt::print(stderr, "dmft_solve: interrupted; what was computed is in {}{}\n", out,
               checkpoint.file.empty() ? "" : fmt::format(". Continue with --resume {}", checkpoint.file));
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return moe::guarded_main(program, run, argc, argv); }
