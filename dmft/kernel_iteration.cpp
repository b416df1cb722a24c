#include "dmft/kernel_iteration.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "dmft/kernel_mixing.hpp"
#include "dmft/loss.hpp"
#include "support/enum_names.hpp"
#include "support/for_all.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

using Eigen::MatrixXd;

/// Change of a replica in units of the scatter over replicas below which an iteration is at the floor.
constexpr double floor_threshold = 0.1;
/// Of Adam, AdamW and Adafactor.
constexpr double smallest_eps = 0.01;
/// Scatter that rounding alone may leave, relative.
constexpr double rounding = 1e-6;

/// What batches that a pass holds estimate, summed over them.
struct Estimate {
  KernelSet kernels;
  MatrixXd f;
  void transfer(Archive& a) {
    a("kernels", kernels);
    a("f", f);
  }
};

/// One replica's chain of iterates with one set of random numbers after the other.
struct Chain {
  KernelSet kernels;
  KernelSet others;            ///< what all batches estimate from them, less what those that a pass holds do
  MatrixXd others_f;           ///< the same of f; empty: nothing is known of them yet
  SitePaths paths;             ///< of its first batch
  MatrixXd f, f_before;        ///< (C, n) of the last iteration and of the one before
  MatrixXd fields;             ///< of the last iteration
  std::vector<double> change;  ///< [kernel] |F(k) - k|^2 of the last iteration
  MatrixXd f_sum, fields_sum;  ///< over draws, at their floors
  KernelMixing mixing;
  void transfer(Archive& a) {
    a("kernels", kernels);
    a("others", others);
    a("others_f", others_f);
    a("paths", paths);
    a("f", f);
    a("f_before", f_before);
    a("fields", fields);
    a("change", change);
    a("f_sum", f_sum);
    a("fields_sum", fields_sum);
    a("mixing", mixing);
  }
};

/// What fresh random numbers change of kernels at rest, over the replicas that have been compared: d = F(k) - k.
struct Certificate {
  KernelSet sum;                ///< of d
  std::vector<double> squares;  ///< [kernel] sum of |d|^2
  void transfer(Archive& a) {
    a("sum", sum);
    a("squares", squares);
  }
};

/// All that an iteration leaves to the next, and what has been sampled of the one under way. A replica's kernels give way to their next
/// estimates as soon as its batches are all there: there are never two sets of every replica's.
struct IterationState {
  std::vector<Chain> chains;
  std::vector<BatchMeans> next;  ///< [replica], sums over batches; empty again once they are all there
  std::vector<Estimate> held;    ///< [replica], the same of those that a pass holds, where these are not all
  std::vector<int> sampled;      ///< [replica], how many
  int passed = 0;                ///< batches in a pass, whatever memory there is when the run goes on; 0: from zero
  int of_draw = 0;               ///< iterations done of the draw under way
  int horizon = 0;               ///< steps that kernels have
  int of_horizon = 0;            ///< iterations done with it
  KernelSet kernels_sum;         ///< over draws, of replicas at rest: of the last draw once they are compared
  Certificate certificate;
  IterationReport report;
  void transfer(Archive& a) {
    for (std::size_t r = 0; r < chains.size(); ++r) {
      a(fmt::format("chain{}", r), chains[r]);
      a(fmt::format("next{}", r), next[r]);
      a(fmt::format("held{}", r), held[r]);
    }
    a("sampled", sampled);
    a("passed", passed);
    a("of_draw", of_draw);
    a("horizon", horizon);
    a("of_horizon", of_horizon);
    a("kernels_sum", kernels_sum);
    a("certificate", certificate);
    a("report", report);
  }
};

std::vector<double> loss_of(const LimitSpec& limit, const SiteProblem& problem, const MatrixXd& f) {
  std::vector<double> loss;
  for (Index t = 0; t < problem.steps; ++t)
    loss.push_back(loss_value(limit.loss, f.middleCols(t * problem.P(), problem.P()), problem.y));
  return loss;
}

/// [step] of the step's own mini-batch, but for the last state, which is not trained on; empty under full batches.
std::vector<double> batch_loss_of(const LimitSpec& limit, const SiteProblem& problem, const MatrixXd& f) {
  std::vector<double> loss;
  for (Index t = 0; !problem.learns.empty() && t + 1 < problem.steps; ++t)
    loss.push_back(loss_value(limit.loss, problem.of_batch(f.middleCols(t * problem.P(), problem.P()), t),
                              problem.of_batch(problem.y, t)));
  return loss;
}

/// Why an iterate is no longer of use: f first, then the kernel that goes at the earliest step.
std::optional<NumericsError> divergence(const LimitSpec& limit, const SiteProblem& problem, const BatchMeans& means,
                                        int iteration) {
  const std::vector<double> loss = loss_of(limit, problem, means.f);
  for (Index t = 0; t < problem.steps; ++t) {
    for (std::size_t k = 0; k < means.kernels.size(); ++k) {
      const CausalMatrix& kernel = means.kernels.all()[k];
      if (kernel.empty() || kernel.step(t).allFinite()) continue;
      return NumericsError(static_cast<int>(t),
                           fmt::format("kernel {} of iteration {}", means.kernels.name(k), iteration),
                           "is not finite any more. Lower optimizer.lr, or use sampling.method = \"sweep\"");
    }
    if (!std::isfinite(loss[static_cast<std::size_t>(t)]) || has_diverged(loss[static_cast<std::size_t>(t)], loss[0]))
      return NumericsError(static_cast<int>(t), fmt::format("loss of iteration {}", iteration),
                           fmt::format("has grown to {:.3g}: the iteration diverges. Lower optimizer.lr, or use "
                                       "sampling.method = \"sweep\"",
                                       loss[static_cast<std::size_t>(t)]));
  }
  return {};
}

/// Sum over replicas of |kernel - mean over replicas|^2, by differences from the first.
double scatter(const std::vector<Chain>& chains, std::size_t k) {
  const CausalMatrix& first = chains[0].kernels.all()[k];
  CausalMatrix sum(first.shape(), first.file());
  double squares = 0;
  for (const Chain& chain : std::span(chains).subspan(1))
    sum.change(
        [&](auto sum_of, const auto& one, const auto& from) {
          sum_of += one - from;
          squares += (one - from).square().sum();
        },
        chain.kernels.all()[k], first);
  return std::max(0.0, squares - sum.squared_norm() / static_cast<double>(chains.size()));
}

/// What the last iteration has changed.
IterationChange change_of(const std::vector<Chain>& chains, const std::vector<std::vector<double>>& loss_before,
                          const std::vector<std::vector<double>>& loss) {
  IterationChange change;
  const auto R = static_cast<double>(chains.size());
  /// Root mean squares over replicas, of a change in units of the scatter.
  const auto relative = [R](double squares, double scattered, double floor) {
    return squares == 0 ? 0 : std::sqrt(squares / R) / (std::sqrt(scattered / (R - 1)) + floor);
  };
  for (std::size_t t = 0; t < loss[0].size(); ++t) {
    double mean = 0, squares = 0, scattered = 0;
    for (const auto& of_replica : loss) mean += of_replica[t] / R;
    for (std::size_t r = 0; r < loss.size(); ++r) {
      squares += std::pow(loss[r][t] - loss_before[r][t], 2);
      scattered += std::pow(loss[r][t] - mean, 2);
    }
    change.loss = std::max(change.loss, relative(squares, scattered, rounding * loss[0][0]));
  }
  for (std::size_t k = 0; k < chains[0].kernels.size(); ++k) {
    const CausalMatrix& first = chains[0].kernels.all()[k];
    if (first.empty()) continue;
    double squares = 0;
    for (const Chain& chain : chains) squares += chain.change[k];
    const double size = relative(squares, scatter(chains, k), rounding * first.norm());
    if (size > change.kernels) {
      change.kernels = size;
      change.largest = static_cast<int>(k);
    }
  }
  return change;
}

/// A replica's kernels give way to what its sites have estimated from them.
void take(BatchMeans& next, double damping, bool mixes, Chain& chain) {
  chain.change.resize(chain.kernels.size());
  for (std::size_t k = 0; k < chain.kernels.size(); ++k)
    chain.change[k] = squared_distance(next.kernels.all()[k], chain.kernels.all()[k]);
  if (mixes) {
    chain.mixing.mix(chain.kernels, next.kernels);
    for (std::size_t k = 0; k < next.paths.all().size(); ++k)
      if (next.paths.all()[k]->size() > 0)
        *next.paths.all()[k] += damping * (*chain.paths.all()[k] - *next.paths.all()[k]);
  }
  chain.kernels = std::move(next.kernels);
  chain.paths = std::move(next.paths);
  chain.f_before = std::exchange(chain.f, std::move(next.f));
  chain.fields = std::move(next.fields);
}

/// A replica at rest, against what fresh numbers estimate from its kernels, which go to the sum of the result.
void compare(BatchMeans& next, Chain& chain, Certificate& certificate, KernelSet& kernels_sum) {
  certificate.squares.resize(chain.kernels.size(), 0);
  for (std::size_t k = 0; k < chain.kernels.size(); ++k) {
    CausalMatrix &at_rest = chain.kernels.all()[k], &fresh = next.kernels.all()[k];
    fresh -= at_rest;
    kernels_sum.add(k, at_rest);
    at_rest.clear();
    certificate.squares[k] += fresh.squared_norm();
    certificate.sum.add(k, fresh);
    fresh.clear();
  }
}

std::vector<double> mean_of(const std::vector<std::vector<double>>& rows) {
  std::vector<double> mean(rows[0].size(), 0);
  for (const auto& row : rows)
    for (std::size_t t = 0; t < row.size(); ++t) mean[t] += row[t] / static_cast<double>(rows.size());
  return mean;
}

/// losses(f), [step], of the mean output. Of each replica's own it would be larger by half the variance of f; errors by the jackknife.
template <class Losses>
Curve loss_of_mean(const std::vector<MatrixXd>& f, const Losses& losses) {
  const auto R = static_cast<double>(f.size());
  MatrixXd mean = MatrixXd::Zero(f[0].rows(), f[0].cols());
  for (const MatrixXd& one : f) mean += one / R;
  std::vector<std::vector<double>> without;
  without.reserve(f.size());
  for (const MatrixXd& one : f) without.push_back(losses((R * mean - one) / (R - 1)));
  Curve curve;
  curve.mean = losses(mean);
  const std::vector<double> center = mean_of(without);
  for (std::size_t t = 0; t < center.size(); ++t) {
    double square = 0;
    for (const auto& row : without) square += std::pow(row[t] - center[t], 2);
    curve.sem.push_back(std::sqrt(square * (R - 1) / R));
  }
  return curve;
}

/// losses(f), [step], of each replica's own output, a realisation: mean and standard error.
template <class Losses>
Curve mean_of_losses(const std::vector<MatrixXd>& f, const Losses& losses) {
  std::vector<std::vector<double>> rows;
  rows.reserve(f.size());
  for (const MatrixXd& one : f) rows.push_back(losses(one));
  return curve_of(rows, rows[0].size());
}

/// A replica's kernels in the form that its batches use: made by the first of them, dropped by the last.
class SamplerOfReplica {
 public:
  ReplicaSampler& get(const SiteBackend& sites, const SiteProblem& problem, const Chain& chain) {
    const std::lock_guard lock(mutex_);
    if (!made_) made_ = sites.sampler(problem, chain.kernels, chain.paths);
    return *made_;
  }
  void drop() { made_.reset(); }

 private:
  std::mutex mutex_;
  std::unique_ptr<ReplicaSampler> made_;
};

/// Sums over ranks: kernels by their stretches, all small arrays at once.
void add_over_ranks(KernelSet& kernels, const std::vector<MatrixXd*>& small) {
  const auto span_of = [](auto& m) { return std::span<double>(m.data(), static_cast<std::size_t>(m.size())); };
  for (CausalMatrix& kernel : kernels.all()) kernel.change([&](auto numbers) { ranks().sum({span_of(numbers)}); });
  std::vector<std::span<double>> sums;
  for (MatrixXd* m : small)
    if (m->size() > 0) sums.push_back(span_of(*m));
  ranks().sum(sums);
}
/// Sum over ranks of what each has sampled of a replica.
void add_over_ranks(const SiteProblem& problem, const std::shared_ptr<ScratchFile>& file, BatchMeans& means) {
  if (means.f.size() == 0) {  // no batch of this replica was this rank's
    means = zero_means(problem);
    means.kernels = zero_kernels(*problem.limit, problem.shape(), file);
  }
  if (!means.paths.has_any()) means.paths = zero_paths(*problem.limit, problem.n());  // its first batch was not
  std::vector<MatrixXd*> small = means.paths.all();
  small.insert(small.end(), {&means.fields, &means.f});
  add_over_ranks(means.kernels, small);
}
void add_over_ranks(const SiteProblem& problem, const std::shared_ptr<ScratchFile>& file, Estimate& sum) {
  if (sum.f.size() == 0)
    sum = {zero_kernels(*problem.limit, problem.shape(), file), MatrixXd::Zero(problem.y.rows(), problem.n())};
  add_over_ranks(sum.kernels, {&sum.f});
}

/// Does a draw go on by passes, which hold some of a replica's batches, and know what the others change?
bool corrects(const IterationOptions& options, const IterationState& state) {
  return state.passed > 0 && state.passed < options.batches && state.report.draws < options.draws;
}

/// Is the next iteration of a draw a pass?
bool passes_next(const IterationOptions& options, const IterationState& state) {
  return state.of_draw == 0 ? state.passed > 0 : corrects(options, state) && state.of_draw % 2 == 0;
}

/// What an iteration does with a replica's mean over batches, once it is there.
using Use = std::function<void(std::size_t replica, BatchMeans means)>;

/// Hands over `weight` times the sum of a replica whose batches are all there, over all ranks.
void hand_over(const SiteProblem& problem, double weight, IterationState& state, std::size_t r, const Use& use) {
  BatchMeans means = std::exchange(state.next[r], BatchMeans());
  if (ranks().several()) add_over_ranks(problem, state.chains[r].kernels.file(), means);
  means.scale(weight);
  use(r, std::move(means));
}

/// Hands over a replica whose batches have all been sampled. What they estimate beyond those of a pass is left to the next.
void finish_sampling(const SiteProblem& problem, const IterationOptions& options, IterationState& state, std::size_t r,
                     const Use& use) {
  if (!corrects(options, state)) return hand_over(problem, 1.0 / options.batches, state, r, use);
  Estimate others = std::exchange(state.held[r], Estimate());
  if (ranks().several()) add_over_ranks(problem, state.chains[r].kernels.file(), others);
  hand_over(problem, 1.0 / options.batches, state, r, [&](std::size_t, BatchMeans means) {
    Chain& chain = state.chains[r];
    const double over_held = 1.0 / state.passed;
    for (std::size_t k = 0; k < means.kernels.size(); ++k) {
      chain.others.all()[k] = means.kernels.all()[k];
      chain.others.all()[k].change([over_held](auto of_all, const auto& held) { of_all -= over_held * held; },
                                   others.kernels.all()[k]);
      others.kernels.all()[k].clear();
    }
    chain.others_f = means.f - others.f / state.passed;
    use(r, std::move(means));
  });
}

/// Replicas whose batches are not all handed over in this iteration.
std::vector<std::size_t> open_replicas(const IterationOptions& options, const IterationState& state) {
  std::vector<std::size_t> open;
  for (std::size_t r = 0; r < state.chains.size(); ++r)
    if (state.sampled[r] < options.batches) open.push_back(r);
  return open;
}

/// This rank's share of a list.
template <class Task>
std::vector<Task> share_of(const std::vector<Task>& tasks) {
  const auto first = [&](int rank) { return static_cast<std::ptrdiff_t>(tasks.size()) * rank / ranks().count(); };
  return {tasks.begin() + first(ranks().rank()), tasks.begin() + first(ranks().rank() + 1)};
}

/// A stream for every batch, in the order of draws, replicas and batches.
std::uint32_t stream_of(const IterationOptions& options, const IterationState& state, std::size_t replica, int batch) {
  return static_cast<std::uint32_t>((static_cast<std::uint32_t>(state.report.draws) * state.chains.size() + replica) *
                                        static_cast<std::uint32_t>(options.batches) +
                                    static_cast<std::uint32_t>(batch));
}

/// Columns of a matrix over queries, or zeros.
void resize_queries(MatrixXd& m, Index columns) {
  const Index known = m.cols();
  m.conservativeResize(Eigen::NoChange, columns);
  if (columns > known) m.rightCols(columns - known).setZero();
}

/// Gives every chain kernels, paths and f of so many steps: zero for those that are new.
void set_horizon(SiteProblem& problem, Index steps, IterationState& state) {
  problem.steps = steps;
  state.horizon = static_cast<int>(steps);
  state.of_horizon = 0;
  const Index n = problem.n();
  for (Chain& chain : state.chains) {
    for (CausalMatrix& kernel : chain.kernels.all()) kernel.resize(steps);
    for (MatrixXd* path : chain.paths.all())
      if (path->size() > 0) resize_queries(*path, n);
    resize_queries(chain.f, n);
    chain.mixing.forget();
  }
}

/// Adds every batch of this iteration that the state has not got to its replica's sum, and hands over replicas in their order. Batches
/// are handed out by replica and number, and each waits to be added until all before it are: sums do not depend on who was faster, and
/// there are never more batches in memory than samplers. Ranks take equal shares of the list. False after an interrupt, which loses
/// those that are being sampled, with several ranks the whole iteration.
bool sample_batches(const SiteProblem& problem, const IterationOptions& options, IterationState& state, const Use& use,
                    const std::function<void()>& on_batch) {
  struct Task {
    std::size_t replica;
    int batch;
  };
  const std::vector<std::size_t> open = open_replicas(options, state);
  const bool corrected = corrects(options, state);
  std::vector<Task> tasks;
  for (const std::size_t r : open)
    for (int b = state.sampled[r]; b < options.batches; ++b) tasks.push_back({r, b});
  tasks = share_of(tasks);
  std::vector<int> left(state.chains.size(), 0);  // of each replica, of this rank
  for (const Task& task : tasks) ++left[task.replica];
  std::vector<SamplerOfReplica> samplers(state.chains.size());
  std::mutex mutex;
  std::condition_variable turned;
  int turn = 0;
  bool stopped = false;
  const auto stop = [&] {
    const std::lock_guard lock(mutex);
    stopped = true;
    turned.notify_all();
  };
  for_all(static_cast<int>(tasks.size()), options.samplers, options.threads, [&](int k) {
    const auto [r, b] = tasks[static_cast<std::size_t>(k)];
    BatchMeans means;
    try {
      if (options.interrupt == nullptr || !*options.interrupt) {
        StreamNumbers streams(problem.limit->seed, stream_of(options, state, r, b));
        means =
            samplers[r].get(options.sites, problem, state.chains[r]).sample(options.batch, streams, options.interrupt);
      }
    } catch (...) {
      stop();
      throw;
    }
    if (means.f.size() == 0) return stop();
    if (b > 0) means.paths = {};
    std::unique_lock lock(mutex);
    turned.wait(lock, [&] { return stopped || turn == k; });
    if (turn != k) return;
    if (state.next[r].f.size() == 0)
      state.next[r] = std::move(means);
    else
      state.next[r].add(means);
    ++turn;
    if (--left[r] == 0) samplers[r].drop();
    if (corrected && b < state.passed && (b + 1 == state.passed || left[r] == 0))
      state.held[r] = {state.next[r].kernels, state.next[r].f};
    turned.notify_all();
    try {
      if (!ranks().several() && ++state.sampled[r] == options.batches) finish_sampling(problem, options, state, r, use);
      on_batch();
    } catch (...) {
      stopped = true;
      throw;
    }
  });
  stopped = ranks().any(stopped);
  if (!stopped && ranks().several())
    for (const std::size_t r : open) finish_sampling(problem, options, state, r, use);
  return !stopped;
}

/// Every replica's kernels from one pass over its first batches (causal_pass), in any order. Ranks take equal shares of the replicas. False
/// after an interrupt, which loses those that are under way, with several ranks all of them.
bool pass_replicas(const SiteProblem& problem, const IterationOptions& options, IterationState& state, const Use& use,
                   const std::function<void()>& on_replica) {
  const std::vector<std::size_t> open = open_replicas(options, state), tasks = share_of(open);
  std::mutex mutex;
  std::atomic<bool> stopped = false;
  for_all(static_cast<int>(tasks.size()), options.holders, options.threads, [&](int k) {
    if (stopped) return;
    const std::size_t r = tasks[static_cast<std::size_t>(k)];
    std::vector<StreamNumbers> streams;
    streams.reserve(static_cast<std::size_t>(state.passed));
    for (int b = 0; b < state.passed; ++b) streams.emplace_back(problem.limit->seed, stream_of(options, state, r, b));
    Chain& chain = state.chains[r];
    const bool known = chain.others_f.size() > 0;
    BatchMeans means = options.sites.pass(
        problem, options.batch, std::move(streams),
        known ? chain.others : zero_kernels(*problem.limit, problem.shape(), chain.kernels.file()), options.interrupt);
    if (means.f.size() == 0) {
      stopped = true;
      return;
    }
    if (known) means.f += chain.others_f;
    const std::lock_guard lock(mutex);
    state.next[r] = std::move(means);
    if (ranks().several()) return;
    chain.others.clear(), chain.others_f.resize(0, 0);
    hand_over(problem, 1, state, r, use);
    state.sampled[r] = options.batches;
    on_replica();
  });
  const bool any_stopped = ranks().any(stopped);
  if (!any_stopped && ranks().several())
    for (const std::size_t r : open) hand_over(problem, 1, state, r, use);
  return !any_stopped;
}

/// Of `replicas` that were compared with fresh numbers; `kernels` are their means.
std::vector<KernelResidual> residuals_of(const Certificate& certificate, const KernelSet& kernels,
                                         std::size_t replicas) {
  std::vector<KernelResidual> residuals;
  const auto R = static_cast<double>(replicas);
  for (std::size_t k = 0; k < kernels.size(); ++k) {
    if (kernels.all()[k].empty()) continue;
    const double size = kernels.all()[k].norm(), change = certificate.sum.all()[k].norm() / R,
                 square = std::max(0.0, certificate.squares[k] - R * change * change);
    residuals.push_back({kernel_names[k % num_kernels], size > 0 ? change / size : 0,
                         size > 0 ? std::sqrt(square / (R - 1) / R) / size : 0});
  }
  return residuals;
}

/// Means over draws and replicas of what is at rest.
IterationResult result_of(const SiteProblem& problem, bool random, IterationState& state) {
  const LimitSpec& limit = *problem.limit;
  const auto R = static_cast<double>(state.chains.size());
  const int draws = state.report.draws;
  IterationResult result;
  result.counts = limit.block.counts;
  result.kernels = std::move(state.kernels_sum);
  result.kernels *= 1 / (R * draws);
  result.f = MatrixXd::Zero(problem.y.rows(), problem.n());
  for (const Chain& chain : state.chains) {
    result.f_per_replica.emplace_back(chain.f_sum / draws);
    result.fields.emplace_back(chain.fields_sum / draws);
    result.f += result.f_per_replica.back() / R;
  }
  result.paths = std::move(state.chains[0].paths);
  const auto over_replicas = [&](const auto& of_f) {
    return random ? mean_of_losses(result.f_per_replica, of_f) : loss_of_mean(result.f_per_replica, of_f);
  };
  const auto batch_loss = [&](const MatrixXd& f) { return batch_loss_of(limit, problem, f); };
  result.loss = over_replicas([&](const MatrixXd& f) { return loss_of(limit, problem, f); });
  result.batch_loss = over_replicas(batch_loss);
  for (const MatrixXd& f : result.f_per_replica) result.batch_loss_per_replica.push_back(batch_loss(f));
  result.report = std::move(state.report);
  return result;
}

}  // namespace

void refuse_unsolved(const RunSpec& spec, const LimitSpec& limit, Faults& faults) {
  const auto refuse = [&](bool unsolved, const std::string& key, const std::string& value, const std::string& why) {
    if (unsolved)
      faults.add(fmt::format("{} = {} ({}): kernel iteration {}. Use sampling.method = \"sweep\"", key, value,
                             spec.place(key), why));
  };
  const bool has_moments = spec.optimizer.name == OptimizerKind::adam || spec.optimizer.name == OptimizerKind::adamw ||
                           spec.optimizer.name == OptimizerKind::adafactor;
  refuse(
      has_moments && spec.optimizer.eps < smallest_eps && !limit.vanishing.empty(), "optimizer.eps",
      fmt::format("{:g}", spec.optimizer.eps),
      fmt::format("draws sites plainly, and below {:g} the noise of gradients that vanish at t = 0 in this limit moves "
                  "weights (docs/theory.md, section 5)",
                  smallest_eps));
  refuse(spec.training.dynamics == Dynamics::flow, "training.dynamics", "\"flow\"", "has gradient descent only");
  refuse(spec.training.stop_at_loss > 0, "training.stop_at_loss", fmt::format("{:g}", spec.training.stop_at_loss),
         "solves all steps at once");
  const bool random = has_random_limit(spec);
  const std::string realisation = "takes a replica's batch for one realisation of this random limit (regime I, top-K)";
  refuse(random && spec.sampling.site_batches > 1, "sampling.site_batches", std::to_string(spec.sampling.site_batches),
         realisation);
  refuse(random && spec.sampling.draws > 1, "sampling.draws", std::to_string(spec.sampling.draws), realisation);
  if (spec.sampling.replicas < 3)
    faults.add(
        fmt::format("sampling.replicas = {} ({}): kernel iteration tells noise from change by the scatter of "
                    "replicas. Take at least 3",
                    spec.sampling.replicas, spec.place("sampling.replicas")));
  if (spec.sampling.anderson > 0 && !is_linear(spec.optimizer.name))
    faults.add(
        fmt::format("sampling.anderson = {} ({}): combines kernels, and under optimizer.name = \"{}\" paths of sites "
                    "are unknowns beside them. Use 0; sampling.damping and sampling.window do for every rule",
                    spec.sampling.anderson, spec.place("sampling.anderson"), to_string(spec.optimizer.name)));
}

int most_iterations(const RunSpec& spec) {
  return spec.sampling.iterations > 0 ? spec.sampling.iterations : 40 + 4 * spec.training.steps;
}

IterationResult iterate_kernels(const RunSpec& spec, const Dataset& data, const IterationOptions& options) {
  Faults faults;
  std::vector<std::string> warnings;
  RunSpec of_batch =
      spec;  // a batch's sites stand for the population: thresholds and the share of active experts are its own
  of_batch.sampling.method = Method::iterate;
  of_batch.sampling.replicas = options.replicas, of_batch.sampling.anderson = options.anderson;
  of_batch.sampling.neurons = static_cast<int>(options.batch.neurons);
  of_batch.sampling.experts = static_cast<int>(options.batch.experts);
  of_batch.sampling.hidden = static_cast<int>(options.batch.hidden);
  const LimitSpec limit = limit_spec(of_batch, step_shape(spec, data), faults, warnings);
  faults.throw_if_any();
  IterationOptions sizes = options;
  SiteProblem problem{&limit, data.x, data.y, spec.training.steps + Index{1}, options.batches};
  if (spec.training.batch > 0)
    for (int t = 0; t <= spec.training.steps; ++t)
      problem.learns.push_back(batch_rows(spec, static_cast<int>(data.x.cols()), t));
  const int most = options.most > 0 ? options.most : most_iterations(spec);
  sizes.batch.experts = limit.block.counts.experts;
  sizes.batch.hidden = limit.block.counts.hidden;
  if (sizes.sites.sampler == nullptr) sizes.sites = site_backend(spec.sampling.precision, Device::cpu);

  const auto R = static_cast<std::size_t>(options.replicas);
  const MatrixXd no_f = MatrixXd::Zero(data.y.rows(), problem.n());
  const auto file = options.scratch.empty() ? nullptr : std::make_shared<ScratchFile>(options.scratch);
  const KernelSet no_kernels(limit.depth, file);
  IterationState state;
  const Index all_steps = problem.steps;
  const int passed = options.passed > 0 ? std::min(options.passed, options.batches) : options.batches;
  state.passed = static_cast<int>(ranks().least(options.start == Start::zero ? 0 : passed));
  const auto first_steps = [&] {
    return state.passed > 0 || options.window == 0 ? all_steps : std::min<Index>(options.window, all_steps);
  };
  const MatrixXd no_fields = zero_means(problem).fields;
  for (std::size_t r = 0; r < R; ++r)
    state.chains.push_back({zero_kernels(limit, problem.shape(), file),
                            no_kernels,
                            {},
                            zero_paths(limit, problem.n()),
                            no_f,
                            no_f,
                            no_fields,
                            {},
                            no_f,
                            no_fields,
                            KernelMixing(options.damping, options.anderson, no_kernels)});
  state.kernels_sum = state.certificate.sum = no_kernels;
  state.next.assign(R, {no_kernels, {}, {}, {}});
  state.held.assign(R, {no_kernels, {}});
  state.sampled.assign(R, 0);
  std::vector<Chain>& chains = state.chains;
  set_horizon(problem, first_steps(), state);
  IterationReport& report = state.report;
  // A rank has batches of its own: with several of them no part of a replica is kept.
  const auto forget_batches = [&] {
    for (const std::size_t r : open_replicas(options, state)) {
      state.next[r] = BatchMeans();
      state.held[r] = Estimate();
      state.sampled[r] = 0;
    }
  };
  constexpr int job = 0;  // of the checkpoint
  if (options.checkpoints != nullptr)
    if (auto saved = options.checkpoints->begin(job)) {
      state.transfer(*saved);
      problem.steps = state.horizon;
      if (ranks().several()) forget_batches();
      if (options.on_resume) options.on_resume(static_cast<int>(report.changes.size()));
    }
  const auto keep = [&](bool now) {
    if (options.checkpoints == nullptr || !ranks().first()) return;
    options.checkpoints->between_steps(
        job, [&](Archive& a) { state.transfer(a); }, now);
  };

  /// Every replica's next estimates, for `use`. One draw's random numbers are the same in every iteration, so that kernels come to
  /// rest. False after an interrupt.
  const auto sample_all = [&](bool by_pass, const Use& use) {
    const auto on_batch = [&] {
      if (!ranks().several()) keep(false);
    };
    const bool sampled = by_pass ? pass_replicas(problem, sizes, state, use, on_batch)
                                 : sample_batches(problem, sizes, state, use, on_batch);
    if (sampled)
      state.sampled.assign(R, 0);
    else if (ranks().several())
      forget_batches();
    return sampled;
  };
  const auto losses = [&](MatrixXd Chain::*f) {
    std::vector<std::vector<double>> rows;
    rows.reserve(R);
    for (const Chain& chain : chains) rows.push_back(loss_of(limit, problem, chain.*f));
    return rows;
  };
  /// True at the floor, false after an interrupt.
  const auto settle = [&] {
    while (state.of_draw < most) {
      const int iteration = static_cast<int>(report.changes.size()) + 1;
      const bool by_pass = passes_next(options, state);
      const auto use = [&](std::size_t r, BatchMeans means) {
        if (const auto diverged = divergence(limit, problem, means, iteration)) {
          if (by_pass && state.of_draw > 0) {  // a correction too far: what all batches have estimated stays
            ++report.passes_left_out;
            return;
          }
          throw NumericsError(*diverged);
        }
        take(means, options.damping, state.passed == 0 && chains[r].mixing.active(), chains[r]);
      };
      if (!sample_all(by_pass, use)) return false;
      ++state.of_draw;
      ++state.of_horizon;
      const auto loss = losses(&Chain::f);
      report.loss_by_iteration.push_back(mean_of(loss));
      report.loss_by_iteration.back().resize(static_cast<std::size_t>(all_steps), std::nan(""));
      const double last_loss = report.loss_by_iteration.back()[static_cast<std::size_t>(problem.steps) - 1];
      report.changes.push_back(change_of(chains, losses(&Chain::f_before), loss));
      const bool at_rest =
          ranks().any(!by_pass && state.of_horizon > 1 && report.changes.back().at_floor(floor_threshold));
      const bool at_floor = at_rest && problem.steps == all_steps;
      if (at_floor) {
        if (report.floor_at < 0) report.floor_at = iteration;
        ++report.draws;
        state.of_draw = 0;
        for (Chain& chain : chains) {
          chain.others.clear(), chain.others_f.resize(0, 0);
          chain.f_sum += chain.f;
          chain.fields_sum += chain.fields;
          chain.mixing.forget();
          if (report.draws == options.draws) continue;  // the certificate adds the last
          state.kernels_sum += chain.kernels;
        }
        // Another map follows. That its first horizon is short pays, that it starts near its solution does not.
        if (report.draws < options.draws && first_steps() < all_steps) set_horizon(problem, first_steps(), state);
      } else if (problem.steps < all_steps && (at_rest || state.of_horizon >= 2 * options.window)) {
        set_horizon(problem, std::min<Index>(all_steps, problem.steps + options.window), state);
      }
      keep(false);
      if (options.on_iteration) options.on_iteration(iteration, last_loss);
      if (at_floor) return true;
    }
    throw NumericsError(
        static_cast<int>(problem.steps) - 1, "kernel iteration",
        fmt::format("still changes by {:.2f} of the Monte Carlo error of the loss and {:.2f} of that of "
                    "kernel {} after {} iterations. Raise sampling.iterations, lower training.steps or optimizer.lr, "
                    "or use sampling.method = \"sweep\"",
                    report.changes.back().loss, report.changes.back().kernels,
                    chains[0].kernels.name(static_cast<std::size_t>(report.changes.back().largest)), most));
  };
  while (report.draws < options.draws && settle()) {
  }
  const auto against_fresh = [&](std::size_t r, BatchMeans means) {
    compare(means, chains[r], state.certificate, state.kernels_sum);
  };
  // In a random limit fresh numbers are another realisation, and compare with nothing.
  const bool random = has_random_limit(limit);
  const bool interrupted = report.draws < options.draws || (!random && !sample_all(false, against_fresh));
  if (interrupted) keep(true);
  problem.steps = all_steps;
  if (report.draws == 0)
    throw IterationInterrupted(
        fmt::format("interrupted in iteration {}, before the kernels came to rest: there is no result yet",
                    report.changes.size() + 1));

  if (report.draws == options.draws)  // those that an interrupt has left
    for (Chain& chain : chains) state.kernels_sum += chain.kernels, chain.kernels.clear();
  IterationResult result = result_of(problem, random, state);
  result.interrupted = interrupted;
  if (!interrupted && !random) result.report.residuals = residuals_of(state.certificate, result.kernels, R);
  return result;
}

}  // namespace moe
