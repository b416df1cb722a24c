#include "validation/reference_points.hpp"

#include <algorithm>
#include <cmath>
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

Gates gates(const ModelSpec& model, int K, const MatrixXd& r) {
  Gates g;
  g.active = select(model, K, r);
  const MatrixXd logits = r / model.router_temperature;
  switch (model.gate) {
    case Gate::constant: g.G = g.active; break;
    case Gate::sigmoid:
      g.G = g.active.cwiseProduct(logits.unaryExpr([](double z) { return 1.0 / (1.0 + std::exp(-z)); }));
      break;
    case Gate::softmax: {
      g.G = MatrixXd::Zero(r.rows(), r.cols());
      for (Eigen::Index mu = 0; mu < r.cols(); ++mu) {
        // The largest logit of all is always active, so that no exponential overflows and the sum is at least one.
        const double largest = logits.col(mu).maxCoeff();
        g.G.col(mu) = g.active.col(mu).array() * (logits.col(mu).array() - largest).exp();
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

}  // namespace moe::reference
