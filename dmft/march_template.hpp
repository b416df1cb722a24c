/// Definitions of march.hpp; included by the files that instantiate them and by nobody else.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "dmft/flow.hpp"
#include "dmft/march.hpp"
#include "dmft/observer.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace detail {

inline bool contains(const std::vector<int>& sorted, int t) {
  return std::binary_search(sorted.begin(), sorted.end(), t);
}

/// Throws NumericsError naming the first field, in the order of the computation, that is not finite; `detail` says more.
template <class B>
void check_finite(Replica<B>& r, int step, const std::string& detail) {
  const double total = r.outputs().sum();
  const auto bad = [](typename B::View a) { return !std::isfinite(sum<B>(a)); };
  if (std::isfinite(total) && !bad(r.xi())) return;
  const auto check = [&](const std::string& name, typename B::View view) {
    if (bad(view)) throw NumericsError(step, name, detail);
  };
  const auto of_block = [&](const char* name, std::size_t l) {
    return r.layers().size() == 1 ? name : fmt::format("{} of block {}", name, l + 1);
  };
  check("h", r.h());
  for (std::size_t l = 0; l < r.layers().size(); ++l) {
    BlockFields<B>& f = r.layers()[l]->block().fields();
    check(of_block("r", l), f.r);
    check(of_block("u", l), f.u);
    check(of_block("y", l), r.layers()[l]->y());
  }
  for (std::size_t l = r.layers().size(); l-- > 0;) {
    BlockFields<B>& f = r.layers()[l]->block().fields();
    check(of_block("D", l), r.layers()[l]->D());
    check(of_block("zeta", l), f.zeta);
    check(of_block("rho", l), f.rho);
  }
  check("xi", r.xi());
  throw NumericsError(step, "f", detail);
}

inline Eigen::MatrixXd columns(const Eigen::MatrixXd& from, const std::vector<int>& rows) {
  Eigen::MatrixXd to(from.rows(), static_cast<Eigen::Index>(rows.size()));
  for (std::size_t j = 0; j < rows.size(); ++j) to.col(static_cast<Eigen::Index>(j)) = from.col(rows[j]);
  return to;
}

/// What is saved of a replica that is done.
inline Checkpoints::State finished(Record& record, int T) {
  return [&record, T](Archive& a) {
    int next_step = T + 1;
    a("next_step", next_step);
    a("record", record);
  };
}

template <class B>
void record_diagnostics(Replica<B>& r, Record& record, int step, double elapsed) {
  double rank_phi = 0, rank_D = 0, rank_experts_in = 0, rank_experts_out = 0, dense = 0, operators = 0;
  const auto take = [](double& largest, Index rank) { largest = std::max(largest, static_cast<double>(rank)); };
  const auto of = [&](ExpertMatrix<B>& m, double& rank) {
    m.for_each_basis([&](QueryBasis<B>& b) { take(rank, b.rank()); });
    m.for_each_operator([&](Operator<B>& o) {
      record.defect = std::max(record.defect, o.sample_ratio_defect());
      dense += o.dense() ? 1 : 0;
      operators += 1;
    });
  };
  for (auto& layer : r.layers()) {
    Block<B>& block = layer->block();
    record.defect = std::max(record.defect, block.router().sample_ratio_defect());
    of(block.expert_in(), rank_experts_in);
    of(block.expert_out(), rank_experts_out);
    take(rank_phi, block.phi_rank());
    take(rank_D, block.D_rank());
  }
  if (dense > 0 && record.dense_since < 0) record.dense_since = step;
  record.diagnostics["rank_phi"].push_back(rank_phi);
  record.diagnostics["rank_D"].push_back(rank_D);
  record.diagnostics["rank_ghat"].push_back(rank_experts_in);
  record.diagnostics["rank_Gv"].push_back(rank_experts_out);
  record.diagnostics["dense_fraction"].push_back(dense / operators);
  record.diagnostics["step_seconds"].push_back(elapsed);
}

/// Everything that is recorded of state t, whose fields stand in the replica.
template <class B>
void record_state(const Plan& plan, Replica<B>& replica, Observer<B>& observer, int t, const std::string& remedy,
                  Record& record) {
  const RunSpec& spec = *plan.spec;
  const Dataset& data = *plan.data;
  const bool full_batch = batch_rows(spec, static_cast<int>(data.x.cols()), t).empty();
  const auto loss_of = [&](const Eigen::MatrixXd& f, const Eigen::MatrixXd& y, const char* set) {
    const double loss = loss_value(spec.training.loss, f, y);
    if (!std::isfinite(loss))
      throw NumericsError(t, fmt::format("loss of the {} set", set), "is not finite. " + remedy);
    return loss;
  };
  if (contains(plan.eval_steps, t)) {
    const Eigen::MatrixXd f = full_batch ? replica.outputs() : replica.evaluate(data.x);
    record.loss.push_back(loss_of(f, data.y, "whole"));
    record.accuracy.push_back(accuracy(f, data.y));
    if (plan.keep_f) record.f.push_back(f);
    if (spec.training.stop_at_loss > 0 && record.loss.back() <= spec.training.stop_at_loss) record.converged_at = t;
  }
  if (contains(plan.test_steps, t)) {
    const Eigen::MatrixXd f = replica.evaluate(data.x_test);
    record.test_loss.push_back(loss_of(f, data.y_test, "test"));
    record.test_accuracy.push_back(accuracy(f, data.y_test));
  }
  if (contains(plan.observe_steps, t)) record.observables.push_back(observer.measure(replica));
  if (contains(plan.kernel_steps, t))
    for (const auto& info : kernel_table)
      for (const Recorded& one : recorded(info.name, plan.limit.depth))
        record.kernels[one.key].push_back(Observer<B>::kernel(replica, one));
  if (contains(plan.distribution_steps, t))
    for (const auto& info : distribution_table)
      for (const Recorded& one : recorded(info.name, plan.limit.depth))
        record.distributions[one.key].push_back(Observer<B>::distribution(replica, one));
}

/// Root mean square over pairs of sites of sum_mu z_mu x_mu^T: the entries that an entrywise rule sees.
template <class B>
double gradient_size(typename B::View z, typename B::View x) {
  return std::sqrt(B::gram(z).cwiseProduct(B::gram(x)).sum());
}

}  // namespace detail

template <class B>
void march(const Plan& plan, int index, const SolveOptions& options, const std::atomic<bool>& stop, Record& record) {
  const RunSpec& spec = *plan.spec;
  const Dataset& data = *plan.data;
  const int T = spec.training.steps;
  const int P_all = static_cast<int>(data.x.cols());
  const bool full_batch = batch_rows(spec, P_all, 0).empty();
  const Index P = full_batch ? P_all : static_cast<Index>(batch_rows(spec, P_all, 0).size());
  // A checkpoint that holds nothing but the record is of a replica that was done.
  int t = 0;
  double first_loss = 0, loss = 0;
  std::optional<Archive> saved;
  if (options.checkpoints) saved = options.checkpoints->begin(index);
  if (saved) {
    (*saved)("next_step", t);
    (*saved)("record", record);
    if (options.on_resume) options.on_resume(index, t);
    if (t > T) return options.checkpoints->finish(index, detail::finished(record, T));
  }
  Replica<B> replica(plan.limit, data.x.rows(), data.y.rows(), P, static_cast<std::uint32_t>(index));
  Observer<B> observer(recorded_all(plan.observables, plan.limit.depth), full_batch);
  Flow<B> flow(plan.limit.flow);
  if (full_batch) replica.set_batch(data.x, data.y);
  const auto state = [&](Archive& a) {
    a("next_step", t);
    a("record", record);
    a("first_loss", first_loss);
    a("loss", loss);
    a("replica", replica);
    a("observer", observer);
    if (plan.limit.flows) a("flow", flow);
  };
  if (saved) state(*saved);
  const auto interrupted = [&] { return options.interrupt && *options.interrupt; };
  const auto pause = [&] {  // between two steps of a flow
    if (options.checkpoints) options.checkpoints->between_steps(index, state);
    return stop || interrupted();
  };
  for (; t <= T && record.converged_at < 0 && !stop && !interrupted(); ++t) {
    const auto start = std::chrono::steady_clock::now();
    if (!flow.inside()) {  // else state t was recorded before the run ended on its way to t + 1
      if (options.checkpoints && t > 0) options.checkpoints->between_steps(index, state);
      if (!full_batch) {
        const auto rows = batch_rows(spec, P_all, t);
        replica.set_batch(detail::columns(data.x, rows), detail::columns(data.y, rows));
      }
      replica.forward();
      replica.backward();
      const std::string remedy = divergence_remedy(spec, t > 0);
      detail::check_finite(replica, t, "is not finite. " + remedy);
      loss = replica.loss();
      if (t == 0) first_loss = loss;
      if (has_diverged(loss, first_loss))
        throw NumericsError(t, "loss", fmt::format("has grown to {:.3g}: training diverges. {}", loss, remedy));
      if (!full_batch && t < T) record.batch_loss.push_back(loss);
      detail::record_state(plan, replica, observer, t, remedy, record);
    }
    if (t < T && record.converged_at < 0) {
      if (plan.limit.flows) {
        const FlowInterval interval{t, flow_time(spec.training, t), flow_time(spec.training, t + 1)};
        const auto check = [&] {
          detail::check_finite(replica, t,
                               fmt::format("is not finite on the way from time {:g} to {:g}. {}", interval.from,
                                           interval.to, divergence_remedy(spec, true)));
        };
        if (!flow.advance(replica, interval, check, pause)) break;
        record.diagnostics["flow_evaluations"].push_back(flow.work().evaluations);
        record.diagnostics["flow_rejected"].push_back(flow.work().rejected);
      } else {
        replica.update();
      }
      detail::record_diagnostics(replica, record, t,
                                 std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    if (options.on_step) options.on_step(index, t, loss);
  }
  if (!options.checkpoints) return;
  if (t > T || record.converged_at >= 0)
    options.checkpoints->finish(index, detail::finished(record, T));
  else if (interrupted() && (t > 0 || flow.inside()))
    options.checkpoints->between_steps(index, state, true);
  else if (t == 0)
    options.checkpoints->leave(index);
}

template <class B>
std::vector<std::string> noisy_gradients(const RunSpec& spec, const Dataset& data, LimitSpec limit) {
  std::vector<std::string> noisy;
  if (limit.vanishing.empty() || is_linear(spec.optimizer.name)) return noisy;
  limit.block.matching = false;
  auto rows = batch_rows(spec, static_cast<int>(data.x.cols()), 0);
  const Eigen::MatrixXd x = rows.empty() ? data.x : detail::columns(data.x, rows),
                        y = rows.empty() ? data.y : detail::columns(data.y, rows);
  Replica<B> pilot(limit, x.rows(), y.rows(), x.cols(), 0);
  pilot.set_batch(x, y);
  pilot.forward();
  pilot.backward();
  typename B::Matrix inputs(x.rows(), x.cols()), delta(y.rows(), y.cols());
  B::upload(x, inputs);
  B::upload(loss_delta(spec.training.loss, pilot.outputs(), y), delta);
  // With a residual stream all blocks are alike; without, what vanishes on the way back is smallest at the first.
  const auto in_blocks = [&](const auto& size_in) {
    double size = 0;
    for (auto& layer : pilot.layers()) {
      size = std::max(size, size_in(*layer, layer->block().fields()));
      if (!limit.layer.residual) break;
    }
    return size;
  };
  for (const Tensor tensor : limit.vanishing) {
    double size = 0, eps = 0;
    switch (tensor) {
      case Tensor::input: size = detail::gradient_size<B>(pilot.xi(), inputs), eps = limit.input.eps; break;
      case Tensor::router:
        size = in_blocks([](auto& layer, auto& f) { return detail::gradient_size<B>(f.rho, layer.z()); });
        eps = limit.block.router.eps;
        break;
      case Tensor::expert_in:
        size = in_blocks([](auto& layer, auto& f) { return detail::gradient_size<B>(f.ghat, layer.z()); });
        eps = limit.block.expert_in.eps;
        break;
      case Tensor::expert_out:
        size = in_blocks([](auto& layer, auto& f) { return detail::gradient_size<B>(f.Gv, layer.D()); });
        eps = limit.block.expert_out.eps;
        break;
      case Tensor::readout: size = detail::gradient_size<B>(pilot.s(), delta), eps = limit.readout.eps; break;
    }
    if (eps < size) noisy.push_back(fmt::format("{} ({:.1e})", tensor_names[static_cast<std::size_t>(tensor)], size));
  }
  return noisy;
}

}  // namespace moe
