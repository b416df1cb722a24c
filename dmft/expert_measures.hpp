/// Sums over the hidden units of experts and what is measured with them, of the sweep's samples and of batches of sites alike.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dmft/pointwise.hpp"

namespace moe {

namespace detail {
/// Units (experts hidden, P), without gaps between columns, with a column (hidden) for every pair of expert and token. Numbers (experts, P) are
/// the row of these pairs (as_row).
template <class View>
View units_by_pair(View units, Index hidden) {
  return {units.data, hidden, units.size() / hidden, hidden};
}

/// Up to so many units a thread of its own for every pair sums in one look what longer sums take two for.
inline constexpr Index few_units = 64;

/// sum / count; zero where the terms, of which `size` is the sum of magnitudes, cancel to within their rounding, as matched samples make them
/// do at t = 0. Rounding errors would else be queries like others, and enter the basis at full size.
template <class Real>
MOE_HD Real mean_or_nothing(double sum, double size, Index count) {
  const bool cancels = std::abs(sum) <= 8 * static_cast<double>(std::numeric_limits<Real>::epsilon()) * size;
  return cancels ? Real(0) : static_cast<Real>(sum / static_cast<double>(count));
}

/// s_i = mean_or_nothing of v_ia zeta_ia over a
template <class B>
void mean_products_over_hidden(typename B::View v, typename B::View zeta, typename B::View s) {
  using Real = typename B::Real;
  using View = typename B::View;
  const Index hidden = v.rows / s.rows;
  const View v_of = units_by_pair(v, hidden), zeta_of = units_by_pair(zeta, hidden), mean = as_row(s);
  if (hidden <= few_units) {
    const Index experts = s.rows;
    return B::each(experts, s.cols, [=] MOE_HD(Index i, Index p) {
      const Index k = i + p * experts;
      double sum = 0, size = 0;
      for (Index a = 0; a < hidden; ++a) {
        const double term = static_cast<double>(v_of(a, k)) * static_cast<double>(zeta_of(a, k));
        sum += term;
        size += std::abs(term);
      }
      mean(0, k) = mean_or_nothing<Real>(sum, size, hidden);
    });
  }
  auto sizes = B::Matrix::uninitialized(1, mean.cols);
  const View size = sizes;
  column_sums_of_products<B>(v_of, zeta_of, mean);
  B::column_sums(
      hidden, mean.cols, [=] MOE_HD(Index a, Index k) { return std::abs(v_of(a, k) * zeta_of(a, k)); }, size);
  const Index experts = s.rows;
  B::each(experts, s.cols, [=] MOE_HD(Index i, Index p) {
    s(i, p) =
        mean_or_nothing<Real>(static_cast<double>(s(i, p)), static_cast<double>(size(0, i + p * experts)), hidden);
  });
}
}  // namespace detail

/// out_ia = from_a
template <class B>
void for_all_experts(typename B::View from, typename B::View out) {
  const Index hidden = from.rows, experts = out.rows / hidden;
  B::each(hidden, experts * out.cols, [=] MOE_HD(Index a, Index k) {
    const Index p = k / experts, i = k % experts;
    out(i * hidden + a, p) = from(a, p);
  });
}
/// out_a = <w_ia>_i / kappa; out without gaps between columns.
template <class B>
void mean_over_experts(typename B::View w, double kappa, typename B::View out) {
  using Real = typename B::Real;
  const Index hidden = out.rows, experts = w.rows / hidden;
  B::column_sums(
      experts, out.size(), [=] MOE_HD(Index i, Index k) { return w(i * hidden + k % hidden, k / hidden); },
      as_row(out));
  scale<B>(out, static_cast<Real>(1 / (kappa * static_cast<double>(experts))));
}

/// Mean of w_ia^2 over active (expert, token) pairs and their hidden units.
template <class B>
double mean_square_of_active(typename B::View w, typename B::View mask) {
  const auto units = detail::units_by_pair(w, w.rows / mask.rows), active = as_row(mask);
  const double squares =
      B::sum(units.rows, units.cols, [=] MOE_HD(Index a, Index k) { return active(0, k) * units(a, k) * units(a, k); });
  return squares / (sum<B>(mask) * static_cast<double>(units.rows));
}

/// Effective number of experts (sum_i c_i)^2 / sum_i c_i^2, c_i = sum_a w_ia^2; smallest over tokens that any expert serves, 0 if there is
/// none.
template <class B>
double effective_experts(typename B::View w, Index hidden) {
  const Index experts = w.rows / hidden;
  auto weights = B::Matrix::uninitialized(experts, w.cols), sums = B::Matrix::uninitialized(1, w.cols),
       squares = B::Matrix::uninitialized(1, w.cols);
  const auto units = detail::units_by_pair(w, hidden);
  column_sums_of_products<B>(units, units, as_row(weights.view()));
  column_sums<B>(weights, sums);
  column_sums_of_products<B>(weights, weights, squares);
  const Eigen::MatrixXd first = B::download(sums), second = B::download(squares);
  double smallest = HUGE_VAL;
  for (Index p = 0; p < first.cols(); ++p)
    if (second(0, p) > 0) smallest = std::min(smallest, first(0, p) * first(0, p) / second(0, p));
  return std::isfinite(smallest) ? smallest : 0;
}

/// exp(H)/K, H the entropy of p_i = G_i / sum G, mean over tokens.
template <class B>
double router_entropy(typename B::View G, double active) {
  using Real = typename B::Real;
  auto totals = B::Matrix::uninitialized(1, G.cols), logs = B::Matrix::uninitialized(1, G.cols);
  column_sums<B>(G, totals);
  B::column_sums(
      G.rows, G.cols,
      [=] MOE_HD(Index i, Index p) { return G(i, p) > Real(0) ? G(i, p) * std::log(G(i, p)) : Real(0); }, logs);
  const Eigen::MatrixXd sum = B::download(totals), of_logs = B::download(logs);
  const auto entropy = sum.array().log() - of_logs.array() / sum.array();
  return entropy.exp().mean() / active;
}

}  // namespace moe
