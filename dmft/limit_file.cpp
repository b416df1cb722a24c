#include "dmft/limit_file.hpp"

#include <fmt/format.h>

#include <limits>

#include "dmft/kernel_set.hpp"
#include "support/distribution.hpp"
#include "support/observable.hpp"
#include "support/result_file.hpp"

namespace moe {

namespace {

class LimitWriter {
 public:
  LimitWriter(H5Writer& file, const LimitResult& result, int depth) : file_(file), result_(result), depth_(depth) {}

  void curve(const std::string& name, const Curve& c, const std::string& description) {
    if (c.mean.empty()) return;
    file_.dataset(name, {c.mean.size()}, c.mean.data(),
                  description + fmt::format(", mean over {} replicas", result_.replicas), {"step"});
    file_.dataset(name + "_sem", {c.sem.size()}, c.sem.data(), "standard error of that mean (NaN for one replica)",
                  {"step"});
  }

  /// (T+1), or (T+1, L) for what every one of L blocks has.
  void observable(const std::string& name, const std::string& description) {
    const auto of_blocks = recorded(name, depth_);
    const std::string path = "/limit/observables/" + name;
    if (of_blocks.size() == 1) return curve(path, result_.observables.at(of_blocks[0].key), description);
    const std::size_t n = result_.observables.at(of_blocks[0].key).mean.size();
    if (n == 0) return;
    const auto write = [&](const std::string& to, const std::string& text, std::vector<double> Curve::*part) {
      std::vector<double> table;
      for (std::size_t t = 0; t < n; ++t)
        for (const Recorded& one : of_blocks) table.push_back((result_.observables.at(one.key).*part)[t]);
      file_.dataset(to, {n, of_blocks.size()}, table.data(), text, {"step", "block"});
    };
    write(path, description + fmt::format(", of every block, mean over {} replicas", result_.replicas), &Curve::mean);
    write(path + "_sem", "standard error of that mean (NaN for one replica)", &Curve::sem);
  }

  /// (n, P, X) from matrices (X, P), column-major: their bytes are the row-major (P, X).
  void matrices(const std::string& name, const std::vector<Eigen::MatrixXd>& list, const std::string& description,
                const std::string& last_dimension) {
    if (list.empty()) return;
    std::vector<double> flat;
    for (const auto& m : list) flat.insert(flat.end(), m.data(), m.data() + m.size());
    file_.dataset(name,
                  {list.size(), static_cast<std::size_t>(list[0].cols()), static_cast<std::size_t>(list[0].rows())},
                  flat.data(), description, {"step", "sample", last_dimension});
  }

  /// (n, P, P), or (n, L, P, P).
  void kernel(const std::string& name, const std::string& description) {
    const auto of_blocks = recorded(name, depth_);
    const std::string path = "/limit/kernels/" + name;
    const auto& first = result_.kernels.at(of_blocks[0].key);
    if (of_blocks.size() == 1 || first.empty()) return matrices(path, first, description, "sample_2");
    std::vector<double> flat;
    for (std::size_t k = 0; k < first.size(); ++k)
      for (const Recorded& one : of_blocks) {
        const Eigen::MatrixXd& m = result_.kernels.at(one.key)[k];
        flat.insert(flat.end(), m.data(), m.data() + m.size());
      }
    const auto P = static_cast<std::size_t>(first[0].rows());
    file_.dataset(path, {first.size(), of_blocks.size(), P, P}, flat.data(), description,
                  {"step", "block", "sample", "sample_2"});
  }

 private:
  H5Writer& file_;
  const LimitResult& result_;
  int depth_;
};

/// /limit/distributions: share of every bin, mean over replicas and its standard error.
void write_distributions(H5Writer& file, const LimitResult& result, int depth) {
  if (result.distributions.empty()) return;
  for (const auto& info : distribution_table) {
    const auto of_blocks = recorded(info.name, depth);
    const std::size_t n = result.distributions.at(of_blocks[0].key).size();
    const auto write = [&](const std::string& name, const std::string& description, std::vector<double> Curve::*part) {
      std::vector<double> flat;
      for (std::size_t k = 0; k < n; ++k)
        for (const Recorded& one : of_blocks) {
          const std::vector<double>& shares = result.distributions.at(one.key)[k].*part;
          flat.insert(flat.end(), shares.begin(), shares.end());
        }
      const std::string path = "/limit/distributions/" + name;
      if (of_blocks.size() == 1)
        file.dataset(path, {n, distribution_bins}, flat.data(), description, {"step", "bin"});
      else
        file.dataset(path, {n, of_blocks.size(), distribution_bins}, flat.data(), description,
                     {"step", "block", "bin"});
    };
    write(info.name, std::string(info.description) + ": share of each bin, mean over replicas", &Curve::mean);
    write(info.name + std::string("_sem"), "standard error of that mean (NaN for one replica)", &Curve::sem);
  }
  write_distribution_axes(file, "/limit/distributions", result.distribution_steps);
}

bool every_step(const std::vector<int>& steps) {
  for (std::size_t k = 0; k < steps.size(); ++k)
    if (steps[k] != static_cast<int>(k)) return false;
  return true;
}

struct Description {
  const char* name;
  const char* text;
};
constexpr Description diagnostics[] = {
    {"rank_phi", "rank of the query basis of phi (neurons), largest over blocks"},
    {"rank_D", "rank of the query basis of D (neurons), largest over blocks"},
    {"rank_ghat", "largest rank of a query basis of ghat (expert side of A)"},
    {"rank_Gv", "largest rank of a query basis of G v (expert side of B)"},
    {"dense_fraction", "share of expert operators in dense form (T27)"},
    {"step_seconds", "wall time of the step"},
    {"flow_evaluations", "right-hand sides of the flow between two recorded states"},
    {"flow_rejected", "steps of the flow that the error control rejected"},
};

/// Kernel iteration has some of them only, and says which it lacks.
bool has_observable(const LimitResult& result, const std::string& name) {
  return !result.summary.contains("iteration_floor") || result.observables.contains(name);
}

/// How kernels came to the Monte Carlo floor, and the certificate that they are self-consistent.
void write_iteration(H5Writer& file, const LimitResult& result) {
  const auto write = [&](const char* name, const std::string& description, const char* dimension) {
    const std::vector<double>& values = result.diagnostics.at(name);
    file.dataset(std::string("/limit/diagnostics/") + name, {values.size()}, values.data(), description, {dimension});
  };
  write("iteration_last_loss", "loss of the last step in each iteration, mean over replicas", "iteration");
  write("iteration_loss_change",
        "change of the loss in an iteration over its scatter over replicas, largest over steps", "iteration");
  write("iteration_kernel_change",
        "change of a kernel in an iteration over its scatter over replicas, largest over kernels", "iteration");
  const std::string kernels = fmt::format("{}", fmt::join(kernel_names, ", "));
  write("kernel_residual",
        "relative change of each kernel by one iteration with fresh random numbers, largest over blocks (NaN: not in "
        "this limit): " +
            kernels,
        "kernel");
  write("kernel_residual_noise", "what sampling errors alone let one expect of kernel_residual", "kernel");
}

}  // namespace

void write_limit_group(H5Writer& file, const RunSpec& spec, const LimitResult& result) {
  LimitWriter limit(file, result, spec.model.depth);
  limit.curve("/limit/loss", result.loss, "training loss");
  limit.curve("/limit/accuracy", result.accuracy, "share of training samples classified rightly");
  limit.curve("/limit/test_loss", result.test_loss, "test loss, by evaluation-only queries");
  limit.curve("/limit/test_accuracy", result.test_accuracy, "share of test samples classified rightly");
  limit.curve("/limit/batch_loss", result.batch_loss, "loss of each step's own batch");
  if (!every_step(result.eval_steps))
    write_steps(file, "/limit/eval_steps", result.eval_steps, "steps of loss, accuracy and f");
  if (!result.test_loss.mean.empty())
    write_steps(file, "/limit/test_steps", result.test_steps, "steps of test_loss and test_accuracy");
  if (spec.training.dynamics == Dynamics::flow) write_flow_times(file, "/limit/times", spec);
  limit.matrices("/limit/f", result.f, "outputs f on the training set, mean over replicas", "output");

  std::vector<double> per_replica;
  for (const auto& row : result.loss_per_replica)
    per_replica.insert(per_replica.end(), row.begin(),
                       row.begin() + static_cast<std::ptrdiff_t>(result.loss.mean.size()));
  file.dataset("/limit/loss_per_replica", {result.loss_per_replica.size(), result.loss.mean.size()}, per_replica.data(),
               "training loss of each replica", {"replica", "step"});

  const auto wanted = selected_observables(spec);
  for (const auto& info : observable_table)
    for (const auto& name : wanted)
      if (name == info.name && has_observable(result, name)) limit.observable(name, info.description);
  if (!wanted.empty() && !every_step(result.observe_steps))
    write_steps(file, "/limit/observables/observe_steps", result.observe_steps, "steps of the observables");
  if (!result.kernels.empty())
    for (const auto& info : kernel_table) limit.kernel(info.name, info.description);
  if (!result.kernels.empty()) write_steps(file, "/limit/kernels/steps", result.kernel_steps, "steps of the kernels");
  write_distributions(file, result, spec.model.depth);

  for (const auto& d : diagnostics)
    if (const auto found = result.diagnostics.find(d.name); found != result.diagnostics.end() && !found->second.empty())
      file.dataset(std::string("/limit/diagnostics/") + d.name, {found->second.size()}, found->second.data(),
                   std::string(d.text) + ", mean over replicas", {"step"});
  const auto scalar = [&](const std::string& name, double value, const std::string& description) {
    file.dataset("/limit/diagnostics/" + name, {}, &value, description, {});
  };
  if (result.summary.contains("iteration_floor")) {
    write_iteration(file, result);
    scalar("site_batches", result.summary.at("site_batches"), "batches of sites of each replica in an iteration");
    scalar("noise_left", result.summary.at("noise_left"),
           "most that noise of responses adds to the variance of a block's fields, relative, at any step (theory.md, "
           "6.2)");
    scalar("iteration_draws", result.summary.at("iteration_draws"), "sets of random numbers that were averaged over");
    scalar("iteration_floor", result.summary.at("iteration_floor"), "iteration whose change is a tenth of the scatter");
  } else {
    scalar("sample_ratio_defect", result.summary.at("sample_ratio_defect"),
           "largest relative error of a new direction's variance from sample counts out of ratio (theory section 6)");
    scalar("dense_since_step", result.summary.at("dense_since_step"),
           "first step after which an expert operator was dense; -1: never");
  }
  for (const char* name : {"smallest_ess_forward", "smallest_ess_backward"})
    if (const auto found = result.summary.find(name); found != result.summary.end())
      scalar(name, found->second, "smallest effective number of experts over tokens and steps");

  file.attribute("/limit", "neurons", std::int64_t{result.counts.neurons});
  file.attribute("/limit", "experts", std::int64_t{result.counts.experts});
  file.attribute("/limit", "hidden", std::int64_t{result.counts.hidden});
  file.attribute("/limit", "active", std::int64_t{result.counts.active});
  file.attribute("/limit", "replicas", std::int64_t{result.replicas});
  file.attribute("/limit", "moment_matching",
                 !result.matching    ? "off"
                 : result.lists_hold ? "on"
                                     : "on, lists too short for the first step");
  file.attribute("/limit", "random_limit", result.random_limit ? "yes: errors are over realisations" : "no");
  file.attribute("/limit", "seconds", result.seconds);
  file.attribute("/limit", "status",
                 result.failure             ? result.failure->what()
                 : result.interrupted       ? "interrupted"
                 : result.converged_at >= 0 ? fmt::format("converged: loss {:g} reached at step {}",
                                                          spec.training.stop_at_loss, result.converged_at)
                                            : "complete");
  std::string warnings;
  for (const auto& w : result.warnings) warnings += w + "\n";
  file.attribute("/limit", "warnings", warnings);
}

void write_limit_file(const std::string& path, const std::string& program, const RunSpec& spec, const Dataset& data,
                      const LimitResult& result) {
  H5Writer file(path);
  write_root_attributes(file, "limit", program, spec);
  write_data(file, data.x, data.y);
  write_limit_group(file, spec, result);
  file.commit();
}

}  // namespace moe
