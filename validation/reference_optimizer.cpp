#include "validation/reference_optimizer.hpp"

#include <cmath>

namespace moe::reference {

Optimizer::Optimizer(const OptimizerSpec& spec, const PerTensor<double>& lr, const PerTensor<double>& eps)
    : spec_(spec), lr_(lr), eps_(eps) {
  if (spec.name == OptimizerKind::adafactor)
    throw ConfigError({"optimizer.name = adafactor is not trained by this program. Choose adam."});
}

void Optimizer::step(NetworkWeights& w, const NetworkWeights& gradient) {
  ++steps_;
  update(Tensor::input, w.w_in, gradient.w_in);
  update(Tensor::router, w.router, gradient.router);
  update(Tensor::expert_in, w.expert_in, gradient.expert_in);
  update(Tensor::expert_out, w.expert_out, gradient.expert_out);
  update(Tensor::readout, w.readout, gradient.readout);
}

void Optimizer::update(Tensor which, MatrixXd& w, const MatrixXd& g) {
  Moments& moments = moments_[static_cast<std::size_t>(which)];
  const double lr = lr_[which], eps = eps_[which];
  switch (spec_.name) {
    case OptimizerKind::sgd: w -= lr * g; return;
    case OptimizerKind::momentum:
      if (moments.first.size() == 0) moments.first = MatrixXd::Zero(g.rows(), g.cols());
      moments.first = spec_.momentum * moments.first + g;
      w -= lr * moments.first;
      return;
    case OptimizerKind::adamw: w *= 1 - spec_.lr * spec_.weight_decay; [[fallthrough]];
    case OptimizerKind::adam: {
      if (moments.first.size() == 0) {
        moments.first = MatrixXd::Zero(g.rows(), g.cols());
        moments.second = MatrixXd::Zero(g.rows(), g.cols());
      }
      moments.first = spec_.beta1 * moments.first + (1 - spec_.beta1) * g;
      moments.second = spec_.beta2 * moments.second + (1 - spec_.beta2) * g.cwiseAbs2();
      const double first_correction = 1 - std::pow(spec_.beta1, steps_);
      const double second_correction = 1 - std::pow(spec_.beta2, steps_);
      w -= lr * moments.first.binaryExpr(moments.second, [&](double m, double v) {
        const double denominator = std::sqrt(v / second_correction) + eps;
        return denominator > 0 ? m / first_correction / denominator : 0.0;
      });
      return;
    }
    case OptimizerKind::signsgd:
      w -= lr * g.unaryExpr([](double x) { return x > 0 ? 1.0 : (x < 0 ? -1.0 : 0.0); });
      return;
    case OptimizerKind::adafactor: return;  // refused by the constructor
  }
}

}  // namespace moe::reference
