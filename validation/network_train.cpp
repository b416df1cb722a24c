#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "regimes/regime.hpp"
#include "support/observable.hpp"
#include "support/schedule.hpp"
#include "validation/network.hpp"
#include "validation/network_model.hpp"
#include "validation/network_observables.hpp"
#include "validation/network_optimizer.hpp"

namespace moe {

namespace {

using network::MatrixXd;

NetworkConstants constants_of(const RunSpec& spec, const NetworkShape& shape) {
  Faults faults;
  const Parameterization table = load_parameterization(spec, faults);
  faults.throw_if_any();
  return network_constants(spec, table, network_sizes(spec, shape.N, shape.D));
}

/// Eigen on the calling thread alone while in scope: the summation order is then the same in every run.
class SingleThreaded {
 public:
  SingleThreaded() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreaded() { omp_set_num_threads(before_); }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  int before_;
};

/// What t = 0 leaves behind for (T26) and for changes since. Forward pass and fields are kept where the samples stay the same.
struct InitialState {
  NetworkWeights weights;
  network::Forward forward;
  network::NormalisedFields fields;
};

bool fits(const NetworkWeights& w, const NetworkShape& s) {
  const auto is = [](const MatrixXd& m, Eigen::Index rows, Eigen::Index cols) {
    return m.rows() == rows && m.cols() == cols;
  };
  const Eigen::Index sites = Eigen::Index{s.M} * s.Ne;
  return is(w.w_in, s.N, s.D) && is(w.router, s.M, s.N) && is(w.expert_in, sites, s.N) &&
         is(w.expert_out, s.N, sites) && is(w.readout, s.C, s.N);
}

/// One training run: the loop over steps and what is recorded on the way.
class Trainer {
 public:
  Trainer(const RunSpec& spec, const Dataset& data, const NetworkShape& shape, NetworkWeights weights,
          const TrainOptions& options)
      : spec_(spec),
        data_(data),
        options_(options),
        constants_(constants_of(spec, shape)),
        model_{spec.model, spec.training.loss, shape, constants_.aggregation},
        weights_(std::move(weights)),
        optimizer_(spec.optimizer, constants_.lr, constants_.eps),
        names_(selected_observables(spec)) {
    run_.shape = shape;
    if (!names_.empty()) observe_at_ = observe_steps(spec);
    kernels_at_ = kernel_steps(spec);
    eval_at_ = eval_steps(spec.training);
    if (data.x_test.cols() > 0) test_at_ = test_steps(spec.training);
  }

  NetworkRun run() {
    const int T = spec_.training.steps;
    try {
      for (int t = 0; t <= T; ++t) {
        pass(t);
        record(t);
        if (t == T) break;
        optimizer_.step(weights_, backward_->weights);
        if (options_.on_step) options_.on_step(t + 1, last_loss_);
      }
    } catch (const NumericsError& failure) {
      run_.failure = failure;
    }
    run_.final_weights = std::move(weights_);
    return std::move(run_);
  }

 private:
  static bool contains(const std::vector<int>& steps, int t) {
    return std::binary_search(steps.begin(), steps.end(), t);
  }
  bool mini_batches() const { return spec_.training.batch > 0; }
  const MatrixXd& x() const { return mini_batches() ? batch_x_ : data_.x; }
  const MatrixXd& y() const { return mini_batches() ? batch_y_ : data_.y; }

  /// Forward and backward on the samples of step t: the whole set, or its own batch (at t = T the one that it would take).
  void pass(int t) {
    if (mini_batches()) {
      const std::vector<int> rows = batch_rows(spec_, static_cast<int>(data_.x.cols()), t);
      batch_x_ = data_.x(Eigen::all, rows);
      batch_y_ = data_.y(Eigen::all, rows);
    }
    forward_ = network::forward(model_, weights_, x(), t);
    last_loss_ = require_loss(network::loss_value(model_.loss, forward_->f, y()), t);
    backward_ = network::backward(model_, weights_, *forward_, y(), t, t < spec_.training.steps);
  }

  /// Everything that is recorded of the state before update t.
  void record(int t) {
    if (mini_batches() && t < spec_.training.steps) run_.batch_loss.push_back(last_loss_);
    if (contains(eval_at_, t)) {
      const MatrixXd f = mini_batches() ? outputs(data_.x, t) : forward_->f;
      run_.eval_steps.push_back(t);
      run_.loss.push_back(require_loss(network::loss_value(model_.loss, f, data_.y), t));
      run_.accuracy.push_back(network::accuracy(f, data_.y));
      if (options_.keep_outputs) run_.f.push_back(f);
    }
    if (contains(test_at_, t)) {
      const MatrixXd f = outputs(data_.x_test, t);
      run_.test_steps.push_back(t);
      run_.test_loss.push_back(network::loss_value(model_.loss, f, data_.y_test));
      run_.test_accuracy.push_back(network::accuracy(f, data_.y_test));
    }
    const bool observed = contains(observe_at_, t), kernels = contains(kernels_at_, t);
    if (observed || kernels) record_fields(t, observed, kernels);
  }

  /// Outputs (C, samples) in pieces, so that memory does not grow with the size of the set.
  MatrixXd outputs(const MatrixXd& inputs, int t) const {
    constexpr Eigen::Index piece = 256;
    MatrixXd f(model_.shape.C, inputs.cols());
    for (Eigen::Index first = 0; first < inputs.cols(); first += piece) {
      const Eigen::Index n = std::min(piece, inputs.cols() - first);
      f.middleCols(first, n) = network::forward(model_, weights_, inputs.middleCols(first, n), t).f;
    }
    return f;
  }

  void record_fields(int t, bool observed, bool kernels) {
    const network::NormalisedFields fields = network::normalised(model_.shape, *backward_);
    const network::Snapshot now{weights_, *forward_, fields};
    if (observed) {
      if (!initial_) initial_ = InitialState{weights_, *forward_, fields};  // t = 0 is always observed
      // Under mini-batches v(0) of (T26) is that of these samples at the initial weights; nothing else is compared with t = 0.
      if (mini_batches()) initial_->forward = network::forward(model_, initial_->weights, x(), t);
      const network::Snapshot initial{initial_->weights, initial_->forward, initial_->fields};
      const std::vector<double> values = network::observe(names_, model_, initial, now);
      run_.observe_steps.push_back(t);
      for (std::size_t k = 0; k < names_.size(); ++k) run_.observables[names_[k]].push_back(values[k]);
    }
    if (kernels) {
      run_.kernel_steps.push_back(t);
      for (const auto& info : kernel_table) run_.kernels[info.name].push_back(network::kernel(info.name, now));
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
  network::Model model_;
  NetworkWeights weights_;
  network::Optimizer optimizer_;
  std::vector<std::string> names_;
  std::vector<int> observe_at_, kernels_at_, eval_at_, test_at_;

  MatrixXd batch_x_, batch_y_;                 ///< samples of the present step, mini-batches only
  std::optional<network::Forward> forward_;    ///< on the samples of the present step
  std::optional<network::Backward> backward_;  ///< and their gradients
  std::optional<InitialState> initial_;        ///< t = 0
  double last_loss_ = std::numeric_limits<double>::quiet_NaN();
  NetworkRun run_;
};

}  // namespace

NetworkRun train_network(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                         const TrainOptions& options) {
  const SingleThreaded guard;
  Faults faults;
  check_networks(spec, data, {width}, faults);
  faults.throw_if_any();
  const NetworkShape shape = network_shape(spec, data, width);
  NetworkWeights start;
  if (options.initial) {
    if (!fits(*options.initial, shape))
      throw std::invalid_argument(
          fmt::format("TrainOptions::initial does not have the sizes of the network of width {}", width));
    start = *options.initial;
  } else if (!spec.network.init_from.empty()) {
    start = read_weights(spec.network.init_from, shape, spec.place("network.init_from"));
  } else {
    start = random_weights(spec, data, width, seed);
  }
  NetworkRun run = Trainer(spec, data, shape, std::move(start), options).run();
  run.seed = seed;
  return run;
}

std::vector<std::vector<NetworkRun>> train_networks(const RunSpec& spec, const Dataset& data, int threads,
                                                    const TrainOptions& options) {
  struct Job {
    std::size_t width, seed;
  };
  // The last width is usually the largest: it starts first, so that no worker is left alone with it at the end.
  std::vector<Job> jobs;
  const auto seeds = static_cast<std::size_t>(spec.network.seeds);
  for (std::size_t w = spec.network.widths.size(); w-- > 0;)
    for (std::size_t s = 0; s < seeds; ++s) jobs.push_back({w, s});

  std::vector<std::vector<NetworkRun>> runs(spec.network.widths.size(), std::vector<NetworkRun>(seeds));
  std::atomic<std::size_t> next = 0;
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&] {
    for (std::size_t k = next++; k < jobs.size(); k = next++) {
      try {
        NetworkRun run =
            train_network(spec, data, spec.network.widths[jobs[k].width], spec.sampling.seed + jobs[k].seed, options);
        if (!spec.output.weights) run.final_weights = {};
        runs[jobs[k].width][jobs[k].seed] = std::move(run);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next = jobs.size();
      }
    }
  };
  const std::size_t cores = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t workers = std::min(jobs.size(), threads > 0 ? static_cast<std::size_t>(threads) : cores);
  {
    std::vector<std::jthread> pool;
    for (std::size_t k = 0; k < workers; ++k) pool.emplace_back(work);
  }
  if (error) std::rethrow_exception(error);
  return runs;
}

}  // namespace moe
