/// dmft_validate as a user meets it: exit status, what it says, what it leaves behind.
#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <thread>

#include "data/dataset.hpp"
#include "dmft/solve.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "tests/program.hpp"
#include "validation/network.hpp"

using namespace moe;

namespace {

namespace fs = std::filesystem;

/// A run of a second or so with errors that are small enough to tell.
const std::vector<std::string> small = {"--source",
                                        "gaussian",
                                        "--dimension",
                                        "5",
                                        "--train",
                                        "6",
                                        "--test",
                                        "0",
                                        "--loss",
                                        "mse",
                                        "--classes",
                                        "2",
                                        "--neurons",
                                        "128",
                                        "--steps",
                                        "4",
                                        "--param",
                                        "mssp",
                                        "--replicas",
                                        "8",
                                        "--optimizer",
                                        "sgd",
                                        "--lr",
                                        "0.7",
                                        "--widths",
                                        "16,32,64",
                                        "--seeds",
                                        "12",
                                        "--no-page",
                                        "--set",
                                        "model.expert_width=4"};

std::vector<std::string> with(std::vector<std::string> more) {
  std::vector<std::string> all = small;
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

ProgramRun run(std::vector<std::string> more) { return run_program("dmft_validate", with(std::move(more))); }

void check_refused(const ProgramRun& run, int status, const std::vector<std::string>& pieces) {
  CAPTURE(run.text);
  CHECK(run.status == status);
  for (const std::string& piece : pieces) CHECK(contains(run.text, piece));
  CHECK_FALSE(contains(run.text, "validating"));
}

}  // namespace

TEST_CASE("dmft_validate: a right theory, status 0, one file with limit, networks and comparison") {
  const TemporaryFolder folder;
  const ProgramRun r = run({"--out", folder / "a.h5"});
  CAPTURE(r.text);
  CHECK(r.status == 0);
  CHECK(contains(r.text, "Verdict: positive"));
  CHECK(contains(r.text, "Written: " + (folder / "a.h5")));
  const H5Reader file(folder / "a.h5");
  CHECK(file.attribute_text("/", "kind") == "validation");
  CHECK(file.attribute_text("/limit", "status") == "complete");
  CHECK(file.read("/network/N32/loss").shape == std::vector<std::size_t>{12, 5});
  CHECK(file.read("/comparison/widths").values == std::vector<double>{16, 32, 64});
  CHECK(file.attribute_text("/comparison", "verdict") == "positive");
  CHECK(file.attribute_text("/comparison/observables/loss", "verdict") == "agrees");
  CHECK(file.read("/comparison/observables/rms_h/mean").shape == std::vector<std::size_t>{3, 5});
  CHECK(file.read("/comparison/observables/rms_h/z").values.size() == 5);
  CHECK(folder.file_count() == 1);
}

TEST_CASE(
    "dmft_validate: files of other programs are compared; other configurations are refused with their keys, and "
    "forced") {
  const TemporaryFolder folder;
  const std::string limit = folder / "limit.h5", right = folder / "right.h5", wrong = folder / "wrong.h5";
  const auto strip = [](std::vector<std::string> words) {
    std::erase(words, "--no-page");
    return words;
  };
  REQUIRE(run_program("dmft_solve", strip(with({"--out", limit}))).status == 0);
  REQUIRE(run_program("moe_train", strip(with({"--out", right}))).status == 0);
  REQUIRE(run_program("moe_train", strip(with({"--param", "mup", "--lr", "0.5", "--out", wrong}))).status == 0);
  const auto compare = [&](const std::string& networks, std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"--limit", limit, "--networks", networks, "--no-page", "--out", folder / "c.h5"};
    words.insert(words.end(), more.begin(), more.end());
    return run_program("dmft_validate", words);
  };
  const ProgramRun same = compare(right);
  CAPTURE(same.text);
  CHECK(same.status == 0);
  CHECK(H5Reader(folder / "c.h5").attribute_text("/comparison", "verdict") == "positive");
  CHECK(fs::remove(folder / "c.h5"));
  check_refused(compare(wrong), 2, {"model.param = \"mssp\" and \"mup\"", "optimizer.lr = 0.7 and 0.5", "--force"});
  CHECK_FALSE(fs::exists(folder / "c.h5"));
  const ProgramRun forced = compare(wrong, {"--force"});
  CAPTURE(forced.text);
  CHECK(forced.status == 1);
  CHECK(contains(forced.text, "Verdict: negative"));
  CHECK(contains(forced.text, "rms_y_init deviates"));
  CHECK(contains(forced.text, "limit and networks differ (--force): optimizer.lr"));

  check_refused(run_program("dmft_validate", {"--limit", limit}), 2, {"--networks"});
  check_refused(compare(limit), 2, {"has no /network", "moe_train"});
  check_refused(run_program("dmft_validate", {"--limit", right, "--networks", folder / "none.h5", "--sweep-loss",
                                              "tail", "--out", folder / "none/c.h5"}),
                2, {folder / "none.h5", "has no /limit", "--sweep-loss belongs to --lr-sweep", folder / "none/c.h5"});
}

TEST_CASE("dmft_validate: what cannot run is refused before the run, all faults at once") {
  const TemporaryFolder folder;
  check_refused(run({"--out", folder / "none/a.h5"}), 2, {folder / "none", "does not exist", "--out"});
  check_refused(run_program("dmft_validate", {"--out", folder / "a.html", "--steps", "1", "--widths", "8,16", "--train",
                                              "4", "--test", "0", "--neurons", "32", "--seeds", "2"}),
                2, {folder / "a.html", "page", "--no-page"});
  check_refused(run({"--nuerons", "64"}), 2, {"nuerons"});
  check_refused(run({"--lr-sweep", "3:0.03:9", "--sweep-loss", "best", "--out", folder / "a.h5"}), 2,
                {"3:0.03:9", "0.03:3:9", "best", "tail, final or test"});
  check_refused(run({"--lr-sweep", "0.1:1:3", "--sweep-loss", "test", "--out", folder / "a.h5"}), 2, {"data.test"});
  check_refused(run({"--lr-sweep", "0.1:1:3", "--coordinate-check", "mup"}), 2, {"Choose one"});
  check_refused(run({"--coordinate-check", "mup,nosuch", "--out", folder / "a.h5"}), 2, {"nosuch"});
  check_refused(run({"--neurons", "16777216", "--out", folder / "a.h5"}), 2, {"memory:", "sampling.neurons"});
  CHECK(folder.file_count() == 0);
}

TEST_CASE("dmft_validate: one width, seed or replica is refused before any run, status 2") {
  const TemporaryFolder folder;
  for (const std::vector<std::string>& what : {std::vector<std::string>{}, {"--coordinate-check", "mup,mssp"}}) {
    std::vector<std::string> one = {"--widths", "16", "--seeds", "1", "--replicas", "1", "--out", folder / "a.h5"};
    one.insert(one.end(), what.begin(), what.end());
    check_refused(run(one), 2, {"network.widths", "network.seeds", "sampling.replicas"});
  }
}

TEST_CASE("dmft_validate: networks that diverge are told, status 1, and the file keeps what there is") {
  const TemporaryFolder folder;
  const ProgramRun r = run({"--lr", "1e6", "--activation", "relu", "--steps", "30", "--out", folder / "a.h5"});
  CAPTURE(r.text);
  CHECK(r.status == 1);
  CHECK(contains(r.text, "step "));
  CHECK(H5Reader(folder / "a.h5").read("/limit/loss").values.size() >= 1);
}

TEST_CASE(
    "dmft_validate: a width of which too few seeds finish is told with what stopped them, status 1, and the file has "
    "the rest") {
  const TemporaryFolder folder;
  // Two neurons under relu leave most of six samples without features, which have no norm.
  const ProgramRun r = run({"--activation", "relu", "--norm", "rms", "--residual", "true", "--lr", "0.1", "--widths",
                            "2,16,32", "--seeds", "3", "--out", folder / "a.h5"});
  CAPTURE(r.text);
  CHECK(r.status == 1);
  CHECK(contains(r.text, "seed at width 2 gives no error"));
  CHECK(contains(r.text, "N = 2, seed "));
  CHECK(contains(r.text, "step 0"));
  CHECK(H5Reader(folder / "a.h5").read("/network/N32/loss").shape == std::vector<std::size_t>{3, 5});
}

TEST_CASE("dmft_validate: a term that is zero but for rounding deviates from nothing [only B and the readout learn]") {
  const TemporaryFolder folder;
  std::vector<std::string> fixed;
  for (const char* tensor : {"input", "router", "expert_in"})
    fixed.insert(fixed.end(), {"--set", std::string("optimizer.lr_scale.") + tensor + "=0"});
  fixed.insert(fixed.end(), {"--out", folder / "a.h5"});
  const ProgramRun r = run(fixed);
  CAPTURE(r.text);
  const H5Reader file(folder / "a.h5");
  const std::string term = "/comparison/observables/rms_y_propagating";
  const double limit = file.read(term + "/limit").values.back();
  CHECK(limit > 0);  // a difference of what y is, in single precision
  CHECK(limit < 1e-6);
  CHECK(file.attribute_text(term, "verdict") == "agrees");
  CHECK(r.status == 0);
}

TEST_CASE("dmft_validate: changes far below the tolerance of bases are those of networks [lr 0.01]") {
  const TemporaryFolder folder;
  const std::string term = "/comparison/observables/change_r";
  const auto changes_with = [&](const std::string& tolerance) {
    const ProgramRun r = run({"--lr", "0.01", "--replicas", "16", "--seeds", "24", "--observables", "all", "--neurons",
                              "256", "--tolerance", tolerance, "--out", folder / "a.h5"});
    CAPTURE(r.text);
    CHECK(r.status == 0);
    const H5Reader file(folder / "a.h5");
    CHECK(file.attribute_text(term, "verdict") == "agrees");
    return file.read(term + "/limit").values;
  };
  const std::vector<double> all = changes_with("1e-5"), coarse = changes_with("0.01");
  CHECK(all[2] < 0.01);  // of r itself, which is of order one
  CHECK(coarse[2] == doctest::Approx(all[2]).epsilon(0.02));
}

TEST_CASE("dmft_validate: Ctrl-C keeps what was computed, status 1") {
  const TemporaryFolder folder;
  RunningProgram program("dmft_validate",
                         with({"--steps", "20000", "--eval-every", "1000", "--observables", "none", "--set",
                               "output.observe_every=20000", "--widths", "64,256", "--out", folder / "a.h5"}));
  std::this_thread::sleep_for(std::chrono::seconds(3));
  program.send(SIGINT);
  const ProgramRun r = program.wait();
  CAPTURE(r.text);
  CHECK(r.status == 1);
  CHECK(contains(r.text, "interrupted; what was computed is in " + (folder / "a.h5")));
  CHECK(H5Reader(folder / "a.h5").read("/limit/loss").values.size() >= 1);
  CHECK(folder.file_count() == 1);
}

TEST_CASE("dmft_validate --lr-sweep: optima of widths and limit, in the file and in the text") {
  const TemporaryFolder folder;
  const ProgramRun r = run({"--lr-sweep", "0.1:1000:5", "--seeds", "4", "--activation", "relu", "--widths", "16,32",
                            "--out", folder / "a.h5"});
  CAPTURE(r.text);
  CHECK(r.status == 0);
  CHECK(contains(r.text, "Best learning rate"));
  const H5Reader file(folder / "a.h5");
  CHECK(file.read("/lr_sweep/eta").values.size() == 5);
  CHECK(file.read("/lr_sweep/loss").shape == std::vector<std::size_t>{2, 5});
  CHECK(file.read("/lr_sweep/limit_loss").values.size() == 5);
  const H5Array runs = file.read("/lr_sweep/seed_loss"), loss = file.read("/lr_sweep/loss");
  REQUIRE(runs.shape == std::vector<std::size_t>{2, 5, 4});
  double mean = 0;
  for (std::size_t k = 0; k < 4; ++k) mean += runs.values[(1 * 5 + 2) * 4 + k] / 4;  // N = 32, the third rate
  CHECK((mean == doctest::Approx(loss.values[1 * 5 + 2]) || (std::isinf(mean) && std::isinf(loss.values[7]))));
  CHECK(file.read("/lr_sweep/replica_loss").shape[0] == 5);
  CHECK(file.read("/lr_sweep/optimum").values.size() == 2);
  CHECK(file.attribute_text("/lr_sweep", "criterion") == "tail");
}

TEST_CASE("dmft_validate --coordinate-check: parameterizations side by side in one file") {
  const TemporaryFolder folder;
  const ProgramRun r = run({"--coordinate-check", "mup,mssp", "--out", folder / "a.h5"});
  CAPTURE(r.text);
  CHECK(r.status == 0);
  const H5Reader file(folder / "a.h5");
  for (const char* param : {"mup", "mssp"})
    CHECK(file.read(std::string("/coordinate_check/") + param + "/observables/rms_y_init/mean").shape ==
          std::vector<std::size_t>{3, 5});
}

TEST_CASE(
    "dmft_validate in a stack of two blocks: sweep and coordinate check hold what networks and limit give by "
    "themselves") {
  const TemporaryFolder folder;
  const auto run_stack = [](std::vector<std::string> more) {
    std::vector<std::string> words = {
        "--depth",   "2",     "--branch-exponent", "0.5", "--norm",     "rms", "--set",   "model.residual=true",
        "--widths",  "16,32", "--seeds",           "2",   "--replicas", "2",   "--steps", "3",
        "--neurons", "64"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  const auto spec_of = [](const H5Reader& file) {
    return read_config_text(file.attribute_text("/", "config"), "config");
  };

  const ProgramRun sweep = run_stack({"--lr-sweep", "0.1:1.6:3", "--sweep-loss", "final", "--out", folder / "a.h5"});
  CAPTURE(sweep.text);
  REQUIRE(sweep.status == 0);
  const H5Reader swept(folder / "a.h5");
  RunSpec spec = spec_of(swept);
  REQUIRE(spec.model.depth == 2);
  const Dataset data = load_dataset(spec);
  const H5Array of_networks = swept.read("/lr_sweep/seed_loss"), of_limit = swept.read("/lr_sweep/replica_loss");
  REQUIRE(of_networks.shape == std::vector<std::size_t>{2, 3, 2});
  REQUIRE(of_limit.shape == std::vector<std::size_t>{3, 2});
  const std::vector<double> eta = swept.read("/lr_sweep/eta").values;
  for (std::size_t e = 0; e < 3; ++e) {
    spec.optimizer.lr = eta[e];
    const auto networks = train_networks(spec, data, 1);
    const LimitResult limit = solve_limit(spec, data);
    for (std::size_t k = 0; k < 2; ++k) {
      CHECK(of_limit.values[e * 2 + k] == limit.loss_per_replica[k].back());
      for (std::size_t w = 0; w < 2; ++w) CHECK(of_networks.values[(w * 3 + e) * 2 + k] == networks[w][k].loss.back());
    }
  }

  const ProgramRun check = run_stack({"--coordinate-check", "mssp", "--out", folder / "b.h5"});
  CAPTURE(check.text);
  const H5Reader checked(folder / "b.h5");
  spec = spec_of(checked);
  const auto networks = train_networks(spec, data, 1);
  for (const char* name : {"rms_r.1", "rms_r.2", "rms_xi"}) {
    const H5Array mean = checked.read(std::string("/coordinate_check/mssp/observables/") + name + "/mean");
    REQUIRE(mean.shape == std::vector<std::size_t>{2, 4});
    for (std::size_t w = 0; w < 2; ++w) {
      const auto &a = networks[w][0].observables.at(name), &b = networks[w][1].observables.at(name);
      for (std::size_t t = 0; t < 4; ++t)
        CHECK(mean.values[w * 4 + t] == doctest::Approx((a[t] + b[t]) / 2).epsilon(1e-12));
    }
  }
}
