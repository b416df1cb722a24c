#include "dmft/kernel_mixing.hpp"

#include <Eigen/QR>

namespace moe {

namespace {

using Eigen::MatrixXd;

void add(const KernelSet& k, double factor, KernelSet& to) {
  for (std::size_t i = 0; i < k.size(); ++i)
    to.all()[i].change([factor](auto sum, const auto& numbers) { sum += factor * numbers; }, k.all()[i]);
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
      const double norm = estimate.all()[k].squared_norm();
      if (norm == 0) continue;
      const auto change = [&](Index j) {
        const Past& p = past_[static_cast<std::size_t>(j)];
        CausalMatrix difference = p.estimate.all()[k];
        return difference -= p.iterate.all()[k];
      };
      const CausalMatrix last = change(m);
      std::vector<CausalMatrix> differences;
      for (Index j = 0; j < m; ++j) {
        differences.push_back(last);
        differences.back() -= change(j);
      }
      const auto product = [&](const CausalMatrix& a, const CausalMatrix& b) {
        double sum = 0;
        for_stretches([&](const auto& x, const auto& y) { sum += (x * y).sum(); }, a, b);
        return sum / norm;
      };
      for (Index j = 0; j < m; ++j) {
        const CausalMatrix& one = differences[static_cast<std::size_t>(j)];
        with_last[j] += product(one, last);
        for (Index i = 0; i <= j; ++i) products(i, j) += product(differences[static_cast<std::size_t>(i)], one);
      }
    }
    products.triangularView<Eigen::StrictlyLower>() = products.transpose();
    weights = products.completeOrthogonalDecomposition().solve(with_last);
  }
  estimate *= (1 - damping_) * (1 - weights.sum());
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
  if (a.loading()) past_.assign(static_cast<std::size_t>(count), {empty_, empty_});
  for (std::size_t j = 0; j < past_.size(); ++j) {
    a(fmt::format("iterate{}", j), past_[j].iterate);
    a(fmt::format("estimate{}", j), past_[j].estimate);
  }
}

}  // namespace moe
