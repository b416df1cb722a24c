/// Gates and fields over (expert, token) pairs on the CPU. G and dL/dG (K, P) by place among a token's experts, fields (N_e, pairs)
/// in the order of trainer_dispatch.hpp.
#pragma once

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

#include "support/cpu.hpp"
#include "support/error.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"
#include "validation/network_statistics.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_columns.hpp"
#include "validation/trainer_dispatch.hpp"

namespace moe::trainer {

template <class Real>
struct Pairs<Cpu<Real>> {
  using B = Cpu<Real>;
  using View = HostView<Real>;
  using Dispatch = trainer::Dispatch;

  /// Gates of the active experts: sigmoid, exp(r) / ((1/K) sum_active exp(r)), or 1; the gate sees r/temperature. (T2)
  static void gate(const ModelSpec& spec, const Dispatch& d, View r, View G) {
    const Real inverse_tau = static_cast<Real>(1 / spec.router_temperature);
    const Index K = d.active();
    for (Index p = 0; p < d.tokens(); ++p) {
      Real* const g = &G(0, p);
      if (d.dense())
        for (Index k = 0; k < K; ++k) g[k] = inverse_tau * r(k, p);
      else
        for (Index k = 0; k < K; ++k) g[k] = inverse_tau * r(d.expert(k, p), p);
      switch (spec.gate) {
        case Gate::constant: std::fill_n(g, K, Real(1)); break;
        case Gate::sigmoid:
#pragma omp simd
          for (Index k = 0; k < K; ++k) g[k] = logistic(g[k]);
          break;
        case Gate::softmax: {
          const Real largest = *std::max_element(g, g + K);
          Real total = 0;
#pragma omp simd
          for (Index k = 0; k < K; ++k) g[k] = std::exp(g[k] - largest);
          for (Index k = 0; k < K; ++k) total += g[k];
          const Real scale = static_cast<Real>(K) / total;
          for (Index k = 0; k < K; ++k) g[k] *= scale;
          break;
        }
      }
    }
  }

  /// dL/dr from dL/dG with the selection held: sigmoid G (1 - G), softmax G_i (dL/dG_i - (1/K) sum_j G_j dL/dG_j).
  static void gate_backward(const ModelSpec& spec, const Dispatch& d, View G, View g_G, View g_r) {
    const Real inverse_tau = static_cast<Real>(1 / spec.router_temperature);
    const Index K = d.active();
    if (!d.dense() || spec.gate == Gate::constant) std::fill_n(g_r.data, g_r.size(), Real(0));
    if (spec.gate == Gate::constant) return;
    for (Index p = 0; p < d.tokens(); ++p) {
      Real mean = 0;
      if (spec.gate == Gate::softmax) {
        for (Index k = 0; k < K; ++k) mean += G(k, p) * g_G(k, p);
        mean /= static_cast<Real>(K);
      }
      const bool sigmoid = spec.gate == Gate::sigmoid;
      for (Index k = 0; k < K; ++k)
        g_r(d.expert(k, p), p) = inverse_tau * G(k, p) * (sigmoid ? (Real(1) - G(k, p)) * g_G(k, p) : g_G(k, p) - mean);
    }
  }

  /// out_a = G w_a for every pair.
  static void times_gate(const Dispatch& d, View G, View w, View out) {
    for_tokens(d, w.rows, [=, &d](Index i, Index first, Index count) {
      const View from = d.of_expert(i, w), to = d.of_expert(i, out);
      Real gate[together];
      for (Index j = 0; j < count; ++j) gate[j] = G.data[d.place(i, first + j)];
      for (Index a = 0; a < w.rows; ++a) {
        const Real* const wa = &from(first, a);
        Real* const out_a = &to(first, a);
#pragma omp simd
        for (Index j = 0; j < count; ++j) out_a[j] = gate[j] * wa[j];
      }
    });
  }

  /// dL/du_ia = G_i phi'(u_ia) dL/d(G v)_ia and dL/dG_i = sum_a v_ia dL/d(G v)_ia, per pair.
  static void through_experts(const PointActivation<Real>& activation, const Dispatch& d, View u, View v, View G,
                              View g_Gv, View g_u, View g_G) {
    activation.with_derivative([&](auto slope) {
      for_tokens(d, u.rows, [=, &d](Index i, Index first, Index count) {
        const View ui = d.of_expert(i, u), vi = d.of_expert(i, v), from = d.of_expert(i, g_Gv),
                   to = d.of_expert(i, g_u);
        Real gate[together], sum[together] = {};
        for (Index j = 0; j < count; ++j) gate[j] = G.data[d.place(i, first + j)];
        for (Index a = 0; a < u.rows; ++a) {
          const Real *const ua = &ui(first, a), *const va = &vi(first, a), *const g = &from(first, a);
          Real* const out = &to(first, a);
#pragma omp simd
          for (Index j = 0; j < count; ++j) {
            sum[j] += g[j] * va[j];
            out[j] = gate[j] * g[j] * slope(ua[j], va[j]);
          }
        }
        for (Index j = 0; j < count; ++j) g_G.data[d.place(i, first + j)] = sum[j];
      });
    });
  }

  /// dL/dr of the balancing loss lambda <load_i mean_mu e_imu>_i, e_i = exp(r_i) / <exp r>, load_i the share of the tokens that choose
  /// expert i over K/M, held: += lambda/(M P) e_i (load_i - <load e>) for all experts.                                 (T31)
  static void balance_backward(const ModelSpec& spec, const Dispatch& d, View r, View g_r) {
    const Index M = d.experts();
    const double fair = static_cast<double>(d.pairs()) / static_cast<double>(M);
    std::vector<Real> load(static_cast<std::size_t>(M)), e(load.size());
    for (Index i = 0; i < M; ++i)
      load[static_cast<std::size_t>(i)] = static_cast<Real>(static_cast<double>(d.tokens_of(i)) / fair);
    const Real strength = static_cast<Real>(spec.balance_loss / static_cast<double>(d.tokens()));
    for (Index p = 0; p < d.tokens(); ++p) {
      const Real largest = *std::max_element(&r(0, p), &r(0, p) + M);
      Real total = 0, overlap = 0;
      for (Index i = 0; i < M; ++i) {
        const auto at = static_cast<std::size_t>(i);
        e[at] = std::exp(r(i, p) - largest);
        total += e[at];
        overlap += e[at] * load[at];
      }
      for (Index i = 0; i < M; ++i) {
        const auto at = static_cast<std::size_t>(i);
        g_r(i, p) += strength * (e[at] / total) * (load[at] - overlap / total);
      }
    }
  }

  /// b_i += rate sign(1 - load_i), bias (M, 1), decided by whole numbers: load_i = tokens M / (P K).                      (T32)
  static void move_bias(Real rate, const Dispatch& d, View bias) {
    for (Index i = 0; i < bias.rows; ++i) {
      const Index missing = d.pairs() - d.experts() * d.tokens_of(i);
      bias(i, 0) += rate * SignPoint<Real>()(static_cast<Real>(missing));
    }
  }

  // Top-K only: a field over active pairs of, and as, one over all (N_e, M P), there zero where not active.
  static void gather(const Dispatch& d, View all, View pairs) {
    between(d, all, pairs, [](Real& in_all, Real& in_pairs) { in_pairs = in_all; });
  }
  static void scatter(const Dispatch& d, View pairs, View all) {
    std::fill_n(all.data, all.size(), Real(0));
    between(d, all, pairs, [](Real& in_all, Real& in_pairs) { in_all = in_pairs; });
  }
  /// (P, P): averages of products over all units, of a field over all pairs (N_e, M P).
  static Eigen::MatrixXd gram(Index tokens, View all) {
    const Index units = all.size() / tokens;
    auto by_unit = HostMatrix<Real>::uninitialized(units, tokens);
    columns::transpose(all.data, tokens, tokens, units, by_unit.data(), units);
    return B::gram(by_unit);
  }

  // What is recorded of them: support/observable.hpp.
  static double router_entropy(const Dispatch& d, View G) {
    return network::router_entropy(by_expert(d, [&](Index k, Index p) { return static_cast<double>(G(k, p)); }),
                                   static_cast<int>(d.active()));
  }
  /// (M)
  static Eigen::VectorXd loads(const Dispatch& d) {
    return network::loads(by_expert(d, [](Index, Index) { return 1.0; }), static_cast<int>(d.active()));
  }
  /// Of the squares of a field's columns.
  static double effective_experts(const Dispatch& d, View field) {
    Eigen::MatrixXd squares = Eigen::MatrixXd::Zero(d.experts(), d.tokens());
    for_tokens(d, field.rows, [&](Index i, Index first, Index count) {
      const View x = d.of_expert(i, field);
      double sum[together] = {};
      for (Index a = 0; a < x.cols; ++a) {
        const Real* const xa = &x(first, a);
#pragma omp simd
        for (Index j = 0; j < count; ++j) sum[j] += static_cast<double>(xa[j]) * static_cast<double>(xa[j]);
      }
      for (Index j = 0; j < count; ++j) squares(i, d.token(i, first + j)) = sum[j];
    });
    return network::effective_experts(squares);
  }

 private:
  /// f(i, first, count) for the tokens first .. first + count of expert i, no more than `together`, all of them in turn.
  static constexpr Index together = 32;
  template <class F>
  static void for_tokens(const Dispatch& d, Index units, const F& f) {
    const Index most = (d.tokens() + together - 1) / together;
#pragma omp parallel for schedule(static) if (d.pairs() * units > moe::detail::parallel_threshold)
    for (Index k = 0; k < d.experts() * most; ++k) {
      const Index i = k / most, first = k % most * together, tokens = d.tokens_of(i);
      if (first < tokens) f(i, first, std::min(together, tokens - first));
    }
  }
  template <class F>
  static void between(const Dispatch& d, View all, View pairs, const F& f) {
    const Index P = d.tokens(), Ne = pairs.rows;
    for (Index i = 0; i < d.experts(); ++i) {
      const View of_expert = d.of_expert(i, pairs), of_all{all.data + i * P * Ne, P, Ne, P};
      for (Index a = 0; a < Ne; ++a)
        for (Index j = 0; j < of_expert.rows; ++j) f(of_all(d.token(i, j), a), of_expert(j, a));
    }
  }
  /// (M, P), zero where not active.
  template <class F>
  static Eigen::MatrixXd by_expert(const Dispatch& d, const F& value) {
    Eigen::MatrixXd all = Eigen::MatrixXd::Zero(d.experts(), d.tokens());
    for (Index p = 0; p < d.tokens(); ++p)
      for (Index k = 0; k < d.active(); ++k) all(d.expert(k, p), p) = value(k, p);
    return all;
  }
};

template <class Real>
class Guard<Cpu<Real>> {
 public:
  void operator()(HostView<Real> values, int step, const char* field) const {
    constexpr Index piece = moe::detail::row_block;
    const Index size = values.size();
    Real sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum) if (size > moe::detail::parallel_threshold)
    for (Index first = 0; first < size; first += piece) sum += zero(values.data + first, std::min(piece, size - first));
    if (sum == 0) return;
    Index bad = 0;
    for (Index k = 0; k < values.size(); ++k) bad += std::isfinite(values.data[k]) ? 0 : 1;
    throw NumericsError(step, field, fmt::format("{} of {} entries are NaN or infinite", bad, values.size()));
  }
  void settle() const {}
  Eigen::MatrixXd settle(HostView<Real> values) const { return Cpu<Real>::download(values); }

 private:
  /// Sum of x - x, zero unless one is NaN or infinite. A function of its own: see moe::detail::sum_over.
  static Real zero(const Real* x, Index n) {
    Real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index k = 0; k < n; ++k) sum += x[k] - x[k];  // NOLINT(misc-redundant-expression)
    return sum;
  }
};

}  // namespace moe::trainer
