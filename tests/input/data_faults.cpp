/// Impossible data requests and bad data are refused with key, value, place and remedy, all at once.
#include <doctest/doctest.h>

#include <limits>

#include "data/dataset.hpp"
#include "support/hdf5.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;

namespace {

std::vector<std::string> faults_of(const RunSpec& spec) {
  try {
    load_dataset(spec);
  } catch (const ConfigError& e) {
    return e.faults;
  }
  return {};
}

struct Array {
  std::string name;
  std::vector<std::size_t> shape;
  std::vector<double> values;
};

RunSpec file_spec(const TemporaryFolder& folder, const std::vector<Array>& arrays, int train) {
  RunSpec spec;
  spec.data.source = folder / "data.h5";
  spec.data.train = train;
  spec.training.loss = Loss::mse;
  H5Writer file(spec.data.source);
  for (const Array& a : arrays)
    file.dataset("/" + a.name, a.shape, a.values.data(), a.name, std::vector<std::string>(a.shape.size(), "axis"));
  file.commit();
  return spec;
}

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

}  // namespace

TEST_CASE("requests beyond the data set name both numbers, the place and the remedy, all at once") {
  RunSpec spec;
  spec.data.train = 2000;
  spec.origin["data.train"] = "run.toml:14";
  const std::vector<std::string> faults = faults_of(spec);
  REQUIRE(faults.size() == 2);
  CHECK(contains(faults[0], "data.train = 2000 (run.toml:14)"));
  CHECK(contains(faults[0], "1797 samples of digits"));
  CHECK(contains(faults[1], "data.test = 256 (default)"));
  CHECK(contains(faults[1], "0 samples"));
  spec.data.train = 1600;
  REQUIRE(faults_of(spec).size() == 1);
  CHECK(contains(faults_of(spec)[0], "197 samples of digits that data.train = 1600 leaves"));
  spec.data.test = 197;
  CHECK(faults_of(spec).empty());
  spec.data.classes = 2;
  CHECK(contains(faults_of(spec).at(0), "360 samples of digits with labels below 2"));
}

TEST_CASE("sizes without meaning are refused [train 0, test -1, classes 11, 1, -3; unknown source]") {
  RunSpec spec;
  spec.data.train = 0;
  spec.data.test = -1;
  spec.data.classes = 11;
  CHECK(faults_of(spec).size() == 3);
  spec = RunSpec{};
  for (const int classes : {11, 1, -3}) {
    spec.data.classes = classes;
    REQUIRE(faults_of(spec).size() == 1);
    CHECK(contains(faults_of(spec)[0], "data.classes = " + std::to_string(classes)));
  }
  spec = RunSpec{};
  spec.data.source = "digit";
  CHECK(contains(faults_of(spec).at(0), "digits, fashion-mnist, cifar10, tinyimagenet, gaussian"));
  spec.data.source = "gaussian";
  spec.data.dimension = 0;
  spec.data.classes = 1;
  CHECK(faults_of(spec).size() == 2);
  spec.data = DataSpec{};
  spec.data.train = std::numeric_limits<int>::max();
  CHECK_FALSE(faults_of(spec).empty());
}

TEST_CASE("data files with missing or misshapen parts are refused, all faults at once") {
  const TemporaryFolder folder;
  CHECK(contains(faults_of(file_spec(folder, {{"x", {2, 2}, {1, 2, 3, 4}}}, 2)).at(0), "no dataset y"));
  CHECK(faults_of(file_spec(folder, {{"z", {1}, {1}}}, 2)).size() == 2);
  CHECK(
      contains(faults_of(file_spec(folder, {{"x", {2, 2}, {1, 2, 3, 4}}, {"y", {2}, {1, 2}}}, 2)).at(0), "shape (2)"));
  CHECK(contains(faults_of(file_spec(folder, {{"x", {2, 2}, {1, 2, 3, 4}}, {"y", {1, 1}, {1}}}, 1)).at(0),
                 "x has 2 rows and y has 1"));
  RunSpec spec = file_spec(folder, {{"x", {2, 2}, {1, 2, 3, 4}}, {"y", {2, 1}, {1, 2}}}, 3);
  CHECK(contains(faults_of(spec).at(0), "data.train = 3 (default) is more than the 2 rows"));
  spec.data.train = 1;
  spec.data.test = 2;
  CHECK(faults_of(spec).empty());
  spec.origin["data.test"] = "--test on the command line";
  CHECK(contains(faults_of(spec).at(0), "data.test = 2 (--test on the command line) is more than the 1 rows"));
  spec = file_spec(
      folder, {{"x", {1, 2}, {1, 2}}, {"y", {1, 1}, {1}}, {"x_test", {1, 3}, {1, 2, 3}}, {"y_test", {1, 1}, {1}}}, 1);
  CHECK(contains(faults_of(spec).at(0), "x_test"));
  spec = file_spec(folder, {{"x", {1, 2}, {1, 2}}, {"y", {1, 1}, {1}}, {"x_test", {1, 2}, {1, 2}}}, 1);
  CHECK(contains(faults_of(spec).at(0), "no dataset y_test"));
  spec.data.source = folder / "none.h5";
  spec.origin["data.source"] = "run.toml:3";
  CHECK(contains(faults_of(spec).at(0), "data.source = " + (folder / "none.h5") + " (run.toml:3): cannot read"));
  CHECK(contains(faults_of(spec).at(0), "No such file"));
}

TEST_CASE("values that cannot be trained on are refused with their place [NaN, infinity, overflow]") {
  const TemporaryFolder folder;
  RunSpec spec = file_spec(
      folder, {{"x", {2, 2}, {1, 2, 3, not_a_number}}, {"y", {2, 1}, {1, -std::numeric_limits<double>::infinity()}}},
      2);
  const std::vector<std::string> faults = faults_of(spec);
  REQUIRE(faults.size() == 2);
  CHECK(contains(faults[0], "x of"));
  CHECK(contains(faults[0], "nan at row 1, column 1"));
  CHECK(contains(faults[1], "-inf at row 1, column 0"));
  // A NaN in a row that is not used does not matter.
  spec = file_spec(folder, {{"x", {2, 2}, {1, 2, 3, not_a_number}}, {"y", {2, 1}, {1, 1}}}, 1);
  spec.data.test = 0;
  CHECK(faults_of(spec).empty());
  // Squares of huge entries do not overflow; a difference of the two largest numbers does.
  spec = file_spec(folder, {{"x", {1, 2}, {1e300, -1e300}}, {"y", {1, 1}, {1}}}, 1);
  CHECK(load_dataset(spec).x == Eigen::Vector2d(1, -1));
  const double largest = std::numeric_limits<double>::max();
  spec = file_spec(folder, {{"x", {1, 3}, {largest, -largest, -largest}}, {"y", {1, 1}, {1}}}, 1);
  CHECK(contains(faults_of(spec).at(0), "after normalisation"));
  spec.data.normalize = Normalize::none;
  CHECK(faults_of(spec).empty());
}

TEST_CASE("cross entropy is refused on targets that are not distributions; mse takes them") {
  const TemporaryFolder folder;
  const Array x{"x", {2, 2}, {1, 2, 3, 5}};
  const auto refused = [&](std::vector<std::size_t> shape, std::vector<double> y) {
    RunSpec spec = file_spec(folder, {x, {"y", std::move(shape), std::move(y)}}, 2);
    CHECK(faults_of(spec).empty());
    spec.training.loss = Loss::cross_entropy;
    const std::vector<std::string> faults = faults_of(spec);
    return faults.empty() ? "" : faults[0];
  };
  CHECK(contains(refused({2, 1}, {-1, 1}), "targets with 1 column"));
  CHECK(contains(refused({2, 1}, {1, 1}), "targets with 1 column"));
  CHECK(contains(refused({2, 2}, {1, 0, 1, 1}), "row 1 of y"));
  CHECK(contains(refused({2, 2}, {1.5, -0.5, 1, 0}), "row 0 of y"));
  CHECK(refused({2, 2}, {0.25, 0.75, 1, 0}).empty());
  const double third = static_cast<double>(1.0f / 3);  // rounded to float32
  CHECK(refused({2, 3}, {third, third, third, 0, 1, 0}).empty());
}
