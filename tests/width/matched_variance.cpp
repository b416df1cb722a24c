// With moment matching, answers of initial matrices keep their variance at any number of samples, whether lists of draws are full or not.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "tests/limit_fixture.hpp"

namespace {

/// rms(zeta_init) / (s rms(D)) - 1 at t = 0: B^T answers D, which is independent of B where psi is linear, so that it is zero
/// in the limit (T7). Before D, B has answered the nonlinear fields G v of all experts.
struct Deviation {
  double value, error;
};
Deviation deviation(const std::string& regime, const std::string& param, int neurons, int samples, int experts) {
  moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, 0.1, 0);
  s.model.experts = experts;
  s.model.activation_scale = 2;  // far from linear: what B was asked lies outside the draws
  s.model.post_activation = moe::Activation::identity;
  s.sampling.matching = moe::Matching::on;
  s.sampling.neurons = neurons;
  s.sampling.replicas = 8;
  s.sampling.tolerance = 1e-5;
  const moe::LimitResult r = moe::solve_limit(s, limit_fixture::data(samples, 6, 3));
  const auto& zeta = r.observables.at("rms_zeta_init");
  const double expected = std::sqrt(r.constants.expert_out.beta2) * r.observables.at("rms_D").mean[0];
  return {zeta.mean[0] / expected - 1, zeta.sem[0] / expected};
}

}  // namespace

TEST_CASE(
    "moment matching: backward answers of B at t = 0 have their variance, lists of draws with room [I mssp, II mssp]") {
  for (const char* regime : {"I", "II"})
    for (const int neurons : {192, 384}) {
      const Deviation d = deviation(regime, "mssp", neurons, 8, 2);
      INFO(std::string(regime), ", ", neurons, " neurons: ", d.value, " +- ", d.error);
      CHECK(std::abs(d.value) < 1e-3);
    }
}

TEST_CASE("moment matching: the same where lists are full and draws are plain [I mssp]") {
  for (const int neurons : {64, 96, 128}) {
    const Deviation d = deviation("I", "mssp", neurons, 16, 4);
    INFO(neurons, " neurons: ", d.value, " +- ", d.error);
    // The variance of what is returned is a mean over few directions, itself known to O(1/S).
    CHECK(std::abs(d.value) < 4 * d.error + 1.0 / neurons);
  }
}
