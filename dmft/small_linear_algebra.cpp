#include "dmft/small_linear_algebra.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <cmath>

namespace moe {

Eigen::MatrixXd symmetric_power(const Eigen::MatrixXd& symmetric, double power) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(symmetric);
  const Eigen::VectorXd powers =
      eigen.eigenvalues().unaryExpr([power](double w) { return w > 0 ? std::pow(w, power) : 0.0; });
  return eigen.eigenvectors() * powers.asDiagonal() * eigen.eigenvectors().transpose();
}

Eigen::MatrixXd semidefinite_root(const Eigen::MatrixXd& symmetric) {
  const Eigen::LDLT<Eigen::MatrixXd> factor(symmetric);
  const Eigen::VectorXd roots = factor.vectorD().cwiseMax(0).cwiseSqrt();
  Eigen::MatrixXd L = factor.matrixL();
  L = L * roots.asDiagonal();
  return factor.transpositionsP().transpose() * L;
}

Eigen::MatrixXd new_directions(const Eigen::MatrixXd& residual_gram, double threshold, Eigen::Index room) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(residual_gram);
  const Eigen::VectorXd& w = eigen.eigenvalues();  // ascending
  Eigen::Index count = 0;
  while (count < w.size() && count < room && w[w.size() - 1 - count] > threshold * threshold) ++count;
  const Eigen::VectorXd roots = w.tail(count).cwiseSqrt().cwiseInverse();
  return (eigen.eigenvectors().rightCols(count) * roots.asDiagonal()).rowwise().reverse();
}

}  // namespace moe
