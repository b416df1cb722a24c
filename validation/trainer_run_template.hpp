/// The body of train(): trainer_run.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "support/observable.hpp"
#include "support/schedule.hpp"
#include "validation/network_loss.hpp"
#include "validation/network_start.hpp"
#include "validation/trainer_flow.hpp"
#include "validation/trainer_observer.hpp"
#include "validation/trainer_run.hpp"
#include "validation/trainer_samples.hpp"

namespace moe::trainer {

template <class B>
class Run {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  Run(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights start, std::uint64_t seed,
      const TrainOptions& options)
      : spec_(spec),
        data_(data),
        options_(options),
        constants_(constants_at(spec, shape)),
        step_({spec.model, spec.training.loss, shape, constants_.aggregation}),
        observer_(step_, selected_observables(spec), spec.training.batch == 0),
        samples_(spec, data),
        forward_(spec.model.norm, shape, samples_.x().cols),
        backward_(shape, samples_.x().cols, observer_.wants_x_A()) {
    state_.weights = tensors_of<B>(start);
    start = {};
    const Rule<Real> any = rule(Tensor::input);
    for (std::size_t t = 0; t < num_tensors; ++t) {
      const auto& w = state_.weights.values[t];
      if (any.has_velocity() || any.has_moments()) state_.first.values[t] = Matrix(w.rows(), w.cols());
      if (any.has_moments()) state_.second.values[t] = Matrix(w.rows(), w.cols());
      if (!any.factored()) continue;
      const bool experts =
          t == static_cast<std::size_t>(Tensor::expert_in) || t == static_cast<std::size_t>(Tensor::expert_out);
      state_.first.values[t] =
          Matrix(w.rows(), (in_block(static_cast<Tensor>(t)) ? shape.L : 1) * (experts ? shape.M : 1));
      state_.second.values[t] = Matrix(1, w.cols());
    }
    const ModelSpec& model = spec.model;
    if (model.routing == Routing::topk && model.balance_bias != 0) state_.bias = Matrix(shape.M, shape.L);
    state_.run.shape = shape;
    state_.run.seed = seed;
    if (spec.training.dynamics == Dynamics::flow)
      flow_.emplace(flow_spec(spec.training), shape, constants_.aggregation, constants_.lr);
    x_test_ = Matrix::uninitialized(data.x_test.rows(), data.x_test.cols());
    B::upload(data.x_test, x_test_);
    if (!observer_.empty()) observe_at_ = observe_steps(spec);
    kernels_at_ = kernel_steps(spec);
    distributions_at_ = distribution_steps(spec);
    eval_at_ = eval_steps(spec.training);
    if (data.x_test.cols() > 0) test_at_ = test_steps(spec.training);
  }

  NetworkRun operator()(const Team& team) {
    const NetworkRun& run = state_.run;
    const auto state = [this](Archive& a) {
      a("training", state_);
      if (flow_) a("flow", *flow_);
    };
    if (options_.resume && options_.resume(run.shape.N, run.seed, state) && options_.on_resume)
      options_.on_resume(run.shape.N, state_.step);
    try {
      for (const int T = spec_.training.steps; state_.step <= T; ++state_.step) {
        set_operation_threads(team.share());
        if (!flow_ || !flow_->inside()) {  // else this state was recorded before the run ended on its way to the next
          pass();  // which also says whether the update before was of finite numbers: nothing else is kept
          if (options_.keep && state_.step > 0) options_.keep(run.shape.N, run.seed, state);
          record();
          if (state_.step == T || run.converged_at >= 0) break;
          if (state_.step == 0) keep_initial_tensors();
          state_.loss = last_loss_;
        }
        if (flow_)
          flow([&] {
            if (options_.keep) options_.keep(run.shape.N, run.seed, state);
            set_operation_threads(team.share());
          });
        else
          update();
        if (options_.on_step) options_.on_step(state_.step + 1, state_.loss);
      }
    } catch (const NumericsError& failure) {
      const TrainingSpec& training = spec_.training;
      const std::string place = moving_
                                    ? fmt::format(" on the way from time {:g} to {:g}", time_of(training, failure.step),
                                                  time_of(training, failure.step + 1))
                                    : "";
      state_.run.failure.emplace(
          failure.step, failure.field,
          fmt::format("{}{}. {}", failure.detail, place, divergence_remedy(spec_, moving_ || failure.step > 0)));
    }
    state_.first = {};
    state_.second = {};
    state_.initial = {};
    if (options_.keep_weights) {
      state_.run.final_weights = weights_of<B>(state_.weights);
      state_.run.selection_bias = B::download(state_.bias);
    }
    return std::move(state_.run);
  }

 private:
  static bool contains(const std::vector<int>& steps, int t) {
    return std::binary_search(steps.begin(), steps.end(), t);
  }
  Rule<Real> rule(Tensor t) const {
    return Rule<Real>::at(spec_.optimizer, constants_.lr[t], constants_.eps[t], state_.step + 1);
  }

  void update() {
    Updates<B> learn;
    for (std::size_t t = 0; t < num_tensors; ++t)
      learn.values[t] = {rule(static_cast<Tensor>(t)), state_.slot(static_cast<Tensor>(t))};
    if (differentiated_) {
      step_.update(learn, samples_.x(), forward_, backward_);
    } else {
      samples_.loss_gradient(forward_.f, backward_.f);
      step_.backward_and_update(state_.weights, samples_.x(), forward_, state_.step, learn, backward_);
    }
    step_.move_bias(forward_, state_.bias);
  }

  /// Forward on the samples of the step: the whole set, or its own batch (at t = T the one that it would take). What was not finite in
  /// the backward pass of the step before is named here too.
  void pass() {
    samples_.choose(state_.step);
    step_.forward(state_.weights, state_.bias, samples_.x(), state_.step, forward_);
    f_ = step_.outputs(forward_);
    last_loss_ = require_loss(network::loss_value(spec_.training.loss, f_, samples_.y()));
    differentiated_ = false;
  }
  /// Backward, where derivatives are asked for before the update, which else makes them on its way.
  void differentiate() {
    if (differentiated_) return;
    samples_.loss_gradient(forward_.f, backward_.f);
    step_.backward(state_.weights, forward_, state_.step, backward_);
    step_.settle();
    differentiated_ = true;
  }

  /// The weights of the next recorded time; `pause` is called between two steps of the stepper.
  void flow(const std::function<void()>& pause) {
    const TrainingSpec& training = spec_.training;
    moving_ = true;
    const FlowInterval interval{state_.step, flow_time(training, state_.step), flow_time(training, state_.step + 1)};
    flow_->advance(
        state_.weights, state_.initial, interval,
        [this](const auto& slot, const PerTensor<Real>& rate, bool first) {
          if (!first) pass();
          differentiate();
          Updates<B> learn;
          for (std::size_t t = 0; t < num_tensors; ++t) {
            learn.values[t].rule.lr = rate.values[t];
            learn.values[t].slot = slot(static_cast<Tensor>(t));
          }
          step_.update(learn, samples_.x(), forward_, backward_);
        },
        pause);
    moving_ = false;
  }

  /// Everything that is recorded of the state before the update.
  void record() {
    NetworkRun& run = state_.run;
    const int t = state_.step;
    if (t == 0) state_.first_loss = last_loss_;
    if (has_diverged(last_loss_, state_.first_loss))
      throw NumericsError(t, "loss", fmt::format("has grown to {:.3g}: training diverges", last_loss_));
    if (samples_.mini_batches() && t < spec_.training.steps) run.batch_loss.push_back(last_loss_);
    if (contains(eval_at_, t)) {
      const Eigen::MatrixXd f = samples_.mini_batches() ? outputs(samples_.all_x()) : f_;
      run.eval_steps.push_back(t);
      run.loss.push_back(require_loss(network::loss_value(spec_.training.loss, f, data_.y)));
      run.accuracy.push_back(network::accuracy(f, data_.y));
      if (options_.keep_outputs) run.f.push_back(f);
      if (spec_.training.stop_at_loss > 0 && run.loss.back() <= spec_.training.stop_at_loss) run.converged_at = t;
    }
    if (contains(test_at_, t)) {
      const Eigen::MatrixXd f = outputs(x_test_);
      run.test_steps.push_back(t);
      run.test_loss.push_back(network::loss_value(spec_.training.loss, f, data_.y_test));
      run.test_accuracy.push_back(network::accuracy(f, data_.y_test));
    }
    if (contains(observe_at_, t) || contains(kernels_at_, t)) differentiate();
    if (contains(observe_at_, t)) {
      run.observe_steps.push_back(t);
      for (const auto& [name, value] : observer_.observe(state_, samples_.x(), forward_, backward_))
        run.observables[name].push_back(value);
    }
    if (contains(kernels_at_, t)) {
      run.kernel_steps.push_back(t);
      for (const Recorded& one : recorded_names(kernel_table))
        run.kernels[one.key].push_back(observer_.kernel(one, forward_, backward_));
    }
    if (contains(distributions_at_, t)) {
      run.distribution_steps.push_back(t);
      for (const Recorded& one : recorded_names(distribution_table))
        run.distributions[one.key].push_back(observer_.distribution(one, state_, forward_));
    }
  }

  template <class Table>
  std::vector<Recorded> recorded_names(const Table& table) const {
    std::vector<std::string> names;
    names.reserve(std::size(table));
    for (const ObservableInfo& info : table) names.emplace_back(info.name);
    return recorded_all(names, step_.model().shape.L);
  }

  /// Outputs (C, samples) in pieces, so that memory does not grow with the size of the set.
  Eigen::MatrixXd outputs(Matrix& inputs) {
    if (!evaluation_)
      evaluation_.emplace(
          spec_.model.norm, step_.model().shape,
          std::min(evaluation_piece, std::max(x_test_.cols(), samples_.mini_batches() ? data_.x.cols() : Index{0})));
    Eigen::MatrixXd f(step_.model().shape.C, inputs.cols());
    for (Index first = 0; first < inputs.cols(); first += evaluation_piece) {
      const Index n = std::min(evaluation_piece, inputs.cols() - first);
      evaluation_->set_samples(n);
      step_.forward(state_.weights, state_.bias, inputs.columns(first, n), state_.step, *evaluation_);
      f.middleCols(first, n) = step_.outputs(*evaluation_);
    }
    return f;
  }

  void keep_initial_tensors() {
    if (flow_)
      for (std::size_t t = 0; t < num_tensors; ++t) state_.initial.values[t] = copy_of<B>(state_.weights.values[t]);
    else if (contains(observe_at_, 0))
      for (Tensor t : observer_.initial_tensors()) state_.initial[t] = copy_of<B>(state_.weights[t]);
  }

  double require_loss(double loss) const {
    if (!std::isfinite(loss)) throw NumericsError(state_.step, "loss", fmt::format("is {}", loss));
    return loss;
  }

  static constexpr Index evaluation_piece = Products<B>::evaluation_piece;

  const RunSpec& spec_;
  const Dataset& data_;
  const TrainOptions& options_;
  NetworkConstants constants_;
  Step<B> step_;
  Observer<B> observer_;
  std::vector<int> observe_at_, kernels_at_, distributions_at_, eval_at_, test_at_;

  TrainingState<B> state_;
  std::optional<Flow<B>> flow_;
  bool moving_ = false;          ///< between two recorded states of a flow
  bool differentiated_ = false;  ///< backward_ belongs to forward_
  Samples<B> samples_;
  Matrix x_test_;
  Forward<B> forward_;  ///< on the samples of the present step
  Backward<B> backward_;
  Eigen::MatrixXd f_;
  std::optional<Forward<B>> evaluation_;
  double last_loss_ = std::numeric_limits<double>::quiet_NaN();
};

}  // namespace moe::trainer
