// What the finite trainer refuses, and how a run that breaks down ends.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "support/hdf5.hpp"
#include "support/observable.hpp"
#include "tests/folders.hpp"
#include "tests/network_fixture.hpp"
#include "validation/network.hpp"
#include "validation/network_file.hpp"

namespace {

using network_fixture::MatrixXd;

std::string temporary(const std::string& name) {
  return (std::filesystem::temp_directory_path() / fmt::format("moe_{}_{}.h5", name, ::getpid())).string();
}

/// The whole text of the ConfigError that `f` throws; empty when it throws none.
template <class F>
std::string config_fault(F&& f) {
  try {
    f();
  } catch (const moe::ConfigError& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("network.init_from with other sizes names the dataset and both shapes, all datasets at once") {
  const std::string path = source_folder() + "/tests/data/networks/II_mssp_adam_soft.h5";  // N = 32, M = 12, N_e = 8
  const auto text = config_fault(
      [&] { moe::read_weights(path, {.N = 32, .M = 10, .Ne = 8, .K = 10, .D = 20, .C = 4}, "run.toml:9"); });
  CHECK(mentions(text, "router has shape (12, 32)"));
  CHECK(mentions(text, "(10, 32)"));
  CHECK(mentions(text, "expert_in has shape (12, 8, 32)"));
  CHECK(mentions(text, "expert_out has shape (12, 32, 8)"));
  CHECK(mentions(text, "run.toml:9"));
  CHECK(!mentions(text, "w_in has shape"));
  CHECK(mentions(config_fault([&] { moe::read_weights("/nonexistent/w.h5", {}, "run.toml:9"); }),
                 "network.init_from = /nonexistent/w.h5 (run.toml:9): cannot read"));
}

TEST_CASE("network.tf32 is refused on the CPU and in float64, both at once, before anything is trained") {
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::adam, 3);  // float64
  spec.network.tf32 = true;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const auto text = config_fault([&] { moe::train_network(spec, data, 16, 0); });
  CHECK(mentions(text, "network.tf32 = true"));
  CHECK(mentions(text, "--device cuda"));
  CHECK(mentions(text, "sampling.precision = \"float64\""));
  spec.sampling.precision = moe::Precision::float32;
  CHECK(!mentions(config_fault([&] { moe::train_network(spec, data, 16, 0); }), "float64"));
  moe::Faults none;
  spec.network.tf32 = false;
  moe::check_network_device(spec, moe::Device::cpu, none);
  CHECK(none.empty());
}

TEST_CASE("network trainer refuses what it does not have, all faults at once") {
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::adam, 3);
  spec.training.batch = 9;
  spec.network.widths = {16, 16};
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  moe::Faults faults;
  moe::check_networks(spec, &data, spec.network.widths, faults);
  const auto text = config_fault([&] { faults.throw_if_any(); });
  for (const char* key : {"training.batch = 9", "8 training samples", "network.widths"})
    CHECK_MESSAGE(mentions(text, key), key << " is missing in: " << text);
  CHECK_THROWS_AS(moe::train_network(spec, data, 16, 0), moe::ConfigError);
}

TEST_CASE("network run that diverges stops with step and field named and keeps what was computed") {
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 40);
  spec.training.loss = moe::Loss::mse;
  spec.model.activation = moe::Activation::identity;
  spec.optimizer.lr = 1e4;
  spec.network.seeds = 2;
  spec.training.test_every = 1;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const moe::NetworkRun run = moe::train_network(spec, data, 16, 0);
  REQUIRE(run.failure);
  CHECK(run.failure->step > 0);
  CHECK(run.failure->step < 40);
  CHECK(mentions(run.failure->what(), run.failure->field));
  CHECK(mentions(run.failure->what(), std::to_string(run.failure->step)));
  CHECK(!run.loss.empty());
  CHECK(run.loss.size() <= static_cast<std::size_t>(run.failure->step) + 1);
  for (double loss : run.loss) CHECK(std::isfinite(loss));

  const std::string path = temporary("diverged");
  spec.output.observables = {"standard"};
  moe::write_network_file(path, "test", spec, data, moe::train_networks(spec, data, 1));
  const moe::H5Reader file(path);
  const moe::H5Array loss = file.read("/network/N16/loss");
  CHECK(loss.shape == std::vector<std::size_t>{2, 41});
  CHECK(loss.values[0] == run.loss[0]);
  CHECK(std::isnan(loss.values[40]));
  CHECK(file.read("/network/N16/failed_step").values[0] == run.failure->step);
  CHECK(file.read("/network/N16/test_steps").values.size() == 41);  // there at every interval, as in the limit
  std::filesystem::remove(path);
}

TEST_CASE(
    "network mini-batches: batch_loss per step, whole-set evaluation beside it, first batch is that of the data") {
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 6);
  spec.training.batch = 3;
  spec.training.eval_every = 4;
  spec.training.test_every = 3;
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const moe::NetworkRun run = moe::train_network(spec, data, 16, 0);
  CHECK(run.batch_loss.size() == 6);
  CHECK(run.eval_steps == std::vector<int>{0, 4, 6});
  CHECK(run.test_steps == std::vector<int>{0, 3, 6});
  CHECK(run.loss.size() == 3);
  CHECK(run.test_loss.size() == 3);
  CHECK(run.observe_steps == std::vector<int>{0, 1, 2, 3, 4, 5, 6});
  CHECK(run.observables.at("rms_h").size() == 7);

  // Full-batch training on rows 0, 1, 2 makes the same first update; its losses at t = 0, 1 are those of that batch.
  moe::Dataset first = data;
  first.x = data.x.leftCols(3);
  first.y = data.y.leftCols(3);
  moe::RunSpec full = spec;
  full.training.batch = 0;
  full.training.steps = 1;
  const moe::NetworkRun alone = moe::train_network(full, first, 16, 0);
  CHECK(run.batch_loss[0] == doctest::Approx(alone.loss[0]).epsilon(1e-14));
  moe::RunSpec one = spec;
  one.training.steps = 1;
  const auto& trained = moe::train_network(one, data, 16, 0).final_weights;
  CHECK((trained.expert_in - alone.final_weights.expert_in).norm() < 1e-14);
  // The second batch holds other rows: rows 3, 4, 5.
  first.x = data.x.middleCols(3, 3);
  first.y = data.y.middleCols(3, 3);
  moe::TrainOptions options;
  options.initial = &trained;
  full.training.steps = 0;
  CHECK(run.batch_loss[1] == doctest::Approx(moe::train_network(full, first, 16, 0, options).loss[0]).epsilon(1e-13));
}

TEST_CASE("network mini-batches: observables and kernels at step t are those of its own batch, change_* are left out") {
  moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 6);
  spec.training.batch = 3;
  spec.output.kernels_at = {0, 6};
  const moe::Dataset data = network_fixture::data(8, 5, 3);
  const moe::NetworkRun run = moe::train_network(spec, data, 16, 0);
  for (const auto& info : moe::observable_table)
    CHECK_MESSAGE(run.observables.contains(info.name) != std::string(info.name).starts_with("change_"), info.name);

  // t = 6: the batch that step 6 would take, rows 18, 19, 20 mod 8, at the trained weights.
  moe::Dataset last = data;
  last.x = data.x.middleCols(2, 3);
  last.y = data.y.middleCols(2, 3);
  moe::RunSpec full = spec;
  full.training.batch = 0;
  full.training.steps = 0;
  full.output.kernels_at = {0};
  moe::TrainOptions options;
  options.initial = &run.final_weights;
  const moe::NetworkRun there = moe::train_network(full, last, 16, 0, options);
  for (const char* name : {"rms_h", "rms_r", "rms_u", "rms_y", "rms_f", "rms_zeta", "rms_rho", "rms_xi", "load_max"})
    CHECK_MESSAGE(run.observables.at(name).back() == doctest::Approx(there.observables.at(name)[0]).epsilon(1e-12),
                  name);
  CHECK(run.kernels.at("Phi").back().rows() == 3);
  CHECK((run.kernels.at("ghatghat").back() - there.kernels.at("ghatghat")[0]).norm() <=
        1e-12 * there.kernels.at("ghatghat")[0].norm());

  // v(0) of (T26) is that of the same samples at the initial weights: y_init + y_propagating = (1/K) sum G B(0) v(t).
  moe::RunSpec none = full;
  const moe::NetworkRun start = moe::train_network(none, last, 16, 0);
  CHECK(run.observables.at("rms_y_propagating")[0] == 0);
  CHECK(run.observables.at("rms_y_effective")[0] == 0);
  CHECK(run.observables.at("rms_y_propagating").back() > 1e-4);
  // Gates hardly move in six steps, so y_init is close to the initial y of this batch, and is not that of another.
  const double initial_y = start.observables.at("rms_y")[0];
  CHECK(std::abs(run.observables.at("rms_y_init").back() - initial_y) < 0.02 * initial_y);
  CHECK(std::abs(run.observables.at("rms_y_init")[0] - initial_y) > 0.05 * initial_y);
}
