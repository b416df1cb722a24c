/// The one description of a run, read by the limit solver and by the finite trainer alike (docs/interface of the
/// configuration: README.md, section "Configuration"). Validated once, immutable afterwards.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace moe {

enum class Activation { tanh, relu, gelu, identity };
enum class Gate { sigmoid, softmax, constant };
enum class Routing { soft, topk };
enum class ReadoutInit { mup, zero };
enum class Norm { none, rms };
enum class Loss { mse, cross_entropy };
enum class OptimizerKind { sgd, momentum, adam, adamw, signsgd, adafactor };
enum class Matching { automatic, on, off };
enum class Precision { float32, float64 };
enum class Normalize { sample, feature, none };
enum class BatchOrder { sequential, shuffled };
enum class Dynamics { gd, flow };
enum class Stepper { rk4, dopri5, abm };
enum class Form { automatic, bases, dense };
enum class Method { sweep, iterate };
enum class Start { automatic, pass, zero };
enum class Device { automatic, cpu, cuda };

/// The five tensors of the network (T1)-(T5), in the order in which files name them.
enum class Tensor { input, router, expert_in, expert_out, readout };
inline constexpr int num_tensors = 5;
inline constexpr std::array<const char*, num_tensors> tensor_names = {"input", "router", "expert_in", "expert_out",
                                                                      "readout"};

/// True for the tensors that every block has of its own.
inline bool in_block(Tensor t) { return t != Tensor::input && t != Tensor::readout; }

/// One value per tensor.
template <class T>
struct PerTensor {
  std::array<T, num_tensors> values{};
  T& operator[](Tensor t) { return values[static_cast<std::size_t>(t)]; }
  const T& operator[](Tensor t) const { return values[static_cast<std::size_t>(t)]; }
};

struct ModelSpec {
  std::string regime = "II";
  std::string param = "mssp";  ///< name in parameterizations/ or path of a .toml
  Activation activation = Activation::tanh;
  double activation_scale = 1.0;  ///< b in phi(b x)/b, tanh only
  Activation post_activation = Activation::identity;
  Gate gate = Gate::sigmoid;
  Routing routing = Routing::soft;
  double active_fraction = 0.5;  ///< kappa = K/M for topk; soft routing has kappa = 1 whatever stands here
  int experts = 4;               ///< M in regime I
  int expert_width = 8;          ///< N_e in regime II
  double experts_per_width = 0.5;
  double expert_width_per_width = 0.5;
  bool residual = false;
  int depth = 1;
  double branch_exponent = 1.0;
  Norm norm = Norm::none;
  double router_temperature = 1.0;
  double balance_loss = 0.0;
  double balance_bias = 0.0;
  ReadoutInit readout_init = ReadoutInit::mup;
  std::map<std::string, double> aggregation = {{"K", -1.0}};  ///< prefactor of sum_i G_i B_i v_i, keys of a power law
  double output_scale = 1.0;
  PerTensor<double> init_scale{{1, 1, 1, 1, 1}};
};

struct OptimizerSpec {
  OptimizerKind name = OptimizerKind::adam;
  double lr = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double momentum = 0.9;
  double weight_decay = 0.0;
  PerTensor<double> lr_scale{{1, 1, 1, 1, 1}};
};

struct DataSpec {
  std::string source = "digits";  ///< digits | fashion-mnist | cifar10 | tinyimagenet | gaussian | path of an HDF5 file
  std::string path;
  int train = 64;
  int test = 256;
  int classes = 0;  ///< 0 = all, n = the first n labels
  int dimension = 12;
  Normalize normalize = Normalize::sample;
  std::uint64_t seed = 0;
};

struct TrainingSpec {
  Loss loss = Loss::cross_entropy;
  Dynamics dynamics = Dynamics::gd;
  int steps = 100;  ///< T; of a flow: intervals between recorded states
  double time = 0;  ///< end of a flow, in steps of gradient descent with the same lr; 0 = steps
  Stepper stepper = Stepper::dopri5;
  double step_size = 1;             ///< rk4, abm: largest step; dopri5: first attempt; unit of `time`
  double rtol = 1e-4, atol = 1e-6;  ///< dopri5
  int batch = 0;                    ///< 0 = full batch
  BatchOrder batch_order = BatchOrder::sequential;
  int eval_every = 0;       ///< 0 = not said: 1 with full batches, max(1, steps/20) with mini-batches
  double stop_at_loss = 0;  ///< ends the run once the whole set's loss is there; 0: never. Addition to the interface.
  int test_every = 0;  ///< test-set evaluation; 0 = not said: max(eval_every, steps/20). Addition to the interface.
};

/// How a flow is integrated. Times are in steps of gradient descent with the same learning rate.
struct FlowSpec {
  Stepper stepper = Stepper::dopri5;
  double step_size = 1;  ///< rk4, abm: largest step; dopri5: first attempt
  double rtol = 1e-4, atol = 1e-6;
};

inline FlowSpec flow_spec(const TrainingSpec& training) {
  return {training.stepper, training.step_size, training.rtol, training.atol};
}

struct SamplingSpec {
  int neurons = 0;  ///< 0 = not said: chosen per regime (docs/results.md says how)
  int experts = 0;  ///< 0 = true ratio
  int hidden = 0;   ///< 0 = true ratio
  Matching matching = Matching::automatic;
  int replicas = 6;
  std::uint64_t seed = 0;
  double tolerance = 0.01;
  Form form = Form::automatic;  ///< of the operators: dense from the start for a flow, else when it pays
  Precision precision = Precision::float32;
  Method method = Method::sweep;
  // Of kernel iteration. Additions to the interface.
  int site_batches = 1;            ///< batches of sites of each replica in an iteration
  int draws = 1;                   ///< sets of random numbers, one after the other, that each replica averages over
  int iterations = 0;              ///< most of a draw; 0 = not said: 40 + 4 T
  Start start = Start::automatic;  ///< of a draw; automatic: a pass through time where that fits into memory
  int window = 0;                  ///< from zero kernels: steps by which the horizon grows; 0 = all at once
  double damping = 0;              ///< from zero kernels: share of the last iterate that is kept
  int anderson = 0;                ///< from zero kernels: past iterates that are combined
};

struct NetworkSpec {
  std::vector<int> widths = {64, 128, 256};
  int seeds = 8;
  std::string init_from;
  bool tf32 = false;  ///< products in TF32, on a GPU. Addition to the interface.
};

struct OutputSpec {
  std::vector<std::string> observables = {"standard"};  ///< one of standard | all | none, or a list of names
  int observe_every = 1;  ///< not said (see origin) under mini-batches: max(1, steps/100), support/schedule.hpp
  bool weights = false;
  std::vector<int> kernels_at;
  std::vector<int> distributions_at;  ///< addition to the interface: support/distribution.hpp
};

struct RunSpec {
  ModelSpec model;
  OptimizerSpec optimizer;
  DataSpec data;
  TrainingSpec training;
  SamplingSpec sampling;
  NetworkSpec network;
  OutputSpec output;

  /// Where each key was set ("run.toml:14", "--lr on the command line"); absent = default. For messages.
  std::map<std::string, std::string> origin;
  std::string place(const std::string& key) const {
    auto it = origin.find(key);
    return it == origin.end() ? "default" : it->second;
  }
};

/// True for the rules whose update is linear in the gradient (kernels, (T15)-(T19)); the others are entrywise (T22).
inline bool is_linear(OptimizerKind k) { return k == OptimizerKind::sgd || k == OptimizerKind::momentum; }

}  // namespace moe
