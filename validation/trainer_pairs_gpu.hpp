/// Gates and fields over (expert, token) pairs on the GPU: what trainer_pairs.hpp does on the CPU, one launch each.
#pragma once

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "support/cuda.hpp"
#include "support/error.hpp"
#include "support/point.hpp"
#include "support/run_spec.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_dispatch_gpu.hpp"

namespace moe::trainer {
inline namespace MOE_DEVICE_SPACE {
namespace kernels {

using moe::kernels::Larger;
using moe::kernels::of_block;
using moe::kernels::Plus;

/// (T2), one token a block.
template <class Real>
MOE_KERNEL void gate_kernel(PairLists d, Gate kind, Real inverse_tau, GpuView<Real> r, GpuView<Real> G) {
  const Place at = place();
  const Index p = at.block, K = d.active;
  const auto logit = [&](Index k) { return inverse_tau * r(d.expert(k, p), p); };
  if (kind != Gate::softmax) {
    for (Index k = at.x; k < K; k += at.threads_x) G(k, p) = kind == Gate::sigmoid ? logistic(logit(k)) : Real(1);
    return;
  }
  Real largest = -std::numeric_limits<Real>::infinity();
  for (Index k = at.x; k < K; k += at.threads_x) largest = Larger()(largest, logit(k));
  largest = of_block(largest, Larger());
  Real total = 0;
  for (Index k = at.x; k < K; k += at.threads_x) total += G(k, p) = std::exp(logit(k) - largest);
  const Real scale = static_cast<Real>(K) / of_block(total, Plus());
  for (Index k = at.x; k < K; k += at.threads_x) G(k, p) *= scale;
}

/// One token a block; dL/dr of experts that it does not use is zero.
template <class Real>
MOE_KERNEL void gate_backward_kernel(PairLists d, Gate kind, Real inverse_tau, GpuView<Real> G, GpuView<Real> g_G,
                                     GpuView<Real> g_r) {
  const Place at = place();
  const Index p = at.block, K = d.active;
  if (!d.dense || kind == Gate::constant) {
    for (Index i = at.x; i < d.experts; i += at.threads_x) g_r(i, p) = 0;
    meet();
  }
  if (kind == Gate::constant) return;
  Real mean = 0;
  if (kind == Gate::softmax) {
    for (Index k = at.x; k < K; k += at.threads_x) mean += G(k, p) * g_G(k, p);
    mean = of_block(mean, Plus()) / static_cast<Real>(K);
  }
  for (Index k = at.x; k < K; k += at.threads_x)
    g_r(d.expert(k, p), p) =
        inverse_tau * G(k, p) * (kind == Gate::sigmoid ? (Real(1) - G(k, p)) * g_G(k, p) : g_G(k, p) - mean);
}

/// (T31), one token a block.
template <class Real>
MOE_KERNEL void balance_kernel(PairLists d, Real strength, Real inverse_fair, GpuView<Real> r, GpuView<Real> g_r) {
  const Place at = place();
  const Index p = at.block, M = d.experts;
  Real largest = -std::numeric_limits<Real>::infinity();
  for (Index i = at.x; i < M; i += at.threads_x) largest = Larger()(largest, r(i, p));
  largest = of_block(largest, Larger());
  const auto load = [&](Index i) { return static_cast<Real>(d.begins[i + 1] - d.begins[i]) * inverse_fair; };
  Real total = 0, overlap = 0;
  for (Index i = at.x; i < M; i += at.threads_x) {
    const Real e = std::exp(r(i, p) - largest);
    total += e;
    overlap += e * load(i);
  }
  total = of_block(total, Plus());
  overlap = of_block(overlap, Plus());
  for (Index i = at.x; i < M; i += at.threads_x)
    g_r(i, p) += strength * (std::exp(r(i, p) - largest) / total) * (load(i) - overlap / total);
}

template <class Real>
struct TimesGate {
  PairLists d;
  GpuView<Real> G, w, out;
  MOE_DEVICE void operator()(Index a, Index q) const {
    const Index pair = d.pair_at(q);
    out(a, pair) = G.data[q] * w(a, pair);
  }
};

/// dL/du, and the terms of dL/dG.
template <class Real, class Slope>
struct ThroughExpert {
  PairLists d;
  GpuView<Real> u, v, G, g_Gv, g_u;
  Slope slope;
  MOE_DEVICE Real operator()(Index a, Index q) const {
    const Index pair = d.pair_at(q);
    const Real from = g_Gv(a, pair);
    const Real value = v(a, pair);
    g_u(a, pair) = G.data[q] * from * slope(u(a, pair), value);
    return from * value;
  }
};

template <class Real>
struct MoveBias {
  PairLists d;
  Real rate;
  GpuView<Real> bias;
  MOE_DEVICE void operator()(Index i, Index) const {
    const Index missing = d.tokens * d.active - d.experts * (d.begins[i + 1] - d.begins[i]);
    bias(i, 0) += rate * SignPoint<Real>()(static_cast<Real>(missing));
  }
};

template <class Real, bool to_pairs>
struct BetweenPairsAndAll {
  PairLists d;
  GpuView<Real> pairs, all;
  MOE_DEVICE void operator()(Index a, Index q) const {
    Real& of_pair = pairs(a, d.pair_at(q));
    Real& of_all = all(d.expert_at(q) * pairs.rows + a, q / d.active);
    if (to_pairs)
      of_pair = of_all;
    else
      of_all = of_pair;
  }
};

template <class Real>
struct Zero {
  GpuView<Real> values;
  MOE_DEVICE void operator()(Index k, Index) const { values.data[k] = 0; }
};

template <class Real>
struct SquareOfPair {
  PairLists d;
  GpuView<Real> field;
  MOE_DEVICE double operator()(Index a, Index q) const {
    const auto x = static_cast<double>(field(a, d.pair_at(q)));
    return x * x;
  }
};
/// Powers of a column's entries relative to its largest.
struct RelativePower {
  GpuView<double> values, largest;
  int power;
  MOE_DEVICE double operator()(Index k, Index p) const {
    const double x = values(k, p) / largest(0, p);
    return power == 1 ? x : x * x;
  }
};
template <class Real>
struct GateValue {
  GpuView<Real> G;
  MOE_DEVICE double operator()(Index k, Index p) const { return static_cast<double>(G(k, p)); }
};
template <class Real>
struct EntropyTerm {
  GpuView<Real> G;
  GpuView<double> total;
  MOE_DEVICE double operator()(Index k, Index p) const {
    const double share = static_cast<double>(G(k, p)) / total(0, p);
    return share > 0 ? -share * std::log(share) : 0;
  }
};

/// Values, in double, among what the host gets.
template <class Number>
struct Report {
  GpuView<Number> values;
  GpuView<double> report;
  Index first;
  MOE_DEVICE void operator()(Index i, Index j) const {
    report(first + i + j * values.rows, 0) = static_cast<double>(values(i, j));
  }
};
/// Counts entries that are NaN or infinite: x - x is zero unless x is one of them.
template <class Real>
struct CountNotFinite {
  GpuView<Real> values;
  unsigned* counter;
  MOE_DEVICE void operator()(Index k, Index) const {
    const Real x = values.data[k];
    if (!(x - x == Real(0))) count_one(*counter);
  }
};

}  // namespace kernels
}  // namespace MOE_DEVICE_SPACE

template <class Real>
struct Pairs<Cuda<Real>> {
  using B = Cuda<Real>;
  using View = GpuView<Real>;
  using Dispatch = GpuDispatch;

  static void gate(const ModelSpec& spec, const Dispatch& d, View r, View G) {
    launch("gates", kernels::gate_kernel<Real>, d.tokens(), {kernels::threads_for(d.active())}, d.lists(), spec.gate,
           static_cast<Real>(1 / spec.router_temperature), r, G);
  }
  static void gate_backward(const ModelSpec& spec, const Dispatch& d, View G, View g_G, View g_r) {
    launch("gates backward", kernels::gate_backward_kernel<Real>, d.tokens(), {kernels::threads_for(d.active())},
           d.lists(), spec.gate, static_cast<Real>(1 / spec.router_temperature), G, g_G, g_r);
  }
  static void times_gate(const Dispatch& d, View G, View w, View out) {
    B::each(w.rows, d.pairs(), kernels::TimesGate<Real>{d.lists(), G, w, out});
  }
  static void through_experts(const PointActivation<Real>& activation, const Dispatch& d, View u, View v, View G,
                              View g_Gv, View g_u, View g_G) {
    activation.with_derivative([&](auto slope) {
      B::column_sums(u.rows, d.pairs(),
                     kernels::ThroughExpert<Real, decltype(slope)>{d.lists(), u, v, G, g_Gv, g_u, slope},
                     View{g_G.data, 1, d.pairs(), 1});
    });
  }
  static void balance_backward(const ModelSpec& spec, const Dispatch& d, View r, View g_r) {
    const double fair = static_cast<double>(d.pairs()) / static_cast<double>(d.experts());
    launch("balancing loss", kernels::balance_kernel<Real>, d.tokens(), {kernels::threads_for(d.experts())}, d.lists(),
           static_cast<Real>(spec.balance_loss / static_cast<double>(d.tokens())), static_cast<Real>(1 / fair), r, g_r);
  }
  static void move_bias(Real rate, const Dispatch& d, View bias) {
    B::each(bias.rows, 1, kernels::MoveBias<Real>{d.lists(), rate, bias});
  }

  static void gather(const Dispatch& d, View all, View pairs) {
    B::each(pairs.rows, d.pairs(), kernels::BetweenPairsAndAll<Real, true>{d.lists(), pairs, stacked(d.tokens(), all)});
  }
  static void scatter(const Dispatch& d, View pairs, View all) {
    B::each(all.size(), 1, kernels::Zero<Real>{all});
    B::each(pairs.rows, d.pairs(),
            kernels::BetweenPairsAndAll<Real, false>{d.lists(), pairs, stacked(d.tokens(), all)});
  }
  static Eigen::MatrixXd gram(Index tokens, View all) { return B::gram(stacked(tokens, all)); }

  static double router_entropy(const Dispatch& d, View G) {
    auto total = GpuMatrix<double>::uninitialized(1, G.cols), entropy = GpuMatrix<double>::uninitialized(1, G.cols);
    Cuda<double>::column_sums(G.rows, G.cols, kernels::GateValue<Real>{G}, total);
    Cuda<double>::column_sums(G.rows, G.cols, kernels::EntropyTerm<Real>{G, total}, entropy);
    return Cuda<double>::download(entropy).array().exp().mean() / static_cast<double>(d.active());
  }
  static Eigen::VectorXd loads(const Dispatch& d) {
    Eigen::VectorXd loads = Eigen::VectorXd::Ones(d.experts());
    if (d.dense()) return loads;
    const HostMatrix<Index> begins = GpuMatrix<Index>::to_host({d.lists().begins, d.experts() + 1, 1, d.experts() + 1});
    const double fair = static_cast<double>(d.pairs()) / static_cast<double>(d.experts());
    for (Index i = 0; i < loads.size(); ++i) loads(i) = static_cast<double>(begins(i + 1, 0) - begins(i, 0)) / fair;
    return loads;
  }
  static double effective_experts(const Dispatch& d, View field) {
    using D = Cuda<double>;
    const Index K = d.active(), P = d.tokens();
    auto squares = GpuMatrix<double>::uninitialized(K, P), largest = GpuMatrix<double>::uninitialized(1, P),
         sums = GpuMatrix<double>::uninitialized(2, P);
    D::column_sums(field.rows, d.pairs(), kernels::SquareOfPair<Real>{d.lists(), field},
                   GpuView<double>{squares.view().data, 1, d.pairs(), 1});
    D::column_maxima(squares, largest);
    for (const int power : {1, 2})
      D::column_sums(K, P, kernels::RelativePower{squares, largest, power}, sums.view().row_range(power - 1, 1));
    const Eigen::MatrixXd served = D::download(largest), s = D::download(sums);
    double smallest = HUGE_VAL;
    for (Index p = 0; p < P; ++p)
      if (served(0, p) > 0) smallest = std::min(smallest, s(0, p) * s(0, p) / s(1, p));
    return std::isfinite(smallest) ? smallest : 0;
  }

 private:
  /// A field over all pairs (N_e, M P) as (M N_e, P).
  static View stacked(Index tokens, View all) { return {all.data, all.size() / tokens, tokens, all.size() / tokens}; }
};

/// Counts on the GPU; settle() looks, and the host waits once.
template <class Real>
class Guard<Cuda<Real>> {
 public:
  void operator()(GpuView<Real> values, int step, const char* field) {
    if (counters_.empty()) counters_ = GpuMatrix<unsigned>(most, 1);
    if (noted_.size() == static_cast<std::size_t>(most)) settle();
    unsigned* const counter = counters_.view().data + noted_.size();
    noted_.push_back({step, field, values.size()});
    Cuda<Real>::each(values.size(), 1, kernels::CountNotFinite<Real>{values, counter});
  }
  void settle() {
    if (!noted_.empty()) settle({});
  }
  Eigen::MatrixXd settle(GpuView<Real> values) {
    const auto noted = std::exchange(noted_, {});
    const auto notes = static_cast<Index>(noted.size());
    auto report = GpuMatrix<double>::uninitialized(notes + values.size(), 1);
    Cuda<double>::each(notes, 1, kernels::Report<unsigned>{counters_, report, 0});
    Cuda<double>::each(values.rows, values.cols, kernels::Report<Real>{values, report, notes});
    const Eigen::MatrixXd host = Cuda<double>::download(report);
    for (std::size_t k = 0; k < noted.size(); ++k) {
      const double bad = host(static_cast<Index>(k), 0);
      if (bad == 0) continue;
      counters_.fill(0);
      throw NumericsError(noted[k].step, noted[k].field,
                          fmt::format("{} of {} entries are NaN or infinite", bad, noted[k].size));
    }
    return host.bottomRows(values.size()).reshaped(values.rows, values.cols);
  }

 private:
  struct Note {
    int step;
    const char* field;
    Index size;
  };
  static constexpr Index most = 512;
  std::vector<Note> noted_;
  GpuMatrix<unsigned> counters_;
};

}  // namespace moe::trainer
