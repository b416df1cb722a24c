/// Column-major arrays in host memory: an owning HostMatrix and a non-owning HostView. Fields have shape (sites, samples), the
/// site index fastest; bases grow by appending columns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "support/host_device.hpp"

namespace moe {

using Index = std::ptrdiff_t;

/// Window on a column-major array: element (i, j) at data[i + j * ld].
template <class Real>
struct HostView {
  Real* data = nullptr;
  Index rows = 0, cols = 0, ld = 0;

  MOE_HD Real& operator()(Index i, Index j) const { return data[i + j * ld]; }
  MOE_HD Index size() const { return rows * cols; }
  HostView columns(Index first, Index count) const { return {data + first * ld, rows, count, ld}; }
  HostView row_range(Index first, Index count) const { return {data + first, count, cols, ld}; }
};

/// Owns rows x capacity values, 64-byte aligned. Growing keeps the columns that are there.
template <class Real>
class HostMatrix {
 public:
  HostMatrix() = default;
  HostMatrix(Index rows, Index cols) : HostMatrix(uninitialized(rows, cols)) { fill(Real(0)); }
  HostMatrix(HostMatrix&& other) noexcept { *this = std::move(other); }
  HostMatrix& operator=(HostMatrix&& other) noexcept {
    data_ = std::move(other.data_);
    rows_ = std::exchange(other.rows_, 0);
    cols_ = std::exchange(other.cols_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    return *this;
  }

  /// For arrays that are written before they are read: saves a pass over memory.
  static HostMatrix uninitialized(Index rows, Index cols) {
    HostMatrix m;
    m.rows_ = rows;
    m.cols_ = m.capacity_ = cols;
    m.data_ = allocate(rows * cols);
    return m;
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  std::size_t bytes() const { return static_cast<std::size_t>(rows_ * capacity_) * sizeof(Real); }
  bool empty() const { return cols_ == 0 || rows_ == 0; }
  Real* data() { return data_.get(); }
  const Real* data() const { return data_.get(); }
  Real& operator()(Index i, Index j) { return data_.get()[i + j * rows_]; }
  const Real& operator()(Index i, Index j) const { return data_.get()[i + j * rows_]; }

  HostView<Real> view() { return {data_.get(), rows_, cols_, rows_}; }
  /// Whole array again: a view does not know that it must not write.
  HostView<Real> view() const { return {data_.get(), rows_, cols_, rows_}; }
  operator HostView<Real>() { return view(); }  // NOLINT(google-explicit-constructor): an array is its own window
  HostView<Real> columns(Index first, Index count) { return view().columns(first, count); }

  /// More columns with the old ones kept; new ones are unspecified. Capacity grows by half, so appending is linear.
  void set_columns(Index cols) {
    if (cols > capacity_) {
      const Index capacity = cols > capacity_ + capacity_ / 2 ? cols : capacity_ + capacity_ / 2;
      auto bigger = allocate(rows_ * capacity);
      std::copy_n(data_.get(), rows_ * cols_, bigger.get());
      data_ = std::move(bigger);
      capacity_ = capacity;
    }
    cols_ = cols;
  }

  void fill(Real value) { std::fill_n(data_.get(), size(), value); }

 private:
  struct Free {
    void operator()(Real* p) const { std::free(p); }
  };
  using Pointer = std::unique_ptr<Real, Free>;
  static Pointer allocate(Index count) {
    if (count == 0) return nullptr;
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(Real) + 63) / 64 * 64;
    auto* p = static_cast<Real*>(std::aligned_alloc(64, bytes));
    if (p == nullptr) throw std::bad_alloc();
    return Pointer(p);
  }

  Pointer data_;
  Index rows_ = 0, cols_ = 0, capacity_ = 0;
};

}  // namespace moe
