#include "dmft/solve.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>

#include "dmft/observer.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// What one replica recorded, [step in its list].
struct Record {
  std::vector<double> loss, accuracy, test_loss, test_accuracy, batch_loss;
  std::vector<Eigen::MatrixXd> f;
  std::vector<std::vector<double>> observables;
  std::map<std::string, std::vector<Eigen::MatrixXd>> kernels;
  std::map<std::string, std::vector<double>> diagnostics;
  double defect = 0;
  int dense_since = -1;
  std::optional<NumericsError> failure;
};

struct Plan {
  const RunSpec* spec;
  const Dataset* data;
  LimitSpec limit;
  std::vector<int> eval_steps, test_steps, observe_steps, kernel_steps;
  std::vector<std::string> observables;  ///< selected ones, and those that warnings need
  bool keep_f = true;
};

bool contains(const std::vector<int>& sorted, int t) { return std::binary_search(sorted.begin(), sorted.end(), t); }

/// Throws NumericsError naming the first field, in the order of the computation, that is not finite.
template <class B>
void check_finite(Replica<B>& r, int step) {
  const double total = r.outputs().sum();
  const auto bad = [](typename B::View a) {
    return !std::isfinite(B::sum(a.rows, a.cols, [=](Index i, Index j) { return a(i, j); }));
  };
  if (std::isfinite(total) && !bad(r.xi())) return;
  BlockFields<B>& f = r.block().fields();
  const std::pair<const char*, typename B::View> fields[] = {{"h", r.h()},         {"r", f.r},     {"u", f.u},
                                                             {"y", r.y()},         {"D", r.D()},   {"zeta", f.zeta},
                                                             {"rho", f.rho},       {"xi", r.xi()}};
  for (const auto& [name, view] : fields)
    if (bad(view)) throw NumericsError(step, name, "is not finite any more. Lower optimizer.lr");
  throw NumericsError(step, "f", "is not finite any more. Lower optimizer.lr");
}

Eigen::MatrixXd columns(const Eigen::MatrixXd& from, const std::vector<int>& rows) {
  Eigen::MatrixXd to(from.rows(), static_cast<Eigen::Index>(rows.size()));
  for (std::size_t j = 0; j < rows.size(); ++j) to.col(static_cast<Eigen::Index>(j)) = from.col(rows[j]);
  return to;
}

template <class B>
void record_diagnostics(Replica<B>& r, Record& record, int step, double elapsed) {
  Block<B>& block = r.block();
  double rank_experts_in = 0, rank_experts_out = 0, dense = 0, operators = 0;
  const auto of = [&](ExpertMatrix<B>& m, double& rank) {
    m.for_each_basis([&](QueryBasis<B>& b) { rank = std::max(rank, static_cast<double>(b.rank())); });
    m.for_each_operator([&](Operator<B>& o) {
      record.defect = std::max(record.defect, o.sample_ratio_defect());
      dense += o.dense() ? 1 : 0;
      operators += 1;
    });
  };
  of(block.expert_in(), rank_experts_in);
  of(block.expert_out(), rank_experts_out);
  if (dense > 0 && record.dense_since < 0) record.dense_since = step;
  record.diagnostics["rank_phi"].push_back(static_cast<double>(block.phi_rank()));
  record.diagnostics["rank_D"].push_back(static_cast<double>(block.D_rank()));
  record.diagnostics["rank_ghat"].push_back(rank_experts_in);
  record.diagnostics["rank_Gv"].push_back(rank_experts_out);
  record.diagnostics["dense_fraction"].push_back(dense / operators);
  record.diagnostics["step_seconds"].push_back(elapsed);
}

template <class B>
void march(const Plan& plan, int index, const SolveOptions& options, const std::atomic<bool>& stop, Record& record) {
  const RunSpec& spec = *plan.spec;
  const Dataset& data = *plan.data;
  const int T = spec.training.steps;
  const int P_all = static_cast<int>(data.x.cols());
  const bool full_batch = batch_rows(spec, P_all, 0).empty();
  const Index P = full_batch ? P_all : static_cast<Index>(batch_rows(spec, P_all, 0).size());
  Replica<B> replica(plan.limit, data.x.rows(), data.y.rows(), P, static_cast<std::uint32_t>(index));
  Observer<B> observer(plan.observables, full_batch);
  if (full_batch) replica.set_batch(data.x, data.y);
  double first_loss = 0;
  for (int t = 0; t <= T && !stop; ++t) {
    const auto start = Clock::now();
    if (!full_batch) {
      const auto rows = batch_rows(spec, P_all, t);
      replica.set_batch(columns(data.x, rows), columns(data.y, rows));
    }
    replica.forward();
    replica.backward();
    check_finite(replica, t);
    const double loss = replica.loss();
    if (t == 0) first_loss = std::max(loss, 1.0);
    if (loss > 1e6 * first_loss) throw NumericsError(t, "loss", fmt::format("has grown to {:.3g}: training diverges. Lower optimizer.lr", loss));
    if (!full_batch && t < T) record.batch_loss.push_back(loss);
    if (contains(plan.eval_steps, t)) {
      const Eigen::MatrixXd f = full_batch ? replica.outputs() : replica.evaluate(data.x);
      record.loss.push_back(loss_value(spec.training.loss, f, data.y));
      record.accuracy.push_back(accuracy(f, data.y));
      if (plan.keep_f) record.f.push_back(f);
    }
    if (contains(plan.test_steps, t)) {
      const Eigen::MatrixXd f = replica.evaluate(data.x_test);
      record.test_loss.push_back(loss_value(spec.training.loss, f, data.y_test));
      record.test_accuracy.push_back(accuracy(f, data.y_test));
    }
    if (contains(plan.observe_steps, t)) record.observables.push_back(observer.measure(replica));
    if (contains(plan.kernel_steps, t))
      for (const auto& kernel : kernel_table) record.kernels[kernel.name].push_back(Observer<B>::kernel(replica, kernel.name));
    if (t < T) {
      replica.update();
      record_diagnostics(replica, record, t, seconds_since(start));
    }
    if (options.on_step) options.on_step(index, t, loss);
  }
}

/// Root mean square over pairs of sites of sum_mu z_mu x_mu^T: the entries that an entrywise rule sees.
template <class B>
double gradient_size(typename B::View z, typename B::View x) {
  return std::sqrt(B::gram(z).cwiseProduct(B::gram(x)).sum());
}

/// Which vanishing gradients exceed eps on plain samples at t = 0, "tensor (size)" each: a pilot of one step.
std::vector<std::string> noisy_gradients(const RunSpec& spec, const Dataset& data, LimitSpec limit) {
  using B = Cpu<float>;
  std::vector<std::string> noisy;
  const auto names = vanishing_gradients(limit);
  if (names.empty() || is_linear(spec.optimizer.name)) return noisy;
  limit.block.matching = false;
  auto rows = batch_rows(spec, static_cast<int>(data.x.cols()), 0);
  const Eigen::MatrixXd x = rows.empty() ? data.x : columns(data.x, rows), y = rows.empty() ? data.y : columns(data.y, rows);
  Replica<B> pilot(limit, x.rows(), y.rows(), x.cols(), 0);
  pilot.set_batch(x, y);
  pilot.forward();
  pilot.backward();
  BlockFields<B>& f = pilot.block().fields();
  B::Matrix inputs(x.rows(), x.cols()), delta(y.rows(), y.cols());
  B::upload(x, inputs);
  B::upload(loss_delta(spec.training.loss, pilot.outputs(), y), delta);
  for (const auto& name : names) {
    double size = 0, eps = 0;
    if (name == "input") size = gradient_size<B>(pilot.xi(), inputs), eps = limit.input.eps;
    if (name == "router") size = gradient_size<B>(f.rho, pilot.phi()), eps = limit.block.router.eps;
    if (name == "expert_in") size = gradient_size<B>(f.ghat, pilot.phi()), eps = limit.block.expert_in.eps;
    if (name == "readout") size = gradient_size<B>(pilot.y(), delta), eps = limit.readout.eps;
    if (eps < size) noisy.push_back(fmt::format("{} ({:.1e})", name, size));
  }
  return noisy;
}

Curve statistics(const std::vector<std::vector<double>>& rows, std::size_t length) {
  Curve curve;
  const double n = static_cast<double>(rows.size());
  for (std::size_t t = 0; t < length; ++t) {
    double mean = 0, square = 0;
    for (const auto& row : rows) mean += row[t] / n;
    for (const auto& row : rows) square += (row[t] - mean) * (row[t] - mean);
    curve.mean.push_back(mean);
    curve.sem.push_back(rows.size() > 1 ? std::sqrt(square / (n - 1) / n) : std::nan(""));
  }
  return curve;
}

template <class Get>
Curve statistics_of(const std::vector<Record>& records, Get get) {
  std::vector<std::vector<double>> rows;
  std::size_t length = SIZE_MAX;
  for (const auto& r : records) {
    rows.push_back(get(r));
    length = std::min(length, rows.back().size());
  }
  return statistics(rows, length);
}

std::vector<Eigen::MatrixXd> mean_matrices(const std::vector<const std::vector<Eigen::MatrixXd>*>& lists) {
  std::size_t length = SIZE_MAX;
  for (const auto* list : lists) length = std::min(length, list->size());
  std::vector<Eigen::MatrixXd> mean;
  for (std::size_t t = 0; t < length; ++t) {
    Eigen::MatrixXd total = (*lists.front())[t];
    for (std::size_t k = 1; k < lists.size(); ++k) total += (*lists[k])[t];
    mean.push_back(total / static_cast<double>(lists.size()));
  }
  return mean;
}

void collect(const Plan& plan, const std::vector<Record>& records, LimitResult& result) {
  result.eval_steps = plan.eval_steps;
  result.test_steps = plan.test_steps;
  result.observe_steps = plan.observe_steps;
  result.kernel_steps = plan.kernel_steps;
  result.loss = statistics_of(records, [](const Record& r) { return r.loss; });
  result.accuracy = statistics_of(records, [](const Record& r) { return r.accuracy; });
  result.test_loss = statistics_of(records, [](const Record& r) { return r.test_loss; });
  result.test_accuracy = statistics_of(records, [](const Record& r) { return r.test_accuracy; });
  result.batch_loss = statistics_of(records, [](const Record& r) { return r.batch_loss; });
  const auto lists = [&](auto get) {
    std::vector<const std::vector<Eigen::MatrixXd>*> all;
    for (const auto& r : records) all.push_back(get(r));
    return all;
  };
  if (plan.keep_f) result.f = mean_matrices(lists([](const Record& r) { return &r.f; }));
  if (!plan.kernel_steps.empty())
    for (const auto& [name, unused] : records.front().kernels)
      result.kernels[name] = mean_matrices(lists([&, key = name](const Record& r) { return &r.kernels.at(key); }));
  for (std::size_t k = 0; k < plan.observables.size(); ++k)
    result.observables[plan.observables[k]] = statistics_of(records, [k](const Record& r) {
      std::vector<double> row;
      for (const auto& values : r.observables) row.push_back(values[k]);
      return row;
    });
  for (const auto& [name, unused] : records.front().diagnostics)
    result.diagnostics[name] = statistics_of(records, [key = name](const Record& r) { return r.diagnostics.at(key); }).mean;
  for (const auto& r : records) {
    result.loss_per_replica.push_back(r.loss);
    result.summary["sample_ratio_defect"] = std::max(result.summary["sample_ratio_defect"], r.defect);
    if (r.failure && (!result.failure || r.failure->step < result.failure->step)) result.failure = r.failure;
  }
  result.summary["dense_since_step"] = records.front().dense_since;
}

void truncate_to_failure(LimitResult& result) {
  const auto cut = [](std::vector<int>& steps, std::size_t length) { steps.resize(std::min(steps.size(), length)); };
  cut(result.eval_steps, result.loss.mean.size());
  cut(result.test_steps, result.test_loss.mean.size());
  if (!result.observables.empty()) cut(result.observe_steps, result.observables.begin()->second.mean.size());
  if (!result.kernels.empty()) cut(result.kernel_steps, result.kernels.begin()->second.size());
}

void warn(const Plan& plan, LimitResult& result) {
  const double defect = result.summary["sample_ratio_defect"];
  const LimitConstants& c = plan.limit.block.constants;
  const bool in_ratio_possible = c.expert_in.chi2 > 0 && c.expert_in.beta2 > 0;
  if (defect > 0.02)
    result.warnings.push_back(fmt::format(
        "sample counts: the variance of a new direction was off by {:.1f} % ({}){}", 100 * defect,
        in_ratio_possible ? "counts out of the network's ratio" : "a one-sided matrix has no exact ratio",
        defect > 0.2 ? "; the counts bias the result: raise sampling.neurons, or leave sampling.experts and sampling.hidden at 0"
                     : ""));
  const auto smallest = [&](const char* name) {
    const auto& mean = result.observables.at(name).mean;
    double low = HUGE_VAL;
    for (double v : mean) low = v > 0 ? std::min(low, v) : low;
    return low;
  };
  for (const char* name : {"ess_forward", "ess_backward"}) {
    const double ess = smallest(name);
    if (!std::isfinite(ess)) continue;
    result.summary[std::string("smallest_") + name] = ess;
    if (plan.limit.block.experts_sampled && ess < 0.05 * result.counts.active)
      result.warnings.push_back(fmt::format(
          "{}: a token's average over experts rests on {:.1f} effective samples of {} active ones; networks of practical size "
          "may be far from this limit (docs/theory.md, section 6)",
          name, ess, result.counts.active));
  }
  if (result.random_limit)
    result.warnings.emplace_back(
        "regime I with top-K: the limit is a random variable (docs/theory.md, section 6); errors are over realisations");
}

}  // namespace

LimitResult solve_limit(const RunSpec& spec, const Dataset& data, const SolveOptions& options) {
  const auto start = Clock::now();
  LimitResult result;
  Faults faults;
  Plan plan{&spec, &data, limit_spec(spec, static_cast<int>(data.x.rows()), faults, result.warnings), {}, {}, {}, {}, {}, true};
  faults.throw_if_any();
  plan.eval_steps = eval_steps(spec.training);
  if (data.x_test.cols() > 0) plan.test_steps = test_steps(spec.training);
  plan.observe_steps = observe_steps(spec);
  plan.kernel_steps = kernel_steps(spec);
  plan.observables = selected_observables(spec.output);
  for (const char* needed : {"ess_forward", "ess_backward"})
    if (std::find(plan.observables.begin(), plan.observables.end(), needed) == plan.observables.end())
      plan.observables.emplace_back(needed);
  plan.keep_f = plan.eval_steps.size() * static_cast<std::size_t>(data.y.size()) * sizeof(double) <= (std::size_t{64} << 20);

  result.counts = plan.limit.block.counts;
  result.constants = plan.limit.block.constants;
  result.random_limit = !plan.limit.block.experts_sampled && plan.limit.block.gate.topk &&
                        plan.limit.block.gate.active < result.counts.experts;
  bool matching = spec.sampling.matching != Matching::off;
  if (spec.sampling.matching == Matching::automatic) {
    if (result.random_limit) matching = false;
    const auto noisy = noisy_gradients(spec, data, plan.limit);
    if (!noisy.empty()) {
      matching = false;
      result.warnings.push_back(
          fmt::format("eps = {:g} is below the Monte Carlo size of gradients that vanish in the limit: {}. Samples are drawn plainly; early "
                      "steps then depend on their number as networks do on N (docs/theory.md, section 5). eps >= 0.02 avoids this",
                      spec.optimizer.eps, fmt::join(noisy, ", ")));
    }
  }
  plan.limit.block.matching = result.matching = matching;

  const int replicas = spec.sampling.replicas;
  const int all = options.threads > 0 ? options.threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const int workers = std::min(all, replicas);
  std::vector<Record> records(static_cast<std::size_t>(replicas));
  std::atomic<int> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
  std::mutex error_mutex;
  {
    std::vector<std::jthread> pool;
    for (int w = 0; w < workers; ++w)
      pool.emplace_back([&] {
        set_operation_threads(std::max(1, all / workers));
        for (int k = next++; k < replicas && !stop; k = next++) {
          Record& record = records[static_cast<std::size_t>(k)];
          try {
            if (spec.sampling.precision == Precision::float32)
              march<Cpu<float>>(plan, k, options, stop, record);
            else
              march<Cpu<double>>(plan, k, options, stop, record);
          } catch (const NumericsError& e) {
            record.failure = e;
          } catch (...) {
            const std::lock_guard lock(error_mutex);
            if (!error) error = std::current_exception();
            stop = true;
          }
        }
      });
  }
  if (error) std::rethrow_exception(error);
  collect(plan, records, result);
  truncate_to_failure(result);
  warn(plan, result);
  result.seconds = seconds_since(start);
  return result;
}

}  // namespace moe
