#include "dmft/solve.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>

#include "dmft/kernel_iteration.hpp"
#include "dmft/march.hpp"
#include "dmft/march_gpu.hpp"
#include "dmft/matched_draws.hpp"
#include "dmft/memory_estimate.hpp"
#include "support/for_all.hpp"
#include "support/gpu.hpp"
#include "support/observable.hpp"
#include "support/rank_results.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

template <class Get>
Curve statistics_of(const std::vector<Record>& records, Get get) {
  std::vector<std::vector<double>> rows;
  std::size_t length = SIZE_MAX;
  for (const auto& r : records) {
    rows.push_back(get(r));
    length = std::min(length, rows.back().size());
  }
  return curve_of(rows, length);
}

std::vector<Eigen::MatrixXd> mean_matrices(const std::vector<const std::vector<Eigen::MatrixXd>*>& lists) {
  std::size_t length = SIZE_MAX;
  for (const auto* list : lists) length = std::min(length, list->size());
  std::vector<Eigen::MatrixXd> mean;
  for (std::size_t t = 0; t < length; ++t) {
    Eigen::MatrixXd total = (*lists.front())[t];
    for (std::size_t k = 1; k < lists.size(); ++k) total += (*lists[k])[t];
    mean.emplace_back(total / static_cast<double>(lists.size()));
  }
  return mean;
}

void collect(const Plan& plan, const std::vector<Record>& records, LimitResult& result) {
  result.eval_steps = plan.eval_steps;
  result.test_steps = plan.test_steps;
  result.observe_steps = plan.observe_steps;
  result.kernel_steps = plan.kernel_steps;
  result.distribution_steps = plan.distribution_steps;
  result.loss = statistics_of(records, [](const Record& r) { return r.loss; });
  result.accuracy = statistics_of(records, [](const Record& r) { return r.accuracy; });
  result.test_loss = statistics_of(records, [](const Record& r) { return r.test_loss; });
  result.test_accuracy = statistics_of(records, [](const Record& r) { return r.test_accuracy; });
  result.batch_loss = statistics_of(records, [](const Record& r) { return r.batch_loss; });
  const auto lists = [&](auto get) {
    std::vector<const std::vector<Eigen::MatrixXd>*> all;
    all.reserve(records.size());
    for (const auto& r : records) all.push_back(get(r));
    return all;
  };
  if (plan.keep_f) result.f = mean_matrices(lists([](const Record& r) { return &r.f; }));
  if (!plan.kernel_steps.empty())
    for (const auto& [name, unused] : records.front().kernels)
      result.kernels[name] = mean_matrices(lists([&, key = name](const Record& r) {
        static const std::vector<Eigen::MatrixXd> none;  // of a replica that ended before the first step of kernels
        const auto found = r.kernels.find(key);
        return found == r.kernels.end() ? &none : &found->second;
      }));
  if (!plan.distribution_steps.empty())
    for (const auto& [name, unused] : records.front().distributions) {
      std::size_t length = SIZE_MAX;
      for (const auto& r : records) {  // a replica may have ended before the first of these steps
        const auto found = r.distributions.find(name);
        length = std::min(length, found == r.distributions.end() ? 0 : found->second.size());
      }
      for (std::size_t t = 0; t < length; ++t)
        result.distributions[name].push_back(
            statistics_of(records, [&, key = name](const Record& r) { return r.distributions.at(key)[t]; }));
    }
  const auto observed = recorded_all(plan.observables, plan.limit.depth);
  for (std::size_t k = 0; k < observed.size(); ++k)
    result.observables[observed[k].key] = statistics_of(records, [k](const Record& r) {
      std::vector<double> row;
      for (const auto& values : r.observables) row.push_back(values[k]);
      return row;
    });
  for (const auto& [name, unused] : records.front().diagnostics)
    result.diagnostics[name] = statistics_of(records, [key = name](const Record& r) {
                                 const auto found = r.diagnostics.find(key);
                                 return found == r.diagnostics.end() ? std::vector<double>() : found->second;
                               }).mean;
  result.replicas = static_cast<int>(records.size());
  for (const auto& r : records) {
    result.loss_per_replica.push_back(r.loss);
    result.test_loss_per_replica.push_back(r.test_loss);
    result.batch_loss_per_replica.push_back(r.batch_loss);
    result.summary["sample_ratio_defect"] = std::max(result.summary["sample_ratio_defect"], r.defect);
    if (r.converged_at >= 0 && (result.converged_at < 0 || r.converged_at < result.converged_at))
      result.converged_at = r.converged_at;
    if (r.failure && (!result.failure || r.failure->step < result.failure->step)) result.failure = r.failure;
  }
  result.summary["dense_since_step"] = records.front().dense_since;
}

/// Of runs that ended early: after a failure every replica that recorded anything, cut to the shortest later on; after an interrupt
/// the replicas that together hold the most steps (those not begun when others were done would leave nothing).
std::vector<Record> usable(std::vector<Record> records, bool failed) {
  std::stable_sort(records.begin(), records.end(),
                   [](const Record& a, const Record& b) { return a.loss.size() > b.loss.size(); });
  std::size_t keep = 0, best = 0;
  for (std::size_t k = 0; k < records.size(); ++k) {
    const std::size_t held = (k + 1) * records[k].loss.size();
    if (records[k].loss.empty() && !records[k].failure) break;
    if (failed || held > best) {
      best = held;
      keep = k + 1;
    }
  }
  records.resize(keep);
  return records;
}

void cut_step_lists(LimitResult& result) {
  const auto cut = [](std::vector<int>& steps, std::size_t length) { steps.resize(std::min(steps.size(), length)); };
  cut(result.eval_steps, result.loss.mean.size());
  cut(result.test_steps, result.test_loss.mean.size());
  if (!result.observables.empty()) cut(result.observe_steps, result.observables.begin()->second.mean.size());
  if (!result.kernels.empty()) cut(result.kernel_steps, result.kernels.begin()->second.size());
  cut(result.distribution_steps, result.distributions.empty() ? 0 : result.distributions.begin()->second.size());
}

void warn_of_few_experts(const RunSpec& spec, LimitResult& result) {
  for (const std::string name : {"ess_forward", "ess_backward"}) {
    double smallest = HUGE_VAL;
    for (const Recorded& one : recorded(name, spec.model.depth))
      for (const double v : result.observables.at(one.key).mean) smallest = v > 0 ? std::min(smallest, v) : smallest;
    if (!std::isfinite(smallest)) continue;
    result.summary["smallest_" + name] = smallest;
    if (regime_named(spec.model.regime).experts_sampled && smallest < 0.05 * result.counts.active)
      result.warnings.push_back(fmt::format(
          "{}: a token's average over experts rests on {:.1f} effective samples of {} active ones{}; "
          "networks of practical size may be far from this limit (docs/theory.md, section 6)",
          name, smallest, result.counts.active, spec.sampling.method == Method::iterate ? " in a batch" : ""));
  }
}

void warn(const Plan& plan, LimitResult& result) {
  const double defect = result.summary["sample_ratio_defect"];
  const LimitConstants& c = plan.limit.block.constants;
  const bool in_ratio_possible = c.expert_in.chi2 > 0 && c.expert_in.beta2 > 0;
  if (defect > 0.02)
    result.warnings.push_back(fmt::format(
        "sample counts: the variance of a new direction was off by {:.1f} % ({}){}", 100 * defect,
        in_ratio_possible ? "counts out of the network's ratio" : "a one-sided matrix has no exact ratio",
        defect > 0.2
            ? "; the counts bias the result: raise sampling.neurons, or leave sampling.experts and sampling.hidden at 0"
            : ""));
  warn_of_few_experts(*plan.spec, result);
  if (result.random_limit) result.warnings.emplace_back(random_limit_warning);
  const auto& curves = result.loss_per_replica;
  const bool still = !curves.empty() && std::all_of(curves.begin(), curves.end(), [](const std::vector<double>& loss) {
    return loss.size() > 1 && std::all_of(loss.begin(), loss.end(), [&](double l) { return l == loss.front(); });
  });
  if (still && plan.spec->optimizer.lr > 0)
    result.warnings.emplace_back(
        "training stands still: the loss is the same at every step, since what would move it vanishes in this limit. "
        "moe_param exponents says what does, and why");
}

/// Matched and plain draws that mix in the first step bias backward fields: `auto` does not match draws there, `on` is warned of.
/// False where draws are not to be matched.
bool still_matches(const RunSpec& spec, const LimitSpec& limit, const StepShape& step, LimitResult& result) {
  const LimitConstants& constants = limit.block.constants;
  if (limit.block.starts_dense || lists_hold_first_step(spec, constants, limit.block.counts, step)) return true;
  const bool automatic = spec.sampling.matching == Matching::automatic;
  const int neurons = limit.block.counts.neurons;
  const int enough = matched_neurons(spec, constants, step, neurons, 16 * neurons);
  result.lists_hold = automatic;  // none are kept where nothing is matched
  result.warnings.push_back(
      fmt::format("sampling.neurons = {}: the lists of matched draws do not hold what the first step of {} samples "
                  "draws, which {} (docs/results.md){}",
                  neurons, step.samples,
                  automatic ? "would bias backward fields: samples are drawn plainly, with larger errors"
                            : "biases backward fields by several per cent, and by all of zeta where hidden units are "
                              "few. sampling.matching = \"off\" has no such bias, and larger errors",
                  enough > 0 ? fmt::format(". {} neurons are enough", enough) : ""));
  return !automatic;
}

}  // namespace

Curve curve_of(const std::vector<std::vector<double>>& rows, std::size_t length) {
  Curve curve;
  const auto n = static_cast<double>(rows.size());
  for (std::size_t t = 0; t < length; ++t) {
    double mean = 0, square = 0;
    for (const auto& row : rows) mean += row[t] / n;
    for (const auto& row : rows) square += (row[t] - mean) * (row[t] - mean);
    curve.mean.push_back(mean);
    curve.sem.push_back(rows.size() > 1 ? std::sqrt(square / (n - 1) / n) : std::nan(""));
  }
  return curve;
}

RunIdentity solve_identity(const RunSpec& spec, const Dataset& data, const std::string& program) {
  Faults faults;
  std::vector<std::string> warnings;
  const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, warnings);
  faults.throw_if_any();
  const LimitConstants& c = limit.block.constants;
  std::vector<double> numbers = {c.router.chi2,
                                 c.router.beta2,
                                 c.expert_in.chi2,
                                 c.expert_in.beta2,
                                 c.expert_out.chi2,
                                 c.expert_out.beta2,
                                 c.input_var,
                                 c.readout_var,
                                 c.explicit_router_var,
                                 c.expert_in_shared ? 1.0 : 0.0,
                                 c.expert_out_shared ? 1.0 : 0.0};
  numbers.insert(numbers.end(), c.lr.values.begin(), c.lr.values.end());
  numbers.insert(numbers.end(), c.eps.values.begin(), c.eps.values.end());
  return {program,
          &spec,
          {"network", "output.weights"},
          digest({&data.x, &data.y, &data.x_test, &data.y_test}),
          fmt::format("{}", fmt::join(numbers, " "))};
}

LimitResult solve_limit(const RunSpec& spec, const Dataset& data, const SolveOptions& options) {
  Faults faults;
  refuse_unavailable(options.device, faults);
  faults.throw_if_any();
  if (spec.sampling.method == Method::iterate) {
    LimitResult result = solve_by_iteration(spec, data, options);
    warn_of_few_experts(spec, result);
    return result;
  }
  const auto start = Clock::now();
  keep_freed_memory();
  LimitResult result;
  Plan plan{&spec, &data, limit_spec(spec, step_shape(spec, data), faults, result.warnings), {}, {}, {}, {}, {}, true};
  faults.throw_if_any();
  MemoryEstimate memory = memory_estimate(plan.limit, solve_sizes(spec, data, options.threads));
  const bool on_gpu = options.device == Device::cuda;
  if (on_gpu)
    require_gpu_memory(memory, spec, plan.limit, gpu_memory());
  else
    require_memory(memory, spec, plan.limit);
  plan.eval_steps = eval_steps(spec.training);
  if (data.x_test.cols() > 0) plan.test_steps = test_steps(spec.training);
  plan.observe_steps = observe_steps(spec);
  if (const auto undefined = undefined_observables(spec); !undefined.empty())
    result.warnings.push_back(
        fmt::format("output.observables: {} left out: the samples differ from step to step under mini-batches "
                    "(training.batch = {})",
                    fmt::join(undefined, ", "), spec.training.batch));
  if (std::string jumps = jumping_flow_warning(spec); !jumps.empty()) result.warnings.push_back(std::move(jumps));
  plan.kernel_steps = kernel_steps(spec);
  plan.distribution_steps = distribution_steps(spec);
  plan.observables = selected_observables(spec);
  for (const char* needed : {"ess_forward", "ess_backward"})
    if (std::find(plan.observables.begin(), plan.observables.end(), needed) == plan.observables.end())
      plan.observables.emplace_back(needed);
  plan.keep_f =
      plan.eval_steps.size() * static_cast<std::size_t>(data.y.size()) * sizeof(double) <= (std::size_t{64} << 20);

  result.counts = plan.limit.block.counts;
  result.constants = plan.limit.block.constants;
  result.random_limit = has_random_limit(plan.limit);
  bool matching = spec.sampling.matching != Matching::off;
  if (spec.sampling.matching == Matching::automatic) {
    if (result.random_limit) matching = false;
    const auto noisy = noisy_gradients<Cpu<float>>(spec, data, plan.limit);
    return_freed_memory();  // the pilot's arrays, which the threads below could not use
    if (ranks().any(!noisy.empty())) {
      matching = false;
      result.warnings.push_back(fmt::format(
          "eps = {:g} is below the Monte Carlo size of gradients that vanish in the limit: {}. Samples are drawn "
          "plainly; early "
          "steps then depend on their number as networks do on N (docs/theory.md, section 5). A larger eps or more "
          "samples make that less",
          spec.optimizer.eps, fmt::join(noisy, ", ")));
    } else if (!plan.limit.vanishing.empty() && !is_linear(spec.optimizer.name) && spec.optimizer.eps < 0.02) {
      std::vector<std::string> names;
      names.reserve(plan.limit.vanishing.size());
      for (const Tensor tensor : plan.limit.vanishing)
        names.emplace_back(tensor_names[static_cast<std::size_t>(tensor)]);
      result.warnings.push_back(
          fmt::format("eps = {:g}: the gradient of {} vanishes with size at t = 0. Here it is zero; networks take full "
                      "steps of random sign "
                      "until N^-1/2 is below eps (docs/theory.md, section 5). A larger eps makes the difference "
                      "smaller (docs/validation.md)",
                      spec.optimizer.eps, fmt::join(names, ", ")));
    }
  }
  if (matching) matching = still_matches(spec, plan.limit, step_shape(spec, data), result);
  plan.limit.block.matching = result.matching = matching;

  const int replicas = spec.sampling.replicas;
  const auto share = static_cast<int>(ranks().share(static_cast<std::size_t>(replicas)));
  const int workers = std::min({thread_count(options.threads), share, static_cast<int>(memory.concurrent)});
  std::vector<Record> records(static_cast<std::size_t>(replicas));
  std::atomic<bool> stop{false};
  for_all(replicas, workers, options.threads, [&](int k) {
    if (stop || !ranks().mine(static_cast<std::size_t>(k))) return;
    Record& record = records[static_cast<std::size_t>(k)];
    try {
      if (on_gpu)
        march_on_gpu(plan, k, options, stop, record);
      else if (spec.sampling.precision == Precision::float32)
        march<Cpu<float>>(plan, k, options, stop, record);
      else
        march<Cpu<double>>(plan, k, options, stop, record);
    } catch (const NumericsError& e) {
      record.failure = e;
      stop = true;
    } catch (...) {
      stop = true;
      throw;
    }
  });
  share_results(records);
  result.interrupted = ranks().any(options.interrupt != nullptr && *options.interrupt);
  const auto failed =
      std::find_if(records.begin(), records.end(), [](const Record& r) { return r.failure.has_value(); });
  const std::optional<NumericsError> failure = failed == records.end() ? std::nullopt : failed->failure;
  if (failure || result.interrupted) records = usable(std::move(records), failure.has_value());
  if (records.empty() && failure) throw NumericsError(*failure);  // no replica has recorded anything
  if (records.empty()) throw Error("interrupted before any step was finished");
  collect(plan, records, result);
  cut_step_lists(result);
  warn(plan, result);
  result.seconds = seconds_since(start);
  return result;
}

}  // namespace moe
