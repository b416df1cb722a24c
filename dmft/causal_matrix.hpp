/// Matrices over pairs of queries, (step, sample) each, that end at the present, step by step in memory or in a file.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "support/archive.hpp"

namespace moe {

/// A file without a name, which is gone when the process ends, however that ends. Several threads may ask, write and read at once, each its
/// own place. Throws IoError.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& folder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  struct Place {
    std::size_t at = 0, bytes = 0;
    bool zero = true;  ///< what was never written, or given back to the disk, is zero and takes no room there
  };
  Place reserve(std::size_t bytes);
  void release(Place place);
  void write(const void* from, std::size_t bytes, std::size_t at);
  void read(void* to, std::size_t bytes, std::size_t at) const;

 private:
  [[noreturn]] void fail(const char* what) const;
  std::string folder_;
  int file_ = -1;
  std::mutex mutex_;
  std::size_t end_ = 0;
  std::multimap<std::size_t, Place> free_;  ///< by their bytes
};

/// Blocks one after the other in time: that of step t has the columns of its P queries and the rows of all queries up to them, (t + 1) P.
struct CausalShape {
  Index P = 0, steps = 0;
  Index n() const { return steps * P; }
  Index rows(Index t) const { return (t + 1) * P; }
  Index begin(Index t) const { return P * P * (t * (t + 1) / 2); }
  Index size() const { return begin(steps); }
};

/// Numbers in this shape, at first zero. What a query has with later ones is not there: it mirrors what they have with it, in a correlation,
/// or is nothing, in a response.
class CausalMatrix {
 public:
  /// In memory where there is no file.
  explicit CausalMatrix(std::shared_ptr<ScratchFile> file = nullptr) : file_(std::move(file)) {}
  CausalMatrix(const CausalShape& shape, std::shared_ptr<ScratchFile> file);
  CausalMatrix(const CausalMatrix& other);
  CausalMatrix(CausalMatrix&& other) noexcept { swap(other); }
  CausalMatrix& operator=(CausalMatrix other) noexcept {
    swap(other);
    return *this;
  }
  ~CausalMatrix();

  bool empty() const { return shape_.size() == 0; }
  const CausalShape& shape() const { return shape_; }
  const std::shared_ptr<ScratchFile>& file() const { return file_; }
  void clear() { *this = CausalMatrix(file_); }

  /// ((t + 1) P, P)
  Eigen::MatrixXd step(Index t) const;
  /// Step t's queries with themselves, (P, P).
  Eigen::MatrixXd at_equal_time(Index t) const;
  void add(Index t, const Eigen::MatrixXd& block);
  /// More steps, or fewer; new ones are zero.
  void resize(Index steps);

  /// All numbers in stretches, in their order, which are the same for matrices of one shape: use(numbers of each).
  template <class Use, class... Matrices>
  friend void for_stretches(const Use& use, const CausalMatrix& first, const Matrices&... others);
  /// change(numbers, numbers of each of the others of this shape)
  template <class Change, class... Matrices>
  void change(const Change& change, const Matrices&... others);

  CausalMatrix& operator+=(const CausalMatrix& other);
  CausalMatrix& operator-=(const CausalMatrix& other);
  CausalMatrix& operator*=(double factor);
  /// Sum of squares of the numbers that are there.
  double squared_norm() const;
  double norm() const { return std::sqrt(squared_norm()); }
  bool operator==(const CausalMatrix& other) const;

  void transfer(Archive& a);

 private:
  static constexpr Index stretch = Index{1} << 20;  ///< numbers
  Index stretches() const { return (shape_.size() + stretch - 1) / stretch; }
  Index count(Index k) const { return std::min(stretch, shape_.size() - k * stretch); }
  /// `count` numbers from `first` on: where they are, or in the buffer.
  const double* read(Index first, Index count, std::vector<double>& buffer) const;
  void write(Index first, Index count, const double* from);  ///< nothing to do where they are
  void swap(CausalMatrix& other) noexcept;

  CausalShape shape_;
  std::shared_ptr<ScratchFile> file_;
  std::vector<double> numbers_;
  ScratchFile::Place place_;
};

/// |a - b|^2 of two of one shape.
double squared_distance(const CausalMatrix& a, const CausalMatrix& b);

template <class Use, class... Matrices>
void for_stretches(const Use& use, const CausalMatrix& first, const Matrices&... others) {
  std::array<std::vector<double>, 1 + sizeof...(Matrices)> buffers;
  for (Index k = 0; k < first.stretches(); ++k) {
    std::size_t which = 0;
    const auto numbers = [&](const CausalMatrix& m) {
      return Eigen::Map<const Eigen::ArrayXd>(m.read(k * CausalMatrix::stretch, m.count(k), buffers.at(which++)),
                                              m.count(k));
    };
    const std::array all = {numbers(first), numbers(others)...};  // in this order
    std::apply(use, all);
  }
}

template <class Change, class... Matrices>
void CausalMatrix::change(const Change& change, const Matrices&... others) {
  Index k = 0;
  for_stretches(
      [&](const auto& own, const auto&... of_others) {
        auto* const numbers = const_cast<double*>(own.data());  // this matrix's, or a buffer's
        change(Eigen::Map<Eigen::ArrayXd>(numbers, own.size()), of_others...);
        write(k++ * stretch, own.size(), numbers);
      },
      *this, others...);
}

}  // namespace moe
