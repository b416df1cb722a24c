#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "data/source.hpp"
#include "support/hdf5.hpp"

namespace moe {
namespace {

std::string shape_text(const std::vector<std::size_t>& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

/// Rows [first, first + count) of a row-major (P, D) array as columns.
Eigen::MatrixXd columns(const H5Array& rows, std::size_t first, std::size_t count) {
  const auto D = static_cast<Eigen::Index>(rows.shape[1]);
  return Eigen::Map<const Eigen::MatrixXd>(rows.values.data() + first * rows.shape[1], D,
                                           static_cast<Eigen::Index>(count));
}

/// A dataset with one row per sample and at least one column, or a fault.
std::optional<H5Array> read_rows(const H5Reader& file, const std::string& name, const std::string& path,
                                 Faults& faults) {
  if (!file.has(name)) {
    faults.add(fmt::format(
        "data: {} has no dataset {}. A data file needs x (P, D) and y (P, C), optionally x_test and y_test.", path,
        name));
    return std::nullopt;
  }
  H5Array array = file.read(name);
  if (array.shape.size() != 2 || array.shape[1] == 0) {
    faults.add(fmt::format(
        "data: {} in {} has shape {}, expected two axes (samples, columns) with at least one column. Reshape it, "
        "e.g. y to (P, 1), or labels to one-hot rows (P, C).",
        name, path, shape_text(array.shape)));
    return std::nullopt;
  }
  return array;
}

/// Inputs and targets that belong together, or a fault.
struct Rows {
  H5Array x, y;
  std::size_t count() const { return x.shape[0]; }
};

std::optional<Rows> read_pair(const H5Reader& file, const std::string& x_name, const std::string& y_name,
                              const std::string& path, Faults& faults) {
  std::optional<H5Array> x = read_rows(file, x_name, path, faults), y = read_rows(file, y_name, path, faults);
  if (!x || !y) return std::nullopt;
  if (x->shape[0] != y->shape[0]) {
    faults.add(fmt::format("data: in {}, {} has {} rows and {} has {}. Every sample needs an input and a target.", path,
                           x_name, x->shape[0], y_name, y->shape[0]));
    return std::nullopt;
  }
  return Rows{std::move(*x), std::move(*y)};
}

}  // namespace

Dataset hdf5_dataset(const RunSpec& spec, Faults& faults) {
  const std::string& path = spec.data.source;
  const H5Reader file(path);
  const std::size_t train = static_cast<std::size_t>(std::max(0, spec.data.train));
  const std::size_t test = static_cast<std::size_t>(std::max(0, spec.data.test));
  Dataset data;

  const std::optional<Rows> rows = read_pair(file, "x", "y", path, faults);
  if (rows && rows->count() < train)
    faults.add("data.train", std::to_string(train), spec.place("data.train"),
               fmt::format("is more than the {} rows of x in {}", rows->count(), path), "Lower data.train.");
  const bool own_test = file.has("x_test") || file.has("y_test");
  const std::optional<Rows> test_rows = own_test ? read_pair(file, "x_test", "y_test", path, faults) : std::nullopt;
  if (rows && test_rows && (rows->x.shape[1] != test_rows->x.shape[1] || rows->y.shape[1] != test_rows->y.shape[1]))
    faults.add(fmt::format(
        "data: in {}, x and y have {} and {} columns, x_test and y_test {} and {}. Both parts need the same.", path,
        rows->x.shape[1], rows->y.shape[1], test_rows->x.shape[1], test_rows->y.shape[1]));
  if (!rows || (own_test && !test_rows)) return data;

  const std::size_t available = own_test ? test_rows->count() : rows->count() - std::min(rows->count(), train);
  if (available < test && spec.origin.contains("data.test"))
    faults.add("data.test", std::to_string(test), spec.place("data.test"),
               own_test
                   ? fmt::format("is more than the {} rows of x_test in {}", available, path)
                   : fmt::format("is more than the {} rows that x in {} has after the training rows", available, path),
               "Lower data.test or add rows.");
  if (!faults.empty()) return data;

  const Rows& from = own_test ? *test_rows : *rows;
  const std::size_t first = own_test ? 0 : train, taken = std::min(test, available);
  data.x = columns(rows->x, 0, train);
  data.y = columns(rows->y, 0, train);
  data.x_test = columns(from.x, first, taken);
  data.y_test = columns(from.y, first, taken);
  data.description =
      fmt::format("{}: first {} of {} rows for training, {} for testing", path, train, rows->count(), taken);
  return data;
}

}  // namespace moe
