#include "validation/reference_points.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

namespace moe::reference {

namespace {

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double normal_pdf(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi); }

MatrixXd select(const ModelSpec& model, int K, const MatrixXd& r) {
  if (model.routing == Routing::soft) return MatrixXd::Ones(r.rows(), r.cols());
  MatrixXd active = MatrixXd::Zero(r.rows(), r.cols());
  std::vector<Eigen::Index> order(static_cast<std::size_t>(r.rows()));
  for (Eigen::Index mu = 0; mu < r.cols(); ++mu) {
    std::iota(order.begin(), order.end(), Eigen::Index{0});
    std::stable_sort(order.begin(), order.end(), [&](Eigen::Index i, Eigen::Index j) { return r(i, mu) > r(j, mu); });
    for (int k = 0; k < K; ++k) active(order[static_cast<std::size_t>(k)], mu) = 1;
  }
  return active;
}

}  // namespace

MatrixXd activate(Activation kind, double b, const MatrixXd& x) {
  switch (kind) {
    case Activation::tanh: return x.unaryExpr([b](double t) { return std::tanh(b * t) / b; });
    case Activation::relu: return x.cwiseMax(0.0);
    case Activation::gelu: return x.unaryExpr([](double t) { return t * normal_cdf(t); });
    case Activation::identity: break;
  }
  return x;
}

MatrixXd activate_derivative(Activation kind, double b, const MatrixXd& x) {
  switch (kind) {
    case Activation::tanh:
      return x.unaryExpr([b](double t) {
        const double th = std::tanh(b * t);
        return (1 - th) * (1 + th);
      });
    case Activation::relu: return x.unaryExpr([](double t) { return t > 0 ? 1.0 : 0.0; });
    case Activation::gelu: return x.unaryExpr([](double t) { return normal_cdf(t) + t * normal_pdf(t); });
    case Activation::identity: break;
  }
  return MatrixXd::Ones(x.rows(), x.cols());
}

Gates gates(const ModelSpec& model, int K, const MatrixXd& r, const Eigen::VectorXd& bias) {
  Gates g;
  g.active = select(model, K, bias.size() == 0 ? r : MatrixXd(r.colwise() + bias));
  const MatrixXd logits = r / model.router_temperature;
  switch (model.gate) {
    case Gate::constant: g.G = g.active; break;
    case Gate::sigmoid:
      g.G = g.active.cwiseProduct(logits.unaryExpr([](double z) { return 1.0 / (1.0 + std::exp(-z)); }));
      break;
    case Gate::softmax: {
      g.G = MatrixXd::Zero(r.rows(), r.cols());
      for (Eigen::Index mu = 0; mu < r.cols(); ++mu) {
        // Of the active ones, so that no exponential that counts overflows and the sum is at least one.
        double largest = -std::numeric_limits<double>::infinity();
        for (Eigen::Index i = 0; i < r.rows(); ++i)
          if (g.active(i, mu) > 0) largest = std::max(largest, logits(i, mu));
        for (Eigen::Index i = 0; i < r.rows(); ++i)
          if (g.active(i, mu) > 0) g.G(i, mu) = std::exp(logits(i, mu) - largest);
        g.G.col(mu) *= K / g.G.col(mu).sum();
      }
      break;
    }
  }
  return g;
}

MatrixXd gate_backward(const ModelSpec& model, int K, const Gates& g, const MatrixXd& dL_dG) {
  const double tau = model.router_temperature;
  switch (model.gate) {
    case Gate::sigmoid:
      // G' = G (1 - G) on the active pairs; 0 elsewhere because G is.
      return (g.G.array() * (1 - g.G.array()) * dL_dG.array() / tau).matrix();
    case Gate::softmax: {
      // dG_i/dr_j = G_i (1[i = j] - G_j / K)
      const Eigen::RowVectorXd mean = g.G.cwiseProduct(dL_dG).colwise().sum() / K;
      return (g.G.array() * (dL_dG.rowwise() - mean).array() / tau).matrix();
    }
    case Gate::constant: break;
  }
  return MatrixXd::Zero(dL_dG.rows(), dL_dG.cols());
}

namespace {
/// e_imu = exp(r_imu) / (1/M) sum_j exp(r_jmu)
MatrixXd relative_exponentials(const MatrixXd& r) {
  MatrixXd e = (r.rowwise() - r.colwise().maxCoeff()).array().exp();
  for (Eigen::Index mu = 0; mu < r.cols(); ++mu) e.col(mu) /= e.col(mu).mean();
  return e;
}
}  // namespace

Eigen::VectorXd loads(int K, const MatrixXd& active) {
  return active.rowwise().mean() * (static_cast<double>(active.rows()) / K);
}

double balance_loss(double lambda, const Eigen::VectorXd& load, const MatrixXd& r) {
  return lambda * load.cwiseProduct(relative_exponentials(r).rowwise().mean()).mean();
}

MatrixXd balance_backward(double lambda, const Eigen::VectorXd& load, const MatrixXd& r) {
  const MatrixXd e = relative_exponentials(r);
  MatrixXd g(r.rows(), r.cols());
  for (Eigen::Index mu = 0; mu < r.cols(); ++mu) {
    const double mean = load.dot(e.col(mu)) / static_cast<double>(r.rows());
    g.col(mu) = lambda / static_cast<double>(r.size()) * e.col(mu).array() * (load.array() - mean);
  }
  return g;
}

}  // namespace moe::reference
