/// Finite Mixture-of-Experts networks (T1)-(T5), trained in the precision of sampling.precision on CPU or GPU: what the limit is judged
/// by.
/// Shares description, data and names with the limit solver and none of its dynamics.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "support/archive.hpp"
#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Integer sizes of one network: width, experts of a block, expert width, active experts per token, input dimension, outputs, blocks.
struct NetworkShape {
  int N = 0, M = 0, Ne = 0, K = 0, D = 0, C = 0, L = 1;
  friend bool operator==(const NetworkShape&, const NetworkShape&) = default;

  void transfer(Archive& a) {
    a("N", N);
    a("M", M);
    a("Ne", Ne);
    a("K", K);
    a("D", D);
    a("C", C);
    a("L", L);
  }
};

/// The five tensors; the experts of all blocks stand one after another, expert i of block l at place l M + i. A_i are the row blocks of
/// expert_in, B_i the column blocks of expert_out.
struct NetworkWeights {
  Eigen::MatrixXd w_in;        ///< W_in (N, D)
  Eigen::MatrixXd router;      ///< Q (L M, N)
  Eigen::MatrixXd expert_in;   ///< A (L M N_e, N), rows i N_e .. of expert i
  Eigen::MatrixXd expert_out;  ///< B (N, L M N_e), columns i N_e .. of expert i
  Eigen::MatrixXd readout;     ///< W_out (C, N)

  auto A(Eigen::Index i, Eigen::Index Ne) const { return expert_in.middleRows(i * Ne, Ne); }
  auto B(Eigen::Index i, Eigen::Index Ne) const { return expert_out.middleCols(i * Ne, Ne); }

  void transfer(Archive& a) {
    a("w_in", w_in);
    a("router", router);
    a("expert_in", expert_in);
    a("expert_out", expert_out);
    a("readout", readout);
  }
};

/// Everything one training run produced. Values at step t are of the state before update t (t = 0: initialisation).
/// Losses are those of the whole training set, observables and kernels those of the samples of step t: under mini-batches
/// its own batch (support/observable.hpp). Where a run has failed or converged, the vectors end early.
struct NetworkRun {
  NetworkShape shape;
  std::uint64_t seed = 0;
  std::vector<int> eval_steps, observe_steps, test_steps, kernel_steps, distribution_steps;
  std::vector<double> loss, accuracy;                           ///< at eval_steps
  std::vector<double> test_loss, test_accuracy;                 ///< at test_steps; empty without a test set
  std::vector<double> batch_loss;                               ///< (T) under mini-batches, else empty
  std::vector<Eigen::MatrixXd> f;                               ///< (C, P) at eval_steps, if kept
  std::map<std::string, std::vector<double>> observables;       ///< by name, at observe_steps
  std::map<std::string, std::vector<Eigen::MatrixXd>> kernels;  ///< by name, (P, P) at kernel_steps, P samples a step
  /// By name, at distribution_steps: shares of the bins of support/distribution.hpp.
  std::map<std::string, std::vector<std::vector<double>>> distributions;
  NetworkWeights final_weights;
  Eigen::MatrixXd selection_bias;        ///< (M, L) b at the end, with model.balance_bias and top-K
  int converged_at = -1;                 ///< step at which the loss reached training.stop_at_loss; -1: it did not
  std::optional<NumericsError> failure;  ///< the step and field at which NaN or infinity appeared

  /// All but `failure`.
  void transfer(Archive& a) {
    a("shape", shape);
    a("seed", seed);
    a("eval_steps", eval_steps);
    a("observe_steps", observe_steps);
    a("test_steps", test_steps);
    a("kernel_steps", kernel_steps);
    a("distribution_steps", distribution_steps);
    a("loss", loss);
    a("accuracy", accuracy);
    a("test_loss", test_loss);
    a("test_accuracy", test_accuracy);
    a("batch_loss", batch_loss);
    a("f", f);
    a("observables", observables);
    a("kernels", kernels);
    a("distributions", distributions);
    a("final_weights", final_weights);
    a("selection_bias", selection_bias);
    a("converged_at", converged_at);
  }
};

struct TrainOptions {
  int threads = 1;                                     ///< train_network only: threads inside the network; 0: all cores
  Device device = Device::cpu;                         ///< automatic: cpu
  bool keep_outputs = true;                            ///< fill NetworkRun::f
  bool keep_weights = true;                            ///< fill NetworkRun::final_weights
  const NetworkWeights* initial = nullptr;             ///< start here instead of at random or network.init_from
  std::function<void(int step, double loss)> on_step;  ///< after every update, from the worker; last loss
  /// train_networks only: a run that was finished before, which then is not trained; and a listener for every run that was trained,
  /// called from its worker.
  std::function<std::optional<NetworkRun>(int width, std::uint64_t seed)> stored;
  std::function<void(const NetworkRun&)> on_run;
  /// A run in progress, to be kept and continued bit for bit: `state` names all that it is. `resume` is called before the first step,
  /// loads what there is and says whether there was anything; `keep` between two steps (of a flow also those of its stepper), and may save it. From the run's worker; what they
  /// throw ends the training.
  using State = std::function<void(Archive&)>;
  std::function<bool(int width, std::uint64_t seed, const State& state)> resume;
  std::function<void(int width, std::uint64_t seed, const State& state)> keep;
  std::function<void(int width, int steps)> on_resume;  ///< from the worker: a resumed run knows so many steps
  /// train_networks only, instead of on_step where it is given: after every update of the network of this width.
  std::function<void(int width, double loss)> on_update;
};

/// Faults of what this trainer cannot run (samples, sizes, tables) at these widths. Without data what does not depend on it is looked at.
void check_networks(const RunSpec& spec, const Dataset* data, const std::vector<int>& widths, Faults& faults);
/// Faults of what this device cannot do for networks, or this machine has no device for.
void check_network_device(const RunSpec& spec, Device device, Faults& faults);

/// Sizes of the network of width N on this data.
NetworkShape network_shape(const RunSpec& spec, const Dataset& data, int width);

/// Random initial weights: std and sharing of the parameterization (theory section 2). Independent between seeds and
/// widths.
NetworkWeights random_weights(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed);

/// Weights of an HDF5 file in the layout of network.init_from. Throws ConfigError naming the sizes of file and
/// configuration.
NetworkWeights read_weights(const std::string& path, const NetworkShape& shape, const std::string& place);

/// Trains one network for training.steps steps, or along its gradient flow (training.dynamics). `seed` is the seed itself (a program passes sampling.seed + index).
/// The same arguments give the same numbers, whatever the number of threads. Throws ConfigError on what cannot run; NaN and
/// infinity do not throw but end the run with NetworkRun::failure set.
NetworkRun train_network(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                         const TrainOptions& options = {});

/// All (width, seed) runs on `threads` threads (0: all cores), the widest first, a thread each; when fewer runs than threads are left,
/// they share them. The number of threads changes nothing. On the GPU as many
/// train at once as there are threads and as its memory holds. Result [width][seed], in the order of network.widths and of the seeds sampling.seed, +1, ...
/// final_weights are kept with output.weights only.
std::vector<std::vector<NetworkRun>> train_networks(const RunSpec& spec, const Dataset& data, int threads,
                                                    const TrainOptions& options = {});

}  // namespace moe
