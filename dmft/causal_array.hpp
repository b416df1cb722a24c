/// Numbers in causal shape on a backend.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include "dmft/causal_matrix.hpp"
#include "support/cpu.hpp"

namespace moe {

/// Step by step what fields are made of. Where there is a file it is there, in the backend's precision, and steps come from it when they are
/// asked for.
template <class B>
class CausalArray {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  CausalArray() = default;
  CausalArray(const CausalShape& shape, std::shared_ptr<ScratchFile> file) : shape_(shape), file_(std::move(file)) {
    if (file_ == nullptr)
      numbers_ = Matrix(shape_.size(), 1);
    else
      place_ = file_->reserve(bytes(shape_.size()));
  }
  CausalArray(CausalArray&& other) noexcept { *this = std::move(other); }
  CausalArray& operator=(CausalArray&& other) noexcept {
    std::swap(shape_, other.shape_);
    std::swap(file_, other.file_);
    std::swap(numbers_, other.numbers_);
    std::swap(place_, other.place_);
    return *this;
  }
  CausalArray(const CausalArray&) = delete;
  CausalArray& operator=(const CausalArray&) = delete;
  ~CausalArray() {
    if (file_ != nullptr) file_->release(place_);
  }

  bool empty() const { return shape_.size() == 0; }
  const CausalShape& shape() const { return shape_; }

  /// ((t + 1) P, P), and what holds it if it is a copy.
  struct Block {
    Matrix copy;
    View view;
  };
  Block step(Index t) const {
    Block block;
    if (file_ == nullptr) {
      block.view = view(t);
    } else {
      block.copy = uploaded(from_file(t));
      block.view = block.copy;
    }
    return block;
  }
  /// Where blocks are put one after the other: arrays of their own would be fresh pages each.
  struct Room {
    Eigen::VectorXd numbers;
    Eigen::Matrix<Real, Eigen::Dynamic, 1> from_file;
  };
  /// The same in float64, until the next is put there.
  Eigen::Map<const Eigen::MatrixXd> on_host(Index t, Room& room) const {
    const Index rows = shape_.rows(t), most = shape_.n() * shape_.P;
    room.numbers.resize(most);
    const auto put = [&](const auto& numbers) {
      Eigen::Map<Eigen::MatrixXd>(room.numbers.data(), rows, shape_.P) = numbers;
    };
    using HostBlock = Eigen::Map<const Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>>;
    if (file_ != nullptr) {
      room.from_file.resize(most);
      file_->read(room.from_file.data(), bytes(rows * shape_.P), place_.at + bytes(shape_.begin(t)));
      put(HostBlock(room.from_file.data(), rows, shape_.P).template cast<double>());
    } else if constexpr (on_host_itself) {
      put(HostBlock(view(t).data, rows, shape_.P).template cast<double>());
    } else {
      put(B::download(view(t)));
    }
    return {room.numbers.data(), rows, shape_.P};
  }
  void set(Index t, const Eigen::MatrixXd& block) {
    if (file_ == nullptr) return B::upload(block, view(t));
    auto numbers = HostMatrix<Real>::uninitialized(block.rows(), block.cols());
    Cpu<Real>::upload(block, numbers);
    file_->write(numbers.data(), bytes(numbers.size()), place_.at + bytes(shape_.begin(t)));
  }

 private:
  static constexpr bool on_host_itself = std::is_same_v<Matrix, HostMatrix<Real>>;
  static std::size_t bytes(Index count) { return static_cast<std::size_t>(count) * sizeof(Real); }
  View view(Index t) const {
    return {numbers_.view().data + shape_.begin(t), shape_.rows(t), shape_.P, shape_.rows(t)};
  }
  HostMatrix<Real> from_file(Index t) const {
    auto block = HostMatrix<Real>::uninitialized(shape_.rows(t), shape_.P);
    file_->read(block.data(), bytes(block.size()), place_.at + bytes(shape_.begin(t)));
    return block;
  }
  static Matrix uploaded(HostMatrix<Real> block) {
    if constexpr (on_host_itself)
      return block;
    else
      return Matrix::from_host(block.view());
  }

  CausalShape shape_;
  std::shared_ptr<ScratchFile> file_;
  Matrix numbers_;
  ScratchFile::Place place_;
};

}  // namespace moe
