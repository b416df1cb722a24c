#include "validation/network_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moe::network {

using Eigen::MatrixXd;

double router_entropy(const MatrixXd& G, int K) {
  double sum = 0;
  for (Eigen::Index mu = 0; mu < G.cols(); ++mu) {
    const double total = G.col(mu).sum();
    double entropy = 0;
    for (Eigen::Index i = 0; i < G.rows(); ++i) {
      const double p = G(i, mu) / total;
      if (p > 0) entropy -= p * std::log(p);
    }
    sum += std::exp(entropy) / K;
  }
  return sum / static_cast<double>(G.cols());
}

Eigen::VectorXd loads(const MatrixXd& active, int K) {
  const double kappa = static_cast<double>(K) / static_cast<double>(active.rows());
  return active.rowwise().mean() / kappa;
}

double quantile(Eigen::VectorXd values, double q) {
  std::sort(values.begin(), values.end());
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<Eigen::Index>(std::floor(position));
  const Eigen::Index above = std::min(below + 1, values.size() - 1);
  return values(below) + (position - static_cast<double>(below)) * (values(above) - values(below));
}

double effective_experts(const MatrixXd& c) {
  double smallest = std::numeric_limits<double>::infinity();
  for (Eigen::Index mu = 0; mu < c.cols(); ++mu) {
    const double largest = c.col(mu).maxCoeff();
    if (!(largest > 0)) continue;
    // Relative to the largest, so that squares of tiny c neither underflow nor divide zero by zero.
    const Eigen::VectorXd relative = c.col(mu) / largest;
    smallest = std::min(smallest, relative.sum() * relative.sum() / relative.squaredNorm());
  }
  return std::isfinite(smallest) ? smallest : 0;
}

}  // namespace moe::network
