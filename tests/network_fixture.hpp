/// Small networks and data for tests of the finite trainer.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <string>

#include "data/dataset.hpp"
#include "support/random.hpp"
#include "support/run_spec.hpp"
#include "validation/network.hpp"

namespace network_fixture {

using Eigen::Index;
using Eigen::MatrixXd;

/// std times standard normals; one `stream` is one array.
inline MatrixXd gaussian(Index rows, Index cols, double std, std::uint32_t stream) {
  MatrixXd w(rows, cols);
  for (Index k = 0; k < w.size(); ++k) {
    double pair[2];
    moe::normal_pair(moe::StreamKey{7, 0, stream, 0}, static_cast<std::uint64_t>(k), pair);
    w.data()[k] = std * pair[0];
  }
  return w;
}

/// P Gaussian inputs of dimension D with C one-hot targets (C >= 2), or one target -1, +1 (C = 1); half as many test
/// samples.
inline moe::Dataset data(int P, int D, int C) {
  const auto targets = [&](const MatrixXd& x, std::uint32_t stream) {
    const MatrixXd score = gaussian(C, D, 1.0, stream) * x;
    if (C == 1) return MatrixXd(score.unaryExpr([](double s) { return s > 0 ? 1.0 : -1.0; }));
    MatrixXd y = MatrixXd::Zero(C, x.cols());
    for (Index mu = 0; mu < x.cols(); ++mu) {
      Index largest = 0;
      score.col(mu).maxCoeff(&largest);
      y(largest, mu) = 1;
    }
    return y;
  };
  moe::Dataset d;
  d.x = gaussian(D, P, 1.0, 101);
  d.x_test = gaussian(D, (P + 1) / 2, 1.0, 102);
  d.y = targets(d.x, 103);
  d.y_test = targets(d.x_test, 103);
  return d;
}

/// Regime II, muP or MSSP, width 16 has M = 8, N_e = 3; top-2-of-4 with routing = topk.
inline moe::RunSpec spec(const std::string& regime, const std::string& param, moe::OptimizerKind optimizer, int steps) {
  moe::RunSpec s;
  s.model.regime = regime;
  s.model.param = param;
  s.model.experts = 4;
  s.model.expert_width = 3;
  s.optimizer.name = optimizer;
  s.optimizer.lr = moe::is_linear(optimizer) ? 0.5 : 0.05;
  s.optimizer.eps = 0.02;
  s.training.steps = steps;
  s.sampling.precision = moe::Precision::float64;
  s.network.widths = {16};
  s.network.seeds = 1;
  s.output.observables = {"all"};
  return s;
}

}  // namespace network_fixture
