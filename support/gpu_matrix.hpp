/// Column-major arrays in the memory of a GPU: the owning GpuMatrix and its window GpuView, shaped as in support/matrix.hpp. Host code
/// cannot reach an element.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <utility>

#include "support/gpu_launch.hpp"

namespace moe {
inline namespace MOE_DEVICE_SPACE {

/// Element (i, j) at data[i + j * ld].
template <class Real>
struct GpuView {
  Real* data = nullptr;
  Index rows = 0, cols = 0, ld = 0;

  MOE_HD Real& operator()(Index i, Index j) const { return data[i + j * ld]; }
  MOE_HD Index size() const { return rows * cols; }
  MOE_HD GpuView columns(Index first, Index count) const { return {data + first * ld, rows, count, ld}; }
  MOE_HD GpuView row_range(Index first, Index count) const { return {data + first, count, cols, ld}; }
  /// Whether every column begins at a multiple of 16 bytes.
  MOE_HD bool aligned() const {
    constexpr auto step = static_cast<Index>(16 / sizeof(Real));
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ld % step == 0;
  }
};

/// to = from, both on the device, of one shape.
template <class Real>
void copy_on_device(GpuView<Real> from, GpuView<Real> to) {
  const auto bytes = [](Index n) { return static_cast<std::size_t>(n) * sizeof(Real); };
  device::copy(gpu::Direction::on_device, to.data, bytes(to.ld), from.data, bytes(from.ld), bytes(from.rows),
               static_cast<std::size_t>(from.cols));
}

/// Owns rows x capacity values. Growing keeps the columns that are there.
template <class Real>
class GpuMatrix {
 public:
  GpuMatrix() = default;
  GpuMatrix(Index rows, Index cols) : GpuMatrix(uninitialized(rows, cols)) { fill(Real(0)); }
  GpuMatrix(GpuMatrix&& other) noexcept { *this = std::move(other); }
  GpuMatrix& operator=(GpuMatrix&& other) noexcept {
    if (this == &other) return *this;
    device::release(data_);
    data_ = std::exchange(other.data_, nullptr);
    rows_ = std::exchange(other.rows_, 0);
    cols_ = std::exchange(other.cols_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    return *this;
  }
  GpuMatrix(const GpuMatrix&) = delete;
  GpuMatrix& operator=(const GpuMatrix&) = delete;
  ~GpuMatrix() { device::release(data_); }

  static GpuMatrix uninitialized(Index rows, Index cols) {
    GpuMatrix m;
    m.data_ = allocate(rows * cols);
    m.rows_ = rows;
    m.cols_ = m.capacity_ = cols;
    return m;
  }
  static GpuMatrix from_host(HostView<Real> from) {
    GpuMatrix m = uninitialized(from.rows, from.cols);
    device::copy(gpu::Direction::to_device, m.data_, bytes_of(from.rows), from.data, bytes_of(from.ld),
                 bytes_of(from.rows), static_cast<std::size_t>(from.cols));
    return m;
  }
  HostMatrix<Real> to_host() const { return to_host(view()); }
  static HostMatrix<Real> to_host(GpuView<Real> from) {
    auto host = HostMatrix<Real>::uninitialized(from.rows, from.cols);
    device::copy(gpu::Direction::to_host, host.data(), bytes_of(from.rows), from.data, bytes_of(from.ld),
                 bytes_of(from.rows), static_cast<std::size_t>(from.cols));
    return host;
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  std::size_t bytes() const { return bytes_of(rows_ * capacity_); }
  bool empty() const { return cols_ == 0 || rows_ == 0; }

  GpuView<Real> view() { return {data_, rows_, cols_, rows_}; }
  /// Whole array again: a view does not know that it must not write.
  GpuView<Real> view() const { return {data_, rows_, cols_, rows_}; }
  operator GpuView<Real>() { return view(); }  // NOLINT(google-explicit-constructor): an array is its own window
  GpuView<Real> columns(Index first, Index count) { return view().columns(first, count); }

  /// More columns with the old ones kept; new ones are unspecified. Capacity grows by half, so appending is linear.
  void set_columns(Index cols) {
    if (cols > capacity_) {
      const Index capacity = cols > capacity_ + capacity_ / 2 ? cols : capacity_ + capacity_ / 2;
      GpuMatrix bigger = uninitialized(rows_, capacity);
      copy_on_device(view(), bigger.columns(0, cols_));
      bigger.cols_ = cols_;
      *this = std::move(bigger);
    }
    cols_ = cols;
  }

  void fill(Real value) {
    if (empty()) return;
    if (value == Real(0)) return device::zero(data_, bytes_of(size()));
    auto host = HostMatrix<Real>::uninitialized(rows_, cols_);
    host.fill(value);
    *this = from_host(host);
  }

 private:
  static std::size_t bytes_of(Index n) { return static_cast<std::size_t>(n) * sizeof(Real); }
  static Real* allocate(Index count) {
    return count == 0 ? nullptr : static_cast<Real*>(device::allocate(bytes_of(count)));
  }

  Real* data_ = nullptr;
  Index rows_ = 0, cols_ = 0, capacity_ = 0;
};

}  // namespace MOE_DEVICE_SPACE
}  // namespace moe
