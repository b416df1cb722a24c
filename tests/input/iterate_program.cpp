/// dmft_solve --method iterate as a user meets it: what it prints and writes, and what it refuses.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "support/hdf5.hpp"
#include "tests/program.hpp"

using namespace moe;

namespace {

std::vector<std::string> iterate(std::vector<std::string> more) {
  std::vector<std::string> all = {
      "--method", "iterate", "--source", "gaussian", "--dimension", "6",   "--train",     "6",
      "--test",   "0",       "--loss",   "mse",      "--classes",   "2",   "--optimizer", "sgd",
      "--lr",     "1",       "--steps",  "4",        "--neurons",   "800", "--set",       "sampling.experts=400"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace

TEST_CASE("dmft_solve --method iterate: floor, certificate and the file of a sweep [II mssp sgd]") {
  const TemporaryFolder folder;
  const std::string out = folder / "a.h5", swept = folder / "b.h5";
  const ProgramRun run = run_program("dmft_solve", iterate({"--kernels-at", "0,4", "--out", out, "--neurons", "400",
                                                            "--set", "sampling.experts=200", "--site-batches", "2"}));
  CAPTURE(run.text);
  REQUIRE(run.status == 0);
  for (const char* piece : {"kernels of 30 x 30 in 6 replicas need about", "2.64e+04 sites per iteration",
                            "2 batches in each of 6 replicas", "Monte Carlo floor at iteration", "Certificate",
                            "kernel iteration leaves out"})
    CHECK_MESSAGE(contains(run.text, piece), piece);
  std::vector<std::string> as_sweep = iterate({"--kernels-at", "0,4", "--out", swept, "--replicas", "12"});
  as_sweep[1] = "sweep";
  REQUIRE(run_program("dmft_solve", as_sweep).status == 0);

  const H5Reader a(out), b(swept);
  CHECK(a.attribute_text("/limit", "status") == "complete");
  const auto close = [&](const std::string& name, double bias) {
    const auto x = a.read(name).values, y = b.read(name).values;
    const auto ex = a.read(name + "_sem").values, ey = b.read(name + "_sem").values;
    REQUIRE(x.size() == y.size());
    const double largest = *std::max_element(y.begin(), y.end());
    for (std::size_t t = 0; t < x.size(); ++t) {
      INFO(name, " at step ", t, ": ", x[t], " +- ", ex[t], ", sweep ", y[t], " +- ", ey[t]);
      CHECK(std::abs(x[t] - y[t]) <= 4 * std::hypot(ex[t], ey[t]) + bias * largest);
    }
  };
  close("/limit/loss", 1e-3);
  // Both have biases O(1/S) of some times 1/400; six and twelve replicas have errors with long tails.
  for (const char* name :
       {"rms_h", "rms_phi", "rms_r", "rms_u", "rms_v", "rms_y", "rms_D", "rms_zeta", "rms_rho", "rms_xi"})
    close(std::string("/limit/observables/") + name, 0.02);
  for (const char* name : {"Phi", "GvGv", "DD", "ghatghat"}) {
    const auto x = a.read(std::string("/limit/kernels/") + name).values,
               y = b.read(std::string("/limit/kernels/") + name).values;
    REQUIRE(x.size() == y.size());
    double difference = 0, size = 0;
    for (std::size_t k = 0; k < x.size(); ++k) difference += std::pow(x[k] - y[k], 2), size += y[k] * y[k];
    INFO(name, " differs by ", std::sqrt(difference / size));
    CHECK(difference < 0.1 * 0.1 * size);
  }
  const auto residual = a.read("/limit/diagnostics/kernel_residual").values,
             noise = a.read("/limit/diagnostics/kernel_residual_noise").values;
  REQUIRE(residual.size() == 13);
  for (std::size_t k = 0; k < residual.size(); ++k) CHECK((std::isnan(noise[k]) || residual[k] <= 3 * noise[k]));
}

TEST_CASE(
    "dmft_solve --method iterate: window, damping and acceleration as flags and as keys of a file, and what is said") {
  const TemporaryFolder folder;
  const auto started = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--neurons", "100", "--set", "sampling.experts=50", "--out", folder / "a.h5"});
    const ProgramRun run = run_program("dmft_solve", iterate(more));
    REQUIRE_MESSAGE(run.status == 0, run.text);
    const std::string start = run.text.substr(run.text.find("Start: "));
    const H5Reader file(folder / "a.h5");
    return std::pair{start.substr(0, start.find('\n')), file.read("/limit/diagnostics/iteration_last_loss").values};
  };
  const auto by_pass = started({}), from_zero = started({"--start", "zero"}),
             mixed = started({"--start", "zero", "--damping", "0.3", "--anderson", "4", "--window", "2"});
  CHECK(by_pass == started({"--start", "pass"}));
  CHECK(by_pass.first == "Start: one pass through time that closes every step");
  CHECK(by_pass.second.size() == 2);
  CHECK(from_zero.first == "Start: zero kernels");
  CHECK(from_zero.second.size() > 3);
  CHECK(mixed.first ==
        "Start: zero kernels, the horizon growing by 2 steps, damping 0.3, Anderson acceleration over 4 past iterates");
  for (const std::vector<std::string>& one :
       std::vector<std::vector<std::string>>{{"--window", "2"}, {"--damping", "0.3"}, {"--anderson", "4"}}) {
    std::vector<std::string> flags = {"--start", "zero"};
    flags.insert(flags.end(), one.begin(), one.end());
    CHECK_MESSAGE(started(flags).second != from_zero.second, one[0]);  // it takes another way
  }
  write_bytes(folder / "run.toml", "[sampling]\nstart = \"zero\"\nwindow = 2\ndamping = 0.3\nanderson = 4\n");
  CHECK(started({"--config", folder / "run.toml"}) == mixed);
}

TEST_CASE("dmft_solve --method iterate: refusals say what and what else, and nothing is written") {
  const TemporaryFolder folder;
  const auto refused = [&](std::vector<std::string> more, const std::vector<std::string>& pieces) {
    more.insert(more.end(), {"--out", folder / "a.h5"});
    const ProgramRun run = run_program("dmft_solve", iterate(more));
    CAPTURE(run.text);
    CHECK(run.status == 2);
    for (const std::string& piece : pieces) CHECK_MESSAGE(contains(run.text, piece), piece);
    CHECK(folder.file_count() == 0);
  };
  refused({"--optimizer", "adam", "--eps", "1e-8", "--routing", "topk", "--regime", "I", "--site-batches", "2",
           "--draws", "3", "--set", "training.stop_at_loss=0.1"},
          {"optimizer.eps", "below 0.01", "--eps", "sampling.site_batches = 2", "sampling.draws = 3",
           "this random limit", "training.stop_at_loss"});
  refused({"--replicas", "2"}, {"sampling.replicas = 2", "at least 3"});
  refused({"--checkpoint-every", "1s"}, {"--checkpoint-every", "--checkpoint FILE"});
  refused({"--site-batches", "0", "--draws", "-1"}, {"sampling.site_batches", "sampling.draws", "in [1, "});
  // Keys of a start from zero kernels, where there is none: by a pass, by the default, and in a sweep.
  for (const std::vector<std::string>& run : std::vector<std::vector<std::string>>{
           {"--start", "pass"}, {"--start", "auto"}, {"--start", "zero", "--method", "sweep"}}) {
    std::vector<std::string> with = run;
    with.insert(with.end(), {"--window", "2", "--damping", "0.3", "--anderson", "4"});
    refused(with, {"sampling.window = 2", "sampling.damping = 0.3", "sampling.anderson = 4", "--damping",
                   "start from zero kernels", "sampling.start = \"zero\""});
  }
  refused({"--start", "zero", "--anderson", "2", "--optimizer", "adam", "--eps", "0.02"},
          {"sampling.anderson = 2", "--anderson", "\"adam\"", "sampling.damping"});
  refused({"--damping", "1", "--window", "-1", "--anderson", "65", "--start", "sweep"},
          {"sampling.damping", "[0, 1)", "sampling.window", "sampling.anderson", "[0, 64]", "sampling.start",
           "auto, pass or zero"});
  refused({"--steps", "100000"}, {"memory", "lower training.steps = 100000 (", " fit); ", "smaller batches of sites",
                                  "sampling.method = \"sweep\"", "data.train"});
  const ProgramRun early = run_program("dmft_solve", iterate({"--iterations", "1", "--out", folder / "a.h5"}));
  CHECK_MESSAGE((early.status == 1 && contains(early.text, "after 1 iterations. Raise sampling.iterations")),
                early.text);
}
