/// Routing and gates on a sample of experts: (T2), (T9). Arrays (SE, P): expert fastest, one column per token.
#pragma once

#include <cmath>

#include "support/cpu.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// The gate of one block. (1/K) sum_j becomes <.>_i / kappa over the sample, kappa = K_S / SE.
struct GateSpec {
  Gate kind = Gate::sigmoid;
  bool topk = false;
  Index active = 0;                ///< K_S
  double inverse_temperature = 1;  ///< gates see r/tau
};

/// mask and gate out of logits r, of x = r/tau: sigmoid G = sigma(x) mask, softmax exp(x) mask / ((1/K) sum_active exp(x)), constant
/// mask. (T2)
template <class B>
void apply_gate(const GateSpec& spec, typename B::View r, typename B::View mask, typename B::View G) {
  using Real = typename B::Real;
  const Index experts = r.rows, P = r.cols;
  const Real beta = static_cast<Real>(spec.inverse_temperature);
  // What is not finite has no order to be chosen by: all stay active, and the run ends or a flow shortens its step.
  const bool ordered =
      !spec.topk || std::isfinite(B::sum(experts, P, [=] MOE_HD(Index i, Index p) { return r(i, p) * Real(0); }));
  if (spec.topk && ordered)
    B::select_largest(r, spec.active, mask);
  else
    B::each(experts, P, [=] MOE_HD(Index i, Index p) { mask(i, p) = Real(1); });
  switch (spec.kind) {
    case Gate::constant: B::copy(mask, G); return;
    case Gate::sigmoid:
      B::each(experts, P, [=] MOE_HD(Index i, Index p) { G(i, p) = mask(i, p) * logistic(beta * r(i, p)); });
      return;
    case Gate::softmax: {
      auto highest_matrix = B::Matrix::uninitialized(1, P);
      auto total_matrix = B::Matrix::uninitialized(1, P);
      const typename B::View highest = highest_matrix, total = total_matrix;
      B::column_maxima(r, highest);  // the largest logit is always active
      B::each(experts, P,
              [=] MOE_HD(Index i, Index p) { G(i, p) = mask(i, p) * std::exp(beta * (r(i, p) - highest(0, p))); });
      B::column_sums(
          experts, P, [=] MOE_HD(Index i, Index p) { return G(i, p); }, total);
      const Real K = static_cast<Real>(spec.active);
      B::each(experts, P, [=] MOE_HD(Index i, Index p) { G(i, p) *= K / total(0, p); });
      return;
    }
  }
}

/// rho out of s_i = <v zeta>_a: sigmoid sigma'(r/tau) s / tau, softmax G_i (s_i - (1/K) sum_j G_j s_j) / tau, constant 0. (T9)
template <class B>
void gate_backward(const GateSpec& spec, typename B::View mask, typename B::View G, typename B::View s,
                   typename B::View rho) {
  using Real = typename B::Real;
  const Index experts = s.rows, P = s.cols;
  const Real beta = static_cast<Real>(spec.inverse_temperature);
  switch (spec.kind) {
    case Gate::constant: B::each(experts, P, [=] MOE_HD(Index i, Index p) { rho(i, p) = Real(0); }); return;
    case Gate::sigmoid:  // mask sigma (1 - sigma) = G (mask - G)
      B::each(experts, P,
              [=] MOE_HD(Index i, Index p) { rho(i, p) = beta * (G(i, p) * (mask(i, p) - G(i, p)) * s(i, p)); });
      return;
    case Gate::softmax: {
      auto mean_matrix = B::Matrix::uninitialized(1, P);
      const typename B::View mean = mean_matrix;
      B::column_sums(
          experts, P, [=] MOE_HD(Index i, Index p) { return G(i, p) * s(i, p); }, mean);
      const Real inverse_K = Real(1) / static_cast<Real>(spec.active);
      B::each(experts, P,
              [=] MOE_HD(Index i, Index p) { rho(i, p) = beta * (G(i, p) * (s(i, p) - inverse_K * mean(0, p))); });
      return;
    }
  }
}

}  // namespace moe
