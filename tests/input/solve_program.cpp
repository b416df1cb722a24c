/// dmft_solve as a user meets it when something is wrong: what it says, its exit status, and what it leaves behind.
#include <doctest/doctest.h>
#include <sys/mount.h>

#include <sched.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <tuple>

#include "support/hdf5.hpp"
#include "tests/folders.hpp"
#include "tests/program.hpp"

using namespace moe;

namespace {

namespace fs = std::filesystem;

/// A run of a second or so.
const std::vector<std::string> small = {"--source",  "gaussian", "--dimension", "6",   "--train",     "8",
                                        "--test",    "0",        "--loss",      "mse", "--classes",   "2",
                                        "--neurons", "32",       "--steps",     "3",   "--optimizer", "sgd"};

std::vector<std::string> with(std::vector<std::string> more) {
  std::vector<std::string> all = small;
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

/// Refused with `status`, saying every piece, before anything was solved.
void check_refused(const ProgramRun& run, int status, const std::vector<std::string>& pieces) {
  CAPTURE(run.text);
  CHECK(run.status == status);
  for (const std::string& piece : pieces) CHECK(contains(run.text, piece));
  CHECK_FALSE(contains(run.text, "solving"));
}

/// Failed on its way, saying every piece.
void check_says(const ProgramRun& run, const std::vector<std::string>& pieces) {
  CAPTURE(run.text);
  CHECK(run.status == 1);
  for (const std::string& piece : pieces) CHECK(contains(run.text, piece));
}

const std::string mpirun = "/usr/bin/mpirun";

/// Both what a build with MPI has and what starts it; says so where one is missing.
bool has_mpi() {
  for (const std::string& needed : {mpirun, program_folder() + "/../lib/dmft_mpi.so"})
    if (!fs::exists(needed)) {
      MESSAGE("skipped: there is no ", needed);
      return false;
    }
  return true;
}

/// As run_program does, by `processes` processes of mpirun.
ProgramRun run_ranks(int processes, const std::string& name, const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  std::string line = mpirun + " --allow-run-as-root --oversubscribe --bind-to none -n " + std::to_string(processes) +
                     " " + program_folder() + "/" + name;
  for (const std::string& argument : arguments) line += " '" + argument + "'";
  const int status = std::system((line + " >" + folder / "log" + " 2>&1").c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_bytes(folder / "log"), 0};
}

/// Every number below `group` is the same in both files, up to `rounding` of its array's largest, but for times that were taken.
void check_same_numbers(const H5Reader& a, const H5Reader& b, const std::string& group, double rounding,
                        int& compared) {
  for (const std::string& name : a.members(group)) {
    const std::string path = group + "/" + name;
    CAPTURE(path);
    if (name.find("seconds") != std::string::npos) continue;
    H5Array x;
    try {
      x = a.read(path);
    } catch (const IoError&) {
      check_same_numbers(a, b, path, rounding, compared);
      continue;
    }
    const H5Array y = b.read(path);
    REQUIRE(x.shape == y.shape);
    double largest = 0, difference = 0;
    for (std::size_t k = 0; k < x.values.size(); ++k) {
      if (std::isnan(x.values[k]) && std::isnan(y.values[k])) continue;
      largest = std::max(largest, std::abs(x.values[k]));
      difference = std::max(difference, std::abs(x.values[k] - y.values[k]));
    }
    CAPTURE(difference);
    CHECK(difference <= rounding * largest);
    ++compared;
  }
}

}  // namespace

TEST_CASE("dmft_solve: the small run of these tests is sound") {
  const TemporaryFolder folder;
  const ProgramRun run = run_program("dmft_solve", with({"--out", folder / "a.h5"}));
  CAPTURE(run.text);
  CHECK(run.status == 0);
  CHECK(H5Reader(folder / "a.h5").attribute_text("/limit", "status") == "complete");
  CHECK(folder.file_count() == 1);
}

TEST_CASE("dmft_solve: a limit on the size of files ends the run with a message and leaves nothing behind") {
  const TemporaryFolder folder, logs;
  std::string line = "ulimit -f 8; exec " + program_folder() + "/dmft_solve";  // 4 KiB or 8, by the shell
  for (const std::string& argument : with({"--quiet", "--out", folder / "a.h5"})) line += " '" + argument + "'";
  const int status = std::system(("(" + line + ") >" + logs / "log" + " 2>&1").c_str());
  REQUIRE(WIFEXITED(status));
  check_says({WEXITSTATUS(status), read_bytes(logs / "log"), 0}, {"cannot write", folder / "a.h5", "File too large"});
  CHECK(folder.file_count() == 0);
}

TEST_CASE("dmft_solve: output that cannot be written is refused before the solve [folder missing, folder, read-only]") {
  const TemporaryFolder folder;
  check_refused(run_program("dmft_solve", with({"--out", folder / "none/a.h5"})), 2,
                {folder / "none", "does not exist", "--out"});
  check_refused(run_program("dmft_solve", with({"--out", folder.path().string()})), 2, {"it is a folder"});
  write_bytes(folder / "kept.h5", "kept");
  fs::permissions(folder / "kept.h5", fs::perms::owner_read);
  check_refused(run_program("dmft_solve", with({"--out", folder / "kept.h5"})), 2, {"kept.h5", "read-only"});
  CHECK(read_bytes(folder / "kept.h5") == "kept");
  check_refused(run_program("dmft_solve", with({"--out", "/proc/a.h5"})), 2, {"/proc/a.h5"});
}

TEST_CASE("dmft_solve: unknown keys and bad values are all listed, status 2") {
  const TemporaryFolder folder;
  write_bytes(folder / "run.toml", "[model]\nregimen = \"II\"\n[optimizer]\nlr = -1\n[data]\ntrain = 0\n");
  check_refused(run_program("dmft_solve", {"--config", folder / "run.toml", "--out", folder / "a.h5"}), 2,
                {"model.regimen", "model.regime", "optimizer.lr", "data.train", "run.toml:2"});
  check_refused(run_program("dmft_solve", with({"--nuerons", "64"})), 2, {"nuerons"});
  CHECK_FALSE(fs::exists(folder / "a.h5"));
}

TEST_CASE("dmft_solve: numbers near the end of their type are refused or counted, never wrapped") {
  const TemporaryFolder folder;
  const std::string most = "2147483647";
  for (const std::string key : {"--neurons", "--train", "--dimension"}) {
    CAPTURE(key);
    const ProgramRun run = run_program("dmft_solve", with({key, most, "--out", folder / "a.h5"}));
    check_refused(run, 2, {most});
  }
  // Largest sizes that are allowed: the arrays would be far beyond any machine.
  const ProgramRun large = run_program("dmft_solve", with({"--neurons", "16777216", "--out", folder / "a.h5"}));
  check_refused(large, 2, {"memory:", "available", "sampling.neurons = 16777216"});
  const ProgramRun experts =
      run_program("dmft_solve", with({"--set", "sampling.experts=16777216", "--out", folder / "a.h5"}));
  check_refused(experts, 2, {"memory:", "lower sampling.experts = 16777216"});
  const ProgramRun explicit_ones =
      run_program("dmft_solve", with({"--regime", "I", "--set", "model.experts=16777216", "--out", folder / "a.h5"}));
  check_refused(explicit_ones, 2, {"memory:", "lower model.experts = 16777216"});
  const ProgramRun units = run_program("dmft_solve", with({"--expert-width", "16777216", "--out", folder / "a.h5"}));
  check_refused(units, 2, {"memory:", "lower model.expert_width = 16777216"});
  const ProgramRun steps = run_program("dmft_solve", with({"--steps", most, "--out", folder / "a.h5"}));
  check_refused(steps, 2, {"memory:", "training.steps"});
  CHECK(folder.file_count() == 0);
}

TEST_CASE("dmft_solve: a dense form that rounding keeps out of ratio is refused with the counts, not the settings") {
  const TemporaryFolder folder;
  const ProgramRun run = run_program("dmft_solve", with({"--neurons", "33", "--experts-per-width", "0.04", "--form",
                                                         "dense", "--out", folder / "a.h5"}));
  CAPTURE(run.text);
  CHECK(run.status == 2);
  for (const char* part : {"33 : 1 : 8", "raise sampling.neurons"}) CHECK(contains(run.text, part));
}

TEST_CASE("dmft_solve: a warning about eps promises no eps that is enough: it depends on samples and widths") {
  const TemporaryFolder folder;
  for (const auto& [eps, flags, piece] :
       {std::tuple{"0.03", std::vector<std::string>{"--regime", "III", "--neurons", "8"}, "more samples make"},
        {"0.019", {"--neurons", "1024"}, "A larger eps makes"}}) {
    std::vector<std::string> all = with({"--param", "mup", "--optimizer", "adam", "--eps", eps, "--steps", "1",
                                         "--output-scale", "100", "--replicas", "2", "--out", folder / "a.h5"});
    all.insert(all.end(), flags.begin(), flags.end());
    const ProgramRun run = run_program("dmft_solve", all);
    CAPTURE(run.text);
    CHECK(run.status == 0);
    CHECK(contains(run.text, std::string("warning: eps = ") + eps));
    CHECK(contains(run.text, piece));
    CHECK_FALSE(contains(run.text, "0.02 avoids"));
  }
}

TEST_CASE("programs: an array that the system refuses is told with what is left and what to take less of, status 1") {
  if (slowdown > 1) return;  // the sanitizers reserve more addresses than there are here
  const TemporaryFolder folder;
  for (const char* name : {"dmft_solve", "moe_train"}) {
    // 3 GiB of data, which nobody estimates before they are there.
    const ProgramRun run = run_program(
        name, with({"--train", "200000", "--dimension", "2000", "--threads", "1", "--out", folder / "a.h5"}), [] {
          const rlimit limit{std::size_t{3} << 29, std::size_t{3} << 29};
          ::setrlimit(RLIMIT_AS, &limit);
        });
    check_says(run, {"memory: the system refused an array", "ulimit -v", "(data, sampling, network)"});
    CHECK(folder.file_count() == 0);
  }
}

// A limit on the file size stands for a disk that fills while the result is written: writes fail likewise.
TEST_CASE("dmft_solve: a disk that fills up is told, status 1, and no broken file stays") {
  const TemporaryFolder folder;
  const ProgramRun run = run_program("dmft_solve", with({"--out", folder / "a.h5"}), [] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4000, 4000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  });
  CAPTURE(run.text);
  CHECK(run.status == 1);
  CHECK(contains(run.text, folder / "a.h5"));
  CHECK(contains(run.text, "cannot write"));
  CHECK(folder.file_count() == 0);
}

TEST_CASE("dmft_solve: a file system that is too small for the result is told before the solve") {
  const TemporaryFolder folder;
  bool mounted = true;
  const std::string disk = folder / "disk";
  fs::create_directories(disk);
  // A file system of 64 KiB, seen by the child alone. The result holds 400 inputs of dimension 60.
  const ProgramRun run =
      run_program("dmft_solve", with({"--train", "400", "--dimension", "60", "--out", disk + "/a.h5"}), [&] {
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount("moe-test", disk.c_str(), "tmpfs", 0, "size=64k") != 0)
          ::_exit(99);
      });
  mounted = run.status != 99;
  if (!mounted) {
    MESSAGE("no file system can be mounted here: the case is not tested");
    return;
  }
  check_refused(run, 2, {"io: the result will have about", "left", "--out"});
}

TEST_CASE("dmft_solve: Ctrl-C and SIGTERM finish the step, write and say so, status 1") {
  for (const int signal : {SIGINT, SIGTERM}) {
    CAPTURE(signal);
    const TemporaryFolder folder;
    // Millions of steps: only the signal ends it. Few records, so that it fits into memory.
    RunningProgram program(
        "dmft_solve", with({"--steps", "2000000", "--replicas", "2", "--eval-every", "100", "--observables", "none",
                            "--set", "output.observe_every=1000000", "--out", folder / "a.h5"}));
    std::this_thread::sleep_for(std::chrono::seconds(3));
    program.send(signal);
    const ProgramRun run = program.wait();
    CAPTURE(run.text);
    CHECK(run.status == 1);
    CHECK(contains(run.text, "interrupted; what was computed is in " + (folder / "a.h5")));
    const H5Reader file(folder / "a.h5");
    CHECK(file.attribute_text("/limit", "status") == "interrupted");
    CHECK(file.read("/limit/loss").values.size() >= 1);
    CHECK(folder.file_count() == 1);
  }
}

TEST_CASE("moe_train: initial weights of other sizes are refused before a folder of runs is made, status 2") {
  const TemporaryFolder folder;
  const ProgramRun run =
      run_program("moe_train", with({"--init-from", source_folder() + "/tests/data/networks/II_mssp_adam_soft.h5",
                                     "--widths", "16,64", "--out", folder / "a.h5"}));
  CAPTURE(run.text);
  CHECK(run.status == 2);
  for (const char* piece : {"network.init_from", "N = 16", "N = 64"}) CHECK(contains(run.text, piece));
  CHECK(folder.file_count() == 0);
}

TEST_CASE("moe_train: networks that diverge name step and field, status 1, and the file keeps their curves") {
  const TemporaryFolder folder;
  const ProgramRun run = run_program("moe_train", with({"--lr", "1e6", "--activation", "relu", "--steps", "50",
                                                        "--widths", "16", "--seeds", "2", "--out", folder / "a.h5"}));
  CAPTURE(run.text);
  CHECK(run.status == 1);
  CHECK(contains(run.text, "N = 16, seed 1 stopped: numerics: "));
  CHECK(contains(run.text, "step "));
  CHECK(contains(run.text, "and the others are in " + (folder / "a.h5")));
  CHECK(H5Reader(folder / "a.h5").read("/network/N16/loss").values.size() >= 2);
  CHECK(folder.file_count() == 1);
}

TEST_CASE("dmft_solve: a run that diverges names step and field, status 1, and keeps its curves") {
  const TemporaryFolder folder;
  const ProgramRun run = run_program(
      "dmft_solve", with({"--lr", "1e6", "--activation", "relu", "--steps", "50", "--out", folder / "a.h5"}));
  CAPTURE(run.text);
  CHECK(run.status == 1);
  CHECK(contains(run.text, "step "));
  CHECK(contains(run.text, "What was computed before is in " + (folder / "a.h5")));
  const H5Reader file(folder / "a.h5");
  CHECK(contains(file.attribute_text("/limit", "status"), "step "));
  const std::size_t kept = file.read("/limit/loss").values.size();
  CHECK(kept >= 1);
  CHECK(kept < 51);
}

TEST_CASE("programs: what would overwrite its own result, or asks for checkpoints nowhere, is refused, status 2") {
  const TemporaryFolder folder;
  const std::string out = folder / "a.h5", other_way = folder / "../" + folder.path().filename().string() + "/a.h5";
  for (const char* name : {"dmft_solve", "moe_train"})
    for (const char* flag : {"--checkpoint", "--resume"})
      for (const std::string& same : {out, other_way})
        check_refused(run_program(name, with({"--out", out, flag, same})), 2, {same, "--out", "different names"});
  check_refused(run_program("dmft_solve", with({"--checkpoint", "limit.h5"})), 2, {"limit.h5", "different names"});
  check_refused(run_program("dmft_solve", with({"--out", out, "--checkpoint-every", "10s"})), 2,
                {"--checkpoint-every", "--checkpoint FILE"});
  check_refused(run_program("dmft_validate", with({"--out", out, "--checkpoint-every", "10s"})), 2,
                {"--checkpoint-every", "keeps nothing"});
  CHECK(folder.file_count() == 0);
}

TEST_CASE(
    "programs: a result replaces no file that its run reads [configuration, table, data, weights, files to compare]") {
  const TemporaryFolder folder;
  const std::string config = folder / "run.toml", table = folder / "mine.toml", data = folder / "data.h5",
                    weights = folder / "weights.h5", limit = folder / "limit.h5", networks = folder / "networks.h5";
  write_bytes(config, "");
  write_bytes(table, read_bytes(source_folder() + "/parameterizations/mssp.toml"));
  write_bytes(weights, "kept");
  std::vector<double> x(8 * 6), y(8);
  for (std::size_t k = 0; k < x.size(); ++k) x[k] = std::sin(static_cast<double>(k));
  for (std::size_t k = 0; k < y.size(); ++k) y[k] = x[6 * k] > 0 ? 1 : -1;
  H5Writer file(data);
  file.dataset("/x", {8, 6}, x.data(), "inputs", {"sample", "input"});
  file.dataset("/y", {8, 1}, y.data(), "targets", {"sample", "output"});
  file.commit();
  REQUIRE(run_program("dmft_solve", with({"--out", limit})).status == 0);
  REQUIRE(run_program("moe_train", with({"--out", networks, "--widths", "8,16", "--seeds", "2"})).status == 0);
  const auto check_kept = [&](const char* program, const std::string& path, std::vector<std::string> words) {
    const std::string before = read_bytes(path);
    // By another way as well, so that names alone do not decide.
    for (const std::string& out : {path, (fs::path(path).parent_path() / "." / fs::path(path).filename()).string()}) {
      words.insert(words.end(), {"--out", out});
      check_refused(run_program(program, with(words)), 2, {out, "would replace it", "--out"});
    }
    CHECK(read_bytes(path) == before);
  };
  for (const char* program : {"dmft_solve", "moe_train", "dmft_validate"}) {
    CAPTURE(program);
    check_kept(program, config, {config});
    check_kept(program, table, {"--param", table});
    check_kept(program, data, {"--source", data});
    check_kept(program, weights, {"--init-from", weights});
  }
  for (const std::string& path : {limit, networks})
    check_kept("dmft_validate", path, {"--limit", limit, "--networks", networks});
  // Nor does a checkpoint.
  check_refused(run_program("dmft_solve", with({"--source", data, "--out", folder / "a.h5", "--checkpoint", data})), 2,
                {data, "would replace it", "--checkpoint"});
}

TEST_CASE("programs: the name of a file that is there but empty is refused, and is not as good as none, status 2") {
  const TemporaryFolder folder;
  for (const char* program : {"dmft_solve", "moe_train"}) {
    CAPTURE(program);
    for (const char* flag : {"--out", "--config", "--checkpoint", "--resume"})
      check_refused(run_program(program, with({flag, ""}), [&] { (void)!::chdir(folder.path().c_str()); }), 2,
                    {flag, "empty"});
    check_refused(run_program(program, with({""}), [&] { (void)!::chdir(folder.path().c_str()); }), 2, {"empty"});
  }
  CHECK(folder.file_count() == 0);
}

TEST_CASE("dmft_solve: a flag without its value is the only fault that is told") {
  const ProgramRun run = run_program("dmft_solve", with({"--lr"}));
  check_refused(run, 2, {"1 configuration fault:", "--lr"});
}

TEST_CASE(
    "programs: standard output that takes nothing is told, status 1; where there is none, files are made all the "
    "same") {
  const TemporaryFolder folder;
  const std::string out = folder / "a.h5", data = folder / "data.h5";
  const auto full = [] { ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO); };
  check_says(run_program("dmft_solve", with({"--out", out}), full), {"standard output"});
  CHECK(fs::exists(out));
  check_says(run_program("dmft_solve", with({"--print-config"}), full), {"standard output"});
  check_says(run_program("moe_param", {"table"}, full), {"standard output"});
  // Descriptors 0 to 2 are free: what is opened next has their numbers, and must not be taken for them.
  const std::vector<double> x = {1, -1, 0.5, 2, 0.25, -2}, y = {1, -1, 1};
  H5Writer file(data);
  file.dataset("/x", {3, 2}, x.data(), "inputs", {"sample", "input"});
  file.dataset("/y", {3, 1}, y.data(), "targets", {"sample", "output"});
  file.commit();
  fs::remove(out);
  const ProgramRun run = run_program("dmft_solve", with({"--source", data, "--train", "3", "--out", out}), [] {
    ::alarm(60);  // what waits for itself has to end
    for (int descriptor = 0; descriptor < 3; ++descriptor) ::close(descriptor);
  });
  CHECK(run.status == 0);
  CHECK(H5Reader(out).read("/limit/loss").values.size() == 4);
}

TEST_CASE("programs: a checkpoint that cannot be written is refused before the run with the flag that chose it") {
  const TemporaryFolder folder;
  const std::string out = folder / "a.h5";
  ProgramRun run = run_program("dmft_solve", with({"--out", out, "--checkpoint", folder / "none/run.ckpt"}));
  check_refused(run, 2, {folder / "none", "does not exist", "--checkpoint FILE"});
  CHECK_FALSE(contains(run.text, "--out"));
  write_bytes(folder / "file", "kept");
  run = run_program("moe_train", with({"--out", out, "--checkpoint", folder / "file"}));
  check_refused(run, 2, {folder / "file", "--checkpoint FOLDER"});
  CHECK_FALSE(contains(run.text, "--out"));
  CHECK(read_bytes(folder / "file") == "kept");
}

TEST_CASE("dmft_solve: the summary is a table, in which one replica has no errors") {
  const TemporaryFolder folder;
  for (const char* replicas : {"1", "2"}) {
    const ProgramRun run = run_program(
        "dmft_solve", with({"--train", "6", "--test", "2", "--replicas", replicas, "--out", folder / "a.h5"}));
    CAPTURE(run.text);
    CHECK(run.status == 0);
    const std::size_t head = run.text.find("    step  "), first = run.text.find("\n", head) + 1;
    REQUIRE(head != std::string::npos);
    CHECK(run.text.find("\n", first) - first == first - 1 - head);  // as wide as its head
    const bool one = std::string(replicas) == "1";
    CHECK(contains(run.text, one ? "; 1 replica, " : "; 2 replicas, "));
    CHECK(contains(run.text, "+-") == !one);
    CHECK_FALSE(contains(run.text, "nan"));
  }
}

TEST_CASE("dmft_solve: a limit that stands still is told [zero readout under II muP]") {
  const TemporaryFolder folder;
  const auto text = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--out", folder / "a.h5"});
    const ProgramRun run = run_program("dmft_solve", with(more));
    CHECK(run.status == 0);
    return run.text;
  };
  const std::string still = text({"--param", "mup", "--readout-init", "zero"});
  CHECK_MESSAGE(contains(still, "warning: training stands still"), still);
  CHECK_MESSAGE(contains(still, "moe_param exponents"), still);
  for (const std::vector<std::string>& moves : {std::vector<std::string>{"--readout-init", "zero"},
                                                {"--param", "mup"},
                                                {"--param", "mup", "--readout-init", "zero", "--lr", "0"},
                                                {"--param", "mup", "--readout-init", "zero", "--steps", "0"}})
    CHECK_FALSE(contains(text(moves), "stands still"));
}

TEST_CASE("dmft_solve: the table of a flow has times, that of gradient descent has steps") {
  const TemporaryFolder folder;
  const std::vector<std::string> flow = {"--dynamics", "flow", "--time", "6", "--steps", "4", "--out", folder / "a.h5"};
  const ProgramRun timed = run_program("dmft_solve", with(flow)),
                   stepped = run_program("dmft_solve", with({"--out", folder / "a.h5"}));
  CAPTURE(timed.text);
  CHECK(contains(timed.text, "    time  "));
  for (const char* row : {"\n       0  ", "\n     1.5  ", "\n     4.5  ", "\n       6  "})
    CHECK(contains(timed.text, row));
  CHECK_FALSE(contains(timed.text, "\n       4  "));
  CAPTURE(stepped.text);
  CHECK(contains(stepped.text, "    step  "));
  CHECK(contains(stepped.text, "\n       3  "));
}

TEST_CASE("programs: what overflows says step, field and what helps against it [at the start, rate, step of a flow]") {
  const TemporaryFolder folder;
  const auto run = [&](const char* name, std::vector<std::string> more) {
    more.insert(more.end(), {"--out", folder / "a.h5", "--widths", "16", "--seeds", "1", "--activation", "identity"});
    return run_program(name, with(more));
  };
  for (const char* name : {"dmft_solve", "moe_train"}) {
    ProgramRun start = run(name, {"--set", "model.output_scale=1e30"});
    check_says(start, {"at step 0", "model.output_scale"});
    CHECK_FALSE(contains(start.text, "optimizer.lr"));
    check_says(run(name, {"--lr", "1e6", "--steps", "50"}), {"at step ", "Lower optimizer.lr"});
    for (const char* stepper : {"rk4", "abm"})
      check_says(run(name, {"--lr", "1e4", "--steps", "3", "--time", "60", "--dynamics", "flow", "--stepper", stepper}),
                 {"on the way from time ", "at step ", "training.step_size = 1"});
  }
}

TEST_CASE("./run install: without the name of a package, or with what is none, is bad usage") {
  const TemporaryFolder folder;
  for (const char* words : {"install", "install --help", "install No_Package"}) {
    CAPTURE(words);
    const std::string line = source_folder() + "/run " + words + " >" + folder / "log" + " 2>&1";
    CHECK(WEXITSTATUS(std::system(line.c_str())) == 2);
    CHECK(contains(read_bytes(folder / "log"), "Debian package"));
  }
}

TEST_CASE("programs: a data set that is not installed is told with what to type") {
  if (fs::exists("/usr/share/datasets/fashion-mnist")) {
    MESSAGE("dataset-fashion-mnist is installed: the case is not tested");
    return;
  }
  for (const char* name : {"dmft_solve", "moe_train"}) {
    const ProgramRun run = run_program(name, {"--source", "fashion-mnist"});
    CAPTURE(run.text);
    CHECK(run.status == 2);
    CHECK(contains(run.text, "data.source = fashion-mnist (--source on the command line)"));
    CHECK(contains(run.text, "./run install dataset-fashion-mnist"));
  }
}

TEST_CASE("mpirun: several processes write the file of one [iterate, sweep, moe_train]") {
  if (!has_mpi()) return;
  const TemporaryFolder folder;
  const std::string one = folder / "one.h5", several = folder / "several.h5";
  const auto compare = [&](int processes, const std::string& program, std::vector<std::string> arguments,
                           const std::string& group, double rounding) {
    CAPTURE(program);
    arguments.insert(arguments.end(), {"--threads", "1", "--out", one});
    const ProgramRun alone = run_program(program, arguments);
    REQUIRE_MESSAGE(alone.status == 0, alone.text);
    arguments.back() = several;
    const ProgramRun run = run_ranks(processes, program, arguments);
    CAPTURE(run.text);
    REQUIRE(run.status == 0);
    CHECK(run.text.find("Written: ") == run.text.rfind("Written: "));  // said once
    int compared = 0;
    check_same_numbers(H5Reader(one), H5Reader(several), group, rounding, compared);
    CHECK(compared > 10);
  };
  // Three replicas of three batches on two processes: the sum of one replica is split, and its rounding differs.
  compare(2, "dmft_solve",
          with({"--method", "iterate", "--replicas", "3", "--site-batches", "3", "--set", "sampling.experts=16"}),
          "/limit", 1e-9);
  compare(2, "dmft_solve",
          with({"--method", "iterate", "--replicas", "3", "--site-batches", "2", "--set", "sampling.experts=16",
                "--optimizer", "adam", "--eps", "0.05", "--lr", "0.05"}),
          "/limit", 1e-9);
  // More processes than some have replicas. Each is one process's work: bit for bit.
  compare(3, "dmft_solve", with({"--replicas", "2"}), "/limit", 0);
  compare(2, "moe_train", with({"--widths", "8,16", "--seeds", "2"}), "/network", 0);
  CHECK(folder.file_count() == 2);  // nothing that was kept on the way is left
}

TEST_CASE("mpirun: a run that fails says so once, with its status [refused, diverges]") {
  if (!has_mpi()) return;
  const TemporaryFolder folder;
  const auto check_once = [&](const ProgramRun& run, int status, const std::string& piece) {
    CAPTURE(run.text);
    CHECK(run.status == status);
    CHECK(run.text.find(piece) != std::string::npos);
    CHECK(run.text.find(piece) == run.text.rfind(piece));
  };
  check_once(run_ranks(2, "dmft_solve",
                       with({"--method", "iterate", "--set", "training.stop_at_loss=0.1", "--out", folder / "a.h5"})),
             2, "--set on the command line");
  check_once(run_ranks(2, "dmft_solve", with({"--checkpoint", folder / "c.h5", "--out", folder / "a.h5"})), 2,
             "use sampling.method = \"iterate\"");
  CHECK(folder.file_count() == 0);
  check_once(run_ranks(2, "dmft_solve", with({"--lr", "1e6", "--replicas", "2", "--out", folder / "a.h5"})), 1,
             "What was computed before is in");
}

TEST_CASE(
    "programs: started by a launcher without what they need, several processes are refused and not run side by side") {
  const TemporaryFolder folder;
  const auto launched = [](const char* rank) {
    return [rank] {  // as srun does without --mpi=pmix
      ::setenv("SLURM_STEP_NUM_TASKS", "2", 1);
      ::setenv("SLURM_PROCID", rank, 1);
    };
  };
  const auto arguments = with({"--out", folder / "a.h5"});
  const ProgramRun first = run_program("dmft_solve", arguments, launched("0"));
  CHECK_MESSAGE((first.status == 2 && contains(first.text, "srun started 2 processes of dmft_solve")), first.text);
  const ProgramRun second = run_program("dmft_solve", arguments, launched("1"));
  CHECK_MESSAGE((second.status == 2 && second.text.empty()), second.text);
  CHECK(folder.file_count() == 0);
}
