/// Dense float64 linear algebra of small matrices (a block's Gram matrix), always on the host.
#pragma once

#include <Eigen/Core>

namespace moe {

/// R with R^T R = a symmetric positive definite matrix, and W with W^T gram W = 1: upper triangular, by Cholesky without pivots, whose
/// order would be that of rounding errors. If rounding has left the matrix indefinite, its symmetric square root and the inverse of that,
/// eigenvalues that are not positive counting as zero.
Eigen::MatrixXd upper_root(const Eigen::MatrixXd& symmetric);
Eigen::MatrixXd whitening(const Eigen::MatrixXd& gram);

/// L with L L^T = a symmetric positive semidefinite matrix, by pivoted Cholesky; rounding below zero counts as zero.
Eigen::MatrixXd semidefinite_root(const Eigen::MatrixXd& symmetric);

/// What rounding leaves in eigenvalues of a Gram matrix (n, n) of float64 sums: 16 n eps times its trace. Smaller ones mean nothing.
double resolution(const Eigen::MatrixXd& gram);

/// Directions to add for a block of residuals: columns of the result (P, k) make new vectors of mean square one out of the
/// residuals, orthogonal to each other. Eigenvectors of their Gram matrix whose root eigenvalue exceeds `threshold`, largest first, at
/// most `room`; where all do, the residuals themselves made orthogonal in their order, which needs no eigenvectors. Signs of eigenvectors
/// are chosen by a fixed functional: left to the eigensolver, the sign of a block of rank one is that of rounding errors, and with
/// it the random numbers that meet the new vector, so that two devices or libraries would draw different samples.
Eigen::MatrixXd new_directions(const Eigen::MatrixXd& residual_gram, double threshold, Eigen::Index room);

}  // namespace moe
