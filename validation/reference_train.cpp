#include "validation/reference_train.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/numeric/odeint/integrate/integrate_adaptive.hpp>
#include <boost/numeric/odeint/integrate/integrate_n_steps.hpp>
#include <boost/numeric/odeint/stepper/generation/generation_runge_kutta_dopri5.hpp>
#include <boost/numeric/odeint/stepper/generation/make_controlled.hpp>
#include <boost/numeric/odeint/stepper/runge_kutta4.hpp>
#include <boost/numeric/odeint/stepper/runge_kutta_dopri5.hpp>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "regimes/regime.hpp"
#include "support/distribution.hpp"
#include "support/observable.hpp"
#include "support/schedule.hpp"
#include "validation/network_start.hpp"
#include "validation/reference_model.hpp"
#include "validation/reference_observables.hpp"
#include "validation/reference_optimizer.hpp"

namespace moe {

namespace {

using reference::MatrixXd;

/// What t = 0 leaves behind for (T26) and for changes since. Forward pass and fields are kept where the samples stay the same.
struct InitialState {
  NetworkWeights weights;
  reference::Forward forward;
  reference::NormalisedFields fields;
};

/// One training run: the loop over steps and what is recorded on the way.
class Trainer {
 public:
  Trainer(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights weights,
          const TrainOptions& options)
      : spec_(spec),
        data_(data),
        options_(options),
        constants_(constants_at(spec, shape)),
        model_{spec.model, spec.training.loss, shape, constants_.aggregation},
        weights_(std::move(weights)),
        optimizer_(spec.optimizer, constants_.lr, constants_.eps, shape.M, shape.L),
        wanted_(recorded_all(selected_observables(spec), shape.L)) {
    run_.shape = shape;
    if (spec.model.routing == Routing::topk && spec.model.balance_bias != 0) bias_ = MatrixXd::Zero(shape.M, shape.L);
    if (!wanted_.empty()) observe_at_ = observe_steps(spec);
    kernels_at_ = kernel_steps(spec);
    distributions_at_ = distribution_steps(spec);
    eval_at_ = eval_steps(spec.training);
    if (data.x_test.cols() > 0) test_at_ = test_steps(spec.training);
  }

  NetworkRun run() {
    const int T = spec_.training.steps;
    try {
      for (int t = 0; t <= T; ++t) {
        pass(t);
        record(t);
        if (t == T || run_.converged_at >= 0) break;
        if (spec_.training.dynamics == Dynamics::flow)
          flow(t);
        else
          update();
        if (options_.on_step) options_.on_step(t + 1, last_loss_);
      }
    } catch (const NumericsError& failure) {
      run_.failure = failure;
    }
    run_.final_weights = std::move(weights_);
    run_.selection_bias = std::move(bias_);
    return std::move(run_);
  }

 private:
  static bool contains(const std::vector<int>& steps, int t) {
    return std::binary_search(steps.begin(), steps.end(), t);
  }
  bool mini_batches() const { return spec_.training.batch > 0; }
  const MatrixXd& x() const { return mini_batches() ? batch_x_ : data_.x; }
  const MatrixXd& y() const { return mini_batches() ? batch_y_ : data_.y; }

  /// Weights by their gradients, biases by the loads: b_i += rate sign(1 - load_i) (T32).
  void update() {
    optimizer_.step(weights_, backward_->weights);
    for (Eigen::Index l = 0; l < bias_.cols(); ++l) {
      // 1 - load_i in units of 1/(P K): whole numbers.
      const MatrixXd& active = forward_->blocks[static_cast<std::size_t>(l)].gates.active;
      const Eigen::VectorXd missing = static_cast<double>(active.cols()) * model_.shape.K -
                                      static_cast<double>(active.rows()) * active.rowwise().sum().array();
      bias_.col(l) += spec_.model.balance_bias * missing.cwiseSign();
    }
  }

  /// Forward and backward on the samples of step t: the whole set, or its own batch (at t = T the one that it would take).
  void pass(int t) {
    if (mini_batches()) {
      const std::vector<int> rows = batch_rows(spec_, static_cast<int>(data_.x.cols()), t);
      batch_x_ = data_.x(Eigen::all, rows);
      batch_y_ = data_.y(Eigen::all, rows);
    }
    forward_ = reference::forward(model_, weights_, x(), t, bias_);
    last_loss_ = require_loss(network::loss_value(model_.loss, forward_->f, y()), t);
    backward_ = reference::backward(model_, weights_, *forward_, y(), t, t < spec_.training.steps);
  }

  /// Along the gradient flow to the next recorded time: rk4 by the steps that were asked for, else as exactly as doubles allow.
  void flow(int t) {
    namespace odeint = boost::numeric::odeint;
    using Flat = std::vector<double>;
    const auto parts = [](NetworkWeights& w) {
      return std::array<MatrixXd*, num_tensors>{&w.w_in, &w.router, &w.expert_in, &w.expert_out, &w.readout};
    };
    const auto system = [&](const Flat& at, Flat& rate, double) {
      const double* from = at.data();
      for (MatrixXd* w : parts(weights_)) std::copy_n(from, w->size(), w->data()), from += w->size();
      pass(t);
      double* to = rate.data();
      for (std::size_t k = 0; k < num_tensors; ++k) {
        const MatrixXd& g = *parts(backward_->weights)[k];
        to = std::transform(g.data(), g.data() + g.size(), to, [&](double x) { return -constants_.lr.values[k] * x; });
      }
    };
    Flat w;
    for (const MatrixXd* m : parts(weights_)) w.insert(w.end(), m->data(), m->data() + m->size());
    const double from = flow_time(spec_.training, t), to = flow_time(spec_.training, t + 1);
    if (spec_.training.stepper == Stepper::rk4) {
      const int steps = static_cast<int>(std::ceil((to - from) / spec_.training.step_size * (1 - 1e-12)));
      odeint::integrate_n_steps(odeint::runge_kutta4<Flat>(), system, w, from, (to - from) / steps, steps);
    } else {
      odeint::integrate_adaptive(odeint::make_controlled(1e-12, 1e-12, odeint::runge_kutta_dopri5<Flat>()), system, w,
                                 from, to, (to - from) / 8);
    }
    const double* at = w.data();
    for (MatrixXd* m : parts(weights_)) std::copy_n(at, m->size(), m->data()), at += m->size();
  }

  /// Everything that is recorded of the state before update t.
  void record(int t) {
    if (t == 0) first_loss_ = last_loss_;
    if (has_diverged(last_loss_, first_loss_))
      throw NumericsError(t, "loss",
                          fmt::format("has grown to {:.3g}; a smaller optimizer.lr usually helps", last_loss_));
    if (mini_batches() && t < spec_.training.steps) run_.batch_loss.push_back(last_loss_);
    if (contains(eval_at_, t)) {
      const MatrixXd f = mini_batches() ? outputs(data_.x, t) : forward_->f;
      run_.eval_steps.push_back(t);
      run_.loss.push_back(require_loss(network::loss_value(model_.loss, f, data_.y), t));
      run_.accuracy.push_back(network::accuracy(f, data_.y));
      if (options_.keep_outputs) run_.f.push_back(f);
      if (spec_.training.stop_at_loss > 0 && run_.loss.back() <= spec_.training.stop_at_loss) run_.converged_at = t;
    }
    if (contains(test_at_, t)) {
      const MatrixXd f = outputs(data_.x_test, t);
      run_.test_steps.push_back(t);
      run_.test_loss.push_back(network::loss_value(model_.loss, f, data_.y_test));
      run_.test_accuracy.push_back(network::accuracy(f, data_.y_test));
    }
    const bool observed = contains(observe_at_, t), kernels = contains(kernels_at_, t);
    if (observed || kernels) record_fields(t, observed, kernels);
    if (contains(distributions_at_, t)) {
      run_.distribution_steps.push_back(t);
      for (const auto& info : distribution_table)
        for (const Recorded& one : recorded(info.name, model_.shape.L)) {
          const reference::BlockForward& block = forward_->blocks[static_cast<std::size_t>(one.block)];
          run_.distributions[one.key].push_back(distribution(one.name == "h"   ? forward_->h
                                                             : one.name == "u" ? block.u
                                                                               : block.r));
        }
    }
  }

  /// Outputs (C, samples) in pieces, so that memory does not grow with the size of the set.
  MatrixXd outputs(const MatrixXd& inputs, int t) const {
    constexpr Eigen::Index piece = 256;
    MatrixXd f(model_.shape.C, inputs.cols());
    for (Eigen::Index first = 0; first < inputs.cols(); first += piece) {
      const Eigen::Index n = std::min(piece, inputs.cols() - first);
      f.middleCols(first, n) = reference::forward(model_, weights_, inputs.middleCols(first, n), t, bias_).f;
    }
    return f;
  }

  void record_fields(int t, bool observed, bool kernels) {
    const reference::NormalisedFields fields = reference::normalised(model_.shape, *backward_);
    const reference::Snapshot now{weights_, *forward_, fields};
    if (observed) {
      if (!initial_) initial_ = InitialState{weights_, *forward_, fields};  // t = 0 is always observed
      // Under mini-batches v(0) of (T26) is that of these samples at the initial weights; nothing else is compared with t = 0.
      if (mini_batches()) initial_->forward = reference::forward(model_, initial_->weights, x(), t);
      const reference::Snapshot initial{initial_->weights, initial_->forward, initial_->fields};
      const std::vector<double> values = reference::observe(wanted_, model_, initial, now);
      run_.observe_steps.push_back(t);
      for (std::size_t k = 0; k < wanted_.size(); ++k) run_.observables[wanted_[k].key].push_back(values[k]);
    }
    if (kernels) {
      run_.kernel_steps.push_back(t);
      for (const auto& info : kernel_table)
        for (const Recorded& one : recorded(info.name, model_.shape.L))
          run_.kernels[one.key].push_back(reference::kernel(one, now));
    }
  }

  static double require_loss(double loss, int t) {
    if (!std::isfinite(loss))
      throw NumericsError(t, "loss", fmt::format("the loss is {}; a smaller optimizer.lr usually helps", loss));
    return loss;
  }

  const RunSpec& spec_;
  const Dataset& data_;
  const TrainOptions& options_;
  NetworkConstants constants_;
  reference::Model model_;
  NetworkWeights weights_;
  MatrixXd bias_;  ///< (M, L) of the selection, where it moves
  reference::Optimizer optimizer_;
  std::vector<Recorded> wanted_;
  std::vector<int> observe_at_, kernels_at_, distributions_at_, eval_at_, test_at_;

  MatrixXd batch_x_, batch_y_;                   ///< samples of the present step, mini-batches only
  std::optional<reference::Forward> forward_;    ///< on the samples of the present step
  std::optional<reference::Backward> backward_;  ///< and their gradients
  std::optional<InitialState> initial_;          ///< t = 0
  double first_loss_ = 0;
  double last_loss_ = std::numeric_limits<double>::quiet_NaN();
  NetworkRun run_;
};

}  // namespace

NetworkRun train_reference_network(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                                   const TrainOptions& options) {
  Faults faults;
  check_networks(spec, &data, {width}, faults);
  faults.throw_if_any();
  const NetworkShape shape = network_shape(spec, data, width);
  NetworkRun run = Trainer(spec, data, shape, start_weights(spec, data, width, seed, options.initial), options).run();
  run.seed = seed;
  return run;
}

}  // namespace moe
