// Programs that are killed at any moment: they continue, lose no more than the last interval, and leave no broken file.
#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "support/hdf5.hpp"
#include "tests/program.hpp"

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kills = 50;

/// States of replicas that a checkpoint holds, summed: what a run does not have to do again.
long states_in(const std::string& checkpoint) {
  const moe::H5Reader file(checkpoint);
  file.verify();
  long n = 0;
  for (const auto& job : file.members("/job"))
    n += static_cast<long>(file.read("/job/" + job + "/next_step").values[0]);
  return n;
}

/// `count` of files that a running program replaces and deletes meanwhile: -1 where one was just gone.
template <class Count>
double steps_kept_safely(const Count& count) {
  try {
    return count();
  } catch (const moe::IoError&) {
    return -1;
  }
}

}  // namespace

TEST_CASE(
    "dmft_solve: killed 50 times at random moments and continued each time, it ends with the numbers of an undisturbed "
    "run; every file on the way is whole [SIGKILL] [slow]") {
  const TemporaryFolder folder;
  const std::string checkpoint = folder / "run.ckpt", out = folder / "a.h5", undisturbed = folder / "b.h5";
  const std::vector<std::string> problem = {
      "--source", "gaussian",      "--dimension", "8",    "--train", "12",   "--test",     "6", "--neurons", "48",
      "--steps",  "1500",          "--optimizer", "adam", "--eps",   "0.05", "--replicas", "3", "--threads", "2",
      "--quiet",  "--observables", "none"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = problem;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  REQUIRE(run_program("dmft_solve", with({"--out", undisturbed})).status == 0);
  std::mt19937 random(11);
  long kept = 0;
  int killed = 0, done = 0, grown = 0;
  while (killed < kills) {
    std::vector<std::string> arguments = {"--out", out, "--checkpoint", checkpoint, "--checkpoint-every", "20ms"};
    if (fs::exists(checkpoint)) arguments.insert(arguments.end(), {"--resume", checkpoint});
    RunningProgram program("dmft_solve", with(arguments));
    // Every other life ends anywhere, starting up included; the others some time after they got further than the last.
    const auto further = [&] { return fs::exists(checkpoint) && states_in(checkpoint) > kept; };
    if (killed % 2 == 1)
      for (int k = 0; k < 1000 && !further(); ++k) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 150000));
    program.send(SIGKILL);
    const ProgramRun run = program.wait();
    if (run.status == 128 + SIGKILL)
      ++killed;
    else
      REQUIRE_MESSAGE(run.status == 0, run.text);
    if (fs::exists(checkpoint)) {
      const long now = states_in(checkpoint);  // throws if it is not whole
      INFO("states kept before ", kept, ", now ", now);
      CHECK(now >= kept);
      grown += now > kept ? 1 : 0;
      kept = now;
    }
    if (fs::exists(out)) moe::H5Reader(out).verify();
    if (run.status == 0) {  // done before the kill: begin again
      ++done;
      fs::remove(checkpoint);
      kept = 0;
    }
  }
  INFO(done, " lives ended by themselves, ", grown, " got further");
  CHECK(grown >= kills / 3);
  std::vector<std::string> last = {"--out", out, "--checkpoint", checkpoint};
  if (fs::exists(checkpoint)) last.insert(last.end(), {"--resume", checkpoint});
  REQUIRE(run_program("dmft_solve", with(last)).status == 0);
  const moe::H5Reader a(out), b(undisturbed);
  for (const char* name : {"/limit/loss", "/limit/loss_sem", "/limit/test_loss", "/limit/f", "/limit/loss_per_replica"})
    CHECK_MESSAGE(a.read(name).values == b.read(name).values, name);
  for (const auto& entry : fs::directory_iterator(folder.path()))
    CHECK_MESSAGE(!contains(entry.path().filename().string(), ".tmp-"), entry.path().string());
}

TEST_CASE(
    "moe_train: killed 50 times at random moments and started again each time, it ends with the numbers of an "
    "undisturbed "
    "sweep; every file on the way is whole [SIGKILL] [slow]") {
  const TemporaryFolder folder;
  const std::string out = folder / "a.h5", undisturbed = folder / "b.h5", runs = out + ".runs";
  const auto command = [&](const std::string& to) {
    return std::vector<std::string>{"--source",
                                    "gaussian",
                                    "--dimension",
                                    "8",
                                    "--train",
                                    "12",
                                    "--test",
                                    "6",
                                    "--widths",
                                    "32,64",
                                    "--seeds",
                                    "2",
                                    "--steps",
                                    "6000",
                                    "--lr",
                                    "0.01",
                                    "--threads",
                                    "2",
                                    "--quiet",
                                    "--observables",
                                    "none",
                                    "--eval-every",
                                    "10",
                                    "--out",
                                    to,
                                    "--checkpoint-every",
                                    "20ms"};
  };
  REQUIRE(run_program("moe_train", command(undisturbed)).status == 0);
  /// Steps of all networks that need not be done again; throws where a file is not whole.
  const auto steps_kept = [&] {
    double steps = 0;
    for (const int width : {32, 64})
      for (const int seed : {0, 1}) {
        const std::string name = "N" + std::to_string(width) + "_seed" + std::to_string(seed) + ".h5";
        if (fs::exists(runs + "/" + name)) {
          moe::H5Reader(runs + "/" + name).verify();
          steps += 6000;
        } else if (fs::exists(runs + "/in_progress_" + name)) {
          const moe::H5Reader file(runs + "/in_progress_" + name);
          file.verify();
          steps += file.read("/run/training/step").values[0];
        }
      }
    return steps;
  };
  std::mt19937 random(12);
  double kept = 0;
  int killed = 0, done = 0, grown = 0;
  while (killed < kills) {
    RunningProgram program("moe_train", command(out));
    if (killed % 2 == 1)
      for (int k = 0; k < 1000 && !fs::exists(out) && steps_kept_safely(steps_kept) <= kept; ++k)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 150000));
    program.send(SIGKILL);
    const ProgramRun run = program.wait();
    if (run.status == 0) {  // done before the kill: begin again
      ++done;
      kept = 0;
      fs::remove(out);
      continue;
    }
    REQUIRE_MESSAGE(run.status == 128 + SIGKILL, run.text);
    ++killed;
    CHECK_MESSAGE(!contains(run.text, "trained anew"), run.text);
    if (fs::exists(out)) {  // complete, and killed while the folder was being deleted
      moe::H5Reader(out).verify();
      kept = 0;
      fs::remove(out);
      fs::remove_all(runs);
      continue;
    }
    const double now = steps_kept();
    INFO("steps kept before ", kept, ", now ", now);
    CHECK(now >= kept);
    grown += now > kept ? 1 : 0;
    kept = now;
  }
  INFO(done, " lives ended by themselves, ", grown, " got further");
  CHECK(grown >= kills / 3);
  REQUIRE(run_program("moe_train", command(out)).status == 0);
  const moe::H5Reader a(out), b(undisturbed);
  for (const char* name : {"/network/N32/loss", "/network/N64/loss", "/network/N64/test_loss", "/network/N32/f"})
    CHECK_MESSAGE(a.read(name).values == b.read(name).values, name);
}

TEST_CASE("moe_train: what a kill loses of one long network is younger than the interval [SIGKILL]") {
  const TemporaryFolder folder;
  const std::string out = folder / "a.h5", state = out + ".runs/in_progress_N64_seed0.h5";
  constexpr double every_s = 0.3;
  RunningProgram program("moe_train", {"--source",
                                       "gaussian",
                                       "--train",
                                       "12",
                                       "--test",
                                       "0",
                                       "--widths",
                                       "64",
                                       "--seeds",
                                       "1",
                                       "--steps",
                                       "2000000",
                                       "--lr",
                                       "0.01",
                                       "--observables",
                                       "none",
                                       "--eval-every",
                                       "100000",
                                       "--out",
                                       out,
                                       "--checkpoint-every",
                                       "300ms"});
  while (!fs::exists(state)) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  double oldest = 0;
  for (int k = 0; k < 100; ++k) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    oldest = std::max(
        oldest, std::chrono::duration<double>(fs::file_time_type::clock::now() - fs::last_write_time(state)).count());
  }
  program.send(SIGKILL);
  CHECK(program.wait().status == 128 + SIGKILL);
  INFO("the state was at most ", oldest, " s old");
  CHECK(oldest <= 10 * every_s);  // writing and a step add to the interval; a loaded machine
  const moe::H5Reader file(state);
  file.verify();
  CHECK(file.read("/run/training/step").values[0] > 0);
}

TEST_CASE("dmft_solve: what a kill loses is younger than the interval [SIGKILL]") {
  const TemporaryFolder folder;
  const std::string checkpoint = folder / "run.ckpt";
  constexpr double every_s = 0.3;
  RunningProgram program("dmft_solve", {"--source",
                                        "gaussian",
                                        "--train",
                                        "12",
                                        "--test",
                                        "0",
                                        "--neurons",
                                        "64",
                                        "--steps",
                                        "2000000",
                                        "--replicas",
                                        "2",
                                        "--eps",
                                        "0.05",
                                        "--out",
                                        folder / "a.h5",
                                        "--observe-every",
                                        "100000",
                                        "--eval-every",
                                        "100000",
                                        "--checkpoint",
                                        checkpoint,
                                        "--checkpoint-every",
                                        "300ms"});
  const auto age_s = [&] {
    return std::chrono::duration<double>(fs::file_time_type::clock::now() - fs::last_write_time(checkpoint)).count();
  };
  while (!fs::exists(checkpoint)) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  // The file is as old as its last write; writing and a step add to the interval: as much again, a loaded machine ten times.
  double oldest = 0;
  for (int k = 0; k < 100; ++k) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    oldest = std::max(oldest, age_s());
  }
  program.send(SIGKILL);
  CHECK(program.wait().status == 128 + SIGKILL);
  INFO("the checkpoint was at most ", oldest, " s old");
  CHECK(oldest <= 10 * every_s);
  CHECK(states_in(checkpoint) > 0);
}

TEST_CASE("dmft_solve: SIGTERM leaves a checkpoint that --resume alone continues") {
  const TemporaryFolder folder;
  const std::string checkpoint = folder / "run.ckpt";
  const std::vector<std::string> problem = {"--source",    "gaussian", "--train",       "12",   "--test",     "0",
                                            "--neurons",   "64",       "--steps",       "3000", "--replicas", "2",
                                            "--optimizer", "sgd",      "--observables", "none"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = problem;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  REQUIRE(run_program("dmft_solve", with({"--out", folder / "b.h5", "--quiet"})).status == 0);
  ProgramRun ended;
  for (const int milliseconds : {300, 1000, 3000, 10000}) {
    RunningProgram program("dmft_solve",
                           with({"--out", folder / "a.h5", "--checkpoint", checkpoint, "--checkpoint-every", "1h"}));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    program.send(SIGTERM);
    ended = program.wait();
    // On a busy machine the signal may come before there is anything to keep, or before the program listens to it.
    if (ended.status != 128 + SIGTERM && !contains(ended.text, "interrupted before any step was finished")) break;
  }
  CAPTURE(ended.text);
  if (ended.status == 0) {
    MESSAGE("the run was done before the signal");
    return;
  }
  CHECK(ended.status == 1);
  CHECK(contains(ended.text, "Continue with --resume " + checkpoint));
  const ProgramRun rest = run_program("dmft_solve", {"--resume", checkpoint, "--out", folder / "a.h5"});
  CAPTURE(rest.text);
  CHECK(rest.status == 0);
  const moe::H5Reader a(folder / "a.h5"), b(folder / "b.h5");
  CHECK(a.read("/limit/loss").values == b.read("/limit/loss").values);
}

TEST_CASE(
    "dmft_solve: a checkpoint that does not fit is refused with status and sentence [missing, not one, other keys, a "
    "bad time]") {
  const TemporaryFolder folder;
  const std::vector<std::string> problem = {
      "--source", "gaussian", "--train",    "8", "--test",      "0",   "--neurons", "32",
      "--steps",  "3",        "--replicas", "1", "--optimizer", "sgd", "--out",     folder / "a.h5"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = problem;
    all.insert(all.end(), more.begin(), more.end());
    return run_program("dmft_solve", all);
  };
  ProgramRun run = with({"--resume", folder / "none.ckpt"});
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "none.ckpt")), run.text);
  REQUIRE(with({"--out", folder / "b.h5"}).status == 0);
  run = with({"--resume", folder / "b.h5"});
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "is not a checkpoint")), run.text);
  REQUIRE(with({"--checkpoint", folder / "run.ckpt", "--checkpoint-every", "0"}).status == 0);
  run = with({"--resume", folder / "run.ckpt", "--lr", "0.7"});
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "optimizer.lr was 0.1 and is 0.7")), run.text);
  for (const char* time : {"1 fortnight", "-1s", "", "nan"}) {
    run = with({"--checkpoint", folder / "run.ckpt", std::string("--checkpoint-every=") + time});
    CHECK_MESSAGE((run.status == 2 && contains(run.text, "checkpoint-every")), run.text);
  }
}

TEST_CASE(
    "a gradient flow that is killed, or asked to end, between two recorded states goes on from within [SIGKILL, "
    "SIGTERM; "
    "dmft_solve, moe_train]") {
  // One interval alone: without states from within it nothing would be kept.
  const std::vector<std::string> flow = {"--source",    "gaussian",
                                         "--dimension", "8",
                                         "--train",     "12",
                                         "--test",      "0",
                                         "--steps",     "1",
                                         "--time",      "200",
                                         "--lr",        "0.01",
                                         "--optimizer", "sgd",
                                         "--dynamics",  "flow",
                                         "--stepper",   "abm",
                                         "--step-size", "0.05",
                                         "--threads",   "1",
                                         "--widths",    "48",
                                         "--seeds",     "1",
                                         "--neurons",   "48",
                                         "--quiet",     "--replicas",
                                         "1",           "--observables",
                                         "none"};
  for (const std::string name : {"dmft_solve", "moe_train"}) {
    CAPTURE(name);
    const TemporaryFolder folder;
    const bool limit = name == "dmft_solve";
    const std::string out = folder / "a.h5", undisturbed = folder / "b.h5", kept = folder / "kept",
                      state = limit ? kept : kept + "/in_progress_N48_seed0.h5",
                      loss = limit ? "/limit/loss" : "/network/N48/loss",
                      progress = limit ? "/job/0/flow/stepper" : "/run/flow/stepper";
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), flow.begin(), flow.end());
      return more;
    };
    REQUIRE(run_program(name, with({"--out", undisturbed})).status == 0);
    double time = 0;
    for (const int signal : {SIGKILL, SIGTERM, SIGKILL}) {
      std::vector<std::string> arguments = {"--out", out, "--checkpoint", kept, "--checkpoint-every", "10ms"};
      if (limit && fs::exists(kept)) arguments.insert(arguments.end(), {"--resume", kept});
      RunningProgram program(name, with(arguments));
      const auto reached = [&] {
        return fs::exists(state)
                   ? steps_kept_safely([&] { return moe::H5Reader(state).read(progress + "/time").values[0]; })
                   : -1;
      };
      for (int k = 0; k < 2000 && reached() <= time; ++k) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      program.send(signal);
      const ProgramRun ended = program.wait();
      CAPTURE(ended.text);
      REQUIRE(ended.status == (limit && signal == SIGTERM ? 1 : 128 + signal));
      const moe::H5Reader file(state);
      file.verify();
      CHECK(file.read(progress + "/inside").values[0] == 1);
      CHECK(file.read(progress + "/time").values[0] > time);
      CHECK(file.read(progress + "/time").values[0] < 200);
      time = file.read(progress + "/time").values[0];
    }
    const ProgramRun rest = run_program(name, {"--resume", kept, "--out", out});
    CAPTURE(rest.text);
    REQUIRE(rest.status == 0);
    CHECK(moe::H5Reader(out).read(loss).values == moe::H5Reader(undisturbed).read(loss).values);
  }
}
