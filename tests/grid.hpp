/// The grid of combinations that the solver covers: regime x parameterization x optimizer x routing x gate x loss, on one small problem
/// (tests/data/grid/README.md), and a slice of it that contains every pair of levels.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "support/hdf5.hpp"
#include "tests/folders.hpp"
#include "tests/limit_fixture.hpp"

namespace grid {

struct Case {
  std::string regime, param;
  moe::OptimizerKind optimizer = moe::OptimizerKind::sgd;
  moe::Routing routing = moe::Routing::soft;
  moe::Gate gate = moe::Gate::sigmoid;
  moe::Loss loss = moe::Loss::mse;

  /// Regime I with top-K routes by fluctuations: its limit is a random variable (theory section 6.4).
  bool random_limit() const { return regime == "I" && routing == moe::Routing::topk; }
  std::string name() const {
    static constexpr std::array<const char*, 3> gates = {"sigmoid", "softmax", "constant"};
    const char* const rule = optimizer == moe::OptimizerKind::sgd    ? "_sgd"
                             : optimizer == moe::OptimizerKind::adam ? "_adam"
                                                                     : "_adafactor";
    return regime + "_" + param + rule + (routing == moe::Routing::soft ? "_soft_" : "_topk_") +
           gates[static_cast<std::size_t>(gate)] + (loss == moe::Loss::mse ? "_mse" : "_cross_entropy");
  }
};

/// Levels: regime 0..2, gate 0..2; param, optimizer, routing, loss 0..1.
inline Case of_levels(int regime, int gate, int param, int optimizer, int routing, int loss) {
  using moe::Gate, moe::Loss, moe::OptimizerKind, moe::Routing;
  static constexpr std::array<const char*, 3> regimes = {"I", "II", "III"};
  return {regimes[static_cast<std::size_t>(regime)],
          param == 0 ? "mup" : "mssp",
          optimizer == 0 ? OptimizerKind::sgd : OptimizerKind::adam,
          routing == 0 ? Routing::soft : Routing::topk,
          gate == 0   ? Gate::sigmoid
          : gate == 1 ? Gate::softmax
                      : Gate::constant,
          loss == 0 ? Loss::mse : Loss::cross_entropy};
}

inline std::vector<Case> whole() {
  std::vector<Case> cases;
  for (int regime = 0; regime < 3; ++regime)
    for (int gate = 0; gate < 3; ++gate)
      for (int bits = 0; bits < 16; ++bits)
        cases.push_back(of_levels(regime, gate, bits & 1, bits >> 1 & 1, bits >> 2 & 1, bits >> 3));
  return cases;
}

/// 18 cases: for each regime and gate a row of the orthogonal array of strength 3 in (param, optimizer, routing, loss) and its
/// complement, so that every pair of levels of every two axes occurs.
inline std::vector<Case> slice() {
  std::vector<Case> cases;
  for (int k = 0; k < 9; ++k) {
    const int p = k & 1, o = k >> 1 & 1, r = k >> 2 & 1, l = p ^ o ^ r;
    for (int flip : {0, 1}) cases.push_back(of_levels(k / 3, k % 3, p ^ flip, o ^ flip, r ^ flip, l ^ flip));
  }
  return cases;
}

/// Learning rate of the stored runs: a loss that falls well within eight steps and is not yet at its floor.
inline double learning_rate(const Case& c) {
  const bool mse = c.loss == moe::Loss::mse;
  if (c.optimizer != moe::OptimizerKind::sgd) return mse ? 0.12 : 0.2;
  const bool heavy_tails = c.param == "mssp" && c.regime != "I";  // of softmax gates over experts (theory section 6.3)
  const double gates = c.gate == moe::Gate::sigmoid    ? 1
                       : c.gate == moe::Gate::constant ? 0.5
                       : heavy_tails                   ? 0.12
                                                       : 0.3;
  return (mse ? 0.7 : 1.4) * gates;
}

/// The run of a case: 8 steps, float64, tolerance 1e-4, samples in true ratio, moment matching as in the stored runs.
inline moe::RunSpec spec(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, learning_rate(c), 8);
  s.model.routing = c.routing;
  s.model.gate = c.gate;
  s.model.experts = 4;
  s.training.loss = c.loss;
  s.sampling.neurons = c.regime == "III" ? 128 : 256;
  s.sampling.tolerance = 1e-4;
  s.sampling.matching = c.random_limit() ? moe::Matching::off : moe::Matching::on;
  return s;
}

inline std::string file() { return source_folder() + "/tests/data/grid/grid.h5"; }

/// Six inputs of dimension five, and the targets of the case's loss.
inline moe::Dataset data(const Case& c) {
  const moe::H5Reader stored(file());
  const auto matrix = [&](const std::string& name) {
    const moe::H5Array a = stored.read(name);
    return Eigen::MatrixXd(Eigen::Map<const Eigen::MatrixXd>(a.values.data(), static_cast<Eigen::Index>(a.shape.at(1)),
                                                             static_cast<Eigen::Index>(a.shape.at(0))));
  };
  moe::Dataset d;
  d.x = matrix("x");
  d.y = matrix(c.loss == moe::Loss::mse ? "y_mse" : "y_cross_entropy");
  return d;
}

}  // namespace grid
