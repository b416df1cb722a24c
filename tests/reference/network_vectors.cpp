// Finite networks against single training runs of the original implementation that accompanies arXiv:2605.14200, in
// double precision, from stored initial weights (tests/data/networks).
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <unistd.h>
#include <algorithm>
#include <cmath>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>

#include "regimes/regime.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "tests/devices.hpp"
#include "tests/folders.hpp"
#include "validation/network.hpp"
#include "validation/reference_model.hpp"
#include "validation/reference_observables.hpp"
#include "validation/reference_train.hpp"

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using moe::H5Array;
using moe::H5Reader;
using moe::NetworkRun;

const std::string folder = source_folder() + "/tests/data/networks/";
const std::string names[] = {"I_mup_sgd_soft", "II_mssp_adam_soft", "III_mssp_sgd_soft", "III_mup_sgd_topk"};

// Twenty steps of rounding at 1e-16, amplified by training: measured 1e-14 to 1e-12.
constexpr double allowed = 1e-10;

/// Largest absolute difference, in row-major order of the file; infinite when the counts differ.
double deviation(const H5Array& expected, const std::vector<double>& values) {
  if (expected.values.size() != values.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  for (std::size_t k = 0; k < values.size(); ++k) worst = std::max(worst, std::abs(expected.values[k] - values[k]));
  return worst;
}

void append_row_major(std::vector<double>& out, const MatrixXd& m) {
  for (Index i = 0; i < m.rows(); ++i)
    for (Index j = 0; j < m.cols(); ++j) out.push_back(m(i, j));
}

std::vector<double> row_major(const MatrixXd& m) {
  std::vector<double> out;
  append_row_major(out, m);
  return out;
}

struct Reference {
  moe::RunSpec spec;
  moe::Dataset data;
  H5Reader file;
  explicit Reference(const std::string& name)
      : spec(moe::read_config(folder + name + ".toml")), data(moe::load_dataset(spec)), file(folder + name + ".h5") {
    spec.output.observables = {"all"};
  }
  double number(const std::string& dataset) const { return file.read(dataset).values.at(0); }
};

/// check(reference, options) for every network on every device.
template <class F>
void on_each_network(const F& check) {
  devices::on_each([&](moe::Device device) {
    moe::TrainOptions options;
    options.device = device;
    for (const std::string& name : names) {
      CAPTURE(name);
      Reference r(name);
      check(r, options);
    }
  });
}

}  // namespace

TEST_CASE(
    "network training matches the original implementation: loss, outputs, trained weights [four networks, 20 steps]") {
  on_each_network([](Reference& r, const moe::TrainOptions& options) {
    const NetworkRun run = moe::train_network(r.spec, r.data, 32, 0, options);
    REQUIRE(!run.failure);
    CHECK(deviation(r.file.read("expected/loss"), run.loss) < allowed);

    std::vector<double> f;
    for (const MatrixXd& at_step : run.f) append_row_major(f, at_step.transpose());
    CHECK(deviation(r.file.read("expected/f"), f) < allowed);

    const moe::NetworkWeights& w = run.final_weights;
    CHECK(deviation(r.file.read("expected/final/w_in"), row_major(w.w_in)) < allowed);
    CHECK(deviation(r.file.read("expected/final/router"), row_major(w.router)) < allowed);
    CHECK(deviation(r.file.read("expected/final/readout"), row_major(w.readout)) < allowed);
    std::vector<double> expert_in, expert_out;
    for (Index i = 0; i < run.shape.M; ++i) {
      append_row_major(expert_in, w.A(i, run.shape.Ne));
      append_row_major(expert_out, w.B(i, run.shape.Ne));
    }
    CHECK(deviation(r.file.read("expected/final/expert_in"), expert_in) < allowed);
    CHECK(deviation(r.file.read("expected/final/expert_out"), expert_out) < allowed);
    // The weights have moved, so that equality says something of the updates of every tensor.
    for (const char* tensor : {"w_in", "router", "expert_in", "expert_out", "readout"})
      CHECK(deviation(r.file.read(tensor), r.file.read(std::string("expected/final/") + tensor).values) > 1e-4);
  });
}

TEST_CASE("network training in float32 and the reference trainer match the original implementation [four networks]") {
  on_each_network([](Reference& r, const moe::TrainOptions& options) {
    const NetworkRun reference = moe::train_reference_network(r.spec, r.data, 32, 0);
    CHECK(deviation(r.file.read("expected/loss"), reference.loss) < allowed);
    CHECK(deviation(r.file.read("expected/final/router"), row_major(reference.final_weights.router)) < allowed);

    r.spec.sampling.precision = moe::Precision::float32;
    const NetworkRun run = moe::train_network(r.spec, r.data, 32, 0, options);
    REQUIRE(!run.failure);
    // Relative to the largest entry: losses and outputs of order one, single precision carries 6e-8, twenty steps amplify it.
    const auto relative = [&](const std::string& dataset, const std::vector<double>& values) {
      const H5Array expected = r.file.read(dataset);
      double size = 0;
      for (double x : expected.values) size = std::max(size, std::abs(x));
      return deviation(expected, values) / size;
    };
    CHECK(relative("expected/loss", run.loss) < 1e-4);
    CHECK(relative("expected/loss", run.loss) > 1e-9);  // it was not double precision
    std::vector<double> f;
    for (const MatrixXd& at_step : run.f) append_row_major(f, at_step.transpose());
    CHECK(relative("expected/f", f) < 1e-4);
    CHECK(relative("expected/final/w_in", row_major(run.final_weights.w_in)) < 1e-4);
    CHECK(relative("expected/final/router", row_major(run.final_weights.router)) < 1e-4);
    CHECK(relative("expected/final/readout", row_major(run.final_weights.readout)) < 1e-4);
    std::vector<double> expert_in, expert_out;
    for (Index i = 0; i < run.shape.M; ++i) {
      append_row_major(expert_in, run.final_weights.A(i, run.shape.Ne));
      append_row_major(expert_out, run.final_weights.B(i, run.shape.Ne));
    }
    CHECK(relative("expected/final/expert_in", expert_in) < 1e-4);
    CHECK(relative("expected/final/expert_out", expert_out) < 1e-4);
  });
}

TEST_CASE("network observables match the RMS values of the original implementation [steps 0, 5, 20]") {
  const std::pair<const char*, const char*> pairs[] = {
      {"h_pre", "rms_h"}, {"h", "rms_phi"}, {"router_logits", "rms_r"}, {"u", "rms_u_all"}, {"v", "rms_v_all"},
      {"y", "rms_y"},     {"f", "rms_f"}};
  on_each_network([&](Reference& r, const moe::TrainOptions& options) {
    const NetworkRun run = moe::train_network(r.spec, r.data, 32, 0, options);
    REQUIRE(!run.failure);
    for (int step : {0, 5, 20}) {
      CAPTURE(step);
      const std::string group = fmt::format("expected/rms/step_{:02d}/", step);
      for (const auto& [theirs, ours] : pairs) {
        CAPTURE(ours);
        CHECK(std::abs(run.observables.at(ours)[static_cast<std::size_t>(step)] - r.number(group + theirs)) < allowed);
      }
      // Identity post-activation and no residual: s = y.
      CHECK(std::abs(run.observables.at("rms_y")[static_cast<std::size_t>(step)] - r.number(group + "y_res")) <
            allowed);
    }
    for (int step : {5, 20}) {
      CAPTURE(step);
      const std::string group = fmt::format("expected/aggregation/step_{:02d}/", step);
      CHECK(std::abs(run.observables.at("rms_y_init")[static_cast<std::size_t>(step)] - r.number(group + "base")) <
            allowed);
      CHECK(std::abs(run.observables.at("rms_y_propagating")[static_cast<std::size_t>(step)] -
                     r.number(group + "propagating")) < allowed);
    }
  });
}

TEST_CASE("network gates and expert outputs match the original implementation [initial and trained weights]") {
  for (const std::string& name : names) {
    CAPTURE(name);
    Reference r(name);
    r.spec.output.observables = {"none"};
    const NetworkRun trained = moe::train_network(r.spec, r.data, 32, 0);
    const moe::NetworkShape shape = trained.shape;
    moe::Faults faults;
    const moe::Parameterization table = moe::load_parameterization(r.spec, faults);
    REQUIRE(faults.empty());
    const double c = moe::network_constants(r.spec, table, moe::network_sizes(r.spec, shape.N, shape.D)).aggregation;
    const moe::reference::Model model{r.spec.model, r.spec.training.loss, shape, c};
    const moe::NetworkWeights initial = moe::read_weights(r.spec.network.init_from, shape, "test");
    for (const auto& [w, step] : {std::pair{&initial, 0}, std::pair{&trained.final_weights, 20}}) {
      CAPTURE(step);
      const moe::reference::Forward a = moe::reference::forward(model, *w, r.data.x, step);
      const MatrixXd& v = a.blocks[0].v;
      const std::string group = fmt::format("expected/rms/step_{:02d}/", step);
      CHECK(std::abs(c * moe::reference::rms(a.blocks[0].gates.G) - r.number(group + "router_gates")) < allowed);
      MatrixXd expert_out(Index{shape.M} * shape.N, v.cols());
      for (Index i = 0; i < shape.M; ++i)
        expert_out.middleRows(i * shape.N, shape.N) = w->B(i, shape.Ne) * v.middleRows(i * shape.Ne, shape.Ne);
      CHECK(std::abs(moe::reference::rms(expert_out) - r.number(group + "expert_out")) < allowed);
    }
  }
}

TEST_CASE("moe_train writes the same numbers into its result file [four networks, exit status 0]") {
  namespace fs = std::filesystem;
  const std::string program = program_folder() + "/moe_train";
  REQUIRE_MESSAGE(fs::exists(program), program << " is not built");
  const fs::path out = fs::temp_directory_path() / fmt::format("moe_train_reference_{}.h5", ::getpid());
  for (const std::string& name : names) {
    CAPTURE(name);
    const std::string command = fmt::format("'{}' '{}{}.toml' --quiet --set output.weights=true --out '{}' > /dev/null",
                                            program, folder, name, out.string());
    CAPTURE(command);
    REQUIRE(std::system(command.c_str()) == 0);
    const H5Reader expected(folder + name + ".h5"), result(out.string());
    CHECK(result.attribute_text("/", "format") == "moe-dmft");
    CHECK(result.attribute_text("/", "kind") == "network");
    CHECK(result.attribute_number("/", "format_version") == 1);
    CHECK(result.attribute_text("/", "program") == "moe_train");
    CHECK(result.attribute_number("/network/N32", "N") == 32);
    const H5Array loss = result.read("/network/N32/loss"), f = result.read("/network/N32/f");
    CHECK(loss.shape == std::vector<std::size_t>{1, 21});
    CHECK(deviation(expected.read("expected/loss"), loss.values) < allowed);
    const H5Array expected_f = expected.read("expected/f");
    CHECK(f.shape == std::vector<std::size_t>{1, expected_f.shape[0], expected_f.shape[1], expected_f.shape[2]});
    CHECK(deviation(expected_f, f.values) < allowed);
    for (const char* tensor : {"w_in", "router", "expert_in", "expert_out", "readout"}) {
      CAPTURE(tensor);
      const H5Array theirs = expected.read(std::string("expected/final/") + tensor);
      const H5Array ours = result.read(std::string("/network/N32/final/") + tensor);
      std::vector<std::size_t> shape = theirs.shape;
      shape.insert(shape.begin(), 1);
      CHECK(ours.shape == shape);
      CHECK(deviation(theirs, ours.values) < allowed);
    }
    const H5Array x = result.read("/data/x"), given = expected.read("x");
    CHECK(x.shape == given.shape);
    CHECK(deviation(given, x.values) == 0);
    CHECK(std::abs(result.read("/network/N32/observables/rms_h").values.at(20) -
                   expected.read("expected/rms/step_20/h_pre").values.at(0)) < allowed);
  }
  fs::remove(out);
}
