// What a network is trained on: dL/df of the fast trainer, which the reference trainer does not share.
#include <doctest/doctest.h>

#include <Eigen/Core>
#include <cmath>

#include "support/cpu.hpp"
#include "tests/network_fixture.hpp"
#include "validation/network_loss.hpp"
#include "validation/trainer_products.hpp"
#include "validation/trainer_samples.hpp"

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using B = moe::Cpu<double>;

}  // namespace

TEST_CASE(
    "fast trainer: dL/df is the derivative of the loss for targets of any sum [mse, cross entropy; set, batches]") {
  const Index C = 3, P = 5;
  moe::Dataset data = network_fixture::data(static_cast<int>(P), 4, static_cast<int>(C));
  data.y = network_fixture::gaussian(C, P, 1.0, 7);
  for (const moe::Loss loss : {moe::Loss::mse, moe::Loss::cross_entropy})
    for (const int batch : {0, 3}) {
      moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 200);
      spec.training.loss = loss;
      spec.training.batch = batch;
      moe::trainer::Samples<B> samples(spec, data);
      for (const int step : {0, 1, 130, 129}) {
        samples.choose(step);
        const Index n = batch > 0 ? batch : P;
        REQUIRE(samples.y().cols() == n);
        const MatrixXd f = network_fixture::gaussian(C, n, 2.0, 8);
        auto outputs = B::Matrix::uninitialized(C, n), gradient = B::Matrix::uninitialized(C, n);
        B::upload(f, outputs);
        samples.loss_gradient(outputs, gradient);
        const MatrixXd g = B::download(gradient);
        INFO("cross entropy ", loss == moe::Loss::cross_entropy, ", batch ", batch, ", step ", step);
        const double h = 1e-5;
        double off = 0;
        for (Index k = 0; k < f.size(); ++k) {
          MatrixXd up = f, down = f;
          up.data()[k] += h, down.data()[k] -= h;
          const double slope =
              (moe::network::loss_value(loss, up, samples.y()) - moe::network::loss_value(loss, down, samples.y())) /
              (2 * h);
          off = std::max(off, std::abs(slope - g.data()[k]));
        }
        // Third derivatives of order one, and roundings of losses of order ten.
        CHECK(off <= h * h + 10 * 2.3e-16 / h);
        CHECK(g.cwiseAbs().maxCoeff() > 0.1);
        if (batch > 0) {
          const std::vector<int> rows = moe::batch_rows(spec, static_cast<int>(P), step);
          CHECK(samples.y() == MatrixXd(data.y(Eigen::all, rows)));
          CHECK(B::download(samples.x()) == MatrixXd(data.x(Eigen::all, rows)));
        }
      }
    }
}
