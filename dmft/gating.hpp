/// Routing, gates and balancing on a sample of experts: (T2), (T9), (T31), (T32). Arrays (SE, P): expert fastest, one column per token.
#pragma once

#include <cmath>
#include <limits>

#include "dmft/limit_spec.hpp"
#include "support/cpu.hpp"
#include "support/point.hpp"

namespace moe {

namespace detail {
/// out = r + b, the bias (SE, 1) added to every column.
template <class B>
void add_bias(typename B::View r, typename B::View bias, typename B::View out) {
  B::each(r.rows, r.cols, [=] MOE_HD(Index i, Index p) { out(i, p) = r(i, p) + bias(i, 0); });
}
/// out = r where the mask is one, else the lowest number there is.
template <class B>
void active_only(typename B::View r, typename B::View mask, typename B::View out) {
  using Real = typename B::Real;
  B::each(r.rows, r.cols, [=] MOE_HD(Index i, Index p) {
    out(i, p) = mask(i, p) > Real(0) ? r(i, p) : -std::numeric_limits<Real>::max();
  });
}
/// out (SE, 1): how many tokens have chosen each expert.
template <class B>
void tokens_of_experts(typename B::View mask, typename B::View out) {
  using Real = typename B::Real;
  B::each(mask.rows, 1, [=] MOE_HD(Index i, Index) {
    Real tokens = 0;
    for (Index p = 0; p < mask.cols; ++p) tokens += mask(i, p);
    out(i, 0) = tokens;
  });
}
}  // namespace detail

/// mask and gate out of logits r, of x = r/tau: sigmoid G = sigma(x) mask, softmax exp(x) mask / ((1/K) sum_active exp(x)), constant
/// mask. (T2) Experts are selected by r + bias, bias (SE, 1) or without columns; gates see r alone.
template <class B>
void apply_gate(const GateSpec& spec, typename B::View r, typename B::View bias, typename B::View mask,
                typename B::View G) {
  using Real = typename B::Real;
  const Index experts = r.rows, P = r.cols;
  const Real beta = static_cast<Real>(spec.inverse_temperature);
  // What is not finite has no order to be chosen by: all stay active, and the run ends or a flow shortens its step.
  const bool ordered =
      !spec.topk || std::isfinite(B::sum(experts, P, [=] MOE_HD(Index i, Index p) { return r(i, p) * Real(0); }));
  const bool biased = bias.cols > 0;
  if (spec.topk && ordered && biased) {
    auto selects = B::Matrix::uninitialized(experts, P);
    detail::add_bias<B>(r, bias, selects);
    B::select_largest(selects, spec.active, mask);
  } else if (spec.topk && ordered) {
    B::select_largest(r, spec.active, mask);
  } else {
    B::each(experts, P, [=] MOE_HD(Index i, Index p) { mask(i, p) = Real(1); });
  }
  switch (spec.kind) {
    case Gate::constant: B::copy(mask, G); return;
    case Gate::sigmoid:
      B::each(experts, P, [=] MOE_HD(Index i, Index p) { G(i, p) = mask(i, p) * logistic(beta * r(i, p)); });
      return;
    case Gate::softmax: {
      auto highest_matrix = B::Matrix::uninitialized(1, P);
      auto total_matrix = B::Matrix::uninitialized(1, P);
      const typename B::View highest = highest_matrix, total = total_matrix;
      if (biased) {
        auto active = B::Matrix::uninitialized(experts, P);
        detail::active_only<B>(r, mask, active);
        B::column_maxima(active, highest);
      } else {
        B::column_maxima(r, highest);  // the largest logit is always active
      }
      B::each(experts, P, [=] MOE_HD(Index i, Index p) {
        const Real above =
            r(i, p) - highest(0, p);  // positive where the bias leaves out an expert: no infinity times zero
        G(i, p) = mask(i, p) * std::exp(beta * (above > Real(0) ? Real(0) : above));
      });
      B::column_sums(
          experts, P, [=] MOE_HD(Index i, Index p) { return G(i, p); }, total);
      const Real K = static_cast<Real>(spec.active);
      B::each(experts, P, [=] MOE_HD(Index i, Index p) { G(i, p) *= K / total(0, p); });
      return;
    }
  }
}

/// Fields of hidden units (SE Sa, P), expert-major, with the gates of their experts: one pass over pairs of expert and token, Sa fastest.
namespace detail {
template <class Map>
struct OfUnits {
  Index hidden, experts;
  Map map;
  /// map(row of the unit, its expert, token)
  MOE_HD void operator()(Index a, Index k) const {
    const Index p = k / experts, i = k % experts;
    map(i * hidden + a, i, p);
  }
};
template <class B, class Map>
void each_unit(typename B::View G, Index units, const Map& map) {
  const Index hidden = units / G.rows;
  B::each(hidden, G.rows * G.cols, OfUnits<Map>{hidden, G.rows, map});
}
template <class View>
struct TimesGate {
  View G, w, out;
  MOE_HD void operator()(Index n, Index i, Index p) const { out(n, p) = G(i, p) * w(n, p); }
};
template <class View, class Phi>
struct ActivateAndGate {
  View u, G, v, Gv;
  Phi phi;
  MOE_HD void operator()(Index n, Index i, Index p) const {
    const auto value = phi(u(n, p));
    v(n, p) = value;
    Gv(n, p) = G(i, p) * value;
  }
};
template <class View, class Slope>
struct GatedSlope {
  View u, v, G, zeta, ghat;
  Slope slope;
  MOE_HD void operator()(Index n, Index i, Index p) const {
    ghat(n, p) = G(i, p) * (slope(u(n, p), v(n, p)) * zeta(n, p));
  }
};
}  // namespace detail

/// out_ia = G_i w_ia
template <class B>
void times_gate(typename B::View G, typename B::View w, typename B::View out) {
  detail::each_unit<B>(G, w.rows, detail::TimesGate<typename B::View>{G, w, out});
}
/// v = phi(u), Gv_ia = G_i v_ia; where v is Gv, Gv alone is kept.                                                      (T3), (T4)
template <class B>
void activate_and_gate(Activation kind, double b, typename B::View u, typename B::View G, typename B::View v,
                       typename B::View Gv) {
  PointActivation<typename B::Real>{kind, static_cast<typename B::Real>(b)}.with_value([&](auto phi) {
    detail::each_unit<B>(G, u.rows, detail::ActivateAndGate<typename B::View, decltype(phi)>{u, G, v, Gv, phi});
  });
}
/// ghat_ia = phi'(u_ia) G_i zeta_ia, of v = phi(u)                                                                       (T8)
template <class B>
void gated_slope(Activation kind, double b, typename B::View u, typename B::View v, typename B::View G,
                 typename B::View zeta, typename B::View ghat) {
  PointActivation<typename B::Real>{kind, static_cast<typename B::Real>(b)}.with_derivative([&](auto slope) {
    detail::each_unit<B>(G, u.rows, detail::GatedSlope<typename B::View, decltype(slope)>{u, v, G, zeta, ghat, slope});
  });
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

/// rho_i -= lambda (kappa/P) e_i (load_i - <load e>), e_i = exp(r_i) / <exp r>, load_i the share of the tokens that choose expert i
/// over kappa, held constant.                                                                                      (T31)
template <class B>
void balance_backward(const GateSpec& spec, typename B::View r, typename B::View mask, typename B::View rho) {
  using Real = typename B::Real;
  const Index experts = r.rows, P = r.cols;
  auto highest_matrix = B::Matrix::uninitialized(1, P);
  auto mean_matrix = B::Matrix::uninitialized(1, P);
  auto overlap_matrix = B::Matrix::uninitialized(1, P);
  auto load_matrix = B::Matrix::uninitialized(experts, 1);
  auto e_matrix = B::Matrix::uninitialized(experts, P);
  const typename B::View highest = highest_matrix, mean = mean_matrix, overlap = overlap_matrix, load = load_matrix,
                         e = e_matrix;
  const Real kappa = static_cast<Real>(spec.active) / static_cast<Real>(experts);
  detail::tokens_of_experts<B>(mask, load);
  const Real share = Real(1) / (kappa * static_cast<Real>(P));
  B::each(experts, 1, [=] MOE_HD(Index i, Index) { load(i, 0) *= share; });
  B::column_maxima(r, highest);
  B::each(experts, P, [=] MOE_HD(Index i, Index p) { e(i, p) = std::exp(r(i, p) - highest(0, p)); });
  B::column_sums(
      experts, P, [=] MOE_HD(Index i, Index p) { return e(i, p); }, mean);
  B::column_sums(
      experts, P, [=] MOE_HD(Index i, Index p) { return e(i, p) * load(i, 0); }, overlap);
  const Real strength = static_cast<Real>(spec.balance_loss) * kappa / static_cast<Real>(P);
  const Real count = static_cast<Real>(experts);
  B::each(experts, P, [=] MOE_HD(Index i, Index p) {
    rho(i, p) -= strength * (count * e(i, p) / mean(0, p)) * (load(i, 0) - overlap(0, p) / mean(0, p));
  });
}

/// b_i += rate sign(1 - load_i), decided by whole numbers: load_i = tokens SE / (P K_S).                            (T32)
template <class B>
void move_bias(const GateSpec& spec, typename B::View mask, typename B::View bias) {
  using Real = typename B::Real;
  auto tokens_matrix = B::Matrix::uninitialized(mask.rows, 1);
  const typename B::View tokens = tokens_matrix;
  detail::tokens_of_experts<B>(mask, tokens);
  const Real rate = static_cast<Real>(spec.balance_bias);
  const auto experts = static_cast<double>(mask.rows), fair = static_cast<double>(mask.cols * spec.active);
  const SignPoint<Real> sign;
  B::each(mask.rows, 1, [=] MOE_HD(Index i, Index) {
    bias(i, 0) += rate * sign(static_cast<Real>(fair - experts * static_cast<double>(tokens(i, 0))));
  });
}

}  // namespace moe
