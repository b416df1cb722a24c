#include "data/dataset.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "data/permutation.hpp"
#include "data/preprocessing.hpp"
#include "data/source.hpp"

namespace moe {
namespace {

constexpr const char* known_sources = "digits, fashion-mnist, cifar10, tinyimagenet, gaussian, or an HDF5 file";
/// Of one float64 matrix: 16 GiB.
constexpr std::size_t max_entries = std::size_t{1} << 31;

bool is_hdf5_name(const std::string& source) {
  const std::string extension = std::filesystem::path(source).extension().string();
  std::error_code ec;
  return extension == ".h5" || std::filesystem::is_regular_file(source, ec);
}

/// Rows of a pool in the order in which they are taken, labels below `classes` only.
std::vector<std::size_t> eligible_rows(const LabelledPool& pool, int classes, bool random_order, const StreamKey& key) {
  std::vector<std::size_t> order(pool.labels.size());
  if (random_order)
    std::iota(order.begin(), order.end(), std::size_t{0});
  else
    order = permutation(order.size(), key);
  std::erase_if(order, [&](std::size_t row) { return pool.labels[row] >= classes; });
  return order;
}

/// x (D, n) and y (C, n) of the given rows.
void take(const LabelledPool& pool, const std::size_t* rows, std::size_t n, int dimension, int classes, Loss loss,
          Eigen::MatrixXd& x, Eigen::MatrixXd& y) {
  std::vector<int> labels(n);
  x.resize(dimension, static_cast<Eigen::Index>(n));
  for (std::size_t p = 0; p < n; ++p) {
    pool.read(rows[p], x.col(static_cast<Eigen::Index>(p)).data());
    labels[p] = pool.labels[rows[p]];
  }
  y = targets(labels, classes, loss);
}

Dataset assemble(const RunSpec& spec, const LabelledSource& source, Faults& faults) {
  const DataSpec& want = spec.data;
  Dataset data;
  const bool all = want.classes == 0, possible = all || (want.classes > 1 && want.classes <= source.classes);
  if (!possible)
    faults.add("data.classes", std::to_string(want.classes), spec.place("data.classes"),
               fmt::format("is neither 0 (all) nor between 2 and the {} classes of {}", source.classes, want.source),
               "Give 0 or the number of classes to keep.");
  const int classes = all || !possible ? source.classes : want.classes;  // what else is wrong is told beside it
  const std::size_t train = static_cast<std::size_t>(std::max(0, want.train)),
                    test = static_cast<std::size_t>(std::max(0, want.test));
  const std::vector<std::size_t> rows =
      eligible_rows(source.pool, classes, source.random_order, data_key(want.seed, DataStream::train_rows));
  const std::string of =
      classes == source.classes ? want.source : fmt::format("{} with labels below {}", want.source, classes);
  if (train > rows.size())
    faults.add("data.train", std::to_string(train), spec.place("data.train"),
               fmt::format("is more than the {} samples of {}", rows.size(), of), "Lower it.");
  std::vector<std::size_t> test_rows;
  if (source.test)
    test_rows = eligible_rows(*source.test, classes, source.random_order, data_key(want.seed, DataStream::test_rows));
  else
    test_rows.assign(rows.begin() + static_cast<std::ptrdiff_t>(std::min(train, rows.size())), rows.end());
  if (test > test_rows.size())
    faults.add("data.test", std::to_string(test), spec.place("data.test"),
               source.test ? fmt::format("is more than the {} test samples of {}", test_rows.size(), of)
                           : fmt::format("is more than the {} samples of {} that data.train = {} leaves",
                                         test_rows.size(), of, train),
               "Lower data.test or data.train.");
  if ((train + test) > max_entries / static_cast<std::size_t>(source.dimension))
    faults.add(
        "data.train", std::to_string(train), spec.place("data.train"),
        fmt::format("and data.test = {} with {} numbers a sample do not fit into memory", test, source.dimension),
        "Lower them.");
  if (!faults.empty()) return data;

  const LabelledPool& test_pool = source.test ? *source.test : source.pool;
  take(source.pool, rows.data(), train, source.dimension, classes, spec.training.loss, data.x, data.y);
  take(test_pool, test_rows.data(), test, source.dimension, classes, spec.training.loss, data.x_test, data.y_test);
  data.description = fmt::format("{}: {} samples for training, {} for testing, {} classes, seed {}", want.source, train,
                                 test, classes, want.seed);
  return data;
}

Dataset load_raw(const RunSpec& spec, Faults& faults) {
  const std::string& name = spec.data.source;
  if (name == "digits") return assemble(spec, digits_source(), faults);
  if (name == "fashion-mnist") return assemble(spec, fashion_mnist_source(spec.data.path), faults);
  if (name == "cifar10") return assemble(spec, cifar10_source(spec.data.path), faults);
  if (name == "tinyimagenet") return assemble(spec, tinyimagenet_source(spec.data.path), faults);
  if (name == "gaussian") {
    const LabelledSource source = gaussian_source(spec, faults);
    return faults.empty() ? assemble(spec, source, faults) : Dataset{};
  }
  if (is_hdf5_name(name)) return hdf5_dataset(spec, faults);
  faults.add("data.source", name, spec.place("data.source"), "is not a data source and no such file exists",
             fmt::format("Use one of {}.", known_sources));
  return {};
}

}  // namespace

Dataset load_dataset(const RunSpec& spec) {
  Faults faults;
  if (spec.data.train < 1)
    faults.add("data.train", std::to_string(spec.data.train), spec.place("data.train"), "is not positive",
               "Give the number of training samples.");
  if (spec.data.test < 0)
    faults.add("data.test", std::to_string(spec.data.test), spec.place("data.test"), "is negative",
               "Give the number of test samples, 0 for none.");
  Dataset data;
  try {
    data = load_raw(spec, faults);
  } catch (const IoError& error) {
    faults.add("data.source", spec.data.source, spec.place("data.source"), error);
  }
  if (faults.empty()) {
    check_finite(data, spec.data.source, faults);
    check_targets(data, spec, faults);
  }
  faults.throw_if_any();
  normalize(data, spec.data.normalize);
  // Differences of the largest numbers overflow.
  check_finite(data, spec.data.source + " after normalisation", faults);
  faults.throw_if_any();
  return data;
}

std::unique_ptr<const Dataset> load_dataset(const RunSpec& spec, Faults& faults) {
  std::unique_ptr<const Dataset> data;
  if (!faults.refused("data.source"))
    faults.collect([&] { data = std::make_unique<const Dataset>(load_dataset(spec)); });
  return data;
}

}  // namespace moe
