#include "validation/extrapolation.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>

namespace moe {

using Eigen::Index;

double Estimate::error() const { return std::sqrt(statistical.value + systematic * systematic); }

namespace {

/// Standard errors for the weights: one variance per seed for all widths, falling as 1/N.
Eigen::VectorXd pooled_errors(const std::vector<WidthMean>& widths, double smallest) {
  double variance = 0, degrees = 0, scale = 0;
  for (const WidthMean& w : widths) {
    variance += (w.seeds - 1) * w.error * w.error * w.seeds * w.N / smallest;
    degrees += w.seeds - 1;
    scale = std::max(scale, std::abs(w.mean));
  }
  // Without scatter (an observable that is the same for every seed) all widths count alike.
  const double floor = 1e-9 * scale;
  Eigen::VectorXd errors(static_cast<Index>(widths.size()));
  for (std::size_t k = 0; k < widths.size(); ++k)
    errors(static_cast<Index>(k)) =
        std::sqrt(variance / std::max(degrees, 1.0) * smallest / widths[k].N / widths[k].seeds) + floor;
  return errors;
}

}  // namespace

Extrapolation extrapolate(const std::vector<WidthMean>& widths, double power, double at_N) {
  const auto n = static_cast<Index>(widths.size());
  double smallest = HUGE_VAL;
  for (const WidthMean& w : widths) smallest = std::min(smallest, w.N);
  if (std::all_of(widths.begin(), widths.end(), [](const WidthMean& w) { return w.mean == 0 && w.error == 0; }))
    return {};  // identically zero: nothing is open
  const Eigen::VectorXd errors = pooled_errors(widths, smallest);
  Eigen::MatrixXd design(n, 3);
  Eigen::VectorXd means(n);
  for (Index k = 0; k < n; ++k) {
    const WidthMean& w = widths[static_cast<std::size_t>(k)];
    const double x = std::pow(smallest / w.N, power);
    design.row(k) << 1, x, x * x;
    means(k) = w.mean;
  }
  // Rows in units of their errors. The size of c_1, from the fit without c_2, says how large c_2 may be.
  const Eigen::MatrixXd A = errors.cwiseInverse().asDiagonal() * design;
  const Eigen::VectorXd f = errors.cwiseInverse().asDiagonal() * means;
  const Eigen::Matrix2d normal2 = A.leftCols(2).transpose() * A.leftCols(2);
  const Eigen::Matrix2d covariance2 = normal2.ldlt().solve(Eigen::Matrix2d::Identity());
  const double linear = (covariance2 * A.leftCols(2).transpose() * f)(1);
  const double c2_scale = next_order * std::hypot(linear, std::sqrt(covariance2(1, 1)));

  // One more row says what is known of c_2. By QR: the sharper the means, the worse the normal equations.
  Eigen::MatrixXd constrained = Eigen::MatrixXd::Zero(n + 1, 3);
  constrained.topRows(n) = A;
  constrained(n, 2) = 1 / c2_scale;
  const Eigen::MatrixXd inverse = constrained.colPivHouseholderQr().solve(Eigen::MatrixXd::Identity(n + 1, n));
  const Eigen::MatrixXd solve = inverse * errors.cwiseInverse().asDiagonal();  // (3, n)
  const Eigen::Vector3d c = solve * means;

  const double x_at = at_N > 0 ? std::pow(smallest / at_N, power) : 0;
  const Eigen::RowVectorXd weights = Eigen::RowVector3d(1, x_at, x_at * x_at) * solve;
  Extrapolation result;
  result.at_infinity.value = weights.dot(means);
  std::vector<statistics::Variance> parts;
  for (Index k = 0; k < n; ++k) {
    const WidthMean& w = widths[static_cast<std::size_t>(k)];
    parts.push_back({weights(k) * weights(k) * w.error * w.error, w.seeds - 1});
  }
  result.at_infinity.statistical = statistics::sum(parts);
  result.at_infinity.systematic = std::abs(weights.dot(design.col(2)) - x_at * x_at) * c2_scale;
  result.correction = c(1);
  result.chi2 = (f - A * c).squaredNorm() + std::pow(c(2) / c2_scale, 2);
  return result;
}

Estimate without_bias(const LimitMean& limit, double prior, double power) {
  const double full = limit.full_error * limit.full_error, second = limit.second_error * limit.second_error;
  if (limit.second_replicas < 2 || prior == 0) return {limit.full, {full, limit.full_replicas - 1}, prior};
  const double gain = std::pow(limit.ratio, power) - 1;  // second - full = gain b
  const double noise = (full + second) / (gain * gain);
  const double trust = prior * prior / (prior * prior + noise);
  const double a = 1 + trust / gain, b = trust / gain;  // b of the second solve, a of the full one: a - b = 1
  Estimate estimate;
  estimate.value = a * limit.full - b * limit.second;
  estimate.statistical =
      statistics::sum({{a * a * full, limit.full_replicas - 1}, {b * b * second, limit.second_replicas - 1}});
  estimate.systematic = (1 - trust) * prior;
  return estimate;
}

}  // namespace moe
