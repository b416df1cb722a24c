#include "dmft/kernel_mixing.hpp"

#include <Eigen/QR>

namespace moe {

namespace {

using Eigen::MatrixXd;

void scale(KernelSet& k, double factor) {
  for (MatrixXd& kernel : k.all()) kernel *= factor;
}
void add(const KernelSet& k, double factor, KernelSet& to) {
  for (std::size_t i = 0; i < k.size(); ++i)
    if (k.all()[i].size() > 0) to.all()[i] += factor * k.all()[i];
}

}  // namespace

void KernelMixing::mix(const KernelSet& iterate, KernelSet& estimate) {
  if (memory_ > 0) {
    if (past_.size() > static_cast<std::size_t>(memory_)) past_.erase(past_.begin());
    past_.push_back({iterate, estimate});
  }
  const auto m = static_cast<Index>(past_.size()) - 1;
  Eigen::VectorXd weights = Eigen::VectorXd::Zero(std::max<Index>(m, 0));  // of the older ones
  if (m > 0) {
    // |g - sum_j w_j (g - g_j)|^2 over w, g_j the changes and g the last.
    MatrixXd products = MatrixXd::Zero(m, m);
    Eigen::VectorXd with_last = Eigen::VectorXd::Zero(m);
    for (std::size_t k = 0; k < estimate.size(); ++k) {
      const double norm = estimate.all()[k].squaredNorm();
      if (norm == 0) continue;
      const auto change = [&](Index j) -> MatrixXd {
        const Past& p = past_[static_cast<std::size_t>(j)];
        return p.estimate.all()[k] - p.iterate.all()[k];
      };
      const MatrixXd last = change(m);
      std::vector<MatrixXd> differences;
      for (Index j = 0; j < m; ++j) differences.push_back(last - change(j));
      for (Index j = 0; j < m; ++j) {
        with_last[j] += differences[static_cast<std::size_t>(j)].cwiseProduct(last).sum() / norm;
        for (Index i = 0; i <= j; ++i)
          products(i, j) +=
              differences[static_cast<std::size_t>(i)].cwiseProduct(differences[static_cast<std::size_t>(j)]).sum() /
              norm;
      }
    }
    products.triangularView<Eigen::StrictlyLower>() = products.transpose();
    weights = products.completeOrthogonalDecomposition().solve(with_last);
  }
  scale(estimate, (1 - damping_) * (1 - weights.sum()));
  add(iterate, damping_ * (1 - weights.sum()), estimate);
  for (Index j = 0; j < m; ++j) {
    const Past& p = past_[static_cast<std::size_t>(j)];
    add(p.estimate, (1 - damping_) * weights[j], estimate);
    add(p.iterate, damping_ * weights[j], estimate);
  }
}

void KernelMixing::transfer(Archive& a) {
  auto count = static_cast<std::int64_t>(past_.size());
  a("count", count);
  past_.resize(static_cast<std::size_t>(count));
  for (std::size_t j = 0; j < past_.size(); ++j) {
    a(fmt::format("iterate{}", j), past_[j].iterate);
    a(fmt::format("estimate{}", j), past_[j].estimate);
  }
}

}  // namespace moe
