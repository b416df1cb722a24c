#include "dmft/kept_kernels.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "support/error.hpp"

namespace moe {

using Eigen::MatrixXd;

ScratchFile::ScratchFile(const std::string& folder) : folder_(folder.empty() ? "." : folder) {
  std::string name = folder_ + "/kernels-XXXXXX";
  file_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (file_ < 0) fail("make");
  ::unlink(name.c_str());  // the system keeps what is open
}

ScratchFile::~ScratchFile() { ::close(file_); }

void ScratchFile::fail(const char* what) const {
  throw IoError(
      fmt::format("io: cannot {} a scratch file for kernels in {}: {}. Choose another folder with --scratch FOLDER.",
                  what, folder_, std::strerror(errno)));
}

void ScratchFile::write(const MatrixXd& m, std::size_t place) {
  const auto* bytes = reinterpret_cast<const char*>(m.data());
  for (std::size_t done = 0, all = static_cast<std::size_t>(m.size()) * sizeof(double); done < all;) {
    const ssize_t now = ::pwrite(file_, bytes + done, all - done, static_cast<off_t>(place * sizeof(double) + done));
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) fail("write");
    done += static_cast<std::size_t>(now);
  }
}

void ScratchFile::read(MatrixXd& m, std::size_t place) const {
  auto* bytes = reinterpret_cast<char*>(m.data());
  for (std::size_t done = 0, all = static_cast<std::size_t>(m.size()) * sizeof(double); done < all;) {
    const ssize_t now = ::pread(file_, bytes + done, all - done, static_cast<off_t>(place * sizeof(double) + done));
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) fail("read");
    done += static_cast<std::size_t>(now);
  }
}

KeptKernels::KeptKernels(ScratchFile* file, Index most, KernelSet kernels)
    : file_(file), most_(static_cast<std::size_t>(most)) {
  put_all(std::move(kernels));
}

MatrixXd KeptKernels::read(std::size_t k) const {
  MatrixXd kernel(places_[k].rows, places_[k].cols);
  if (kernel.size() > 0) file_->read(kernel, places_[k].at);
  return kernel;
}

KernelSet KeptKernels::all() const {
  if (file_ == nullptr) return kernels_;
  KernelSet kernels;
  kernels.all().resize(size());
  for (std::size_t k = 0; k < size(); ++k) kernels.all()[k] = read(k);
  return kernels;
}

void KeptKernels::put(std::size_t k, MatrixXd kernel) {
  if (file_ == nullptr) {
    kernels_.all()[k] = std::move(kernel);
    return;
  }
  Place& place = places_[k];
  if (kernel.size() > 0 && !place.reserved) place = {true, file_->reserve(most_ * most_)};
  place.rows = kernel.rows(), place.cols = kernel.cols();
  if (kernel.size() > 0) file_->write(kernel, place.at);
}

void KeptKernels::put_all(KernelSet kernels) {
  const std::size_t count = std::max(size(), kernels.size());
  for (KernelSet::Matrices* all : {&kernels.all(), &kernels_.all()}) all->resize(count);
  places_.resize(count);
  for (std::size_t k = 0; k < count; ++k) put(k, std::exchange(kernels.all()[k], MatrixXd()));
}

void KeptKernels::add(std::size_t k, const MatrixXd& kernel) {
  if (!has(k)) return put(k, kernel);
  change(k, [&](MatrixXd& sum) { sum += kernel; });
}

void KeptKernels::add(const KeptKernels& other) {
  for (std::size_t k = 0; k < other.size(); ++k)
    if (other.has(k)) other.with(k, [&](const MatrixXd& kernel) { add(k, kernel); });
}

void KeptKernels::transfer(Archive& a) {
  std::size_t count = size();
  a("count", count);
  kernels_.all().resize(count);
  places_.resize(count);
  for (std::size_t k = 0; k < count; ++k) {
    const std::string name = fmt::format("kernel{}", k);
    if (file_ == nullptr) {
      a(name, kernels_.all()[k]);
      continue;
    }
    MatrixXd kernel = read(k);
    a(name, kernel);
    if (a.loading()) put(k, std::move(kernel));
  }
}

}  // namespace moe
