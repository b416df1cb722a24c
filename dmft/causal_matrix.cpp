#include "dmft/causal_matrix.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <span>
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

ScratchFile::Place ScratchFile::reserve(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (const auto used = free_.find(bytes); used != free_.end()) {
    const Place place = used->second;
    free_.erase(used);
    return place;
  }
  if (::ftruncate(file_, static_cast<off_t>(end_ + bytes)) != 0) fail("enlarge");
  return {std::exchange(end_, end_ + bytes), bytes, true};
}

void ScratchFile::release(Place place) {
  place.zero = ::fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(place.at),
                           static_cast<off_t>(place.bytes)) == 0;  // which some file systems do not do
  const std::lock_guard lock(mutex_);
  free_.emplace(place.bytes, place);
}

void ScratchFile::write(const void* from, std::size_t bytes, std::size_t at) {
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t now =
        ::pwrite(file_, static_cast<const char*>(from) + done, bytes - done, static_cast<off_t>(at + done));
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) fail("write");
    done += static_cast<std::size_t>(now);
  }
}

void ScratchFile::read(void* to, std::size_t bytes, std::size_t at) const {
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t now = ::pread(file_, static_cast<char*>(to) + done, bytes - done, static_cast<off_t>(at + done));
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) fail("read");
    done += static_cast<std::size_t>(now);
  }
}

namespace {

std::size_t bytes_of(Index count) { return static_cast<std::size_t>(count) * sizeof(double); }

}  // namespace

CausalMatrix::CausalMatrix(const CausalShape& shape, std::shared_ptr<ScratchFile> file)
    : shape_(shape), file_(std::move(file)) {
  if (file_ == nullptr) {
    numbers_.assign(static_cast<std::size_t>(shape_.size()), 0);
    return;
  }
  if (empty()) return;
  place_ = file_->reserve(bytes_of(shape_.size()));
  if (place_.zero) return;
  const std::vector<double> zeros(static_cast<std::size_t>(count(0)), 0);
  for (Index k = 0; k < stretches(); ++k) write(k * stretch, count(k), zeros.data());
}

CausalMatrix::CausalMatrix(const CausalMatrix& other) : CausalMatrix(other.file_) {
  if (other.empty()) return;
  shape_ = other.shape_;
  numbers_ = other.numbers_;
  if (file_ == nullptr) return;
  place_ = file_->reserve(bytes_of(shape_.size()));
  Index first = 0;
  for_stretches(
      [&](const auto& numbers) {
        write(first, numbers.size(), numbers.data());
        first += numbers.size();
      },
      other);
}

CausalMatrix::~CausalMatrix() {
  if (file_ != nullptr && place_.bytes > 0) file_->release(place_);
}

void CausalMatrix::swap(CausalMatrix& other) noexcept {
  std::swap(shape_, other.shape_);
  std::swap(file_, other.file_);
  std::swap(numbers_, other.numbers_);
  std::swap(place_, other.place_);
}

const double* CausalMatrix::read(Index first, Index count, std::vector<double>& buffer) const {
  if (file_ == nullptr) return numbers_.data() + first;
  buffer.resize(static_cast<std::size_t>(count));
  file_->read(buffer.data(), bytes_of(count), place_.at + bytes_of(first));
  return buffer.data();
}

void CausalMatrix::write(Index first, Index count, const double* from) {
  if (file_ != nullptr) file_->write(from, bytes_of(count), place_.at + bytes_of(first));
}

MatrixXd CausalMatrix::step(Index t) const {
  MatrixXd block(shape_.rows(t), shape_.P);
  if (file_ != nullptr)
    file_->read(block.data(), bytes_of(block.size()), place_.at + bytes_of(shape_.begin(t)));
  else
    std::copy_n(numbers_.data() + shape_.begin(t), block.size(), block.data());
  return block;
}

MatrixXd CausalMatrix::at_equal_time(Index t) const {
  MatrixXd block(shape_.P, shape_.P);
  std::vector<double> buffer;
  for (Index p = 0; p < shape_.P; ++p)
    std::copy_n(read(shape_.begin(t) + p * shape_.rows(t) + shape_.rows(t) - shape_.P, shape_.P, buffer), shape_.P,
                block.col(p).data());
  return block;
}

void CausalMatrix::add(Index t, const MatrixXd& block) {
  std::vector<double> buffer;
  auto* const numbers = const_cast<double*>(read(shape_.begin(t), block.size(), buffer));  // its own, or the buffer's
  Eigen::Map<MatrixXd>(numbers, block.rows(), block.cols()) += block;
  write(shape_.begin(t), block.size(), numbers);
}

void CausalMatrix::resize(Index steps) {
  if (empty() || steps == shape_.steps) return;
  CausalMatrix resized({shape_.P, steps}, file_);
  for (Index t = 0; t < std::min(steps, shape_.steps); ++t) resized.add(t, step(t));
  swap(resized);
}

CausalMatrix& CausalMatrix::operator+=(const CausalMatrix& other) {
  change([](auto own, const auto& added) { own += added; }, other);
  return *this;
}
CausalMatrix& CausalMatrix::operator-=(const CausalMatrix& other) {
  change([](auto own, const auto& taken) { own -= taken; }, other);
  return *this;
}
CausalMatrix& CausalMatrix::operator*=(double factor) {
  change([factor](auto own) { own *= factor; });
  return *this;
}

double CausalMatrix::squared_norm() const {
  double sum = 0;
  for_stretches([&](const auto& numbers) { sum += numbers.matrix().squaredNorm(); }, *this);
  return sum;
}

bool CausalMatrix::operator==(const CausalMatrix& other) const {
  return shape_.P == other.shape_.P && shape_.steps == other.shape_.steps && squared_distance(*this, other) == 0;
}

double squared_distance(const CausalMatrix& a, const CausalMatrix& b) {
  double sum = 0;
  for_stretches([&](const auto& x, const auto& y) { sum += (x - y).matrix().squaredNorm(); }, a, b);
  return sum;
}

void CausalMatrix::transfer(Archive& a) {
  CausalShape shape = shape_;
  a("P", shape.P);
  a("steps", shape.steps);
  Index k = 0;
  const auto transfer = [&](double* from, Index count) {
    std::span numbers(from, static_cast<std::size_t>(count));
    a(fmt::format("numbers{}", k++), numbers);
  };
  if (!a.loading())  // while samplers read
    return for_stretches([&](const auto& own) { transfer(const_cast<double*>(own.data()), own.size()); }, *this);
  *this = CausalMatrix(shape, file_);
  change([&](auto own) { transfer(own.data(), own.size()); });
}

}  // namespace moe
