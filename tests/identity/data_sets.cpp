/// What holds for every data set: targets, normalisation, batches, independence of sizes.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "data/dataset.hpp"
#include "data/preprocessing.hpp"
#include "support/hdf5.hpp"
#include "support/random.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;
using Eigen::Index, Eigen::MatrixXd;

namespace {

/// Writes x and y (row-major, one row per sample) as an HDF5 data file.
void write_data(const std::string& path, const std::vector<std::pair<std::string, MatrixXd>>& columns) {
  H5Writer file(path);
  for (const auto& [name, m] : columns)
    file.dataset("/" + name, {static_cast<std::size_t>(m.cols()), static_cast<std::size_t>(m.rows())}, m.data(), name,
                 {"sample", "entry"});
  file.commit();
}

MatrixXd normal_matrix(Index rows, Index cols, std::uint32_t draw) {
  MatrixXd m(rows, cols);
  double pair[2];
  for (Index i = 0; i < m.size(); ++i) {
    normal_pair(StreamKey{1, 0, 0, draw}, static_cast<std::uint64_t>(i), pair);
    m.data()[i] = pair[0];
  }
  return m;
}

}  // namespace

TEST_CASE("two classes under mse have one target -1, +1; under cross entropy two one-hot rows; both the same samples") {
  RunSpec spec;
  spec.data.classes = 2;
  const Dataset hot = load_dataset(spec);
  spec.training.loss = Loss::mse;
  const Dataset sign = load_dataset(spec);
  REQUIRE(sign.y.rows() == 1);
  REQUIRE(hot.y.rows() == 2);
  CHECK(sign.x == hot.x);
  CHECK(sign.y.row(0) == hot.y.row(1) - hot.y.row(0));
  CHECK(sign.y_test.row(0) == hot.y_test.row(1) - hot.y_test.row(0));
  CHECK(sign.y.cwiseAbs().minCoeff() == 1);
  CHECK(sign.y.minCoeff() == -1);
  CHECK(sign.y.maxCoeff() == 1);
}

TEST_CASE(
    "data depend on data.seed alone; a longer training set begins with the shorter one; train and test are disjoint") {
  RunSpec spec;
  spec.data.train = 300;
  spec.data.test = 1497;
  const Dataset all = load_dataset(spec);
  spec.sampling.seed = 99;
  CHECK(load_dataset(spec).x == all.x);
  spec.data.train = 20;
  CHECK(load_dataset(spec).x == all.x.leftCols(20));
  spec.data.train = 300;
  spec.data.seed = 1;
  CHECK_FALSE(load_dataset(spec).x == all.x);
  // 300 + 1497 rows use every image once: all sums of the file come back.
  spec.data.seed = 0;
  spec.data.normalize = Normalize::none;
  const Dataset raw = load_dataset(spec);
  CHECK(raw.x.sum() + raw.x_test.sum() == 561718);
  CHECK(raw.y.row(3).sum() + raw.y_test.row(3).sum() == 183);
}

TEST_CASE("normalize = sample gives every x mean 0, variance 1; constant ones become 0") {
  Dataset data;
  data.x = 5 + 3 * normal_matrix(12, 7, 0).array();
  data.x.col(2).setConstant(0.1);
  data.x_test = normal_matrix(12, 3, 1);
  normalize(data, Normalize::sample);
  for (const MatrixXd* x : {&data.x, &data.x_test})
    for (Index p = 0; p < x->cols(); ++p) {
      CHECK(std::abs(x->col(p).mean()) < 1e-14);
      const bool constant = x == &data.x && p == 2;
      CHECK(x->col(p).squaredNorm() / 12 == doctest::Approx(constant ? 0 : 1).epsilon(1e-14));
    }
  CHECK(data.x.col(2).isZero(0));
}

TEST_CASE("normalize = feature uses the statistics of the training set; constant features become 0 in both sets") {
  Dataset data;
  data.x = normal_matrix(5, 40, 0);
  data.x.row(0) = data.x.row(0).array() * 4 + 7;
  data.x.row(3).setConstant(1e-3);
  data.x_test = normal_matrix(5, 6, 1);
  const Dataset raw = data;
  normalize(data, Normalize::feature);
  for (Index d = 0; d < 5; ++d) {
    if (d == 3) continue;
    CHECK(std::abs(data.x.row(d).mean()) < 1e-14);
    CHECK(data.x.row(d).squaredNorm() / 40 == doctest::Approx(1).epsilon(1e-14));
    // One affine map for both sets: differences are scaled alike.
    const double scale = (raw.x(d, 1) - raw.x(d, 0)) / (data.x(d, 1) - data.x(d, 0));
    CHECK(data.x_test(d, 2) - data.x(d, 0) == doctest::Approx((raw.x_test(d, 2) - raw.x(d, 0)) / scale).epsilon(1e-12));
  }
  CHECK(data.x.row(3).isZero(0));
  CHECK(data.x_test.row(3).isZero(0));
}

TEST_CASE("batches cover every epoch exactly, in either order [P = 10; batch 4, 5, 10]") {
  for (const BatchOrder order : {BatchOrder::sequential, BatchOrder::shuffled})
    for (const int batch : {4, 5, 10}) {
      RunSpec spec;
      spec.training.batch = batch;
      spec.training.batch_order = order;
      std::vector<int> sequence;
      for (int step = 0; static_cast<int>(sequence.size()) < 200; ++step) {
        const std::vector<int> rows = batch_rows(spec, 10, step);
        REQUIRE(static_cast<int>(rows.size()) == batch);
        sequence.insert(sequence.end(), rows.begin(), rows.end());
      }
      const int begun = 7, steps = 9;  // of several steps at once
      CHECK(batch_rows(spec, 10, begun, steps) ==
            std::vector<int>(sequence.begin() + begun * batch, sequence.begin() + (begun + steps) * batch));
      std::vector<int> expected(10);
      std::iota(expected.begin(), expected.end(), 0);
      bool shuffled = false;
      for (std::ptrdiff_t epoch = 0; epoch < 20; ++epoch) {
        std::vector<int> rows(sequence.begin() + 10 * epoch, sequence.begin() + 10 * epoch + 10);
        shuffled = shuffled || rows != expected;
        std::sort(rows.begin(), rows.end());
        CHECK(rows == expected);
      }
      CHECK(shuffled == (order == BatchOrder::shuffled));
    }
}

TEST_CASE("every epoch has a shuffled order of its own [P = 10]") {
  RunSpec spec;
  spec.training.batch = 10;
  spec.training.batch_order = BatchOrder::shuffled;
  for (int epoch = 1; epoch < 5; ++epoch) CHECK(batch_rows(spec, 10, epoch) != batch_rows(spec, 10, epoch - 1));
}

TEST_CASE(
    "batches do not depend on the seed of the networks; full batches are empty lists; late steps do not overflow") {
  RunSpec spec;
  CHECK(batch_rows(spec, 10, 3).empty());
  spec.training.batch = 3;
  CHECK(batch_rows(spec, 10, 3) == std::vector<int>{9, 0, 1});
  CHECK(batch_rows(spec, 1000, 2'000'000'000) == std::vector<int>{0, 1, 2});
  spec.training.batch_order = BatchOrder::shuffled;
  const std::vector<int> rows = batch_rows(spec, 10, 5);
  spec.sampling.seed = 17;
  CHECK(batch_rows(spec, 10, 5) == rows);
  spec.data.seed = 17;
  CHECK(batch_rows(spec, 1000, 5) != std::vector<int>{15, 16, 17});
}

TEST_CASE("HDF5 data keep their order and values: train, then the rows behind it or x_test") {
  const TemporaryFolder folder;
  const MatrixXd x = normal_matrix(3, 10, 0), y = normal_matrix(2, 10, 1), x_test = normal_matrix(3, 4, 2),
                 y_test = normal_matrix(2, 4, 3);
  RunSpec spec;
  spec.data.source = folder / "data.h5";
  spec.data.train = 6;
  spec.data.normalize = Normalize::none;
  spec.training.loss = Loss::mse;
  write_data(spec.data.source, {{"x", x}, {"y", y}});
  Dataset data = load_dataset(spec);
  CHECK(data.x == x.leftCols(6));
  CHECK(data.y == y.leftCols(6));
  CHECK(data.x_test == x.rightCols(4));  // 256 by default, lowered to what there is
  CHECK(data.y_test == y.rightCols(4));
  spec.data.test = 3;
  CHECK(load_dataset(spec).x_test == x.middleCols(6, 3));
  spec.data.train = 10;
  CHECK(load_dataset(spec).x_test.cols() == 0);

  write_data(spec.data.source, {{"x", x}, {"y", y}, {"x_test", x_test}, {"y_test", y_test}});
  data = load_dataset(spec);
  CHECK(data.x == x);
  CHECK(data.x_test == x_test.leftCols(3));
  CHECK(data.y_test == y_test.leftCols(3));
}
