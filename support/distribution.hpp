/// Distributions that [output] distributions_at stores: which fields, and the bins, the same in the limit and in finite networks.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "support/observable.hpp"

namespace moe {

/// Fields over population and samples: neurons for h, (expert, hidden unit) for u, experts for r; all experts, active or not.
inline constexpr std::array distribution_table = {
    ObservableInfo{"h", "distribution of the first preactivation h (T1) over neurons and samples", true},
    ObservableInfo{"u", "distribution of the expert preactivations u (T3) over all hidden units and samples", true},
    ObservableInfo{"r", "distribution of the router logits r (T2) over all experts and samples", true},
};

/// Bins reach from -110 to 110 and are widest there: fields are of order one in the limit, but some of them vanish with size. Their
/// width is 0.0005 at zero and 5 % of the value far from it.
inline constexpr int distribution_bins = 400, distribution_middle = distribution_bins / 2;
inline constexpr double distribution_scale = 0.01, distribution_ratio = 0.05;

/// Edge k of distribution_bins + 1, symmetric about zero.
inline double distribution_edge(int k) {
  return distribution_scale * std::sinh(distribution_ratio * (k - distribution_middle));
}

inline std::vector<double> distribution_edges() {
  std::vector<double> edges;
  for (int k = 0; k <= distribution_bins; ++k) edges.push_back(distribution_edge(k));
  return edges;
}

/// Shares of the entries of `field` (sites, samples) that fall into each bin; what lies outside is in none.
inline std::vector<double> distribution(const Eigen::MatrixXd& field) {
  std::vector<double> shares(distribution_bins, 0.0);
  const double each = 1.0 / static_cast<double>(field.size());
  for (const double value : field.reshaped()) {
    const double bin = std::floor(std::asinh(value / distribution_scale) / distribution_ratio) + distribution_middle;
    if (bin >= 0 && bin < distribution_bins) shares[static_cast<std::size_t>(bin)] += each;
  }
  return shares;
}

}  // namespace moe
