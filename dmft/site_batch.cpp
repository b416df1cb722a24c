#include "dmft/site_batch_template.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "dmft/loss.hpp"
#include "dmft/site_batch_gpu.hpp"
#include "dmft/small_linear_algebra.hpp"

namespace moe {

using Eigen::MatrixXd;
using Eigen::VectorXd;

namespace detail {

MatrixXd learned_of_kernel(const MatrixXd& correlation, Index t, const UpdateRule& rule) {
  const Index P = correlation.cols();
  MatrixXd result = MatrixXd::Zero(correlation.rows(), P);
  const double m = rule.has_velocity() ? rule.momentum : 0;
  double weight = 0;
  for (Index s = t - 1; s >= 0; --s) {
    weight = rule.lr + m * weight;
    result.middleRows(s * P, P) = weight * correlation.middleRows(s * P, P);
  }
  return result;
}

namespace {

/// The last rows of a root's block, L^T of a step's own queries, in a form that can be solved with: what was left out has zeros, to which any
/// diagonal does nothing.
MatrixXd solvable(const Eigen::Ref<const MatrixXd>& block) {
  MatrixXd own = block.bottomRows(block.cols());
  for (Index j = 0; j < own.cols(); ++j)
    if (own(j, j) == 0) own(j, j) = 1;
  return own;
}
/// Zeros in the rows of what was left out.
void leave_out(const Eigen::Ref<const MatrixXd>& block, Eigen::Ref<MatrixXd> rows) {
  for (Index j = 0; j < block.cols(); ++j)
    if (block(block.rows() - block.cols() + j, j) == 0) rows.row(j).setZero();
}

/// Lower L with L L^T = rest (P, P), where `diagonal` is what it has with what earlier queries hold of it.
MatrixXd lower_root(const MatrixXd& rest, const Eigen::VectorXd& diagonal, double cutoff) {
  MatrixXd L = MatrixXd::Zero(rest.rows(), rest.cols());
  for (Index k = 0; k < rest.cols(); ++k) {
    const Index below = rest.rows() - k;
    Eigen::VectorXd column = rest.col(k).tail(below);
    if (k > 0) column -= L.block(k, 0, below, k) * L.block(k, 0, 1, k).transpose();
    if (column[0] > cutoff * diagonal[k]) L.col(k).tail(below) = column / std::sqrt(column[0]);
  }
  return L;
}

}  // namespace

MatrixXd next_of_root(const MatrixXd& correlation, const BlockOfStep& root, double cutoff) {
  const Index P = correlation.cols(), t = correlation.rows() / P - 1;
  MatrixXd next(correlation.rows(), P);  // L_before next = correlation, by rows of L_before
  for (Index s = 0; s < t; ++s) {
    const Eigen::Map<const MatrixXd> block = root(s);
    MatrixXd rows = correlation.middleRows(s * P, P);
    rows.noalias() -= block.topRows(s * P).transpose() * next.topRows(s * P);
    solvable(block).triangularView<Eigen::Upper>().transpose().solveInPlace(rows);
    leave_out(block, rows);
    next.middleRows(s * P, P) = rows;
  }
  const MatrixXd now = correlation.bottomRows(P);
  MatrixXd rest = now;
  rest.noalias() -= next.topRows(t * P).transpose() * next.topRows(t * P);
  next.bottomRows(P) = lower_root(rest, now.diagonal(), cutoff).transpose();
  return next;
}

MatrixXd response_by_parts(const CausalMatrix& products, const BlockOfStep& root, Index t, Index known) {
  const Index P = products.shape().P;
  MatrixXd response = products.step(t);  // first the products, then, from the last step back, what they say
  response.bottomRows((t + 1 - known) * P).setZero();
  for (Index s = known; s-- > 0;) {
    const Eigen::Map<const MatrixXd> block = root(s);
    MatrixXd rows = response.middleRows(s * P, P);
    leave_out(block, rows);  // what was left out moves nothing
    solvable(block).triangularView<Eigen::Upper>().solveInPlace(rows);
    response.middleRows(s * P, P) = rows;
    response.topRows(s * P).noalias() -= block.topRows(s * P) * rows;
  }
  return response;
}

MatrixXd delta_of(const SiteProblem& problem, const MatrixXd& f, Index t) {
  const Loss loss = problem.limit->loss;
  if (problem.learns.empty()) return loss_delta(loss, f, problem.y);
  MatrixXd delta = MatrixXd::Zero(f.rows(), f.cols());
  const MatrixXd of_batch = loss_delta(loss, problem.of_batch(f, t), problem.of_batch(problem.y, t));
  const std::vector<int>& batch = problem.learns[static_cast<std::size_t>(t)];
  for (Index p = 0; p < of_batch.cols(); ++p) delta.col(batch[static_cast<std::size_t>(p)]) += of_batch.col(p);
  return delta;
}

double left_of(const UpdateRule& rule, Index t) { return std::pow(rule.decay, static_cast<double>(t)); }

MatrixXd coordinates(const MatrixXd& x, const UpdateRule& rule) {
  return rule.linear() && x.cols() < x.rows() ? MatrixXd(semidefinite_root(x.transpose() * x).transpose()) : x;
}

}  // namespace detail

VectorXd shares(const std::vector<int>& batch) {
  VectorXd share(static_cast<Index>(batch.size()));
  for (std::size_t p = 0; p < batch.size(); ++p)
    share[static_cast<Index>(p)] = 1.0 / static_cast<double>(std::count(batch.begin(), batch.end(), batch[p]));
  return share;
}

Index row_of(int l, std::string_view observable) {
  const auto* const found = std::find(site_observables.begin(), site_observables.end(), observable);
  return l * static_cast<Index>(site_observables.size()) + (found - site_observables.begin());
}

BatchMeans zero_means(const SiteProblem& problem) {
  const LimitSpec& limit = *problem.limit;
  BatchMeans means;
  means.f = MatrixXd::Zero(problem.y.rows(), problem.n());
  means.fields = MatrixXd::Zero(limit.depth * static_cast<Index>(site_observables.size()), problem.steps);
  if (!limit.input.linear()) means.paths.blocks.resize(static_cast<std::size_t>(limit.depth));
  return means;
}

void BatchMeans::add(const BatchMeans& batch) {
  f += batch.f;
  fields += batch.fields;
  kernels += batch.kernels;
}

void BatchMeans::scale(double factor) {
  f *= factor;
  fields *= factor;
  kernels *= factor;
}

KernelSet zero_kernels(const LimitSpec& limit, const CausalShape& shape, std::shared_ptr<ScratchFile> file) {
  const LimitConstants& c = limit.block.constants;
  KernelSet k(limit.depth, std::move(file));
  const auto has = [&](Kernel which, bool present) {
    for (int l = 0; present && l < limit.depth; ++l) k.of(l, which) = CausalMatrix(shape, k.file());
  };
  for (const Kernel which : {Kernel::phi, Kernel::D, Kernel::ghat, Kernel::Gv}) has(which, true);
  const bool sampled = limit.block.experts_sampled;
  has(Kernel::rho, sampled);
  has(Kernel::shared_ghat, c.expert_in_shared);
  has(Kernel::shared_Gv, c.expert_out_shared);
  has(Kernel::router_x, sampled && c.router.beta2 > 0);
  has(Kernel::router_z, sampled && c.router.chi2 > 0);
  has(Kernel::A_x, c.expert_in.beta2 > 0);
  has(Kernel::A_z, c.expert_in.chi2 > 0);
  has(Kernel::B_x, c.expert_out.beta2 > 0);
  has(Kernel::B_z, c.expert_out.chi2 > 0);
  return k;
}

SitePaths zero_paths(const LimitSpec& limit, Index n) {
  if (limit.input.linear()) return {};
  const SampleCounts& counts = limit.block.counts;
  const Index neurons = counts.neurons, experts = counts.experts, units = experts * counts.hidden;
  const auto zero = [n](Index sites) { return MatrixXd(MatrixXd::Zero(sites, n)); };
  return {std::vector<BlockPaths>(static_cast<std::size_t>(limit.depth),
                                  {zero(neurons), zero(neurons), zero(experts), zero(units), zero(units)})};
}

Aggregation Aggregation::of(const BlockSpec& block, bool shared) {
  if (shared) return {true, 1, 1, 1};
  const double kappa = block.counts.kappa();
  if (block.experts_sampled) return {false, 1 / kappa, 1 / kappa, 1};
  const double root_M = std::sqrt(static_cast<double>(block.counts.experts));
  return {false, 1 / kappa, root_M / static_cast<double>(block.counts.active), 1 / root_M};
}

SiteBackend site_backend(Precision precision, Device device) {
  if (device == Device::cuda) return sites_on_gpu(precision);
  return precision == Precision::float32 ? site_backend<Cpu<float>>() : site_backend<Cpu<double>>();
}

}  // namespace moe
