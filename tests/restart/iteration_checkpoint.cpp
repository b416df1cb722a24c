// Kernel iteration that was ended and continued from its checkpoint gives the numbers of one that was not, bit for bit.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "dmft/kernel_iteration.hpp"
#include "support/checkpoint.hpp"
#include "tests/limit_fixture.hpp"
#include "tests/program.hpp"

namespace {

namespace fs = std::filesystem;

struct Stopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Case {
  const char* regime;
  const char* param;
  moe::Precision precision;
  moe::BatchCounts batch;
  int batches;
  int draws;
  moe::OptimizerKind optimizer = moe::OptimizerKind::sgd;
  moe::Start start = moe::Start::zero;
  bool mixed = false;  ///< with windows, damping and acceleration
  int passed = 0;      ///< batches in a pass
};

const Case cases[] = {
    {"II", "mssp", moe::Precision::float32, {100, 50, 0}, 1, 2, moe::OptimizerKind::sgd, moe::Start::zero, true},
    {"I", "mup", moe::Precision::float64, {200, 0, 100}, 2, 1},
    {"III", "mssp", moe::Precision::float64, {150, 12, 16}, 2, 2},
    {"I", "mssp", moe::Precision::float32, {200, 0, 100}, 2, 2, moe::OptimizerKind::sgd, moe::Start::pass},
    {"II", "mssp", moe::Precision::float32, {100, 20, 0}, 2, 1, moe::OptimizerKind::adam, moe::Start::pass},
    {"II", "mssp", moe::Precision::float64, {200, 100, 0}, 3, 2, moe::OptimizerKind::sgd, moe::Start::pass, false, 2},
};

moe::RunSpec spec_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, moe::is_linear(c.optimizer) ? 0.7 : 0.1, 4);
  s.sampling.precision = c.precision;
  s.sampling.method = moe::Method::iterate;
  return s;
}

moe::Dataset samples() { return limit_fixture::data(3, 4, 2); }

struct Run {
  moe::CheckpointOptions files;
  int threads = 2;
  std::function<void(int iteration)> on_iteration = {};
  const std::atomic<bool>* interrupt = nullptr;
  int replicas = 4;
  int resumed = -1;  ///< iterations that the checkpoint knew
  std::string scratch = {};
};

moe::IterationResult iterate(const Case& c, Run& run) {
  const moe::RunSpec s = spec_of(c);
  const moe::Dataset d = samples();
  moe::Checkpoints checkpoints(run.files, moe::solve_identity(s, d, "test"));
  moe::IterationOptions options;
  options.batch = c.batch;
  options.batches = c.batches;
  options.replicas = run.replicas;
  options.draws = c.draws;
  options.threads = run.threads;
  options.start = c.start;
  options.passed = c.passed;
  options.scratch = run.scratch;
  if (c.mixed) options.window = 2, options.damping = 0.2, options.anderson = 2;
  options.checkpoints = &checkpoints;
  options.interrupt = run.interrupt;
  options.on_resume = [&](int iterations) { run.resumed = iterations; };
  if (run.on_iteration) options.on_iteration = [&](int iteration, double) { run.on_iteration(iteration); };
  return moe::iterate_kernels(s, d, options);
}
moe::IterationResult continued(const Case& c, const std::string& checkpoint, int threads = 2, int replicas = 4,
                               const std::string& scratch = {}) {
  Run run{{"", 60, checkpoint}, threads, {}, nullptr, replicas, -1, scratch};
  moe::IterationResult result = iterate(c, run);
  CHECK(run.resumed >= 0);
  return result;
}

/// Every number of a result.
std::vector<double> numbers(const moe::IterationResult& r) {
  std::vector<double> all;
  const auto add = [&](const std::vector<double>& values) {
    for (const double v : values) all.push_back(std::isnan(v) ? -1e9 : v);  // beyond the horizon of a window
  };
  const auto matrix = [&](const Eigen::MatrixXd& m) { all.insert(all.end(), m.data(), m.data() + m.size()); };
  add(r.loss.mean), add(r.loss.sem), matrix(r.f);
  for (const auto* list : {&r.f_per_replica, &r.fields})
    for (const auto& m : *list) matrix(m);
  for (const moe::CausalMatrix& kernel : r.kernels.all())
    for (Eigen::Index t = 0; t < kernel.shape().steps; ++t) matrix(kernel.step(t));
  for (const auto& row : r.report.loss_by_iteration) add(row);
  for (const auto& c : r.report.changes) add({c.loss, c.kernels, static_cast<double>(c.largest)});
  add({static_cast<double>(r.report.floor_at), static_cast<double>(r.report.draws)});
  for (const auto& k : r.report.residuals) add({k.value, k.noise});
  return all;
}

/// Iterations that a checkpoint holds, and batches of the one under way, of all replicas.
std::pair<int, int> progress_of(const std::string& checkpoint) {
  const moe::H5Reader file(checkpoint);
  file.verify();
  int sampled = 0;
  for (const double batches : file.read("/job/0/sampled").values) sampled += static_cast<int>(batches);
  return {static_cast<int>(file.read("/job/0/report/changes").shape[0]), sampled};
}

}  // namespace

TEST_CASE(
    "kernel iteration: one that died or was interrupted goes on bit for bit, on any number of threads [regime; "
    "precision; draws; before and after the first floor] [slow]") {
  for (const Case& c : cases) {
    Run undisturbed;
    const moe::IterationResult whole = iterate(c, undisturbed);
    const int last = static_cast<int>(whole.report.changes.size()), floor = whole.report.floor_at;
    if (c.start == moe::Start::pass && c.passed == 0)
      REQUIRE(floor == 2);
    else
      REQUIRE(floor >= 3);
    REQUIRE(whole.report.draws == c.draws);
    REQUIRE_FALSE(whole.report.residuals.empty());
    const std::vector<double> expected = numbers(whole);
    for (const int at : {1, floor - 1, floor, last}) {
      INFO("regime ", std::string(c.regime), ", ended at iteration ", at, " of ", last, ", floor at ", floor);
      const TemporaryFolder folder;
      // Dies without any preparation; what there is was written whenever a replica was sampled.
      Run died{{folder / "died.ckpt", 0, ""}, 2, [&](int iteration) {
                 if (iteration == at) throw Stopped("dies");
               }};
      CHECK_THROWS_AS(iterate(c, died), Stopped);
      CHECK(progress_of(folder / "died.ckpt") == std::pair{at, 0});
      CHECK(numbers(continued(c, folder / "died.ckpt", 1)) == expected);

      std::atomic<bool> interrupt{false};
      Run interrupted{
          {folder / "run.ckpt", 1e9, ""}, 2, [&](int iteration) { interrupt = iteration == at; }, &interrupt};
      if (at < floor) {
        const std::string message = message_of<moe::IterationInterrupted>([&] { iterate(c, interrupted); });
        CHECK_MESSAGE(contains(message, "interrupted in iteration " + std::to_string(at + 1)), message);
      } else {  // draws that came to rest are a result
        const moe::IterationResult part = iterate(c, interrupted);
        CHECK(part.interrupted);
        CHECK(part.report.residuals.empty());
        CHECK(part.report.draws == (at == last ? c.draws : 1));
        CHECK((part.loss.mean == whole.loss.mean) == (at == last));
      }
      CHECK(numbers(continued(c, folder / "run.ckpt", 3)) == expected);
    }
  }
}

TEST_CASE(
    "kernel iteration: kernels in a file give the numbers of those in memory, bit for bit, also where one "
    "run "
    "goes on from the other; the file has no name [regime; rule; windows; threads]") {
  for (const Case& c : cases) {
    INFO("regime ", std::string(c.regime), ", ", c.batches, " batches, ", c.passed, " in a pass");
    Run in_memory;
    const std::vector<double> expected = numbers(iterate(c, in_memory));
    const TemporaryFolder folder, waiting;
    int open = 0;  // times that this process had a file there
    Run on_disk;
    on_disk.scratch = waiting.path().string();
    on_disk.on_iteration = [&](int) {
      for (const auto& link : fs::directory_iterator("/proc/self/fd")) {
        std::error_code gone;
        open += contains(fs::read_symlink(link, gone).string(), waiting.path().string()) ? 1 : 0;
      }
      CHECK(waiting.file_count() == 0);
    };
    CHECK(numbers(iterate(c, on_disk)) == expected);
    CHECK(open > 0);

    for (const bool first_on_disk : {false, true}) {
      const auto place = [&](bool disk) { return disk ? waiting.path().string() : std::string(); };
      Run died{{folder / "died.ckpt", 0, ""}, 2, [&](int iteration) {
                 if (iteration == 2) throw Stopped("dies");
               }};
      if (first_on_disk) died.scratch = waiting.path().string();
      CHECK_THROWS_AS(iterate(c, died), Stopped);
      CHECK(numbers(continued(c, folder / "died.ckpt", 3, 4, place(!first_on_disk))) == expected);
    }
    CHECK(waiting.file_count() == 0);
  }
  Run nowhere;
  nowhere.scratch = "/no/such/folder";
  const std::string message = message_of<moe::IoError>([&] { iterate(cases[1], nowhere); });
  CHECK_MESSAGE((contains(message, "/no/such/folder") && contains(message, "--scratch FOLDER")), message);
}

TEST_CASE(
    "kernel iteration: whatever state was ever written, within iterations too, continues to the same numbers "
    "[threads]") {
  const Case& c = cases[2];
  constexpr int replicas = 3;  // a state is written after each batch of each
  Run undisturbed{{}, 2, {}, nullptr, replicas};
  const std::vector<double> expected = numbers(iterate(c, undisturbed));
  const TemporaryFolder folder;
  const std::string file = folder / "run.ckpt";
  std::vector<std::string> copies;
  {
    std::atomic<bool> done{false};
    std::jthread run([&] {
      Run all{{file, 0, ""}, 1, {}, nullptr, replicas};
      iterate(c, all);
      done = true;
    });
    fs::file_time_type copied;
    while (!done) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));  // the run has the processor
      if (!fs::exists(file)) continue;
      const fs::file_time_type written = fs::last_write_time(file);
      if (written == copied) continue;
      copied = written;
      // A link is this state, whatever takes its name; a copy may have the length of one and the bytes of the next.
      copies.push_back(folder / ("state" + std::to_string(copies.size())));
      fs::create_hard_link(file, copies.back());
    }
  }
  // Read when the run is over: a reader is a fork, and one made while other threads allocate hangs under the address sanitizer.
  std::map<std::pair<int, int>, std::string> states;  // by what they hold
  // The sanitizers see the same code in each.
  const std::size_t stride = slowdown > 1 ? 12 : 1;
  for (std::size_t k = 0; k < copies.size(); k += stride) states.emplace(progress_of(copies[k]), copies[k]);
  int within = 0;
  for (const auto& state : states) {
    const std::pair<int, int> progress = state.first;
    within += progress.second > 0 ? 1 : 0;
    INFO("a state of iteration ", progress.first, " with ", progress.second, " batches of the next");
    CHECK(numbers(continued(c, state.second, 2, replicas)) == expected);
  }
  CHECK(within >= 2);
}

namespace {

/// A second or so of iterations.
std::vector<std::string> problem(std::vector<std::string> more) {
  more.insert(more.begin(), {"--method",  "iterate", "--source",    "gaussian", "--dimension", "6",
                             "--train",   "8",       "--test",      "0",        "--loss",      "mse",
                             "--classes", "2",       "--optimizer", "sgd",      "--lr",        "1",
                             "--steps",   "6",       "--neurons",   "600",      "--set",       "sampling.experts=300"});
  return more;
}

}  // namespace

TEST_CASE("dmft_solve --method iterate: Ctrl-C ends it at once and says what goes on; --resume alone does [slow]") {
  const TemporaryFolder folder;
  const std::string checkpoint = folder / "run.ckpt", out = folder / "a.h5", undisturbed = folder / "b.h5";
  REQUIRE(run_program("dmft_solve", problem({"--out", undisturbed, "--quiet"})).status == 0);
  for (const bool keeps : {false, true}) {
    std::vector<std::string> arguments =
        problem({"--out", out, "--steps", "40", "--neurons", "2400", "--set", "sampling.experts=1200"});
    if (keeps) arguments.insert(arguments.end(), {"--checkpoint", checkpoint, "--checkpoint-every", "10ms"});
    RunningProgram program("dmft_solve", arguments);
    // Somewhere in the first iteration: after a replica that is kept; else some time after the start.
    const auto start = std::chrono::steady_clock::now();
    const auto seconds_since_start = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    const auto under_way = [&] {
      if (keeps) return fs::exists(checkpoint);
      return seconds_since_start() > 0.5;
    };
    for (int k = 0; k < 1200 && !under_way(); ++k) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    program.send(SIGINT);
    const ProgramRun ended = program.wait();
    CAPTURE(ended.text);
    if (ended.status == 128 + SIGINT) continue;  // a busy machine: it had not come to the solve
    CHECK(ended.status == 1);
    CHECK(contains(ended.text, "before the kernels came to rest: there is no result yet"));
    CHECK(contains(ended.text, keeps ? "Continue with --resume " + checkpoint : "With --checkpoint FILE"));
    CHECK_FALSE(fs::exists(out));
  }
  CHECK(progress_of(checkpoint).second >= 1);
  const ProgramRun other = run_program("dmft_solve", problem({"--resume", checkpoint, "--out", out}));
  CHECK_MESSAGE((other.status == 2 && contains(other.text, "training.steps was 40 and is 6")), other.text);
  const ProgramRun swept =
      run_program("dmft_solve", {"--resume", checkpoint, "--method", "sweep", "--steps", "40", "--out", out});
  CHECK_MESSAGE((swept.status == 2 && contains(swept.text, "sampling.method was \"iterate\" and is \"sweep\"")),
                swept.text);

  // One that ends: killed with something to go on from, then continued with no other word.
  fs::remove(checkpoint);
  RunningProgram program("dmft_solve",
                         problem({"--out", out, "--quiet", "--checkpoint", checkpoint, "--checkpoint-every", "1ms"}));
  while (!fs::exists(checkpoint)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  program.send(SIGKILL);
  CHECK(program.wait().status == 128 + SIGKILL);
  const ProgramRun rest = run_program("dmft_solve", {"--resume", checkpoint, "--out", out});
  CAPTURE(rest.text);
  REQUIRE(rest.status == 0);
  CHECK(contains(rest.text, "Certificate"));
  const moe::H5Reader a(out), b(undisturbed);
  for (const char* name : {"/limit/loss", "/limit/loss_sem", "/limit/f", "/limit/diagnostics/iteration_kernel_change",
                           "/limit/observables/rms_xi"})
    CHECK_MESSAGE(a.read(name).values == b.read(name).values, name);
}

TEST_CASE(
    "dmft_solve --method iterate: killed 50 times at random moments and continued each time, it ends with the numbers "
    "of an undisturbed run; every file on the way is whole [SIGKILL] [slow]") {
  const TemporaryFolder folder;
  const std::string checkpoint = folder / "run.ckpt", out = folder / "a.h5", undisturbed = folder / "b.h5";
  REQUIRE(run_program("dmft_solve", problem({"--out", undisturbed, "--quiet"})).status == 0);
  std::mt19937 random(13);
  std::pair<int, int> kept{0, 0};
  int killed = 0, done = 0, grown = 0;
  while (killed < 50) {
    std::vector<std::string> arguments = {"--out", out, "--quiet", "--checkpoint", checkpoint, "--checkpoint-every",
                                          "0"};
    if (fs::exists(checkpoint)) arguments.insert(arguments.end(), {"--resume", checkpoint});
    RunningProgram program("dmft_solve", problem(arguments));
    // Every other life ends anywhere, starting up included; the others after they got further than the last.
    const auto further = [&] { return fs::exists(checkpoint) && progress_of(checkpoint) > kept; };
    if (killed % 2 == 1)
      for (int k = 0; k < 1000 && !further() && !fs::exists(out); ++k)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 100000));
    program.send(SIGKILL);
    const ProgramRun run = program.wait();
    if (run.status == 128 + SIGKILL)
      ++killed;
    else
      REQUIRE_MESSAGE(run.status == 0, run.text);
    if (fs::exists(checkpoint)) {
      const std::pair<int, int> now = progress_of(checkpoint);  // throws if it is not whole
      INFO("iteration ", now.first, " and ", now.second, " batches; before ", kept.first, " and ", kept.second);
      CHECK(now >= kept);
      grown += now > kept ? 1 : 0;
      kept = now;
    }
    if (fs::exists(out)) {  // done: begin again
      moe::H5Reader(out).verify();
      ++done;
      fs::remove(checkpoint);
      fs::remove(out);
      kept = {0, 0};
    }
  }
  INFO(done, " lives came to their end, ", grown, " got further");
  CHECK(grown >= 50 / 3);
  std::vector<std::string> last = {"--out", out, "--quiet", "--checkpoint", checkpoint};
  if (fs::exists(checkpoint)) last.insert(last.end(), {"--resume", checkpoint});
  REQUIRE(run_program("dmft_solve", problem(last)).status == 0);
  const moe::H5Reader a(out), b(undisturbed);
  for (const char* name : {"/limit/loss", "/limit/loss_sem", "/limit/f", "/limit/diagnostics/iteration_kernel_change"})
    CHECK_MESSAGE(a.read(name).values == b.read(name).values, name);
  for (const auto& entry : fs::directory_iterator(folder.path()))
    CHECK_MESSAGE(!contains(entry.path().filename().string(), ".tmp-"), entry.path().string());
}
