#include "dmft/small_linear_algebra.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <cmath>
#include <limits>

namespace moe {

namespace {
/// V diag(w^power) V^T of V diag(w) V^T; eigenvalues that are not positive count as zero.
Eigen::MatrixXd symmetric_power(const Eigen::MatrixXd& symmetric, double power) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(symmetric);
  const Eigen::VectorXd powers =
      eigen.eigenvalues().unaryExpr([power](double w) { return w > 0 ? std::pow(w, power) : 0.0; });
  return eigen.eigenvectors() * powers.asDiagonal() * eigen.eigenvectors().transpose();
}
}  // namespace

Eigen::MatrixXd upper_root(const Eigen::MatrixXd& symmetric) {
  const Eigen::LLT<Eigen::MatrixXd> factor(symmetric);
  if (factor.info() != Eigen::Success) return symmetric_power(symmetric, 0.5);
  return factor.matrixU();
}

Eigen::MatrixXd whitening(const Eigen::MatrixXd& gram) {
  const Eigen::LLT<Eigen::MatrixXd> factor(gram);
  if (factor.info() != Eigen::Success) return symmetric_power(gram, -0.5);
  return factor.matrixU().solve(Eigen::MatrixXd::Identity(gram.rows(), gram.cols()));
}

Eigen::MatrixXd semidefinite_root(const Eigen::MatrixXd& symmetric) {
  const Eigen::LDLT<Eigen::MatrixXd> factor(symmetric);
  const Eigen::VectorXd roots = factor.vectorD().cwiseMax(0).cwiseSqrt();
  Eigen::MatrixXd L = factor.matrixL();
  L = L * roots.asDiagonal();
  return factor.transpositionsP().transpose() * L;
}

double resolution(const Eigen::MatrixXd& gram) {
  return 16 * static_cast<double>(gram.rows()) * std::numeric_limits<double>::epsilon() * gram.trace();
}

Eigen::MatrixXd new_directions(const Eigen::MatrixXd& residual_gram, double threshold, Eigen::Index room) {
  const Eigen::MatrixXd above =
      residual_gram - threshold * threshold * Eigen::MatrixXd::Identity(residual_gram.rows(), residual_gram.cols());
  if (residual_gram.rows() <= room && Eigen::LLT<Eigen::MatrixXd>(above).info() == Eigen::Success)
    return whitening(residual_gram);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> eigen(residual_gram);
  const Eigen::VectorXd& w = eigen.eigenvalues();  // ascending
  Eigen::Index count = 0;
  while (count < w.size() && count < room && w[w.size() - 1 - count] > threshold * threshold) ++count;
  Eigen::MatrixXd vectors = eigen.eigenvectors().rightCols(count).rowwise().reverse();
  // Weights without a pattern, golden-ratio numbers in (1/2, 3/2): that no eigenvector in sight is orthogonal to them.
  const Eigen::VectorXd weights = Eigen::VectorXd::NullaryExpr(
      w.size(), [](Eigen::Index k) { return 0.5 + std::fmod(0.6180339887498949 * static_cast<double>(k + 1), 1.0); });
  for (Eigen::Index k = 0; k < count; ++k) {
    const double sign = weights.dot(vectors.col(k)) < 0 ? -1 : 1;
    vectors.col(k) *= sign / std::sqrt(w[w.size() - 1 - k]);
  }
  return vectors;
}

}  // namespace moe
