// Gradient flow of finite networks: the evidence of flow_limit.cpp, where a network has its own closed forms.
#include <doctest/doctest.h>

#include <Eigen/Eigenvalues>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "support/hdf5.hpp"
#include "tests/network_fixture.hpp"
#include "tests/temporary_folder.hpp"
#include "validation/network_file.hpp"
#include "validation/network_start.hpp"

namespace {

using Eigen::MatrixXd;
using moe::Tensor;

constexpr int width = 16;
constexpr std::uint64_t seed = 3;
const char* const tables[][2] = {{"I", "mssp"}, {"II", "mssp"}, {"III", "mssp"}, {"III", "mup"}};

/// A flow to time 4 that moves all fields by order one, recorded at its end alone.
moe::RunSpec flow(const std::string& regime, const std::string& param, moe::Stepper stepper, double step_size) {
  moe::RunSpec s = network_fixture::spec(regime, param, moe::OptimizerKind::sgd, 1);
  s.training.dynamics = moe::Dynamics::flow;
  s.training.loss = moe::Loss::mse;
  s.training.time = 4;
  s.training.stepper = stepper;
  s.training.step_size = step_size;
  s.output.observables = {"none"};
  return s;
}

moe::Dataset data() { return network_fixture::data(5, 5, 1); }

moe::NetworkRun run_of(const moe::RunSpec& s, const moe::Dataset& d, int N = width) {
  moe::NetworkRun run = moe::train_network(s, d, N, seed);
  REQUIRE_FALSE(run.failure);
  return run;
}
MatrixXd end_of(const moe::RunSpec& s, const moe::Dataset& d, int N = width) { return run_of(s, d, N).f.back(); }

}  // namespace

TEST_CASE("flow of networks: errors of fixed steps fall with the order of the method [rk4, abm; regime x table]") {
  const moe::Dataset d = data();
  for (const auto& [regime, param] : tables) {
    const MatrixXd f = end_of(flow(regime, param, moe::Stepper::rk4, 4.0 / 256), d);
    for (const auto stepper : {moe::Stepper::rk4, moe::Stepper::abm}) {
      std::vector<double> errors;
      const int fewest = stepper == moe::Stepper::rk4 ? 8 : 32;  // abm's first three steps are rk4's
      for (const int steps : {fewest, 2 * fewest, 4 * fewest})
        errors.push_back((end_of(flow(regime, param, stepper, 4.0 / steps), d) - f).norm());
      for (std::size_t k = 0; k + 1 < errors.size(); ++k) {
        const double order = std::log2(errors[k] / errors[k + 1]);
        INFO(std::string(regime), " ", std::string(param), stepper == moe::Stepper::rk4 ? " rk4" : " abm", ": errors ",
             errors[k], ", ", errors[k + 1], ", order ", order);
        CHECK(errors[k + 1] > 1e-13);  // above rounding: it is an order that is seen
        CHECK(order > 3.7);
        CHECK(order < (stepper == moe::Stepper::rk4 ? 4.5 : 5.5));
      }
    }
  }
}

TEST_CASE("flow of networks: the adaptive stepper meets its tolerance at every width [dopri5, N = 16, 128] [slow]") {
  const moe::Dataset d = data();
  for (const auto& [regime, param] : {std::pair{"II", "mssp"}, {"III", "mup"}})
    for (const int N : {16, 128}) {
      const MatrixXd f = end_of(flow(regime, param, moe::Stepper::rk4, 4.0 / 128), d, N);
      double before = 0;
      for (const double tolerance : {1e-3, 1e-5, 1e-7}) {
        moe::RunSpec s = flow(regime, param, moe::Stepper::dopri5, 4);
        s.training.rtol = s.training.atol = tolerance;
        const double error = (end_of(s, d, N) - f).cwiseAbs().maxCoeff();
        INFO(std::string(regime), " ", std::string(param), ", N = ", N, ", tolerance ", tolerance, ": error ", error);
        MESSAGE(std::string(regime) << " " << std::string(param) << " N = " << N << " tolerance " << tolerance
                                    << " error " << error);
        // Every entry of every step is within the tolerance, in units in which entries are of order one: so is what fields add up.
        CHECK(error <= 10 * tolerance);
        if (before > 0) CHECK(error < 0.1 * before);
        before = error;
      }
    }
}

TEST_CASE(
    "flow of networks: gradient descent with lr -> 0 at fixed lr T approaches it at first order [regime x table]") {
  const moe::Dataset d = data();
  for (const auto& [regime, param] : tables) {
    const MatrixXd f = end_of(flow(regime, param, moe::Stepper::rk4, 4.0 / 64), d);
    std::vector<double> errors;
    for (const int steps : {32, 64, 128}) {
      moe::RunSpec s = flow(regime, param, moe::Stepper::rk4, 1);
      s.training.dynamics = moe::Dynamics::gd;
      s.training.steps = steps;
      s.optimizer.lr *= 4.0 / steps;
      errors.push_back((end_of(s, d) - f).norm());
    }
    for (std::size_t k = 0; k + 1 < errors.size(); ++k) {
      INFO(std::string(regime), " ", std::string(param), ": errors ", errors[k], " and ", errors[k + 1]);
      CHECK(errors[k] / errors[k + 1] > 1.85);
      CHECK(errors[k] / errors[k + 1] < 2.15);
    }
  }
}

TEST_CASE("flow of networks: a linear network with one learning tensor relaxes by its kernel [regime x tensor]") {
  // f is linear in each tensor: df/dt = (Y - f) K / P with a constant K, so f(t) = Y + (f(0) - Y) exp(-K t / P).
  const moe::Dataset d = data();
  for (const auto& [regime, param] : tables)
    for (const Tensor tensor : {Tensor::input, Tensor::expert_in, Tensor::expert_out, Tensor::readout}) {
      moe::RunSpec s = flow(regime, param, moe::Stepper::dopri5, 1);
      s.model.activation = moe::Activation::identity;
      s.model.gate = moe::Gate::constant;
      s.model.output_scale = 1.5;
      s.training.steps = 4;
      s.training.rtol = s.training.atol = 1e-10;
      for (std::size_t k = 0; k < moe::num_tensors; ++k)
        if (static_cast<Tensor>(k) != tensor) s.optimizer.lr_scale.values[k] = 0;
      const moe::NetworkRun run = run_of(s, d);
      const moe::NetworkConstants constants = moe::constants_at(s, run.shape);
      const moe::NetworkWeights w = moe::random_weights(s, d, width, seed);
      const double alpha = s.model.output_scale, lr = constants.lr[tensor], c = constants.aggregation;
      const MatrixXd h = w.w_in * d.x, all = w.expert_out * w.expert_in;  // sum_i B_i A_i: every expert, every gate 1
      MatrixXd K;
      switch (tensor) {
        case Tensor::input: K = (alpha * c * w.readout * all).squaredNorm() * d.x.transpose() * d.x; break;
        case Tensor::expert_in: K = (alpha * c * w.readout * w.expert_out).squaredNorm() * h.transpose() * h; break;
        case Tensor::expert_out: {
          const MatrixXd v = w.expert_in * h;
          K = (alpha * c * w.readout).squaredNorm() * v.transpose() * v;
          break;
        }
        default: K = alpha * alpha * (c * all * h).transpose() * (c * all * h);
      }
      const Eigen::SelfAdjointEigenSolver<MatrixXd> modes(lr * K / static_cast<double>(d.x.cols()));
      REQUIRE(run.f.size() == 5);
      const MatrixXd f0 = alpha * c * w.readout * all * h;
      double farthest = 0;
      for (int t = 0; t <= 4; ++t) {
        const MatrixXd decay = modes.eigenvectors() * (-modes.eigenvalues() * t).array().exp().matrix().asDiagonal() *
                               modes.eigenvectors().transpose();
        const MatrixXd expected = d.y + (f0 - d.y) * decay;
        farthest = std::max(farthest, (run.f[static_cast<std::size_t>(t)] - expected).cwiseAbs().maxCoeff());
      }
      INFO(std::string(regime), " ", std::string(param), ", only ", moe::tensor_names[static_cast<std::size_t>(tensor)],
           ": off by ", farthest);
      CHECK(farthest < 1e-8);
      CHECK((run.f.back() - f0).cwiseAbs().maxCoeff() > 1e-3);
    }
}

TEST_CASE("flow of networks: output scale alpha -> infinity, lr / alpha^2, f(0) = 0: the flow of the kernel at t = 0") {
  // Targets Y + f(0) do to f - f(0) what Y does to f with f(0) = 0.
  const moe::Dataset d = data();
  const auto lazy = [&](const moe::Dataset& on, double alpha, double time, int steps) {
    moe::RunSpec s = flow("II", "mssp", moe::Stepper::rk4, 0.125);
    s.model.output_scale = alpha;
    s.optimizer.lr = 0.5 / (alpha * alpha);
    s.training.time = time;
    s.training.steps = steps;
    return run_of(s, on).f;
  };
  const Eigen::Index P = d.x.cols();
  std::vector<double> distances;
  double moved = 0;
  for (const double alpha : {8.0, 32.0, 128.0}) {
    const double short_time = 1e-4;
    const MatrixXd f0 = lazy(d, alpha, 1, 1).front();
    MatrixXd K(P, P);  // lr times the tangent kernel: outputs after a short time with one of them pulled
    for (Eigen::Index p = 0; p < P; ++p) {
      moe::Dataset pushed = d;
      pushed.y = f0;
      pushed.y(0, p) += 1;
      const auto f = lazy(pushed, alpha, short_time, 1);
      K.col(p) = (f.back() - f.front()).transpose() * static_cast<double>(P) / short_time;
    }
    moe::Dataset centred = d;
    centred.y += f0;
    const auto f = lazy(centred, alpha, 8, 8);
    const Eigen::SelfAdjointEigenSolver<MatrixXd> modes((K + K.transpose()) / (2 * static_cast<double>(P)));
    double farthest = 0;
    for (int t = 1; t <= 8; ++t) {
      const MatrixXd decay = modes.eigenvectors() * (-modes.eigenvalues() * t).array().exp().matrix().asDiagonal() *
                             modes.eigenvectors().transpose();
      const MatrixXd expected = centred.y - d.y * decay;
      farthest = std::max(farthest, (f[static_cast<std::size_t>(t)] - expected).cwiseAbs().maxCoeff());
    }
    distances.push_back(farthest);
    moved = (f.back() - f0).cwiseAbs().maxCoeff();
    MESSAGE("lazy alpha " << alpha << ": distance " << farthest << ", moved " << moved);
  }
  // Features move by O(1/alpha): so does the distance.
  for (std::size_t k = 0; k + 1 < distances.size(); ++k) CHECK(distances[k + 1] < 0.4 * distances[k]);
  CHECK(moved > 30 * distances.back());
}

TEST_CASE("networks: a run whose loss reaches stop_at_loss ends there, one that diverges too; the file says so") {
  const moe::Dataset d = data();
  moe::RunSpec s = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 30);
  s.training.loss = moe::Loss::mse;
  s.output.kernels_at = {0, 29};
  s.network.seeds = 2;
  const moe::NetworkRun whole = run_of(s, d);
  CHECK(whole.converged_at == -1);
  s.training.stop_at_loss = whole.loss[12];
  const moe::NetworkRun ended = run_of(s, d);
  std::size_t first = 0;
  while (whole.loss[first] > s.training.stop_at_loss) ++first;
  CHECK(ended.converged_at == static_cast<int>(first));
  CHECK(ended.loss ==
        std::vector<double>(whole.loss.begin(), whole.loss.begin() + static_cast<std::ptrdiff_t>(first) + 1));

  moe::RunSpec wild = s;
  wild.training.stop_at_loss = 0;
  wild.model.activation = moe::Activation::identity;
  wild.optimizer.lr = 60;
  const moe::NetworkRun diverged = moe::train_network(wild, d, width, seed);
  REQUIRE(diverged.failure);
  CHECK(diverged.failure->field == "loss");
  CHECK(contains(diverged.failure->what(), "has grown to"));
  CHECK(diverged.loss.size() == static_cast<std::size_t>(diverged.failure->step));

  const TemporaryFolder folder;
  moe::NetworkRun other = whole;
  moe::write_network_file(folder / "n.h5", "test", s, d, {{ended, other}});
  const moe::H5Reader file(folder / "n.h5");
  CHECK(file.read("/network/N16/converged_step").values == std::vector<double>{static_cast<double>(first), -1});
  const auto loss = file.read("/network/N16/loss").values;
  CHECK(loss[first] == ended.loss.back());
  CHECK(std::isnan(loss[first + 1]));
}

TEST_CASE("flow of networks: the file has the times of its states") {
  moe::RunSpec s = flow("II", "mssp", moe::Stepper::rk4, 1);
  s.training.steps = 4;
  s.training.time = 6;
  s.network.seeds = 1;
  const TemporaryFolder folder;
  moe::write_network_file(folder / "n.h5", "test", s, data(), {{run_of(s, data())}});
  CHECK(moe::H5Reader(folder / "n.h5").read("/network/N16/times").values == std::vector<double>{0, 1.5, 3, 4.5, 6});
}
