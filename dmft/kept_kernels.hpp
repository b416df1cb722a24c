/// Kernel sets of kernel iteration that wait for their turn: in memory or, where they would not fit, in a file.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "dmft/kernel_set.hpp"

namespace moe {

/// A file without a name, which is gone when the process ends, however that ends. Several threads may write and read at once, each its own
/// place. Throws IoError.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& folder);
  ~ScratchFile();
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  /// A place for so many numbers, asked for by one thread at a time. What is never written takes no room on the disk.
  std::size_t reserve(std::size_t numbers) { return numbers_ += numbers, numbers_ - numbers; }
  void write(const Eigen::MatrixXd& m, std::size_t place);
  void read(Eigen::MatrixXd& m, std::size_t place) const;

 private:
  [[noreturn]] void fail(const char* what) const;
  std::string folder_;
  int file_ = -1;
  std::size_t numbers_ = 0;
};

/// A kernel set: in memory or in a file, from which one kernel at a time is read when it is asked for, and to which it goes back.
class KeptKernels {
 public:
  KeptKernels() = default;
  /// `file`: nothing for memory. `most`: queries that kernels will ever have.
  KeptKernels(ScratchFile* file, Index most, KernelSet kernels = {});
  KeptKernels(KeptKernels&&) noexcept = default;
  KeptKernels& operator=(KeptKernels&&) noexcept = default;
  KeptKernels(const KeptKernels&) = delete;
  KeptKernels& operator=(const KeptKernels&) = delete;

  /// As KernelSet::size, all() and name.
  std::size_t size() const { return kernels_.size(); }
  std::string name(std::size_t k) const { return kernels_.name(k); }
  bool has(std::size_t k) const { return file_ != nullptr ? places_[k].rows > 0 : kernels_.all()[k].size() > 0; }
  /// use(kernel)
  template <class Use>
  auto with(std::size_t k, const Use& use) const {
    return file_ != nullptr ? use(static_cast<const Eigen::MatrixXd&>(read(k))) : use(kernels_.all()[k]);
  }
  /// use(all kernels)
  template <class Use>
  auto with_all(const Use& use) const {
    return file_ != nullptr ? use(static_cast<const KernelSet&>(all())) : use(kernels_);
  }
  /// change(kernel), which is kept.
  template <class Change>
  void change(std::size_t k, const Change& change) {
    if (file_ == nullptr) return change(kernels_.all()[k]);
    Eigen::MatrixXd kernel = read(k);
    change(kernel);
    put(k, std::move(kernel));
  }
  KernelSet all() const;
  void put(std::size_t k, Eigen::MatrixXd kernel);
  void put_all(KernelSet kernels);
  /// += kernel, where nothing stands for zero.
  void add(std::size_t k, const Eigen::MatrixXd& kernel);
  void add(const KeptKernels& other);
  void clear() { put_all({}); }

  void transfer(Archive& a);

 private:
  struct Place {
    bool reserved = false;
    std::size_t at = 0;
    Index rows = 0, cols = 0;
  };
  Eigen::MatrixXd read(std::size_t k) const;

  ScratchFile* file_ = nullptr;
  std::size_t most_ = 0;
  KernelSet kernels_;
  std::vector<Place> places_;
};

}  // namespace moe
