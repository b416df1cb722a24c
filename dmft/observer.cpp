#include "dmft/observer.hpp"

namespace moe {

Loads expert_loads(const Eigen::MatrixXd& mask, double kappa) {
  Eigen::VectorXd load = mask.rowwise().mean() / kappa;
  std::sort(load.begin(), load.end());
  const double position = 0.99 * static_cast<double>(load.size() - 1);
  const auto below = static_cast<Eigen::Index>(std::floor(position));
  const Eigen::Index above = std::min(below + 1, load.size() - 1);
  return {load[below] + (position - static_cast<double>(below)) * (load[above] - load[below]), load[load.size() - 1]};
}

}  // namespace moe
