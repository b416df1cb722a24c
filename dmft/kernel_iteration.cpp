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

/// Change in units of its error below which an iteration is at the floor. The mean of R replicas over its error has mean square (R -
/// 1)/(R - 3) by itself, 1.4 at eight, and steps and entries are correlated: 2 is passed by nine of ten iterations at the floor.
constexpr double floor_threshold = 2;

/// One replica's chain of iterates.
struct Chain {
  KernelSet kernels;
  MatrixXd f;  ///< (C, n) of the last iteration
  StreamNumbers streams;
  KernelSet kernel_sum;
  MatrixXd f_sum;
  int summed = 0;
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
    for (std::size_t k = 0; k < num_kernels; ++k) total.kernels.all()[k] += means.kernels.all()[k];
  }
  const double share = 1.0 / options.batches;
  total.f *= share;
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

/// |mean| over its standard error, both as Frobenius norms over entries of samples, one matrix per replica.
double in_errors(const std::vector<MatrixXd>& samples) {
  const auto R = static_cast<double>(samples.size());
  MatrixXd mean = MatrixXd::Zero(samples[0].rows(), samples[0].cols());
  for (const MatrixXd& s : samples) mean += s / R;
  double square = 0;
  for (const MatrixXd& s : samples) square += (s - mean).squaredNorm();
  const double error = std::sqrt(square / (R - 1) / R), size = mean.norm();
  return size == 0 ? 0 : size / error;
}

IterationChange change_of(const std::vector<KernelSet>& before, const std::vector<Chain>& chains,
                          const std::vector<std::vector<double>>& loss_before,
                          const std::vector<std::vector<double>>& loss) {
  IterationChange change;
  const std::size_t steps = loss[0].size();
  double squares = 0;
  for (std::size_t t = 0; t < steps; ++t) {
    std::vector<MatrixXd> samples;
    for (std::size_t r = 0; r < loss.size(); ++r)
      samples.emplace_back(MatrixXd::Constant(1, 1, loss[r][t] - loss_before[r][t]));
    squares += std::pow(in_errors(samples), 2) / static_cast<double>(steps);
  }
  change.loss = std::sqrt(squares);
  for (std::size_t k = 0; k < num_kernels; ++k) {
    if (chains[0].kernels.all()[k].size() == 0) continue;
    std::vector<MatrixXd> samples;
    for (std::size_t r = 0; r < chains.size(); ++r)
      samples.emplace_back(chains[r].kernels.all()[k] - before[r].all()[k]);
    const double size = in_errors(samples);
    if (size > change.kernels) {
      change.kernels = size;
      change.largest = kernel_names[k];
    }
  }
  return change;
}

Curve mean_and_error(const std::vector<std::vector<double>>& rows) {
  Curve curve;
  const auto R = static_cast<double>(rows.size());
  for (std::size_t t = 0; t < rows[0].size(); ++t) {
    double mean = 0, square = 0;
    for (const auto& row : rows) mean += row[t] / R;
    for (const auto& row : rows) square += (row[t] - mean) * (row[t] - mean);
    curve.mean.push_back(mean);
    curve.sem.push_back(std::sqrt(square / (R - 1) / R));
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
    const MatrixXd& first = chains[0].kernel_sum.all()[k];
    if (first.size() == 0) continue;
    MatrixXd mean = MatrixXd::Zero(first.rows(), first.cols()), change = mean;
    for (std::size_t r = 0; r < chains.size(); ++r) {
      const MatrixXd average = chains[r].kernel_sum.all()[k] / chains[r].summed;
      mean += average / R;
      change += (next[r].kernels.all()[k] - average) / R;
    }
    double square = 0;
    for (std::size_t r = 0; r < chains.size(); ++r)
      square += (next[r].kernels.all()[k] - chains[r].kernel_sum.all()[k] / chains[r].summed - change).squaredNorm();
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
  refuse(spec.model.norm != Norm::none, "model.norm", "\"rms\"", "has no norm");
  return faults;
}

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
  if (!limit.block.experts_sampled) sizes.batch.experts = limit.block.counts.experts;
  if (limit.block.experts_sampled && !regime_named(spec.model.regime).hidden_sampled)
    sizes.batch.hidden = limit.block.counts.hidden;

  const auto R = static_cast<std::size_t>(options.replicas);
  std::vector<Chain> chains;
  for (std::size_t r = 0; r < R; ++r)
    chains.push_back({zero_kernels(limit, problem.n()),
                      MatrixXd::Zero(data.y.rows(), problem.n()),
                      StreamNumbers(limit.seed, static_cast<std::uint32_t>(r)),
                      {},
                      {},
                      0});
  const auto sample_all = [&](auto&& kernels_of) {
    std::vector<BatchMeans> next(R);
    for_all(options.replicas, options.threads, [&](int k) {
      const auto r = static_cast<std::size_t>(k);
      const KernelSet given = kernels_of(chains[r]);
      next[r] = spec.sampling.precision == Precision::float32
                    ? sample<Cpu<float>>(problem, given, sizes, chains[r].streams)
                    : sample<Cpu<double>>(problem, given, sizes, chains[r].streams);
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
  for (int iteration = 1; result.floor_at < 0 || chains[0].summed < options.averaged; ++iteration) {
    if (result.floor_at < 0 && iteration > options.most) return result;
    const auto loss_before = losses();
    std::vector<BatchMeans> next = sample_all([](const Chain& chain) { return chain.kernels; });
    std::vector<KernelSet> before;
    for (std::size_t r = 0; r < R; ++r) {
      require_bounded(limit, problem, next[r], iteration);
      before.push_back(std::exchange(chains[r].kernels, std::move(next[r].kernels)));
      chains[r].f = std::move(next[r].f);
    }
    const auto loss = losses();
    result.loss_by_iteration.push_back(mean_and_error(loss).mean);
    result.changes.push_back(change_of(before, chains, loss_before, loss));
    if (options.on_iteration) options.on_iteration(iteration, result.loss_by_iteration.back());
    if (result.floor_at < 0) {
      if (iteration > 1 && result.changes.back().at_floor(floor_threshold)) result.floor_at = iteration;
      continue;
    }
    for (Chain& chain : chains) {
      ++chain.summed;
      if (chain.summed == 1) {
        chain.f_sum = chain.f;
        chain.kernel_sum = chain.kernels;
        continue;
      }
      chain.f_sum += chain.f;
      for (std::size_t k = 0; k < num_kernels; ++k) chain.kernel_sum.all()[k] += chain.kernels.all()[k];
    }
  }
  const auto average = [](const Chain& chain) {
    KernelSet mean = chain.kernel_sum;
    for (MatrixXd& kernel : mean.all()) kernel /= chain.summed;
    return mean;
  };
  result.residuals = residuals_of(chains, sample_all(average));
  MatrixXd f = MatrixXd::Zero(data.y.rows(), problem.n());
  for (std::size_t r = 0; r < R; ++r) {
    const MatrixXd own = chains[r].f_sum / chains[r].summed;
    result.loss_per_replica.push_back(loss_of(limit, problem, own));
    f += own / static_cast<double>(R);
    const KernelSet mean = average(chains[r]);
    if (r == 0) result.kernels = zero_kernels(limit, problem.n());
    for (std::size_t k = 0; k < num_kernels; ++k)
      if (mean.all()[k].size() > 0) result.kernels.all()[k] += mean.all()[k] / static_cast<double>(R);
  }
  for (Index t = 0; t < problem.steps; ++t) result.f.emplace_back(f.middleCols(t * problem.P(), problem.P()));
  result.loss = mean_and_error(result.loss_per_replica);
  return result;
}

}  // namespace moe
