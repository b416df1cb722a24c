#include "validation/network_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "regimes/regime.hpp"
#include "support/distribution.hpp"
#include "support/observable.hpp"
#include "support/result_file.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using Shape = std::vector<std::size_t>;
using Names = std::vector<std::string>;

std::size_t count(Index n) { return static_cast<std::size_t>(n); }

/// Length of steps_every(every, T).
double recorded_times(int every, int T) { return std::ceil(static_cast<double>(T) / std::max(1, every)) + 1; }

/// Writes one group, with arrays over seeds whose rows may end early.
class GroupWriter {
 public:
  GroupWriter(H5Writer& file, std::string group, const std::vector<NetworkRun>& runs)
      : file_(file), group_(std::move(group)), runs_(runs) {}

  /// (seeds, n) from one vector per run.
  template <class Values>
  void curve(const std::string& name, std::size_t n, const std::string& description, Values&& values_of) {
    std::vector<double> table(runs_.size() * n, std::numeric_limits<double>::quiet_NaN());
    bool any = false;
    for (std::size_t s = 0; s < runs_.size(); ++s) {
      const std::vector<double>& values = values_of(runs_[s]);
      std::copy(values.begin(), values.end(), table.begin() + static_cast<std::ptrdiff_t>(s * n));
      any = any || !values.empty();
    }
    if (any) file_.dataset(group_ + "/" + name, {runs_.size(), n}, table.data(), description, {"seed", "step"});
  }

  /// (seeds, n, cols, rows) from one vector of column-major matrices (rows, cols) per run: the bytes of each stay as
  /// they are.
  template <class Matrices>
  void matrices(const std::string& name, std::size_t n, Index rows, Index cols, const std::string& description,
                const Names& dimensions, Matrices&& matrices_of) {
    const std::size_t each = count(rows * cols);
    std::vector<double> table(runs_.size() * n * each, std::numeric_limits<double>::quiet_NaN());
    for (std::size_t s = 0; s < runs_.size(); ++s) {
      auto out = table.begin() + static_cast<std::ptrdiff_t>(s * n * each);
      for (const MatrixXd& m : matrices_of(runs_[s])) out = std::copy(m.data(), m.data() + m.size(), out);
    }
    file_.dataset(group_ + "/" + name, {runs_.size(), n, count(cols), count(rows)}, table.data(), description,
                  dimensions);
  }

  /// (seeds, n, each...), or (seeds, n, L, each...), from one map of lists per run; `values(entry)` is a range of numbers.
  template <class Map, class Values>
  void lists(const std::string& folder, const std::vector<Recorded>& of_blocks, std::size_t n, const Shape& each,
             const Names& axes, const std::string& description, Map&& map_of, Values&& values) {
    std::size_t numbers = 1;
    for (const std::size_t k : each) numbers *= k;
    const std::size_t L = of_blocks.size();
    std::vector<double> table(runs_.size() * n * L * numbers, std::numeric_limits<double>::quiet_NaN());
    for (std::size_t s = 0; s < runs_.size(); ++s)
      for (std::size_t l = 0; l < L; ++l) {
        const auto found = map_of(runs_[s]).find(of_blocks[l].key);
        if (found == map_of(runs_[s]).end()) continue;
        for (std::size_t k = 0; k < found->second.size(); ++k) {
          const auto& from = values(found->second[k]);
          std::copy(from.begin(), from.end(),
                    table.begin() + static_cast<std::ptrdiff_t>(((s * n + k) * L + l) * numbers));
        }
      }
    Shape shape = {runs_.size(), n};
    Names dimensions = {"seed", "step"};
    if (L > 1) shape.push_back(L), dimensions.emplace_back("block");
    shape.insert(shape.end(), each.begin(), each.end());
    dimensions.insert(dimensions.end(), axes.begin(), axes.end());
    file_.dataset(group_ + "/" + folder + "/" + of_blocks[0].name, shape, table.data(), description, dimensions);
  }

  void steps_beside(const std::string& name, const std::vector<int>& steps, const std::string& description) {
    write_steps(file_, group_ + "/" + name, steps, description);
  }

  void integers(const std::string& name, const std::vector<std::int64_t>& values, const std::string& description) {
    file_.dataset(group_ + "/" + name, {values.size()}, values.data(), description, {"seed"});
  }

  /// final/NAME (seeds, axes..., rows, cols); matrix(run, i) is the i-th along the axes.
  template <class Matrix>
  void weights(const std::string& name, const Shape& axes, Index rows, Index cols, const std::string& description,
               Names dimensions, Matrix&& matrix) {
    std::size_t how_many = 1;
    for (const std::size_t k : axes) how_many *= k;
    std::vector<double> table;
    table.reserve(runs_.size() * how_many * count(rows * cols));
    for (const NetworkRun& run : runs_)
      for (std::size_t i = 0; i < how_many; ++i) {
        const MatrixXd transposed =
            matrix(run, static_cast<Index>(i)).transpose();  // its columns are the original's rows
        table.insert(table.end(), transposed.data(), transposed.data() + transposed.size());
      }
    Shape shape = {runs_.size()};
    shape.insert(shape.end(), axes.begin(), axes.end());
    shape.insert(shape.end(), {count(rows), count(cols)});
    dimensions.insert(dimensions.begin(), "seed");
    file_.dataset(group_ + "/final/" + name, shape, table.data(), description, dimensions);
  }

 private:
  H5Writer& file_;
  std::string group_;
  const std::vector<NetworkRun>& runs_;
};

bool every_step(const std::vector<int>& steps, int T) { return steps.size() == static_cast<std::size_t>(T) + 1; }

void write_weights(GroupWriter& group, const NetworkShape& s, bool with_bias) {
  const Index Ne = s.Ne, M = s.M;
  const bool deep = s.L > 1;
  const auto axes = [&](Shape more) {
    if (deep) more.insert(more.begin(), count(s.L));
    return more;
  };
  const auto names = [&](Names more) {
    if (deep) more.insert(more.begin(), "block");
    return more;
  };
  group.weights("w_in", {}, s.N, s.D, "trained W_in (T1)", {"neuron", "input"},
                [](const NetworkRun& r, Index) { return r.final_weights.w_in; });
  group.weights("router", axes({}), s.M, s.N, "trained router Q (T2)", names({"expert", "neuron"}),
                [M](const NetworkRun& r, Index l) { return MatrixXd(r.final_weights.router.middleRows(l * M, M)); });
  if (with_bias)
    group.weights("selection_bias", {}, s.L, s.M, "bias of the selection of experts (T32)", {"block", "expert"},
                  [](const NetworkRun& r, Index) { return MatrixXd(r.selection_bias.transpose()); });
  group.weights("expert_in", axes({count(M)}), s.Ne, s.N, "trained A_i (T3)", names({"expert", "hidden", "neuron"}),
                [Ne](const NetworkRun& r, Index i) { return MatrixXd(r.final_weights.A(i, Ne)); });
  group.weights("expert_out", axes({count(M)}), s.N, s.Ne, "trained B_i (T4)", names({"expert", "neuron", "hidden"}),
                [Ne](const NetworkRun& r, Index i) { return MatrixXd(r.final_weights.B(i, Ne)); });
  group.weights("readout", {}, s.C, s.N, "trained W_out (T5)", {"output", "neuron"},
                [](const NetworkRun& r, Index) { return r.final_weights.readout; });
}

}  // namespace

bool outputs_fit(const RunSpec& spec, const Dataset& data) {
  const double values = static_cast<double>(spec.network.seeds) *
                        recorded_times(eval_interval(spec.training), spec.training.steps) *
                        static_cast<double>(data.y.size());
  return values * sizeof(double) <= static_cast<double>(optional_dataset_bytes);
}

double network_file_bytes(const RunSpec& spec, const Dataset& data) {
  const int T = spec.training.steps, L = spec.model.depth;
  const double P = spec.training.batch > 0 ? spec.training.batch : static_cast<double>(data.x.cols());
  const double outputs = outputs_fit(spec, data) ? static_cast<double>(data.y.size()) : 0;
  double numbers = recorded_times(eval_interval(spec.training), T) * (2 + outputs);  // of one seed
  if (data.x_test.cols() > 0) numbers += recorded_times(test_interval(spec.training), T) * 2;
  if (spec.training.batch > 0) numbers += T;
  numbers += recorded_times(observe_interval(spec), T) *
             static_cast<double>(recorded_all(selected_observables(spec), L).size());
  const auto of_blocks = [&](const auto& table) {
    double n = 0;
    for (const ObservableInfo& info : table) n += static_cast<double>(recorded(info.name, L).size());
    return n;
  };
  numbers += static_cast<double>(kernel_steps(spec).size()) * of_blocks(kernel_table) * P * P;
  numbers += static_cast<double>(distribution_steps(spec).size()) * of_blocks(distribution_table) * distribution_bins;
  double total = numbers * spec.network.seeds * static_cast<double>(spec.network.widths.size());
  if (spec.output.weights)
    for (const int width : spec.network.widths) {
      const Sizes s = network_sizes(spec, width, static_cast<int>(data.x.rows()));
      total += spec.network.seeds *
               (s.N * s.D + s.L * (s.M * s.N + 2 * s.M * s.Ne * s.N) + static_cast<double>(data.y.rows()) * s.N);
    }
  for (const auto* m : {&data.x, &data.y})
    if (static_cast<std::size_t>(m->size()) * sizeof(double) <= optional_dataset_bytes)
      total += static_cast<double>(m->size());
  return total * sizeof(double);
}

void write_network_group(H5Writer& file, const RunSpec& spec, const Dataset& data,
                         const std::vector<NetworkRun>& runs) {
  const NetworkShape& shape = runs.front().shape;
  const std::string path = fmt::format("/network/N{}", shape.N);
  const int T = spec.training.steps;
  const Index P = data.x.cols(), C = data.y.rows();
  GroupWriter group(file, path, runs);

  const std::vector<int> evaluated = eval_steps(spec.training);
  const std::size_t n = evaluated.size();
  group.curve(
      "loss", n, "loss of the whole training set before update t", [](const auto& r) -> auto& { return r.loss; });
  group.curve(
      "accuracy", n, "share of training samples whose largest output (sign for one output) is right",
      [](const auto& r) -> auto& { return r.accuracy; });
  if (!every_step(evaluated, T)) group.steps_beside("eval_steps", evaluated, "steps of loss, accuracy and f");
  const bool kept = std::any_of(runs.begin(), runs.end(), [](const auto& r) { return !r.f.empty(); });
  if (kept)
    group.matrices(
        "f", n, C, P, "outputs on the training set (T5)", {"seed", "step", "sample", "output"},
        [](const auto& r) -> auto& { return r.f; });
  if (data.x_test.cols() > 0) {
    const std::vector<int> tested = test_steps(spec.training);
    group.curve(
        "test_loss", tested.size(), "loss of the test set", [](const auto& r) -> auto& { return r.test_loss; });
    group.curve(
        "test_accuracy", tested.size(), "share of test samples that are right",
        [](const auto& r) -> auto& { return r.test_accuracy; });
    group.steps_beside("test_steps", tested, "steps of test_loss and test_accuracy");
  }
  group.curve(
      "batch_loss", static_cast<std::size_t>(T), "loss of each step's own batch before its update",
      [](const auto& r) -> auto& { return r.batch_loss; });

  const std::vector<int> observed = observe_steps(spec);
  bool observables = false;
  for (const auto& info : observable_table) {
    const auto of_blocks = recorded(info.name, shape.L);
    if (!runs.front().observables.contains(of_blocks[0].key)) continue;
    observables = true;
    group.lists(
        "observables", of_blocks, observed.size(), {}, {}, info.description,
        [](const auto& r) -> auto& { return r.observables; }, [](double value) { return std::array{value}; });
  }
  if (observables && !every_step(observed, T))
    group.steps_beside("observables/observe_steps", observed, "steps of the observables");

  const std::vector<int> kernels_at = kernel_steps(spec);
  if (!kernels_at.empty()) {
    const Index P_step = spec.training.batch > 0 ? Index{spec.training.batch} : P;
    for (const auto& info : kernel_table)
      group.lists(
          "kernels", recorded(info.name, shape.L), kernels_at.size(), {count(P_step), count(P_step)},
          {"sample", "sample"}, info.description, [](const auto& r) -> auto& { return r.kernels; },
          [](const MatrixXd& m) { return m.reshaped(); });
    group.steps_beside("kernels/steps", kernels_at, "steps of the kernels");
  }
  const std::vector<int> distributions_at = distribution_steps(spec);
  if (!distributions_at.empty()) {
    for (const auto& info : distribution_table)
      group.lists(
          "distributions", recorded(info.name, shape.L), distributions_at.size(), {distribution_bins}, {"bin"},
          std::string(info.description) + ": share of each bin", [](const auto& r) -> auto& { return r.distributions; },
          [](const std::vector<double>& shares) -> auto& { return shares; });
    write_distribution_axes(file, path + "/distributions", distributions_at);
  }
  if (spec.output.weights) write_weights(group, shape, runs.front().selection_bias.size() > 0);

  if (spec.training.dynamics == Dynamics::flow) write_flow_times(file, path + "/times", spec);

  std::vector<std::int64_t> seeds, failed, converged;
  for (const NetworkRun& run : runs) {
    seeds.push_back(static_cast<std::int64_t>(run.seed));
    failed.push_back(run.failure ? run.failure->step : -1);
    converged.push_back(run.converged_at);
  }
  group.integers("seed", seeds, "seed of each row");
  group.integers("failed_step", failed,
                 "step at which NaN, infinity or a loss that had grown too far ended the run; -1: none did");
  if (spec.training.stop_at_loss > 0)
    group.integers("converged_step", converged,
                   "step at which the loss reached training.stop_at_loss, the row's last; -1: it did not");

  file.attribute(path, "N", std::int64_t{shape.N});
  file.attribute(path, "M", std::int64_t{shape.M});
  file.attribute(path, "N_e", std::int64_t{shape.Ne});
  file.attribute(path, "K", std::int64_t{shape.K});
  file.attribute(path, "L", std::int64_t{shape.L});
}

void write_network_file(const std::string& path, const std::string& program, const RunSpec& spec, const Dataset& data,
                        const std::vector<std::vector<NetworkRun>>& runs) {
  H5Writer file(path);
  write_root_attributes(file, "network", program, spec);
  write_data(file, data.x, data.y);
  for (const auto& of_width : runs) write_network_group(file, spec, data, of_width);
  file.commit();
}

}  // namespace moe
