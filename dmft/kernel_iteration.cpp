#include "dmft/kernel_iteration.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>

#include "dmft/loss.hpp"
#include "support/enum_names.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

using Eigen::MatrixXd;

/// Change of a replica in units of the scatter over replicas below which an iteration is at the floor.
constexpr double floor_threshold = 0.1;
/// Scatter that rounding alone may leave, relative.
constexpr double rounding = 1e-6;

/// One replica's chain of iterates with one set of random numbers after the other.
struct Chain {
  KernelSet kernels;
  MatrixXd f;                  ///< (C, n) of the last iteration
  MatrixXd f_sum, fields_sum;  ///< over draws, at their floors
};

template <class B>
BatchMeans sample(const SiteProblem& problem, const KernelSet& kernels, const IterationOptions& options,
                  StreamNumbers& streams) {
  SiteKernels<B> given(problem, kernels);
  BatchMeans total;
  for (int b = 0; b < options.batches; ++b) {
    BatchMeans means = sample_batch<B>(problem, given, options.batch, streams);
    if (b == 0) {
      total = std::move(means);
      continue;
    }
    total.f += means.f;
    total.fields += means.fields;
    for (std::size_t k = 0; k < num_kernels; ++k) total.kernels.all()[k] += means.kernels.all()[k];
  }
  const double share = 1.0 / options.batches;
  total.f *= share;
  total.fields *= share;
  for (MatrixXd& kernel : total.kernels.all()) kernel *= share;
  return total;
}

std::vector<double> loss_of(const LimitSpec& limit, const SiteProblem& problem, const MatrixXd& f) {
  std::vector<double> loss;
  for (Index t = 0; t < problem.steps; ++t)
    loss.push_back(loss_value(limit.loss, f.middleCols(t * problem.P(), problem.P()), problem.y));
  return loss;
}

/// Throws where an iterate is no longer of use: f first, then the kernel that goes at the earliest step.
void require_bounded(const LimitSpec& limit, const SiteProblem& problem, const BatchMeans& means, int iteration) {
  const Index P = problem.P();
  const std::vector<double> loss = loss_of(limit, problem, means.f);
  for (Index t = 0; t < problem.steps; ++t) {
    for (std::size_t k = 0; k < num_kernels; ++k) {
      const MatrixXd& kernel = means.kernels.all()[k];
      if (kernel.size() == 0 || kernel.middleCols(t * P, P).topRows((t + 1) * P).allFinite()) continue;
      throw NumericsError(static_cast<int>(t), fmt::format("kernel {} of iteration {}", kernel_names[k], iteration),
                          "is not finite any more. Lower optimizer.lr, or use sampling.method = \"sweep\"");
    }
    if (!std::isfinite(loss[static_cast<std::size_t>(t)]) || has_diverged(loss[static_cast<std::size_t>(t)], loss[0]))
      throw NumericsError(static_cast<int>(t), fmt::format("loss of iteration {}", iteration),
                          fmt::format("has grown to {:.3g}: the iteration diverges. Lower optimizer.lr, or use "
                                      "sampling.method = \"sweep\"",
                                      loss[static_cast<std::size_t>(t)]));
  }
}

/// Root mean square over replicas of |after - before|, in units of the same of |after - mean over replicas|.
double in_scatter(const std::vector<const MatrixXd*>& before, const std::vector<const MatrixXd*>& after, double floor) {
  const auto R = static_cast<double>(after.size());
  MatrixXd mean = MatrixXd::Zero(after[0]->rows(), after[0]->cols());
  for (const MatrixXd* one : after) mean += *one / R;
  double change = 0, scatter = 0;
  for (std::size_t r = 0; r < after.size(); ++r) {
    change += (*after[r] - *before[r]).squaredNorm() / R;
    scatter += (*after[r] - mean).squaredNorm() / (R - 1);
  }
  return change == 0 ? 0 : std::sqrt(change) / (std::sqrt(scatter) + floor);
}

IterationChange change_of(const std::vector<Chain>& chains, const std::vector<BatchMeans>& next,
                          const std::vector<std::vector<double>>& loss_before,
                          const std::vector<std::vector<double>>& loss) {
  IterationChange change;
  for (std::size_t t = 0; t < loss[0].size(); ++t) {
    std::vector<MatrixXd> values;
    for (std::size_t r = 0; r < loss.size(); ++r) {
      values.emplace_back(MatrixXd::Constant(1, 1, loss_before[r][t]));
      values.emplace_back(MatrixXd::Constant(1, 1, loss[r][t]));
    }
    std::vector<const MatrixXd*> before, after;
    for (std::size_t r = 0; r < loss.size(); ++r) {
      before.push_back(&values[2 * r]);
      after.push_back(&values[2 * r + 1]);
    }
    change.loss = std::max(change.loss, in_scatter(before, after, rounding * loss[0][0]));
  }
  for (std::size_t k = 0; k < num_kernels; ++k) {
    if (chains[0].kernels.all()[k].size() == 0) continue;
    std::vector<const MatrixXd*> before, after;
    for (std::size_t r = 0; r < chains.size(); ++r) {
      before.push_back(&chains[r].kernels.all()[k]);
      after.push_back(&next[r].kernels.all()[k]);
    }
    const double size = in_scatter(before, after, rounding * after[0]->norm());
    if (size > change.kernels) {
      change.kernels = size;
      change.largest = kernel_names[k];
    }
  }
  return change;
}

std::vector<double> mean_of(const std::vector<std::vector<double>>& rows) {
  std::vector<double> mean(rows[0].size(), 0);
  for (const auto& row : rows)
    for (std::size_t t = 0; t < row.size(); ++t) mean[t] += row[t] / static_cast<double>(rows.size());
  return mean;
}

/// Loss of the mean output. Of each replica's own it would be larger by half the variance of f; errors by the jackknife.
Curve loss_of_mean(const LimitSpec& limit, const SiteProblem& problem, const std::vector<MatrixXd>& f) {
  const auto R = static_cast<double>(f.size());
  MatrixXd mean = MatrixXd::Zero(f[0].rows(), f[0].cols());
  for (const MatrixXd& one : f) mean += one / R;
  std::vector<std::vector<double>> without;
  without.reserve(f.size());
  for (const MatrixXd& one : f) without.push_back(loss_of(limit, problem, (R * mean - one) / (R - 1)));
  Curve curve;
  curve.mean = loss_of(limit, problem, mean);
  const std::vector<double> center = mean_of(without);
  for (std::size_t t = 0; t < center.size(); ++t) {
    double square = 0;
    for (const auto& row : without) square += std::pow(row[t] - center[t], 2);
    curve.sem.push_back(std::sqrt(square * (R - 1) / R));
  }
  return curve;
}

/// f(k) on all cores, in any order.
template <class F>
void for_all(int count, int threads, const F& f) {
  const int all = threads > 0 ? threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int workers = std::min(all, count);
  std::atomic<int> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  {
    std::vector<std::jthread> pool;
    pool.reserve(static_cast<std::size_t>(workers));
    for (int w = 0; w < workers; ++w)
      pool.emplace_back([&] {
        set_operation_threads(std::max(1, all / workers));
        for (int k = next++; k < count; k = next++) try {
            f(k);
          } catch (...) {
            const std::lock_guard lock(error_mutex);
            if (!error) error = std::current_exception();
          }
      });
  }
  if (error) std::rethrow_exception(error);
}

std::vector<KernelResidual> residuals_of(const std::vector<Chain>& chains, const std::vector<BatchMeans>& next) {
  std::vector<KernelResidual> residuals;
  const auto R = static_cast<double>(chains.size());
  for (std::size_t k = 0; k < num_kernels; ++k) {
    const MatrixXd& first = chains[0].kernels.all()[k];
    if (first.size() == 0) continue;
    MatrixXd mean = MatrixXd::Zero(first.rows(), first.cols()), change = mean;
    for (std::size_t r = 0; r < chains.size(); ++r) {
      mean += chains[r].kernels.all()[k] / R;
      change += (next[r].kernels.all()[k] - chains[r].kernels.all()[k]) / R;
    }
    double square = 0;
    for (std::size_t r = 0; r < chains.size(); ++r)
      square += (next[r].kernels.all()[k] - chains[r].kernels.all()[k] - change).squaredNorm();
    const double size = mean.norm();
    residuals.push_back(
        {kernel_names[k], size > 0 ? change.norm() / size : 0, size > 0 ? std::sqrt(square / (R - 1) / R) / size : 0});
  }
  return residuals;
}

}  // namespace

std::vector<std::string> iteration_faults(const RunSpec& spec) {
  std::vector<std::string> faults;
  const auto refuse = [&](bool unsolved, const std::string& key, const std::string& value, const std::string& why) {
    if (unsolved)
      faults.push_back(fmt::format("{} = {} ({}): kernel iteration {}. Use sampling.method = \"sweep\"", key, value,
                                   spec.place(key), why));
  };
  refuse(spec.optimizer.name != OptimizerKind::sgd, "optimizer.name", to_string(spec.optimizer.name), "has SGD only");
  refuse(spec.training.batch > 0, "training.batch", std::to_string(spec.training.batch), "has full batches only");
  refuse(spec.training.dynamics == Dynamics::flow, "training.dynamics", "\"flow\"", "has gradient descent only");
  refuse(spec.training.stop_at_loss > 0, "training.stop_at_loss", fmt::format("{:g}", spec.training.stop_at_loss),
         "solves all steps at once");
  refuse(spec.model.routing == Routing::topk, "model.routing", "\"topk\"",
         "has soft routing only: responses of a threshold are point masses");
  refuse(spec.model.activation == Activation::relu, "model.activation", "\"relu\"",
         "needs phi'', which is a point mass");
  refuse(spec.model.post_activation == Activation::relu, "model.post_activation", "\"relu\"",
         "needs psi'', which is a point mass");
  refuse(spec.model.depth > 1, "model.depth", std::to_string(spec.model.depth), "has one block only");
  refuse(spec.model.balance_loss != 0, "model.balance_loss", fmt::format("{:g}", spec.model.balance_loss),
         "has no balancing");
  refuse(spec.model.balance_bias != 0, "model.balance_bias", fmt::format("{:g}", spec.model.balance_bias),
         "has no balancing");
  refuse(spec.model.norm != Norm::none, "model.norm", "\"rms\"", "has no norm");
  return faults;
}

int most_iterations(const RunSpec& spec) { return 40 + 4 * spec.training.steps; }

IterationResult iterate_kernels(const RunSpec& spec, const Dataset& data, const IterationOptions& options) {
  Faults faults;
  for (const std::string& fault : iteration_faults(spec)) faults.add(fault);
  if (options.replicas < 3)
    faults.add(
        fmt::format("sampling.replicas = {} ({}): kernel iteration tells noise from change by the scatter of "
                    "replicas. Take at least 3",
                    options.replicas, spec.place("sampling.replicas")));
  std::vector<std::string> warnings;
  const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, warnings);
  faults.throw_if_any();
  const SiteProblem problem{&limit, data.x, data.y, spec.training.steps + Index{1}};
  IterationOptions sizes = options;
  const int most = options.most > 0 ? options.most : most_iterations(spec);
  if (!limit.block.experts_sampled) sizes.batch.experts = limit.block.counts.experts;
  if (limit.block.experts_sampled && !regime_named(spec.model.regime).hidden_sampled)
    sizes.batch.hidden = limit.block.counts.hidden;

  const auto R = static_cast<std::size_t>(options.replicas);
  const MatrixXd no_f = MatrixXd::Zero(data.y.rows(), problem.n());
  std::vector<Chain> chains(R, {zero_kernels(limit, problem.n()), no_f, no_f,
                                MatrixXd::Zero(static_cast<Index>(site_observables.size()), problem.steps)});
  // One draw's random numbers are the same in every iteration, so that kernels come to rest.
  const auto sample_all = [&](int draw) {
    std::vector<BatchMeans> next(R);
    for_all(options.replicas, options.threads, [&](int k) {
      const auto r = static_cast<std::size_t>(k);
      StreamNumbers streams(limit.seed, static_cast<std::uint32_t>(draw * options.replicas + k));
      next[r] = spec.sampling.precision == Precision::float32
                    ? sample<Cpu<float>>(problem, chains[r].kernels, sizes, streams)
                    : sample<Cpu<double>>(problem, chains[r].kernels, sizes, streams);
    });
    return next;
  };
  const auto losses = [&] {
    std::vector<std::vector<double>> rows;
    rows.reserve(R);
    for (const Chain& chain : chains) rows.push_back(loss_of(limit, problem, chain.f));
    return rows;
  };

  IterationResult result;
  IterationReport& report = result.report;
  result.kernels = zero_kernels(limit, problem.n());
  /// True at the floor, false after an interrupt.
  const auto settle = [&](int draw) {
    for (int of_draw = 1; of_draw <= most; ++of_draw) {
      if (options.interrupt != nullptr && *options.interrupt) return false;
      const int iteration = static_cast<int>(report.changes.size()) + 1;
      const auto loss_before = losses();
      std::vector<BatchMeans> next = sample_all(draw);
      for (std::size_t r = 0; r < R; ++r) {
        require_bounded(limit, problem, next[r], iteration);
        chains[r].f = next[r].f;
      }
      const auto loss = losses();
      report.loss_by_iteration.push_back(mean_of(loss));
      report.changes.push_back(change_of(chains, next, loss_before, loss));
      if (options.on_iteration) options.on_iteration(iteration, report.loss_by_iteration.back().back());
      const bool at_floor = of_draw > 1 && report.changes.back().at_floor(floor_threshold);
      for (std::size_t r = 0; r < R; ++r) {
        chains[r].kernels = std::move(next[r].kernels);
        if (!at_floor) continue;
        chains[r].f_sum += next[r].f;
        chains[r].fields_sum += next[r].fields;
        for (std::size_t k = 0; k < num_kernels; ++k)
          if (chains[r].kernels.all()[k].size() > 0)
            result.kernels.all()[k] += chains[r].kernels.all()[k] / static_cast<double>(R);
      }
      if (at_floor) {
        if (report.floor_at < 0) report.floor_at = iteration;
        return true;
      }
    }
    throw NumericsError(
        static_cast<int>(problem.steps) - 1, "kernel iteration",
        fmt::format(
            "still changes by {:.2f} of the Monte Carlo error of the loss and {:.2f} of that of "
            "kernel {} after {} iterations. Lower training.steps or optimizer.lr, or use sampling.method = \"sweep\"",
            report.changes.back().loss, report.changes.back().kernels, report.changes.back().largest, most));
  };
  while (report.draws < options.draws && settle(report.draws)) ++report.draws;
  if (report.draws == 0) throw Error("interrupted before the iteration reached its Monte Carlo floor");
  result.interrupted = report.draws < options.draws;

  report.residuals = residuals_of(chains, sample_all(report.draws));
  result.f = no_f;
  for (const Chain& chain : chains) {
    result.f_per_replica.emplace_back(chain.f_sum / report.draws);
    result.fields.emplace_back(chain.fields_sum / report.draws);
    result.f += result.f_per_replica.back() / static_cast<double>(R);
  }
  for (MatrixXd& kernel : result.kernels.all()) kernel /= report.draws;
  result.loss = loss_of_mean(limit, problem, result.f_per_replica);
  return result;
}

}  // namespace moe
