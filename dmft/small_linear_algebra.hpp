/// Dense float64 linear algebra of small matrices (a block's Gram matrix), always on the host.
#pragma once

#include <Eigen/Core>

namespace moe {

/// V diag(w^power) V^T of a symmetric positive semidefinite matrix V diag(w) V^T; eigenvalues that are not positive count as zero.
Eigen::MatrixXd symmetric_power(const Eigen::MatrixXd& symmetric, double power);

/// L with L L^T = a symmetric positive semidefinite matrix, by pivoted Cholesky; rounding below zero counts as zero.
Eigen::MatrixXd semidefinite_root(const Eigen::MatrixXd& symmetric);

/// What rounding leaves in eigenvalues of a Gram matrix (n, n) of float64 sums: 16 n eps times its trace. Smaller ones mean nothing.
double resolution(const Eigen::MatrixXd& gram);

/// Directions to add for a block of residuals: columns of the result (P, k) make new vectors of mean square one out of the
/// residuals. Eigenvectors of their Gram matrix whose root eigenvalue exceeds `threshold`, largest first, at most `room`. Their signs
/// are chosen by a fixed functional: left to the eigensolver, the sign of a block of rank one is that of rounding errors, and with
/// it the random numbers that meet the new vector, so that two devices or libraries would draw different samples.
Eigen::MatrixXd new_directions(const Eigen::MatrixXd& residual_gram, double threshold, Eigen::Index room);

}  // namespace moe
