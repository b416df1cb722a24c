/// Statistics of gates and experts (theory section 7), shared by the fast and the reference trainer.
#pragma once

#include <Eigen/Core>

namespace moe::network {

/// Mean over tokens of exp(H)/K, H the entropy of p_i = G_i / sum_j G_j.
double router_entropy(const Eigen::MatrixXd& G, int K);
/// Load of every expert: the share of tokens that choose it, divided by kappa = K/M.
Eigen::VectorXd loads(const Eigen::MatrixXd& active, int K);
/// Quantile by linear interpolation between order statistics: position q (n - 1) of the sorted values.
double quantile(Eigen::VectorXd values, double q);
/// (sum_i c_i)^2 / sum_i c_i^2 per token, the smallest over tokens that any expert serves; 0 if there is none. c (M, P).
double effective_experts(const Eigen::MatrixXd& c);

}  // namespace moe::network
