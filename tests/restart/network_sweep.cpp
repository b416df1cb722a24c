// A sweep that was killed and started again gives the file of one that was not; finished runs are kept and belong to one configuration.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "tests/folders.hpp"
#include "tests/network_fixture.hpp"
#include "tests/program.hpp"
#include "validation/network_file.hpp"
#include "validation/run_store.hpp"

namespace {

namespace fs = std::filesystem;

/// Six runs of a second or so each, one after the other.
const std::string steps = std::to_string(150 / slowdown);
std::vector<std::string> command(const std::string& out, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"--widths",      "64,96",
                                        "--seeds",       "3",
                                        "--steps",       steps,
                                        "--lr",          "0.05",
                                        "--observables", "rms_y,rms_f",
                                        "--threads",     "1",
                                        "--out",         out,
                                        "--set",         "output.weights=true",
                                        "--set",         "output.kernels_at=[0," + steps + "]",
                                        "--set",         "output.distributions_at=[0," + steps + "]",
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
                           "networks.h5.runs", "--checkpoint FOLDER"})
    CHECK_MESSAGE(contains(other.text, part), part << " is missing in: " << other.text);
  for (const char* part : {"training.steps", "expert_in at N"}) CHECK_FALSE(contains(other.text, part));
  CHECK(finished_runs(out) >= 2);

  // Wide ones come first.
  const std::string damaged = out + ".runs/N96_seed0.h5";
  REQUIRE(fs::exists(damaged));
  fs::resize_file(damaged, fs::file_size(damaged) / 2);
  const auto before = finished_runs(out);
  const ProgramRun again = run_program("moe_train", command(out));
  CHECK(again.status == 0);
  CHECK_MESSAGE(contains(again.text, fmt::format("Continuing: {} of 6 runs", before - 1)), again.text);
  CHECK_MESSAGE(contains(again.text, damaged), again.text);
  CHECK_MESSAGE(contains(again.text, "Its network is trained anew"), again.text);
}

namespace {

struct Stopped {};

/// Everything that a run recorded, and its weights.
std::vector<double> numbers(const moe::NetworkRun& r) {
  std::vector<double> all;
  const auto add = [&](const auto& values) { all.insert(all.end(), values.begin(), values.end()); };
  const auto matrix = [&](const Eigen::MatrixXd& m) { all.insert(all.end(), m.data(), m.data() + m.size()); };
  for (const auto* v : {&r.loss, &r.accuracy, &r.test_loss, &r.test_accuracy, &r.batch_loss}) add(*v);
  for (const auto* v : {&r.eval_steps, &r.observe_steps, &r.test_steps, &r.kernel_steps, &r.distribution_steps})
    add(*v);
  for (const auto& m : r.f) matrix(m);
  for (const auto& [name, values] : r.observables) add(values);
  for (const auto& [name, list] : r.kernels)
    for (const auto& m : list) matrix(m);
  for (const auto& [name, list] : r.distributions)
    for (const auto& shares : list) add(shares);
  const moe::NetworkWeights& w = r.final_weights;
  for (const auto* m : {&w.w_in, &w.router, &w.expert_in, &w.expert_out, &w.readout}) matrix(*m);
  all.push_back(r.converged_at);
  return all;
}

}  // namespace

TEST_CASE(
    "a network in progress that died goes on bit for bit [every rule, mini-batches, top-K, both precisions; flow by "
    "every "
    "stepper]") {
  using enum moe::OptimizerKind;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  std::vector<moe::RunSpec> specs;
  for (const auto rule : {sgd, momentum, adam, adamw, signsgd, adafactor}) {
    specs.push_back(network_fixture::spec("II", "mssp", rule, 9));
    specs.back().optimizer.weight_decay = 0.2;
  }
  specs.push_back(network_fixture::spec("III", "mup", adam, 9));
  specs.back().training.batch = 3;
  specs.back().training.batch_order = moe::BatchOrder::shuffled;
  specs.back().sampling.precision = moe::Precision::float32;
  specs.push_back(network_fixture::spec("I", "mssp", momentum, 9));
  specs.back().model.routing = moe::Routing::topk;
  specs.back().model.balance_bias = 0.1;
  specs.back().model.balance_loss = 0.3;
  for (const auto stepper : {moe::Stepper::dopri5, moe::Stepper::abm, moe::Stepper::rk4}) {
    specs.push_back(network_fixture::spec("II", "mssp", sgd, 9));
    specs.back().training.dynamics = moe::Dynamics::flow;
    specs.back().training.stepper = stepper;
    specs.back().sampling.precision = moe::Precision::float32;
  }
  for (moe::RunSpec& s : specs) {
    s.output.kernels_at = {0, 7};
    s.output.distributions_at = {0, 8};
    s.training.test_every = 2;
    const std::vector<double> whole = numbers(moe::train_network(s, data, 16, 4));
    for (const int died : {1, 5}) {
      CAPTURE(moe::print_config(s));
      CAPTURE(died);
      const TemporaryFolder folder;
      int resumed = -1;
      const auto train = [&](int until) {
        moe::RunStore store(folder / "runs", s, data, {0, {}});
        moe::TrainOptions options;
        options.resume = [&](int width, std::uint64_t seed, const moe::TrainOptions::State& state) {
          return store.resume(width, seed, state);
        };
        options.keep = [&](int width, std::uint64_t seed, const moe::TrainOptions::State& state) {
          store.keep(width, seed, state);
        };
        options.on_resume = [&](int, int steps) { resumed = steps; };
        options.on_step = [&](int step, double) {
          if (step == until + 1) throw Stopped{};
        };
        return moe::train_network(s, data, 16, 4, options);
      };
      CHECK_THROWS_AS(train(died), Stopped);
      CHECK(resumed == -1);
      const std::vector<double> continued = numbers(train(100));
      CHECK(resumed == died);
      CHECK(continued == whole);
    }
  }
}

TEST_CASE("a state in progress is saved when it is due, and not before; a finished run needs none") {
  const moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 3);
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const TemporaryFolder folder;
  moe::RunStore store(folder / "runs", spec, data, {3600, {}});
  int number = 7;
  const auto state = [&](moe::Archive& a) { a("number", number); };
  CHECK_FALSE(store.resume(16, 4, state));
  store.keep(16, 4, state);
  CHECK_FALSE(store.resume(16, 4, state));
  store.keep(16, 4, state, true);
  number = 0;
  CHECK(store.resume(16, 4, state));
  CHECK(number == 7);
  store.save(moe::train_network(spec, data, 16, 4));
  CHECK_FALSE(store.resume(16, 4, state));
}

TEST_CASE("moe_train: --checkpoint, SIGTERM, --resume alone; what does not fit is refused with status and sentence") {
  const TemporaryFolder folder;
  const std::string runs = folder / "kept", out = folder / "a.h5", undisturbed = folder / "b.h5";
  const std::vector<std::string> problem = {"--source", "gaussian", "--train",     "12",   "--test",        "0",
                                            "--widths", "64",       "--seeds",     "1",    "--steps",       "3000",
                                            "--lr",     "0.01",     "--optimizer", "adam", "--observables", "none"};
  const auto with = [&](std::vector<std::string> more) {
    std::vector<std::string> all = problem;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  REQUIRE(run_program("moe_train", with({"--out", undisturbed, "--quiet"})).status == 0);
  const std::string state = runs + "/in_progress_N64_seed0.h5";
  RunningProgram program("moe_train", with({"--out", out, "--checkpoint", runs, "--checkpoint-every", "1h"}));
  for (int k = 0; k < 2000 && !fs::exists(runs + "/sweep.h5"); ++k)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  program.send(SIGTERM);
  const ProgramRun ended = program.wait();
  CAPTURE(ended.text);
  REQUIRE(ended.status == 128 + SIGTERM);
  CHECK(contains(ended.text, "--resume " + runs));
  REQUIRE(fs::exists(state));

  ProgramRun run = run_program("moe_train", with({"--out", out, "--resume", runs, "--lr", "0.02"}));
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "optimizer.lr = 0.01 there, 0.02 here")), run.text);
  run = run_program("moe_train", with({"--out", out, "--resume", folder / "none"}));
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "there are no runs in " + (folder / "none"))), run.text);
  run = run_program("moe_train", with({"--out", out, "--resume", runs, "--checkpoint", folder / "other"}));
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "Give --resume alone")), run.text);
  run = run_program("dmft_validate", {"--resume", runs});
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "--limit FILE --networks FILE")), run.text);

  run = run_program("moe_train", {"--resume", runs, "--out", out});
  CHECK_MESSAGE(run.status == 0, run.text);
  CHECK_FALSE(fs::exists(runs));
  CHECK(moe::H5Reader(out).read("/network/N64/loss").values ==
        moe::H5Reader(undisturbed).read("/network/N64/loss").values);
}

TEST_CASE("moe_train: runs of another table under the same name are refused with its numbers") {
  const TemporaryFolder folder;
  const std::string table = folder / "mine.toml";
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 3);
  const std::string text = read_bytes(source_folder() + "/parameterizations/mssp.toml");
  write_bytes(table, text);
  spec.model.param = table;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  { const moe::RunStore store(folder / "runs", spec, data, {}); }
  CHECK(message_of<moe::ConfigError>([&] { moe::RunStore(folder / "runs", spec, data, {}); }).empty());
  write_bytes(table, read_bytes(source_folder() + "/parameterizations/mup.toml"));
  const std::string refused = message_of<moe::ConfigError>([&] { moe::RunStore(folder / "runs", spec, data, {}); });
  CHECK_MESSAGE(contains(refused, "expert_out at N = 16"), refused);
  CHECK_FALSE(contains(refused, "model.param"));
}

TEST_CASE("a stored run comes back as it was, a failure too; two processes do not share a folder") {
  const TemporaryFolder folder;
  const std::string out = folder / "networks.h5";
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::adam, 3);
  spec.output.kernels_at = {1};
  spec.output.distributions_at = {0, 2};
  spec.training.batch = 3;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  moe::NetworkRun run = moe::train_network(spec, data, 16, 4);
  run.failure = moe::NumericsError(3, "y", "2 of 3 entries are NaN");
  {
    moe::RunStore store(out, spec, data, {});
    CHECK_FALSE(store.load(16, 4));
    store.save(run);
    CHECK_THROWS_AS(moe::RunStore(out, spec, data, {}), moe::IoError);
  }
  moe::RunStore store(out, spec, data, {});
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

TEST_CASE("a sweep that is complete deletes its own files from the folder, and nothing else that lies there") {
  const moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 3);
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const TemporaryFolder folder;
  write_bytes(folder / "thesis.tex", "kept");
  fs::create_directories(folder / "data");
  moe::RunStore store(folder.path().string(), spec, data, {});
  int number = 7;
  store.keep(
      16, 5, [&](moe::Archive& a) { a("number", number); }, true);
  store.save(moe::train_network(spec, data, 16, 4));
  write_bytes(folder / "N16_seed6.h5.tmp-999999999", "left by a process that was killed");
  CHECK(folder.file_count() == 7);
  store.remove();
  CHECK(folder.file_count() == 2);
  CHECK(read_bytes(folder / "thesis.tex") == "kept");
}

TEST_CASE("a network that cannot be kept is told with what follows from it, and the training goes on [full disk]") {
  const moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 3);
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const TemporaryFolder folder;
  std::vector<std::string> told;
  moe::RunStore store(folder / "runs", spec, data, {0, [&](const std::string& problem) { told.push_back(problem); }});
  // A file of these names cannot be written where a folder has them.
  fs::create_directories(folder / "runs/in_progress_N16_seed4.h5/x");
  fs::create_directories(folder / "runs/N16_seed4.h5/x");
  const auto state = [](moe::Archive&) {};
  store.keep(16, 4, state, true);
  store.save(moe::train_network(spec, data, 16, 4));
  REQUIRE(told.size() == 2);
  for (const std::string& problem : told)
    for (const char* part : {"cannot write", "N16_seed4.h5", "--checkpoint FOLDER", "The training goes on"})
      CHECK_MESSAGE(contains(problem, part), problem);
  CHECK_MESSAGE(contains(told[0], "continues from its last state"), told[0]);
  CHECK_MESSAGE(contains(told[1], "lost only if the program ends early"), told[1]);
}

TEST_CASE("moe_train: the size that the result will have is foretold, and refused where the disk has less") {
  for (const bool batches : {false, true}) {
    moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::adam, 60);
    spec.network.widths = {16, 24};
    spec.network.seeds = 2;
    spec.output.kernels_at = {0, 30};
    spec.output.distributions_at = {0, 60};
    spec.output.weights = true;
    spec.model.depth = 2;
    if (batches) spec.training.batch = 16;
    const moe::Dataset data = network_fixture::data(48, 5, 3);
    const TemporaryFolder folder;
    moe::write_network_file(folder / "a.h5", "test", spec, data, moe::train_networks(spec, data, 1));
    const double foretold = moe::network_file_bytes(spec, data),
                 is = static_cast<double>(fs::file_size(folder / "a.h5"));
    INFO("foretold ", foretold, ", is ", is);
    // Numbers alone; a data set's head has a kilobyte or two, and there are about a hundred of them.
    CHECK(is > foretold);
    CHECK(is < foretold + 250e3);
    CHECK(foretold > 500e3);
  }
  const ProgramRun run = run_program("moe_train", {"--steps", "2000000000", "--widths", "64", "--out", "/tmp/a.h5"});
  CHECK_MESSAGE((run.status == 2 && contains(run.text, "will have about") && contains(run.text, "--out FILE")),
                run.text);
}

TEST_CASE("a sweep of another version of the program, or whose states have another layout, is refused with both") {
  const moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 3);
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const TemporaryFolder folder;
  { const moe::RunStore store(folder / "runs", spec, data, {}); }
  const auto identity = moe::sweep_identity(spec, data);
  for (const char* key : {"version of the program", "layout of what is kept"}) {
    REQUIRE(identity.contains(key));
    moe::H5Writer file(folder / "runs/sweep.h5");
    for (const auto& [name, value] : identity) file.attribute("/", name, name == key ? "0.0.7" : value);
    file.commit();
    const std::string refused = message_of<moe::ConfigError>([&] { moe::RunStore(folder / "runs", spec, data, {}); });
    CHECK_MESSAGE(contains(refused, std::string(key) + " = 0.0.7 there, " + identity.at(key) + " here"), refused);
  }
}
