#include "support/archive.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moe {

namespace {
std::vector<std::string> axes(std::size_t rank) {
  static const std::vector<std::string> names = {"item", "column", "row"};
  return {names.end() - static_cast<std::ptrdiff_t>(rank), names.end()};
}
}  // namespace

void Archive::save(const std::string& path, const std::vector<std::size_t>& shape, const double* values) {
  to_->dataset(path, shape, values, "state of the run", axes(shape.size()));
}
void Archive::save(const std::string& path, const std::vector<std::size_t>& shape, const float* values) {
  to_->dataset(path, shape, values, "state of the run", axes(shape.size()));
}
void Archive::save(const std::string& path, const std::vector<std::size_t>& shape, const std::int64_t* values) {
  to_->dataset(path, shape, values, "state of the run", axes(shape.size()));
}

H5Array Archive::load(const std::string& path, std::ptrdiff_t count, std::ptrdiff_t rank) const {
  H5Array array = from_->read(path);
  const bool fits = (count < 0 || static_cast<std::ptrdiff_t>(array.values.size()) == count) &&
                    (rank < 0 || static_cast<std::ptrdiff_t>(array.shape.size()) == rank);
  if (!fits)
    throw IoError(
        fmt::format("io: {} of the checkpoint has shape ({}), which does not fit. It was written by another version; "
                    "start the run anew without --resume.",
                    path, fmt::join(array.shape, ", ")));
  return array;
}

void Archive::field(const std::string& path, double& value) {
  if (!loading()) return save(path, {}, &value);
  value = load(path, 1).values[0];
}

void Archive::field(const std::string& path, std::vector<double>& values) {
  if (!loading()) return save(path, {values.size()}, values.data());
  values = load(path, -1, 1).values;
}

void Archive::field(const std::string& path, std::span<double>& values) {
  if (!loading()) return save(path, {values.size()}, values.data());
  std::ranges::copy(load(path, static_cast<std::ptrdiff_t>(values.size())).values, values.begin());
}

void Archive::field(const std::string& path, std::vector<int>& values) {
  if (!loading()) {
    const std::vector<std::int64_t> wide(values.begin(), values.end());
    return save(path, {wide.size()}, wide.data());
  }
  const H5Array array = load(path, -1, 1);
  values.clear();
  for (const double v : array.values) values.push_back(static_cast<int>(v));
}

void Archive::field(const std::string& path, std::vector<std::vector<double>>& rows) {
  if (!loading()) {
    const std::size_t length = rows.empty() ? 0 : rows[0].size();
    std::vector<double> flat;
    for (const auto& row : rows) {
      if (row.size() != length) throw Error("archive: rows of " + path + " differ in length");
      flat.insert(flat.end(), row.begin(), row.end());
    }
    return save(path, {rows.size(), length}, flat.data());
  }
  const H5Array array = load(path, -1, 2);
  rows.assign(array.shape[0], std::vector<double>(array.shape[1]));
  for (std::size_t k = 0; k < rows.size(); ++k)
    std::copy_n(array.values.begin() + static_cast<std::ptrdiff_t>(k * array.shape[1]), array.shape[1],
                rows[k].begin());
}

void Archive::field(const std::string& path, std::vector<Eigen::MatrixXd>& list) {
  if (!loading()) {
    const Eigen::Index rows = list.empty() ? 0 : list[0].rows(), cols = list.empty() ? 0 : list[0].cols();
    std::vector<double> flat;
    for (const auto& m : list) {
      if (m.rows() != rows || m.cols() != cols) throw Error("archive: matrices of " + path + " differ in shape");
      flat.insert(flat.end(), m.data(), m.data() + m.size());
    }
    return save(path, {list.size(), size(cols), size(rows)}, flat.data());
  }
  const H5Array array = load(path, -1, 3);
  list.clear();
  const auto cols = static_cast<Eigen::Index>(array.shape[1]), rows = static_cast<Eigen::Index>(array.shape[2]);
  for (std::size_t k = 0; k < array.shape[0]; ++k)
    list.emplace_back(
        Eigen::Map<const Eigen::MatrixXd>(array.values.data() + k * array.shape[1] * array.shape[2], rows, cols));
}

void Archive::field(const std::string& path, Eigen::MatrixXd& m) {
  if (!loading()) return save(path, {size(m.cols()), size(m.rows())}, m.data());
  const H5Array array = load(path, -1, 2);
  m = Eigen::Map<const Eigen::MatrixXd>(array.values.data(), static_cast<Eigen::Index>(array.shape[1]),
                                        static_cast<Eigen::Index>(array.shape[0]));
}

}  // namespace moe
