/// Saving and loading of a running computation through one description of its state, so that no field can be written and then
/// forgotten when it is read.
#pragma once

#include <fmt/core.h>

#include <Eigen/Core>
#include <concepts>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "support/hdf5.hpp"
#include "support/matrix.hpp"

namespace moe {

class Archive;

/// An array in other memory than the host's, saved as the host's array is: checkpoints do not know where they were made.
template <class M>
concept DeviceArray = requires(const M& m) {
  M::from_host(m.to_host().view());
};

/// Has a member `void transfer(Archive& a)` that names every field of its state once: a("theta", theta_); ...
template <class T>
concept Transferable = requires(T& value, Archive& a) {
  value.transfer(a);
};

/// One group of an HDF5 file, being written or being read. Values come back exactly as they were, bit for bit; arrays keep their
/// shapes, empty ones too. Reading throws IoError naming the field that is missing or has another size than it should.
class Archive {
 public:
  Archive(H5Writer& to, std::string group) : to_(&to), group_(std::move(group)) {}
  Archive(const H5Reader& from, std::string group) : from_(&from), group_(std::move(group)) {}

  bool loading() const { return from_ != nullptr; }

  /// Writes `value` under this name, or reads it from there.
  template <class T>
  void operator()(const std::string& name, T& value) {
    field(group_ + "/" + name, value);
  }

 private:
  template <class T>
  requires(std::integral<T> || std::is_enum_v<T>) void field(const std::string& path, T& value) {
    auto number = static_cast<std::int64_t>(value);
    if (!loading()) return save(path, {}, &number);
    value = static_cast<T>(load(path, 1).values[0]);
  }
  void field(const std::string& path, double& value);
  void field(const std::string& path, std::vector<double>& values);
  void field(const std::string& path, std::vector<int>& values);
  /// Numbers in their place, as many as there were. Written, they are only read: other threads may read them too.
  void field(const std::string& path, std::span<double>& values);
  /// Rows of equal length, (n, length).
  void field(const std::string& path, std::vector<std::vector<double>>& rows);
  /// Matrices of equal shape.
  void field(const std::string& path, std::vector<Eigen::MatrixXd>& list);
  void field(const std::string& path, Eigen::MatrixXd& m);
  template <class Real>
  void field(const std::string& path, HostMatrix<Real>& m) {
    if (!loading()) return save(path, {size(m.cols()), size(m.rows())}, m.data());
    const H5Array array = load(path, -1, 2);
    m = HostMatrix<Real>::uninitialized(static_cast<Index>(array.shape[1]), static_cast<Index>(array.shape[0]));
    for (std::size_t k = 0; k < array.values.size(); ++k) m.data()[k] = static_cast<Real>(array.values[k]);
  }
  template <DeviceArray M>
  void field(const std::string& path, M& m) {
    decltype(m.to_host()) host;
    if (!loading()) host = m.to_host();
    field(path, host);
    if (loading()) m = M::from_host(host);
  }
  template <class M>
  requires requires { M::uninitialized(0, 0); }
  void field(const std::string& path, std::vector<M>& list) {
    auto count = static_cast<std::int64_t>(list.size());
    field(path + "/count", count);
    list.resize(static_cast<std::size_t>(count));
    for (std::size_t k = 0; k < list.size(); ++k) field(path + "/" + std::to_string(k), list[k]);
  }
  template <class T>
  void field(const std::string& path, std::map<std::string, T>& map) {
    std::vector<std::string> keys;
    if (loading()) {
      map.clear();
      if (from_->has(path)) keys = from_->members(path);
    } else {
      for (const auto& [key, unused] : map) keys.push_back(key);
    }
    for (const auto& key : keys) field(fmt::format("{}/{}", path, key), map[key]);
  }
  /// Objects in a list that its owner has made already: as many as there were.
  template <class T>
  void field(const std::string& path, std::vector<std::unique_ptr<T>>& list) {
    for (std::size_t k = 0; k < list.size(); ++k) field(path + "/" + std::to_string(k), *list[k]);
  }
  template <Transferable T>
  void field(const std::string& path, std::unique_ptr<T>& value) {
    field(path, *value);
  }
  template <Transferable T>
  void field(const std::string& path, T& value) {
    Archive inner(*this);
    inner.group_ = path;
    value.transfer(inner);
  }

  static std::size_t size(std::ptrdiff_t n) { return static_cast<std::size_t>(n); }
  void save(const std::string& path, const std::vector<std::size_t>& shape, const double* values);
  void save(const std::string& path, const std::vector<std::size_t>& shape, const float* values);
  void save(const std::string& path, const std::vector<std::size_t>& shape, const std::int64_t* values);
  /// `count` values over `rank` axes; -1: any.
  H5Array load(const std::string& path, std::ptrdiff_t count, std::ptrdiff_t rank = -1) const;

  H5Writer* to_ = nullptr;
  const H5Reader* from_ = nullptr;
  std::string group_;
};

}  // namespace moe
