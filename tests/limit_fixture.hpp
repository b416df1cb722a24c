/// Small problems for tests of the limit solver.
#pragma once

#include <cmath>
#include <string>

#include "dmft/solve.hpp"
#include "support/random.hpp"

namespace limit_fixture {

/// P Gaussian inputs of dimension D, each of mean square one, and targets +-1 (C = 1) or one-hot (C > 1).
inline moe::Dataset data(int P, int D, int C, std::uint64_t seed = 1) {
  moe::Dataset set;
  set.x = Eigen::MatrixXd(D, P);
  set.y = Eigen::MatrixXd::Zero(C, P);
  for (int p = 0; p < P; ++p) {
    for (int d = 0; d < D; ++d) {
      double pair[2];
      moe::normal_pair(moe::StreamKey{seed, 0, 1, 0}, static_cast<std::uint64_t>(p * D + d), pair);
      set.x(d, p) = pair[0];
    }
    set.x.col(p) *= std::sqrt(static_cast<double>(D)) / set.x.col(p).norm();
    const auto label = moe::uniform_bits(moe::StreamKey{seed, 0, 2, 0}, static_cast<std::uint64_t>(p));
    if (C == 1)
      set.y(0, p) = label % 2 == 0 ? 1 : -1;
    else
      set.y(label % static_cast<unsigned>(C), p) = 1;
  }
  return set;
}

/// A quiet full-batch run in float64: regime, parameterization, optimizer, learning rate, steps.
inline moe::RunSpec spec(const std::string& regime, const std::string& param, moe::OptimizerKind optimizer, double lr,
                         int steps) {
  moe::RunSpec s;
  s.model.regime = regime;
  s.model.param = param;
  s.model.experts = 2;
  s.model.expert_width = 4;
  s.optimizer.name = optimizer;
  s.optimizer.lr = lr;
  s.optimizer.eps = 0.05;
  s.training.loss = moe::Loss::mse;
  s.training.steps = steps;
  s.data.test = 0;
  s.sampling.precision = moe::Precision::float64;
  s.sampling.neurons = 400;
  s.sampling.replicas = 4;
  return s;
}

/// Everything drawn as a finite network draws it: plain, every direction kept.
inline moe::RunSpec as_network(moe::RunSpec s, int N) {
  s.sampling.neurons = N;
  s.sampling.matching = moe::Matching::off;
  s.sampling.tolerance = 1e-7;
  return s;
}

}  // namespace limit_fixture
