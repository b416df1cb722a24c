/// What a solve is said to need against what it takes: the peak memory of dmft_solve itself.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>

#include "data/dataset.hpp"
#include "dmft/kernel_iteration.hpp"
#include "dmft/memory_estimate.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "support/resources.hpp"
#include "tests/program.hpp"
#include "validation/network_memory.hpp"

using namespace moe;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

const std::string common =
    "[data]\nsource = \"gaussian\"\ndimension = 64\ntrain = 64\ntest = 0\nclasses = 2\n"
    "[output]\nobservables = \"none\"\n";

struct Case {
  const char* name;
  const char* text;  ///< on top of `common`
};

double measured(const std::string& program, const std::string& text, int threads) {
  const TemporaryFolder folder;
  write_bytes(folder / "run.toml", text);
  const ProgramRun run = run_program(program, {"--config", folder / "run.toml", "--out", folder / "a.h5", "--threads",
                                               std::to_string(threads), "--quiet"});
  CAPTURE(run.text);
  REQUIRE(run.status == 0);
  return run.peak_bytes;
}

double estimated(const std::string& text, int threads) {
  const RunSpec spec = read_config_text(text, "test");
  const Dataset data = load_dataset(spec);
  Faults faults;
  std::vector<std::string> warnings;
  const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, warnings);
  return memory_estimate(limit, solve_sizes(spec, data, threads)).total();
}

}  // namespace

TEST_CASE("memory estimate against the peak of dmft_solve, 0.8 to 2 times [regimes, optimizers, batches] [slow]") {
  if (sanitized) return;  // they need memory of their own
  // Learning rates at which most queries bring a new direction: what the estimate takes for granted.
  const Case cases[] = {
      {"II adam, pairs",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"adam\"\neps = 0.02\n[training]\nsteps = 4\n"
       "[sampling]\nneurons = 1024\nreplicas = 1\n"},
      {"II sgd, bases",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"sgd\"\nlr = 2\n[training]\nsteps = 3\n"
       "[sampling]\nneurons = 2048\nreplicas = 1\ntolerance = 0.0001\n"},
      {"III sgd, two replicas",
       "[model]\nregime = \"III\"\n[optimizer]\nname = \"sgd\"\n[training]\nsteps = 4\n"
       "[sampling]\nneurons = 192\nreplicas = 2\n"},
      {"III adam",
       "[model]\nregime = \"III\"\n[optimizer]\nname = \"adam\"\neps = 0.02\n[training]\nsteps = 3\n"
       "[sampling]\nneurons = 160\nreplicas = 1\n"},
      {"I adam, float64",
       "[model]\nregime = \"I\"\n[optimizer]\nname = \"adam\"\neps = 0.02\n[training]\nsteps = 3\n"
       "[sampling]\nneurons = 1024\nreplicas = 1\nprecision = \"float64\"\n"},
      {"II adam, four blocks with norm",
       "[model]\nregime = \"II\"\ndepth = 4\nnorm = \"rms\"\nresidual = true\n[optimizer]\nname = \"adam\"\neps = "
       "0.02\n"
       "[training]\nsteps = 4\n[sampling]\nneurons = 512\nreplicas = 1\n"},
      {"II sgd, four blocks, bases",
       "[model]\nregime = \"II\"\ndepth = 4\nresidual = true\n[optimizer]\nname = \"sgd\"\nlr = 2\n"
       "[training]\nsteps = 3\n[sampling]\nneurons = 1024\nreplicas = 1\ntolerance = 0.0001\n"},
      // All operators go dense on the way and drop bases, images and lists of draws.
      {"II sgd, dense",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"sgd\"\nlr = 2\n[training]\nsteps = 24\n"
       "[sampling]\nneurons = 768\nreplicas = 1\ntolerance = 0.0001\n"},
      {"II adam, dense",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"adam\"\neps = 0.02\n[training]\nsteps = 24\n"
       "[sampling]\nneurons = 768\nreplicas = 1\ntolerance = 0.0001\n"},
      {"II momentum, dense from the start",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"momentum\"\n[training]\nsteps = 3\n"
       "[sampling]\nneurons = 1024\nreplicas = 1\nform = \"dense\"\n"},
      {"II flow, rk4",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"sgd\"\n[training]\nsteps = 2\ndynamics = \"flow\"\n"
       "stepper = \"rk4\"\n[sampling]\nneurons = 512\nreplicas = 1\n"},
      {"II flow, dopri5",
       "[model]\nregime = \"II\"\n[optimizer]\nname = \"sgd\"\n[training]\nsteps = 2\ndynamics = \"flow\"\n"
       "[sampling]\nneurons = 512\nreplicas = 1\n"},
      {"III sgd, dense",
       "[model]\nregime = \"III\"\n[optimizer]\nname = \"sgd\"\nlr = 2\n[training]\nsteps = 24\n"
       "[sampling]\nneurons = 160\nreplicas = 1\ntolerance = 0.0001\n"},
      {"I sgd, dense",
       "[model]\nregime = \"I\"\n[optimizer]\nname = \"sgd\"\nlr = 2\n[training]\nsteps = 24\n"
       "[sampling]\nneurons = 768\nreplicas = 1\ntolerance = 0.0001\n"},
  };
  const std::string tiny = "[training]\nsteps = 1\n[sampling]\nneurons = 16\nreplicas = 1\n";
  const double base = measured("dmft_solve", common + tiny, 1) - estimated(common + tiny, 1);
  for (const Case& c : cases) {
    const int threads = 2;
    const double took = measured("dmft_solve", common + c.text, threads) - base;
    const double said = estimated(common + c.text, threads);
    MESSAGE(fmt::format("{}: {} estimated, {} measured, ratio {:.2f}", c.name, bytes_text(said), bytes_text(took),
                        said / took));
    CHECK(took > 20e6);  // well above what the base fluctuates by
    CHECK(said > 0.8 * took);
    CHECK(said < 2.0 * took);
  }
}

TEST_CASE(
    "what kernel iteration says that it needs, against the peak of dmft_solve, 1 to 1.5 times [start, draws, "
    "batches, acceleration] [slow]") {
  if (sanitized) return;
  // 640 queries, whose kernels are most of it.
  const auto text = [](int steps, const char* more) {
    return fmt::format(
        "[data]\nsource = \"gaussian\"\ndimension = 8\ntrain = 64\ntest = 0\nclasses = 2\n[output]\nobservables = "
        "\"none\"\n[optimizer]\nname = \"sgd\"\nlr = 0.1\n[training]\nloss = \"mse\"\nsteps = {}\n[sampling]\nmethod = "
        "\"iterate\"\nneurons = 192\nexperts = 96\nprecision = \"float64\"\n{}",
        steps, more);
  };
  const auto said = [](const std::string& config) {
    const RunSpec spec = read_config_text(config, "test");
    const Dataset data = load_dataset(spec);
    Faults faults;
    std::vector<std::string> warnings;
    const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, warnings);
    return moe::iteration_memory(spec, limit, moe::iteration_step(spec, data), 2).total();
  };
  const std::string tiny = text(1, "replicas = 3\n");
  const double base = measured("dmft_solve", tiny, 2) - said(tiny);
  for (const Case& c : {Case{"pass", "replicas = 8\n"},
                        Case{"pass, two batches, two draws", "replicas = 4\nsite_batches = 2\ndraws = 2\n"},
                        Case{"zero, acceleration", "replicas = 3\nstart = \"zero\"\nanderson = 1\nwindow = 5\n"}}) {
    const std::string config = text(9, c.text);
    const double took = measured("dmft_solve", config, 2) - base, needs = said(config);
    MESSAGE(fmt::format("{}: {} said, {} measured, ratio {:.2f}", c.name, bytes_text(needs), bytes_text(took),
                        needs / took));
    CHECK(took > 100e6);
    CHECK(needs > took);
    CHECK(needs < 1.5 * took);
  }
}

TEST_CASE("kernel iteration where memory is short: kernels are in a file, the result is the same [slow]") {
  if (sanitized) return;  // they reserve more addresses than there are here
  const TemporaryFolder folder, waiting;
  write_bytes(
      folder / "run.toml",
      "[data]\nsource = \"gaussian\"\ndimension = 8\ntrain = 64\ntest = 0\nclasses = 2\n[output]\nobservables = "
      "\"none\"\n[optimizer]\nname = \"sgd\"\nlr = 0.1\n[training]\nloss = \"mse\"\nsteps = 9\n[sampling]\nmethod "
      "= \"iterate\"\nneurons = 128\nexperts = 64\nprecision = \"float64\"\nreplicas = 24\n");
  const auto run_within = [](std::size_t addresses, const std::vector<std::string>& arguments) {
    return run_program("dmft_solve", arguments, [addresses] {
      const rlimit limit{addresses, addresses};
      if (addresses > 0) ::setrlimit(RLIMIT_AS, &limit);
    });
  };
  // What the program maps without a word of such a problem, with CUDA's libraries 0.7 GiB; the kernels of all replicas are 0.5 GiB.
  std::size_t mapped = 0;
  do mapped += std::size_t{32} << 20;
  while (run_within(mapped, {"--version"}).status != 0);
  const auto solve = [&](const std::string& out, std::size_t addresses) {
    return run_within(addresses,
                      {"--config", folder / "run.toml", "--out", out, "--threads", "2", "--scratch", waiting.path()});
  };
  const ProgramRun ample = solve(folder / "ample.h5", 0),
                   limited = solve(folder / "limited.h5", mapped + (std::size_t{400} << 20));
  CAPTURE(ample.text);
  CAPTURE(limited.text);
  REQUIRE(ample.status == 0);
  REQUIRE(limited.status == 0);
  CHECK_FALSE(contains(ample.text, "are kept in a file"));
  CHECK(contains(limited.text, "are kept in a file in " + waiting.path().string()));
  CHECK(limited.peak_bytes < 0.6 * ample.peak_bytes);
  CHECK(waiting.file_count() == 0);
  for (const char* name : {"/limit/loss", "/limit/f", "/limit/diagnostics/iteration_kernel_change"})
    CHECK_MESSAGE(H5Reader(folder / "limited.h5").read(name).values == H5Reader(folder / "ample.h5").read(name).values,
                  name);
}

TEST_CASE("kernel iteration: a pass holds as many batches as the memory allows, and none but where one does not fit") {
  const auto with = [](double available, const char* start) {
    const RunSpec spec = read_config_text(
        fmt::format("[data]\nsource = \"gaussian\"\ndimension = 8\ntrain = 16\ntest = 0\nclasses = 2\n[optimizer]\n"
                    "name = \"sgd\"\n[training]\nsteps = 99\n[sampling]\nmethod = \"iterate\"\nreplicas = 3\n"
                    "site_batches = 40\nstart = \"{}\"\n",
                    start),
        "test");
    const Dataset data = load_dataset(spec);
    Faults faults;
    std::vector<std::string> warnings;
    const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, warnings);
    return iteration_memory(spec, limit, iteration_step(spec, data), 2, available);
  };
  const IterationMemory all = with(HUGE_VAL, "auto");
  CHECK(all.passed == 40);
  CHECK(all.holders == 2);
  CHECK(all.scratch == 0);
  double less = all.total();
  int before = 40;
  bool on_disk = false;
  for (bool some = false; before > 0; less *= 0.9) {
    const IterationMemory memory = with(less, "auto");
    INFO(bytes_text(less), ": ", memory.passed, " batches of ", memory.holders, " replicas, before ", before);
    if (memory.passed == 0) {  // from zero kernels
      CHECK(some);
      CHECK(memory.holders == 0);
      CHECK(with(less, "pass").total() > less);  // what was asked for is refused
    } else {
      CHECK(memory.total() <= less);
      CHECK(memory.holders >= 1);
      if (memory.scratch > 0) {
        CHECK(memory.kernels < all.kernels);
        CHECK(memory.scratch > all.kernels);
      } else if (memory.passed < 40) {
        CHECK(memory.kernels > all.kernels);  // knows what the others change
      }
      if ((memory.scratch > 0) == on_disk) CHECK(memory.passed <= before);
      on_disk = memory.scratch > 0;
      some = some || memory.passed < 40;
    }
    before = memory.passed;
  }
}

TEST_CASE("kernel iteration: the default problem fits into 4 GiB, where not even one replica's kernels do") {
  const RunSpec spec = read_config_text(
      "[model]\nregime = \"II\"\n[optimizer]\nname = \"sgd\"\n[data]\nsource = \"gaussian\"\ndimension = 8\ntrain = "
      "64\ntest = 0\nclasses = 2\n[sampling]\nmethod = "
      "\"iterate\"\nreplicas = 8\n",
      "test");
  const Dataset data = load_dataset(spec);
  Faults faults;
  std::vector<std::string> warnings;
  const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, warnings);
  const auto with = [&](double available) {
    return iteration_memory(spec, limit, iteration_step(spec, data), 2, available);
  };
  const double gigabyte = 1 << 30, n = 101 * 64, kernels = 11 * 8 * n * (n + 64) / 2;
  const IterationMemory all = with(HUGE_VAL), disk = with(4 * gigabyte);
  CHECK(all.scratch == 0);
  CHECK(all.kernels > 8 * kernels);
  CHECK(all.sampling > 2 * kernels);  // estimates of two replicas at once
  CHECK(disk.total() <= 4 * gigabyte);
  CHECK(disk.scratch > 8 * kernels + 12 * kernels / 11 / 2);  // roots and memories of float32 too
  CHECK(disk.passed == 1);
  CHECK(with(4 * gigabyte + 2 * kernels).scratch > 0);
  // What no file helps: the paths of a batch's sites.
  CHECK(with(gigabyte).total() > gigabyte);
}

TEST_CASE("memory estimate of networks against the peak of moe_train, 0.8 to 2 times [sgd, adam] [slow]") {
  if (sanitized) return;
  const auto of = [](int width, const char* optimizer) {
    return common +
           fmt::format("[optimizer]\nname = \"{}\"\n[training]\nsteps = 2\n[network]\nwidths = [{}]\nseeds = 1\n",
                       optimizer, width);
  };
  const double base = measured("moe_train", of(16, "sgd"), 1);
  for (const char* optimizer : {"sgd", "adam"}) {
    const std::string text = of(1024, optimizer);
    const RunSpec spec = read_config_text(text, "test");
    const double took = measured("moe_train", text, 1) - base;
    const double said = network_bytes(spec, load_dataset(spec), 1024);
    MESSAGE(fmt::format("{}: {} estimated, {} measured, ratio {:.2f}", optimizer, bytes_text(said), bytes_text(took),
                        said / took));
    CHECK(said > 0.8 * took);
    CHECK(said < 2.0 * took);
  }
}

TEST_CASE("networks that no GPU holds are refused by name, with size, what is free and what makes them smaller") {
  const RunSpec spec =
      read_config_text(common + "[network]\nwidths = [64, 256]\n[sampling]\nprecision = \"float64\"\n", "test");
  const moe::Dataset data = load_dataset(spec);
  const double need = moe::gpu_network_bytes(spec, data, 256);
  moe::require_gpu_network_memory(spec, data, 1, {need, "a card"});
  try {
    moe::require_gpu_network_memory(spec, data, 1, {0.99 * need, "a card"});
    FAIL("not refused");
  } catch (const moe::ConfigError& error) {
    REQUIRE(error.faults.size() == 1);
    for (const std::string& part : {std::string("width 256 needs about ") + bytes_text(need), std::string("a card"),
                                    std::string("network.widths = 256"), std::string("float32")})
      CHECK(error.faults[0].find(part) != std::string::npos);
  }
}

TEST_CASE("available memory is the least of machine and control groups [version 1, version 2, nested, none]") {
  const TemporaryFolder folder;
  write_bytes(folder / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n");
  const auto available = [&] { return available_memory(folder / "proc", folder / "cgroup"); };
  CHECK(available().bytes == 4000.0 * 1024);
  CHECK(available().source == "MemAvailable");

  write_bytes(folder / "proc/self/cgroup", "0::/user/job\n");
  write_bytes(folder / "cgroup/user/job/memory.max", "max\n");
  write_bytes(folder / "cgroup/user/job/memory.current", "1000000\n");
  CHECK(available().bytes == 4000.0 * 1024);
  write_bytes(folder / "cgroup/user/memory.max", "3000000\n");
  write_bytes(folder / "cgroup/user/memory.current", "2500000\n");
  write_bytes(folder / "cgroup/user/memory.stat", "anon 5\ninactive_file 200000\n");
  CHECK(available().bytes == 700'000);
  CHECK(available().source == "the control group");

  write_bytes(folder / "proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n");
  write_bytes(folder / "cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n");
  write_bytes(folder / "cgroup/memory/docker/abc/memory.usage_in_bytes", "100\n");
  CHECK(available().source == "MemAvailable");
  write_bytes(folder / "cgroup/memory/docker/abc/memory.limit_in_bytes", "1100\n");
  CHECK(available().bytes == 1000);
  write_bytes(folder / "cgroup/memory/docker/abc/memory.usage_in_bytes", "2000\n");
  CHECK(available().bytes == 0);
}
