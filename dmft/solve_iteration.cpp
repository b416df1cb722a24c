#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string_view>
#include <thread>

#include "dmft/kernel_iteration.hpp"
#include "dmft/kernel_mixing.hpp"
#include "dmft/loss.hpp"
#include "dmft/memory_estimate.hpp"
#include "support/gpu.hpp"
#include "support/observable.hpp"
#include "support/ranks.hpp"
#include "support/resources.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

/// Sites of one batch where the run says nothing: averages that close inside a batch, or an expert, are then good to a per cent.
constexpr int default_neurons = 2048, default_experts = 1024, default_hidden = 1024;
/// Where both are sampled: a batch has experts x hidden sites.
constexpr int default_experts_of_many = 64, default_hidden_of_many = 128;

double element(const RunSpec& spec) { return spec.sampling.precision == Precision::float32 ? 4 : 8; }

/// Mean over replicas and its standard error of values(replica), [step].
template <class Values>
Curve over_replicas(std::size_t replicas, const std::vector<int>& steps, const Values& values) {
  std::vector<std::vector<double>> rows(replicas);
  for (std::size_t r = 0; r < replicas; ++r)
    for (const int t : steps) rows[r].push_back(values(r, t));
  return curve_of(rows, steps.size());
}

/// Of a field's variance: a per cent moves the loss by some tenths of one (docs/results.md).
constexpr double noise_worth_a_warning = 0.02;

/// Which kernel of file is which of ours.
constexpr std::pair<const char*, Kernel> stored_kernels[] = {
    {"Phi", Kernel::phi}, {"GvGv", Kernel::Gv}, {"DD", Kernel::D}, {"ghatghat", Kernel::ghat}};

/// How the iteration went, by the names of limit_file.cpp.
void record(const IterationReport& report, LimitResult& result) {
  for (const IterationChange& change : report.changes) {
    result.diagnostics["iteration_loss_change"].push_back(change.loss);
    result.diagnostics["iteration_kernel_change"].push_back(change.kernels);
  }
  for (const auto& loss : report.loss_by_iteration) {
    double last = std::nan("");  // of the horizon
    for (const double one : loss) last = std::isfinite(one) ? one : last;
    result.diagnostics["iteration_last_loss"].push_back(last);
  }
  for (const char* name : kernel_names) {
    KernelResidual largest{name, std::nan(""), std::nan("")};  // over blocks
    for (const KernelResidual& one : report.residuals)
      if (one.name == name && !(one.value <= largest.value)) largest = one;
    result.diagnostics["kernel_residual"].push_back(largest.value);
    result.diagnostics["kernel_residual_noise"].push_back(largest.noise);
  }
  result.summary["iteration_floor"] = report.floor_at;
  result.summary["iteration_draws"] = report.draws;
}

/// Of responses, in fields: what no white numbers make room for (SiteField::noise_left).
void warn_of_noise(const LimitSpec& limit, const std::vector<MatrixXd>& fields, LimitResult& result) {
  double most = 0;
  for (int l = 0; l < limit.depth; ++l)
    for (const MatrixXd& of_replica : fields) most = std::max(most, of_replica.row(row_of(l, "noise_left")).maxCoeff());
  result.summary["noise_left"] = most;
  if (most > noise_worth_a_warning)
    result.warnings.push_back(fmt::format(
        "sampling: noise of responses adds at least {:.1f} % to the variance of a block's fields, since batches have "
        "few sites beside the directions that their queries span; it biases the result. Raise "
        "sampling.neurons, sampling.experts or sampling.hidden (docs/theory.md, section 6.2)",
        100 * most));
}

}  // namespace

IterationOptions iteration_options(const RunSpec& spec, const LimitSpec& limit) {
  const bool many_hidden = regime_named(spec.model.regime).hidden_sampled, many_experts = limit.block.experts_sampled;
  const bool both = many_hidden && many_experts;
  const auto said = [](int value, int otherwise) { return value > 0 ? value : otherwise; };
  IterationOptions options;
  options.batch.neurons = said(spec.sampling.neurons, default_neurons);
  options.batch.experts = many_experts ? said(spec.sampling.experts, both ? default_experts_of_many : default_experts)
                                       : limit.block.counts.experts;
  options.batch.hidden = many_hidden ? said(spec.sampling.hidden, both ? default_hidden_of_many : default_hidden)
                                     : limit.block.counts.hidden;
  options.replicas = spec.sampling.replicas;
  options.batches = spec.sampling.site_batches;
  options.draws = spec.sampling.draws;
  options.most = most_iterations(spec);
  options.start = spec.sampling.start;
  options.window = spec.sampling.window;
  options.damping = spec.sampling.damping;
  options.anderson = spec.sampling.anderson;
  return options;
}

StepShape iteration_step(const RunSpec& spec, const Dataset& data) {
  StepShape step = step_shape(spec, data);
  step.samples = static_cast<int>(data.x.cols());
  return step;
}

IterationMemory iteration_memory(const RunSpec& spec, const LimitSpec& limit, const StepShape& step, int threads,
                                 double available, std::optional<double> card) {
  const IterationOptions o = iteration_options(spec, limit);
  const double R = o.replicas, batches = o.batches;
  IterationMemory memory;
  memory.queries = (spec.training.steps + 1.0) * step.samples;
  const KernelSet present = zero_kernels(limit, {1, 1});
  for (const CausalMatrix& kernel : present.all()) memory.arrays += kernel.empty() ? 0 : 1;
  const double numbers = memory.queries * (memory.queries + step.samples) / 2, kernel = sizeof(double) * numbers;
  const auto neurons = static_cast<double>(o.batch.neurons), experts = static_cast<double>(o.batch.experts),
             units = experts * static_cast<double>(o.batch.hidden);
  // With an entrywise rule: paths of the sites that learned parts run over; per pair of sites, from both of its sides, what has been
  // learned through A, B and Q with its moments.
  const UpdateRule& rule = limit.input;
  const double depth = limit.depth;
  const double path = rule.linear() ? 0 : depth * memory.queries * (2 * neurons + experts + 2 * units);
  const double pairs = rule.linear() ? 0 : depth * (rule.has_moments() ? 3 : 1) * 2 * neurons * (2 * units + experts);
  // Kernels of every replica, and of several draws a sum over them; in a certificate, which a replica leaves for two sums, one more than that.
  // What batches that a pass does not hold change; past iterates of an acceleration.
  const auto some = [&](int passed) { return passed > 0 && passed < o.batches; };
  const auto kept = [&](int passed) {
    return (some(passed) ? 2 : 1) * R + 1 + R * KernelMixing::sets(o.anderson) + o.anderson;
  };
  // The sum over batches of the replica whose turn it is, and over those that a pass holds; a rank keeps those of its share until all ranks
  // add theirs.
  const auto sums = [&](int passed) {
    const double of_all = ranks().several() ? std::ceil(R / ranks().count()) + 1 : o.batches > 1 ? 1 : 0;
    return (some(passed) ? 2 : 1) * of_all;
  };
  const double paths_kept = sizeof(double) * (R + sums(o.batches)) * path;
  memory.sites = R * batches * (neurons + experts + units);
  // Where sites are sampled, also roots and memories; on the host, also kernels.
  struct Bytes {
    double sites = 0, roots = 0, host = 0, kernels = 0;
    Bytes operator+(Bytes b) const { return {sites + b.sites, roots + b.roots, host + b.host, kernels + b.kernels}; }
  };
  const auto times = [](double n, Bytes a) { return Bytes{n * a.sites, n * a.roots, n * a.host, n * a.kernels}; };
  // Paths and white numbers: five arrays on neurons, two on experts, four on their units; of the present step some 10, 10 and 6. With an
  // entrywise rule pairs. And bases of what was sent, two on neurons, one on experts, two on units, whose rank is a tenth to six tenths of the
  // queries (docs/results.md; of relu more).
  const auto basis = [&](double of) { return std::min(of, memory.queries / 2) * of; };
  const double sites =
      depth * element(spec) *
          (memory.queries * (5 * neurons + 2 * experts + 4 * units) + 2 * basis(neurons) + basis(experts) +
           2 * basis(units) + step.samples * (10 * neurons + 10 * experts + 6 * units)) +
      element(spec) * pairs;
  // A batch's means, and what it adds to a kernel at once; roots and memories of a replica, and the steps that they are made from.
  const double some_columns = sizeof(double) * memory.queries * std::max<double>(step.samples, site_columns_at_once);
  const Bytes means{0, 0, sizeof(double) * path + 2 * some_columns, kernel * memory.arrays},
      given{element(spec) * path, depth * 12 * element(spec) * numbers,
            8 * sizeof(double) * memory.queries * step.samples, 0};
  const double library = card ? gpu::library_bytes : 0;  // of each thread
  const auto sampling = [&](int samplers) {
    const double replicas = std::min(R, std::floor((samplers - 1 + batches - 1) / batches) + 1);
    return times(samplers, Bytes{sites + library} + means) + times(replicas, given);
  };
  // A pass holds batches of a replica, beside its roots and memories and the kernels that it closes.
  const auto holder = [&](int passed) { return Bytes{passed * sites + library} + given + means; };
  const int fewest = o.start == Start::pass ? 1 : 0;  // one that was asked for is not given up silently
  const auto with = [&](bool on_disk) {
    const auto where_sampled = [&](Bytes a) { return a.sites + (on_disk ? 0 : a.roots); };
    const auto on_host = [&](Bytes a) { return a.host + (on_disk ? 0 : a.kernels) + (card ? 0 : where_sampled(a)); };
    const auto kernels = [&](int passed) { return kernel * memory.arrays * (kept(passed) + sums(passed)); };
    const auto in_memory = [&](int passed) { return paths_kept + (on_disk ? 0 : kernels(passed)); };
    const auto fits = [&](int passed, Bytes a) {
      return in_memory(passed) + on_host(a) <= available && (!card || where_sampled(a) <= *card);
    };
    IterationMemory m = memory;
    m.passed = o.start == Start::zero ? 0 : o.batches;
    while (m.passed > fewest && !fits(m.passed, holder(m.passed))) --m.passed;
    m.holders = m.passed > 0 ? static_cast<int>(std::min<double>(thread_count(threads), R)) : 0;
    while (m.holders > 1 && !fits(m.passed, times(m.holders, holder(m.passed)))) --m.holders;
    m.samplers = static_cast<int>(std::min<double>(thread_count(threads), R * batches));
    while (m.samplers > 1 && !fits(m.passed, sampling(m.samplers))) --m.samplers;
    const Bytes by_batches = sampling(m.samplers), by_pass = times(m.holders, holder(m.passed));
    m.kernels = in_memory(m.passed);
    m.sampling = std::max(on_host(by_batches), on_host(by_pass));
    if (card) m.card = std::max(where_sampled(by_batches), where_sampled(by_pass));
    m.checkpoint = paths_kept + kernels(m.passed);
    const auto waiting = [](Bytes a) { return a.kernels + a.roots; };
    if (on_disk)
      m.scratch = kernels(m.passed) + kernel * memory.arrays + std::max(waiting(by_batches), waiting(by_pass));
    return m;
  };
  const IterationMemory in_memory = with(false), on_disk = with(true);
  if (in_memory.total() > available) return on_disk;
  return on_disk.passed > 0 && on_disk.passed >= 2 * in_memory.passed ? on_disk : in_memory;
}

namespace {

/// What fits where kernel iteration does not, with the numbers that do.
std::vector<std::string> remedies(const RunSpec& spec, const Dataset& data, const LimitSpec& limit, int threads,
                                  double available) {
  std::vector<std::string> all = {
      fmt::format("use sampling.method = \"sweep\", which keeps no kernels of all pairs of steps and needs about {}",
                  bytes_text(memory_estimate(limit, solve_sizes(spec, data, threads)).total()))};
  /// Largest value in [low, high) of a number with which the run fits, or low - 1.
  const auto largest = [&](int low, int high, int& (*number)(RunSpec&)) {
    RunSpec other = spec;
    int fits = low - 1;
    while (fits + 1 < high) {
      const int middle = fits + (high - fits) / 2;
      number(other) = middle;
      const bool enough =
          iteration_memory(other, limit, iteration_step(other, data), threads, available).total() <= available;
      (enough ? fits : high) = middle;
    }
    return fits;
  };
  if (const int steps = largest(1, spec.training.steps, [](RunSpec& s) -> int& { return s.training.steps; }); steps > 0)
    all.push_back(fmt::format("lower training.steps = {} ({} fit)", spec.training.steps, steps));
  if (spec.sampling.start == Start::pass)
    all.emplace_back("start from zero kernels (sampling.start = \"zero\"), which holds one batch a thread");
  all.emplace_back(
      "take smaller batches of sites (sampling.neurons, sampling.experts, sampling.hidden) and more of them "
      "(sampling.site_batches), or fewer --threads");
  all.emplace_back("lower data.train");
  return all;
}

}  // namespace

LimitResult solve_by_iteration(const RunSpec& spec, const Dataset& data, const SolveOptions& solve) {
  const auto start = std::chrono::steady_clock::now();
  hand_back_freed_memory();
  LimitResult result;
  Faults faults;
  const LimitSpec limit = limit_spec(spec, step_shape(spec, data), faults, result.warnings);
  faults.throw_if_any();
  const AvailableMemory available = available_memory();
  const bool on_gpu = solve.device == Device::cuda;
  const AvailableMemory card = on_gpu ? gpu_memory() : AvailableMemory{};
  const IterationMemory memory = iteration_memory(spec, limit, iteration_step(spec, data), solve.threads,
                                                  available.bytes, on_gpu ? std::optional(card.bytes) : std::nullopt);
  if (memory.card > card.bytes)
    throw ConfigError({fmt::format(
        "memory: {} batch{} of kernel iteration need{} about {}, and {} are available ({}). To need less: {}; or lower "
        "training.steps or data.train; or use --device cpu",
        memory.samplers, memory.samplers > 1 ? "es" : "", memory.samplers > 1 ? "" : "s", bytes_text(memory.card),
        bytes_text(card.bytes), card.source,
        spec.sampling.start == Start::pass
            ? "start from zero kernels (sampling.start = \"zero\")"
            : "take smaller batches of sites (sampling.neurons, sampling.experts, sampling.hidden) and more of them "
              "(sampling.site_batches)")});
  if (memory.total() > available.bytes)
    throw ConfigError({fmt::format(
        "memory: kernel iteration, its kernels in a file, needs about {} for the paths of {} batch{} of sites at "
        "{:.0f} "
        "queries{}. {} are available ({}). To need less: {}.",
        bytes_text(memory.sampling), std::max(memory.samplers, memory.passed),
        std::max(memory.samplers, memory.passed) > 1 ? "es" : "", memory.queries,
        memory.kernels > 0 ? fmt::format(", and {} for those of replicas", bytes_text(memory.kernels)) : "",
        bytes_text(available.bytes), available.source,
        fmt::join(remedies(spec, data, limit, solve.threads, available.bytes), "; or "))});

  IterationOptions options = iteration_options(spec, limit);
  options.threads = solve.threads;
  options.samplers = memory.samplers;
  options.passed = memory.passed;
  options.holders = memory.holders;
  if (memory.scratch > 0) options.scratch = solve.scratch;
  options.start = memory.passed > 0 ? Start::pass : Start::zero;
  options.sites = site_backend(spec.sampling.precision, solve.device);
  options.interrupt = solve.interrupt;
  options.checkpoints = solve.checkpoints;
  options.on_resume = [&](int iterations) {
    if (solve.on_resume) solve.on_resume(0, iterations);
  };
  options.on_iteration = [&](int iteration, double loss) {
    if (solve.on_step) solve.on_step(0, iteration, loss);
  };
  const IterationResult r = iterate_kernels(spec, data, options);

  result.counts = r.counts;
  result.constants = limit.block.constants;
  result.matching = false;
  result.random_limit = has_random_limit(limit);
  if (result.random_limit) result.warnings.emplace_back(random_limit_warning);
  result.replicas = options.replicas;
  result.interrupted = r.interrupted;
  record(r.report, result);
  result.summary["site_batches"] = options.batches;
  result.eval_steps = eval_steps(spec.training);
  result.observe_steps = observe_steps(spec);
  result.kernel_steps = kernel_steps(spec);
  const Index P = data.x.cols();
  const auto f_at = [&](const MatrixXd& f, int t) { return f.middleCols(t * P, P); };
  for (const int t : result.eval_steps) {
    result.loss.mean.push_back(r.loss.mean[static_cast<std::size_t>(t)]);
    result.loss.sem.push_back(r.loss.sem[static_cast<std::size_t>(t)]);
    result.f.emplace_back(f_at(r.f, t));
  }
  const auto replicas = static_cast<std::size_t>(options.replicas);
  result.accuracy = over_replicas(replicas, result.eval_steps,
                                  [&](std::size_t k, int t) { return accuracy(f_at(r.f_per_replica[k], t), data.y); });
  for (const MatrixXd& f : r.f_per_replica) {
    std::vector<double> row;
    for (const int t : result.eval_steps) row.push_back(loss_value(limit.loss, f_at(f, t), data.y));
    result.loss_per_replica.push_back(std::move(row));
  }
  result.batch_loss = r.batch_loss;
  result.batch_loss_per_replica = r.batch_loss_per_replica;
  const auto batch = [&](int t) { return batch_rows(spec, static_cast<int>(P), t); };
  for (const char* const name : site_observables) {
    if (name == std::string_view("noise_left")) continue;
    for (const Recorded& one : recorded(name, limit.depth))
      result.observables[one.key] = over_replicas(replicas, result.observe_steps, [&](std::size_t replica, int t) {
        const double value = r.fields[replica](row_of(one.block, name), t);
        return one.name.starts_with("rms_") ? std::sqrt(value) : value;
      });
  }
  warn_of_noise(limit, r.fields, result);
  result.observables["rms_f"] = over_replicas(replicas, result.observe_steps, [&](std::size_t replica, int t) {
    const MatrixXd f = f_at(r.f_per_replica[replica], t);
    return std::sqrt((spec.training.batch > 0 ? MatrixXd(f(Eigen::all, batch(t))) : f).array().square().mean());
  });
  for (const int t : result.kernel_steps)
    for (const auto& [name, kernel] : stored_kernels)
      for (const Recorded& one : recorded(name, limit.depth)) {
        MatrixXd stored = r.kernels.of(one.block, kernel).at_equal_time(t);
        if (spec.training.batch > 0) {
          const std::vector<int> rows = batch(t);
          stored = MatrixXd(stored(rows, rows));
          const VectorXd share = shares(rows);
          if (kernel == Kernel::D || kernel == Kernel::ghat) stored.array() *= (share * share.transpose()).array();
        }
        result.kernels[one.key].push_back(std::move(stored));
      }

  std::vector<std::string> missing;
  for (const std::string& name : selected_observables(spec))
    if (!result.observables.contains(recorded(name, limit.depth)[0].key)) missing.push_back(name);
  if (!missing.empty())
    result.warnings.push_back(
        fmt::format("output.observables: kernel iteration leaves out {}", fmt::join(missing, ", ")));
  if (data.x_test.cols() > 0) result.warnings.emplace_back("data.test: kernel iteration has no test curves");
  if (!distribution_steps(spec).empty())
    result.warnings.emplace_back("output.distributions_at: kernel iteration stores no distributions");
  if (r.report.passes_left_out > 0)
    result.warnings.push_back(fmt::format(
        "{} pass{} of a replica went astray and {} left out; iterations went on from what all batches had estimated, "
        "which takes more of them. Larger batches (sampling.neurons) or a lower optimizer.lr help",
        r.report.passes_left_out, r.report.passes_left_out > 1 ? "es" : "",
        r.report.passes_left_out > 1 ? "were" : "was"));
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace moe
