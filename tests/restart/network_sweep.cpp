// A sweep that was killed and started again gives the file of one that was not; finished runs are kept and belong to one configuration.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "support/hdf5.hpp"
#include "tests/network_fixture.hpp"
#include "tests/program.hpp"
#include "validation/run_store.hpp"

namespace {

namespace fs = std::filesystem;

/// Six runs of a second or so each, one after the other.
std::vector<std::string> command(const std::string& out, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"--widths",      "64,96",
                                        "--seeds",       "3",
                                        "--steps",       "150",
                                        "--lr",          "0.05",
                                        "--observables", "rms_y,rms_f",
                                        "--threads",     "1",
                                        "--out",         out,
                                        "--set",         "output.weights=true",
                                        "--set",         "output.kernels_at=[0,150]",
                                        "--set",         "output.distributions_at=[0,150]",
                                        "--test",        "64"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::size_t finished_runs(const std::string& out) {
  std::size_t n = 0;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(out + ".runs", absent)) {
    const std::string name = entry.path().filename().string();
    n += name.starts_with("N") && name.ends_with(".h5") ? 1 : 0;
  }
  return n;
}

/// Starts the sweep and kills it as soon as two runs are finished.
void start_and_kill(const std::string& out, int signal = SIGKILL) {
  RunningProgram program("moe_train", command(out));
  for (int k = 0; k < 6000 && finished_runs(out) < 2; ++k) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  program.send(signal);
  const ProgramRun run = program.wait();
  REQUIRE_MESSAGE(run.status == 128 + signal, run.text);
  REQUIRE(finished_runs(out) >= 2);
  REQUIRE(finished_runs(out) < 6);
  REQUIRE_FALSE(fs::exists(out));
}

}  // namespace

TEST_CASE("moe_train killed in the middle continues where it stopped and writes the file of one that was not killed") {
  const TemporaryFolder folder;
  const std::string whole = folder / "whole.h5", killed = folder / "killed.h5";
  REQUIRE(run_program("moe_train", command(whole)).status == 0);
  start_and_kill(killed);
  const auto before = finished_runs(killed);
  const ProgramRun again = run_program("moe_train", command(killed));
  REQUIRE_MESSAGE(again.status == 0, again.text);
  CHECK_MESSAGE(contains(again.text, fmt::format("Continuing: {} of 6 runs are in ", before)), again.text);
  CHECK_FALSE(fs::exists(killed + ".runs"));

  const moe::H5Reader a(whole), b(killed);
  std::size_t compared = 0;
  const std::vector<std::string> subgroups = {"", "/observables", "/kernels", "/distributions", "/final"};
  for (const char* width : {"/network/N64", "/network/N96"})
    for (const auto& sub : subgroups) {
      REQUIRE(a.members(width + sub) == b.members(width + sub));
      for (const auto& name : a.members(width + sub)) {
        if (std::find(subgroups.begin(), subgroups.end(), "/" + name) != subgroups.end()) continue;
        const std::string path = width + sub + "/" + name;
        CAPTURE(path);
        CHECK(a.read(path).values == b.read(path).values);
        ++compared;
      }
    }
  CHECK(compared >= 2 * (7 + 3 + 5 + 5 + 5));
}

TEST_CASE(
    "moe_train refuses to continue the runs of another configuration and names what differs; a damaged run is trained "
    "again") {
  const TemporaryFolder folder;
  const std::string out = folder / "networks.h5";
  start_and_kill(out, SIGTERM);
  const ProgramRun other = run_program("moe_train", command(out, {"--lr", "0.04", "--gate", "softmax"}));
  CHECK(other.status == 2);
  for (const char* part : {"optimizer.lr = 0.05 there, 0.04 here", "model.gate = \"sigmoid\" there, \"softmax\" here",
                           "expert_in at N = 96", "networks.h5.runs", "--out"})
    CHECK_MESSAGE(contains(other.text, part), part << " is missing in: " << other.text);
  CHECK_FALSE(contains(other.text, "training.steps"));
  CHECK(finished_runs(out) >= 2);

  // Wide ones come first.
  const std::string damaged = out + ".runs/N96_seed0.h5";
  REQUIRE(fs::exists(damaged));
  fs::resize_file(damaged, fs::file_size(damaged) / 2);
  const auto before = finished_runs(out);
  const ProgramRun again = run_program("moe_train", command(out));
  CHECK(again.status == 0);
  CHECK_MESSAGE(contains(again.text, fmt::format("Continuing: {} of 6 runs", before - 1)), again.text);
}

TEST_CASE("a stored run comes back as it was, a failure too; two processes do not share a folder") {
  const TemporaryFolder folder;
  const std::string out = folder / "networks.h5";
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::adam, 3);
  spec.output.kernels_at = {1};
  spec.output.distributions_at = {0, 2};
  spec.training.batch = 3;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const auto identity = moe::sweep_identity(spec, data);
  moe::NetworkRun run = moe::train_network(spec, data, 16, 4);
  run.failure = moe::NumericsError(3, "y", "2 of 3 entries are NaN");
  {
    const moe::RunStore store(out, identity);
    CHECK_FALSE(store.load(16, 4));
    store.save(run);
    CHECK_THROWS_AS(moe::RunStore(out, identity), moe::IoError);
  }
  moe::RunStore store(out, identity);
  const auto loaded = store.load(16, 4);
  REQUIRE(loaded);
  CHECK_FALSE(store.load(16, 5));
  CHECK(loaded->shape == run.shape);
  CHECK(loaded->seed == 4);
  CHECK(loaded->loss == run.loss);
  CHECK(loaded->batch_loss == run.batch_loss);
  CHECK(loaded->test_accuracy == run.test_accuracy);
  CHECK(loaded->eval_steps == run.eval_steps);
  CHECK(loaded->observe_steps == run.observe_steps);
  CHECK(loaded->observables == run.observables);
  CHECK(loaded->f == run.f);
  CHECK(loaded->kernels == run.kernels);
  CHECK(loaded->distributions == run.distributions);
  CHECK(loaded->final_weights.expert_out == run.final_weights.expert_out);
  CHECK(loaded->failure->what() == std::string(run.failure->what()));
  store.remove();
  CHECK(folder.file_count() == 0);
}
