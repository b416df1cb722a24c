/// The embedded digits and every order drawn for data, against numbers computed by an independent Python program: the file's
/// own sums, and Philox 4x32-10 written from its paper and checked with its published answers.
#include <doctest/doctest.h>

#include <numeric>

#include "data/dataset.hpp"
#include "data/permutation.hpp"
#include "data/source.hpp"

using namespace moe;

TEST_CASE("digits are the 1797 images of the UCI test part [counts, sums, first and last image]") {
  const LabelledSource digits = digits_source();
  REQUIRE(digits.pool.labels.size() == 1797);
  CHECK(digits.dimension == 64);
  CHECK(digits.classes == 10);
  std::vector<int> count(10, 0);
  double sum = 0, weighted = 0, largest = 0;
  std::vector<double> x(64);
  for (std::size_t row = 0; row < 1797; ++row) {
    ++count[static_cast<std::size_t>(digits.pool.labels[row])];
    digits.pool.read(row, x.data());
    for (const double pixel : x) {
      sum += pixel;
      weighted += static_cast<double>(row + 1) * pixel;
      largest = std::max(largest, pixel);
    }
  }
  CHECK(count == std::vector<int>{178, 182, 177, 183, 181, 182, 181, 179, 174, 180});
  CHECK(sum == 561718);
  CHECK(weighted == 503904265);
  CHECK(largest == 16);
  digits.pool.read(0, x.data());
  CHECK(x == std::vector<double>{0, 0,  5, 13, 9,  1, 0,  0, 0,  0,  13, 15, 10, 15, 5, 0,  0,  3, 15, 2, 0,  11,
                                 8, 0,  0, 4,  12, 0, 0,  8, 8,  0,  0,  5,  8,  0,  0, 9,  8,  0, 0,  4, 11, 0,
                                 1, 12, 7, 0,  0,  2, 14, 5, 10, 12, 0,  0,  0,  0,  6, 13, 10, 0, 0,  0});
  CHECK(digits.pool.labels.front() == 0);
  CHECK(digits.pool.labels.back() == 8);
}

TEST_CASE("permutations are the documented Fisher-Yates on Philox bits") {
  CHECK(permutation(10, data_key(0, DataStream::train_rows)) == std::vector<std::size_t>{5, 6, 1, 2, 3, 8, 4, 9, 7, 0});
  const auto first = [](std::uint64_t seed) {
    std::vector<std::size_t> order = permutation(1797, data_key(seed, DataStream::train_rows));
    order.resize(8);
    return order;
  };
  CHECK(first(0) == std::vector<std::size_t>{453, 405, 1166, 730, 1572, 631, 1665, 190});
  CHECK(first(5) == std::vector<std::size_t>{6, 1315, 1107, 734, 971, 469, 676, 586});
  CHECK(permutation(0, data_key(0, DataStream::train_rows)).empty());
  CHECK(permutation(1, data_key(0, DataStream::train_rows)) == std::vector<std::size_t>{0});
}

TEST_CASE("digits are selected by the permutation: first rows train, next test [all classes; the first three]") {
  RunSpec spec;
  spec.data.train = 8;
  spec.data.test = 4;
  spec.data.normalize = Normalize::none;
  const LabelledSource digits = digits_source();
  const auto labels = [](const Eigen::MatrixXd& y) {
    std::vector<int> list;
    for (Eigen::Index p = 0; p < y.cols(); ++p) {
      Eigen::Index at = -1;
      CHECK(y.col(p).maxCoeff(&at) == 1);
      CHECK(y.col(p).sum() == 1);
      list.push_back(static_cast<int>(at));
    }
    return list;
  };
  Eigen::VectorXd pixels(64);

  Dataset data = load_dataset(spec);
  CHECK(data.y.rows() == 10);
  CHECK(labels(data.y) == std::vector<int>{6, 9, 9, 2, 9, 2, 9, 3});
  CHECK(labels(data.y_test) == std::vector<int>{8, 3, 7, 9});
  digits.pool.read(453, pixels.data());
  CHECK(data.x.col(0) == pixels);

  spec.data.classes = 3;
  spec.data.train = 4;
  spec.data.test = 2;
  data = load_dataset(spec);
  CHECK(data.y.rows() == 3);
  const std::vector<std::size_t> rows = {730, 631, 1237, 75, 126, 1648};
  for (std::size_t p = 0; p < rows.size(); ++p) {
    digits.pool.read(rows[p], pixels.data());
    CHECK((p < 4 ? data.x.col(static_cast<Eigen::Index>(p)) : data.x_test.col(static_cast<Eigen::Index>(p) - 4)) ==
          pixels);
  }
}

TEST_CASE("shuffled batches follow one permutation per epoch, across its end") {
  RunSpec spec;
  spec.data.seed = 3;
  spec.training.batch = 4;
  spec.training.batch_order = BatchOrder::shuffled;
  // Epochs 0 6 1 2 4 3 5 | 6 2 3 1 5 0 4
  CHECK(batch_rows(spec, 7, 0) == std::vector<int>{0, 6, 1, 2});
  CHECK(batch_rows(spec, 7, 1) == std::vector<int>{4, 3, 5, 6});
  CHECK(batch_rows(spec, 7, 2) == std::vector<int>{2, 3, 1, 5});
}

TEST_CASE("gaussian inputs and teacher are the documented draws [D = 5, two and three classes]") {
  RunSpec spec;
  spec.data.source = "gaussian";
  spec.data.dimension = 5;
  spec.data.train = 5;
  spec.data.test = 1;
  spec.data.seed = 2;
  spec.data.normalize = Normalize::none;
  spec.training.loss = Loss::mse;
  Dataset data = load_dataset(spec);
  const std::vector<double> x0 = {0.3290512963730784, -1.2416346774125349, -1.228818531791324, 0.5963885482222255,
                                  -0.2979333644495049},
                            x5 = {0.2659848948350608, 1.2223857003343304, -0.5825151985254601, 1.690129953979807,
                                  -1.8499397074343733};
  for (Eigen::Index d = 0; d < 5; ++d) {
    CHECK(data.x(d, 0) == doctest::Approx(x0[static_cast<std::size_t>(d)]).epsilon(1e-14));
    CHECK(data.x_test(d, 0) == doctest::Approx(x5[static_cast<std::size_t>(d)]).epsilon(1e-14));
  }
  CHECK(data.y == (Eigen::MatrixXd(1, 5) << -1, 1, -1, 1, -1).finished());
  CHECK(data.y_test(0, 0) == -1);
  // The same samples train whatever the size of the test set.
  spec.data.test = 9;
  CHECK(load_dataset(spec).x == data.x);

  spec.data.classes = 3;
  data = load_dataset(spec);
  CHECK(data.y == (Eigen::MatrixXd(3, 5) << 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1).finished());
}
