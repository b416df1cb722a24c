/// dmft_validate: solves the limit, trains networks, compares them and gives a verdict.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "data/dataset.hpp"
#include "dmft/limit_file.hpp"
#include "regimes/regime.hpp"
#include "support/config.hpp"
#include "support/config_keys.hpp"
#include "support/hdf5.hpp"
#include "support/ranks.hpp"
#include "support/result_file.hpp"
#include "support/schedule.hpp"
#include "support/words.hpp"
#include "validation/comparison.hpp"
#include "validation/comparison_file.hpp"
#include "validation/comparison_report.hpp"
#include "validation/lr_sweep.hpp"
#include "validation/network_file.hpp"
#include "validation/validation_run.hpp"

namespace {

using moe::RunSpec;
using Flags = std::map<std::string, std::string>;

/// What dmft_validate takes where nothing was said: enough seeds and replicas for errors that mean something, widths that double.
void own_defaults(RunSpec& spec, const Flags& flags) {
  const auto known = std::find(moe::regime_names.begin(), moe::regime_names.end(), spec.model.regime);
  if (known == moe::regime_names.end()) return;  // validation refuses it
  const moe::Regime& regime = moe::regime_named(spec.model.regime);
  const auto unsaid = [&](const char* key) { return !spec.origin.contains(key); };
  const bool sweep = flags.contains("--lr-sweep"), random = moe::has_random_limit(spec);
  if (unsaid("network.widths")) {
    // A network costs N^3 where experts grow in number and in width.
    spec.network.widths = regime.experts_sampled && regime.hidden_sampled ? std::vector{32, 64, 128, 256}
                                                                          : std::vector{64, 128, 256, 512};
    if (sweep) spec.network.widths.pop_back();
  }
  if (unsaid("output.observables")) spec.output.observables = {"all"};
  if (unsaid("network.seeds")) spec.network.seeds = sweep ? 8 : 16;
  if (unsaid("sampling.replicas")) spec.sampling.replicas = random ? 32 : sweep ? 8 : 16;
  // A random limit of S samples is compared with networks of N = S.
  if (unsaid("sampling.neurons") && random && !spec.network.widths.empty())
    spec.sampling.neurons = *std::max_element(spec.network.widths.begin(), spec.network.widths.end());
}

const moe::ProgramInfo program{
    "dmft_validate",
    "Solves the infinite-size limit, trains networks of several widths with the same configuration, compares every "
    "observable and gives a verdict: exit status 0 if the networks tend to the limit, 1 if not or if errors are too "
    "large to tell.",
    "validation.h5",
    {{"--limit", "FILE", "compare this limit (of dmft_solve) with the networks of --networks FILE"},
     {"--networks", "FILE", "compare these networks (of moe_train) with the limit of --limit FILE"},
     {"--force", "", "compare files of different configurations all the same"},
     {"--coordinate-check", "NAME|FILE,...",
      "parameterizations side by side, names or files with commas between: every RMS against width"},
     {"--lr-sweep", "LOW:HIGH:COUNT",
      "learning rates, equally spaced in log: best one of every width and of the limit"},
     {"--sweep-loss", "NAME", "which loss is to be small: tail (last tenth of the steps), final, test (default tail)"},
     {"--no-page", "", "do not make the HTML page beside the result"}},
    own_defaults};

std::string page_of(const std::string& out) { return std::filesystem::path(out).replace_extension(".html").string(); }

/// dmft_plot stands beside this program; without it there is no page, which does not change the verdict.
void make_page(const std::string& out, bool quiet) {
  namespace fs = std::filesystem;
  std::error_code ec;
  const fs::path plot = fs::read_symlink("/proc/self/exe", ec).parent_path() / "dmft_plot";
  const std::string page = page_of(out);
  if (!fs::exists(plot, ec)) {
    fmt::print(stderr, "dmft_validate: no page: {} is not there\n", plot.string());
    return;
  }
  std::vector<std::string> words = {plot.string(), out, "--page", page};
  if (quiet) words.emplace_back("--quiet");
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::fflush(stdout);
  const pid_t child = ::fork();
  if (child == 0) {
    moe::forget_launcher();
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = -1;
  if (child > 0) ::waitpid(child, &status, 0);
  if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
    fmt::print(stderr, "dmft_validate: no page: {} failed; the verdict and {} are not affected\n", plot.string(), out);
}

/// Failures that a comparison does not see: what did not finish.
int tell_failures(const moe::ValidationRun& run, const std::string& out) {
  int status = 0;
  if (run.limit && run.limit->failure) {
    fmt::print(stderr, "dmft_validate: the limit: {}. What was computed before is in {}\n", run.limit->failure->what(),
               out);
    status = 1;
  }
  for (const auto& of_width : run.runs)
    for (const auto& network : of_width)
      if (network.failure) {
        fmt::print(stderr, "dmft_validate: N = {}, seed {} stopped: {}\n", network.shape.N, network.seed,
                   network.failure->what());
        status = 1;
      }
  if (moe::interrupted) {
    fmt::print(stderr, "dmft_validate: interrupted; what was computed is in {}\n", out);
    status = 1;
  }
  return status;
}

std::string heading(const RunSpec& spec, const std::string& data, bool with_rate = true) {
  return fmt::format("Regime {}, {}, {}{}; {}; {}.\n", spec.model.regime, spec.model.param,
                     moe::to_string(spec.optimizer.name), with_rate ? fmt::format(" lr {}", spec.optimizer.lr) : "",
                     data.empty() ? spec.data.source : data, moe::duration_text(spec.training));
}

/// Report, and the status that belongs to the verdict.
int conclude(const moe::Comparison& comparison, const RunSpec& spec, const std::string& data, bool quiet) {
  if (!quiet) fmt::print("{}{}", heading(spec, data), moe::comparison_report(comparison));
  return comparison.overall == moe::Overall::positive ? 0 : 1;
}

void print_warnings(const moe::ValidationRun& run) {
  if (!run.limit) return;
  for (const auto& warning : run.limit->warnings) fmt::print(stderr, "dmft_validate: warning: {}\n", warning);
}

/// None where runs did not finish, be it that too few seeds of a width did: then the file keeps what there is.
std::optional<moe::Comparison> comparison_of(const moe::ValidationRun& run, const RunSpec& spec,
                                             const moe::Dataset& data) {
  if (!run.complete) return std::nullopt;
  try {
    return moe::compare(moe::evidence_of(spec, data, run.runs, *run.limit, run.second ? &*run.second : nullptr));
  } catch (const moe::ConfigError& failure) {
    for (const std::string& fault : failure.faults) fmt::print(stderr, "dmft_validate: no {}\n", fault);
    return std::nullopt;
  }
}

int compare_files(const moe::Invocation& call, moe::Faults& faults) {
  const std::string& out = call.options.out;
  const auto given = [&](const char* flag) { return call.own.contains(flag) ? call.own.at(flag) : std::string(); };
  const std::string limit = given("--limit"), networks = given("--networks");
  moe::Evidence evidence;
  if (!limit.empty() && !networks.empty())
    faults.collect([&] { evidence = moe::read_evidence(limit, networks, call.own.contains("--force")); });
  faults.throw_if_any();
  moe::H5Writer file(out);
  const moe::Comparison comparison = moe::compare(evidence);
  moe::write_root_attributes(file, "validation", program.name, evidence.spec);
  moe::write_comparison(file, "/comparison", comparison);
  file.commit();
  const int status = conclude(comparison, evidence.spec, "", call.options.quiet);
  if (!call.options.quiet) fmt::print("Written: {}\n", out);
  return status;
}

/// Before hours of work: what no run of these can be compared by.
void check_comparable(const RunSpec& spec, moe::Faults& faults) {
  const auto fault = [&](const char* key, const std::string& value, const char* reason) {
    faults.add(key, value, spec.place(key), reason, "At least two are needed");
  };
  if (spec.network.widths.size() < 2)
    fault("network.widths", fmt::format("[{}]", fmt::join(spec.network.widths, ", ")),
          "is nothing to extrapolate from");
  if (spec.network.seeds < 2) fault("network.seeds", "1", "gives no error of the networks");
  if (spec.sampling.replicas < 2) fault("sampling.replicas", "1", "gives no error of the limit");
}

int validate(const moe::Invocation& call, const moe::Dataset* loaded, moe::Faults& faults) {
  const RunSpec& spec = call.spec;
  const std::string& out = call.options.out;
  check_comparable(spec, faults);
  moe::check_run(spec, loaded, call.options, faults);
  faults.throw_if_any();
  const moe::Dataset& data = *loaded;
  moe::on_signals();
  const moe::ValidationRun run = moe::run_validation(spec, data, call.options, "validating");
  if (!moe::ranks().first()) return 0;

  moe::H5Writer file(out);
  moe::write_root_attributes(file, "validation", program.name, spec);
  moe::write_data(file, data.x, data.y);
  if (run.limit) moe::write_limit_group(file, spec, *run.limit);
  for (const auto& of_width : run.runs) moe::write_network_group(file, spec, data, of_width);
  const auto comparison = comparison_of(run, spec, data);
  if (comparison) moe::write_comparison(file, "/comparison", *comparison);
  file.commit();
  print_warnings(run);
  const int failed = tell_failures(run, out);
  if (!comparison) return 1;
  const int status = conclude(*comparison, spec, data.description, call.options.quiet);
  if (!call.options.quiet) fmt::print("Written: {}\n", out);
  return std::max(failed, status);
}

/// One comparison per parameterization, all in one file.
int coordinate_check(const moe::Invocation& call, const moe::Dataset* loaded, moe::Faults& faults) {
  const std::string& out = call.options.out;
  std::vector<RunSpec> specs;
  check_comparable(call.spec, faults);
  for (const std::string& name : moe::comma_separated(call.own.at("--coordinate-check"))) {
    RunSpec spec = call.spec;
    spec.model.param = name;
    spec.origin["model.param"] = "--coordinate-check on the command line";
    moe::check_run(spec, loaded, call.options, faults);
    specs.push_back(std::move(spec));
  }
  faults.throw_if_any();
  const moe::Dataset& data = *loaded;
  moe::on_signals();
  std::optional<moe::H5Writer> file;
  if (moe::ranks().first()) {
    file.emplace(out);
    moe::write_root_attributes(*file, "validation", program.name, specs.front());
    moe::write_data(*file, data.x, data.y);
  }
  int status = 0;
  for (const RunSpec& spec : specs) {
    if (moe::ranks().any(moe::interrupted)) break;
    const std::string name = std::filesystem::path(spec.model.param).stem().string();
    const moe::ValidationRun run = moe::run_validation(spec, data, call.options, name);
    if (!file) continue;
    const auto comparison = comparison_of(run, spec, data);
    print_warnings(run);
    status = std::max({status, tell_failures(run, out), comparison ? 0 : 1});
    if (!comparison) continue;
    moe::write_comparison(*file, "/coordinate_check/" + name, *comparison);
    if (call.options.quiet) continue;
    fmt::print("{}{}Verdict: {}. {}.\n\n", heading(spec, data.description), moe::coordinate_table(*comparison),
               moe::to_string(comparison->overall), comparison->reason);
  }
  if (!file) return 0;
  file->commit();
  if (!call.options.quiet) fmt::print("Written: {}\n", out);
  return status;
}

int lr_sweep(const moe::Invocation& call, const moe::Dataset* loaded, moe::Faults& faults) {
  const std::string& out = call.options.out;
  const std::vector<double> eta = moe::parse_sweep(call.own.at("--lr-sweep"), faults);
  const std::string loss = call.own.contains("--sweep-loss") ? call.own.at("--sweep-loss") : "tail";
  const auto criterion = moe::sweep_criterion(loss);
  if (!criterion)
    faults.add("sweep-loss", loss, "--sweep-loss on the command line", "is not known", "Use tail, final or test");
  if (criterion == moe::SweepCriterion::test && loaded != nullptr && loaded->x_test.cols() == 0)
    faults.add("sweep-loss", loss, "--sweep-loss on the command line", "needs a test set, and there is none",
               "Raise data.test, or use tail or final");
  if (call.spec.network.seeds < 2 || call.spec.sampling.replicas < 2)
    faults.add("comparison: one seed or replica gives no error. Give two at least (network.seeds, sampling.replicas)");
  moe::check_run(call.spec, loaded, call.options, faults);
  faults.throw_if_any();
  const moe::Dataset& data = *loaded;
  moe::on_signals();
  const moe::LrSweep sweep = moe::run_lr_sweep(call.spec, data, call.options, eta, *criterion);
  if (!moe::ranks().first()) return 0;
  if (sweep.optimum.empty()) {
    fmt::print(stderr, "dmft_validate: interrupted before three learning rates were done; nothing is written\n");
    return 1;
  }
  moe::H5Writer file(out);
  moe::write_root_attributes(file, "validation", program.name, call.spec);
  moe::write_lr_sweep(file, sweep);
  file.commit();
  if (!call.options.quiet)
    fmt::print("{}{}Written: {}\n", heading(call.spec, data.description, false), moe::lr_sweep_report(sweep), out);
  if (!moe::interrupted) return 0;
  fmt::print(stderr, "dmft_validate: interrupted; the learning rates that were done are in {}\n", out);
  return 1;
}

/// Flags that ask for different things, or for what this program does not do.
void check_flags(const Flags& flags, const moe::ProgramOptions& options, moe::Faults& faults) {
  const auto has = [&](const char* flag) { return flags.contains(flag); };
  if (has("--limit") != has("--networks"))
    faults.add(fmt::format("command line: {} needs {} beside it: both files, or neither to compute both",
                           has("--limit") ? "--limit" : "--networks", has("--limit") ? "--networks" : "--limit"));
  if (has("--force") && !has("--limit"))
    faults.add("command line: --force is about files: it needs --limit and --networks");
  if (options.device == moe::Device::cuda && has("--limit"))
    faults.add("--device cuda: files are compared on the CPU. Say --device cpu or leave it out.");
  if (has("--sweep-loss") && !has("--lr-sweep")) faults.add("command line: --sweep-loss belongs to --lr-sweep");
  const int asked =
      (has("--limit") || has("--networks") ? 1 : 0) + (has("--lr-sweep") ? 1 : 0) + (has("--coordinate-check") ? 1 : 0);
  if (asked > 1)
    faults.add("command line: files to compare, --lr-sweep and --coordinate-check are different tasks. Choose one");
  if (!has("--no-page") && page_of(options.out) == options.out)
    faults.add(
        fmt::format("command line: {} is the name of the page, which would replace the result. Let --out end "
                    "in .h5, or add --no-page",
                    options.out));
  if (!options.checkpoint.file.empty() || options.checkpoint.every_said)
    faults.add(
        "--checkpoint, --checkpoint-every, --resume: dmft_validate keeps nothing of a run. Let dmft_solve and "
        "moe_train keep theirs, and compare their files with --limit FILE --networks FILE.");
}

int run(int argc, char** argv) {
  moe::Faults faults;
  const moe::Invocation call = moe::parse_command_line(program, argc, argv, faults);
  if (call.exit_code >= 0) return call.exit_code;
  check_flags(call.own, call.options, faults);
  const std::string& out = call.options.out;
  const bool first = moe::ranks().first();
  moe::check_writable(out, faults);
  int status = 0;
  if (call.own.contains("--limit") || call.own.contains("--networks")) {
    if (first) status = compare_files(call, faults);  // files are compared by one process
  } else {
    const std::unique_ptr<const moe::Dataset> data = moe::load_dataset(call.spec, faults);
    status = call.own.contains("--lr-sweep")           ? lr_sweep(call, data.get(), faults)
             : call.own.contains("--coordinate-check") ? coordinate_check(call, data.get(), faults)
                                                       : validate(call, data.get(), faults);
  }
  if (first && !call.own.contains("--no-page") && !moe::interrupted) make_page(out, call.options.quiet);
  return status;
}

}  // namespace

int main(int argc, char** argv) { return moe::guarded_main(program, run, argc, argv); }
