#include "support/config_keys.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <type_traits>

#include "support/config.hpp"
#include "support/enum_names.hpp"
#include "support/observable.hpp"

namespace moe {

namespace {

constexpr Range ratio_range{.low = 0, .high = 1024, .low_open = true};
constexpr Range positive{.low = 0, .low_open = true};
constexpr Range not_negative{.low = 0};
constexpr Range at_least_one{.low = 1};
constexpr Range decay{.low = 0, .high = 1, .high_open = true};
/// TOML integers are signed.
constexpr Range seed_range{.low = 0, .high = 9.2e18};
/// Products of two sizes stay exact in double.
constexpr Range size_range{.low = 1, .high = 1 << 24};
constexpr Range size_or_unsaid{.low = 0, .high = 1 << 24};

template <class T>
Field field_of(T& member) {
  if constexpr (std::is_enum_v<T>) {
    T* const target = &member;
    return EnumField{enum_names(T{}), [target] { return static_cast<std::size_t>(*target); },
                     [target](std::size_t i) { *target = static_cast<T>(i); }};
  } else {
    return &member;
  }
}

/// One row; `member` is a lambda RunSpec& -> member&.
template <class Member>
Key key(std::string path, Member member, std::string help, Range range = {}, std::vector<std::string> words = {},
        std::string path_ending = "") {
  return {std::move(path),
          [member](RunSpec& spec) { return field_of(member(spec)); },
          std::move(help),
          range,
          std::move(words),
          std::move(path_ending),
          {}};
}

#define MEMBER(expression) \
  [](RunSpec & s) -> auto& { return s.expression; }  // NOLINT(bugprone-macro-parentheses): a member's name

std::vector<std::string> observable_words() {
  std::vector<std::string> words = {"standard", "all", "none"};
  for (const auto& observable : observable_table) words.emplace_back(observable.name);
  return words;
}

template <class Values>
void per_tensor(std::vector<Key>& keys, const std::string& section, Values values, const std::string& help) {
  for (std::size_t i = 0; i < tensor_names.size(); ++i)
    keys.push_back(key(
        section + "." + tensor_names[i], [values, i](RunSpec& s) -> double& { return values(s).values[i]; },
        fmt::format("{} {}", help, tensor_names[i]), not_negative));
}

/// The table. Order: that of the file format.
std::vector<Key> rows() {
  std::vector<Key> k;
  k.push_back(key("model.regime", MEMBER(model.regime), "co-scaling: I N~N_e, II N~M~K, III all", {},
                  {regime_names.begin(), regime_names.end()}));
  k.push_back(
      key("model.param", MEMBER(model.param), "parameterization: a name or the path of a .toml", {}, {}, ".toml"));
  k.push_back(key("model.activation", MEMBER(model.activation), "phi (gelu is the exact one)"));
  k.push_back(key("model.activation_scale", MEMBER(model.activation_scale), "b in phi(b x)/b, tanh only", positive));
  k.push_back(key("model.post_activation", MEMBER(model.post_activation), "psi on the aggregated y"));
  k.push_back(key("model.gate", MEMBER(model.gate), "gate of the active experts"));
  k.push_back(key("model.routing", MEMBER(model.routing), "soft: every expert is active"));
  k.push_back(key("model.active_fraction", MEMBER(model.active_fraction), "kappa = K/M, topk only",
                  {.low = 0, .high = 1, .low_open = true}));
  k.push_back(key("model.experts", MEMBER(model.experts), "M, regime I", size_range));
  k.push_back(key("model.expert_width", MEMBER(model.expert_width), "N_e, regime II", size_range));
  k.push_back(key("model.experts_per_width", MEMBER(model.experts_per_width), "M/N, regimes II and III", ratio_range));
  k.push_back(key("model.expert_width_per_width", MEMBER(model.expert_width_per_width), "N_e/N, regimes I and III",
                  ratio_range));
  k.push_back(key("model.residual", MEMBER(model.residual), "add phi to the block's output"));
  k.push_back(key("model.depth", MEMBER(model.depth), "L blocks", {.low = 1, .high = 4096}));
  k.push_back(key("model.branch_exponent", MEMBER(model.branch_exponent), "alpha of the branch multiplier L^-alpha"));
  k.push_back(key("model.norm", MEMBER(model.norm), "before every block and the readout"));
  k.push_back(key("model.router_temperature", MEMBER(model.router_temperature), "tau, the gate sees r/tau", positive));
  k.push_back(key("model.balance_loss", MEMBER(model.balance_loss), "lambda of the balancing loss", not_negative));
  k.push_back(
      key("model.balance_bias", MEMBER(model.balance_bias), "rate of the selection bias, per step", not_negative));
  k.push_back(key("model.readout_init", MEMBER(model.readout_init), "as the parameterization says, or zero"));
  k.push_back(key("model.aggregation", MEMBER(model.aggregation),
                  "prefactor of sum_i G_i B_i v_i, keys const N M Ne K D L (flag: K=-1,const=2)"));
  k.push_back(key("model.output_scale", MEMBER(model.output_scale), "alpha, multiplies f", positive));
  per_tensor(
      k, "model.init_scale", [](RunSpec & s) -> auto& { return s.model.init_scale; }, "multiplies the initial std of");

  k.push_back(key("optimizer.name", MEMBER(optimizer.name), "update rule"));
  k.push_back(key("optimizer.lr", MEMBER(optimizer.lr), "eta of the parameterization's table", not_negative));
  k.push_back(key("optimizer.beta1", MEMBER(optimizer.beta1), "adam, adamw", decay));
  k.push_back(key("optimizer.beta2", MEMBER(optimizer.beta2), "adam, adamw", decay));
  k.push_back(
      key("optimizer.eps", MEMBER(optimizer.eps), "entrywise rules, in units of the table's eps", not_negative));
  k.push_back(key("optimizer.momentum", MEMBER(optimizer.momentum), "momentum only", decay));
  k.push_back(key("optimizer.weight_decay", MEMBER(optimizer.weight_decay),
                  "adamw only: every tensor times 1 - lr*weight_decay a step", not_negative));
  per_tensor(
      k, "optimizer.lr_scale", [](RunSpec & s) -> auto& { return s.optimizer.lr_scale; },
      "multiplies the learning rate of");

  k.push_back(key("data.source", MEMBER(data.source), "a data set, or the path of an .h5 with x and y", {},
                  {"digits", "fashion-mnist", "cifar10", "tinyimagenet", "gaussian"}, ".h5"));
  k.push_back(key("data.path", MEMBER(data.path), "folder of the sets that a user downloads", {}, {}, "*"));
  k.push_back(key("data.train", MEMBER(data.train), "training samples P", at_least_one));
  k.push_back(key("data.test", MEMBER(data.test), "test samples", not_negative));
  k.push_back(key("data.classes", MEMBER(data.classes), "the first n labels, 0 = all", not_negative));
  k.push_back(key("data.dimension", MEMBER(data.dimension), "input dimension D, gaussian only", size_range));
  k.push_back(key("data.normalize", MEMBER(data.normalize), "mean 0, variance 1 over each sample or each feature"));
  k.push_back(key("data.seed", MEMBER(data.seed), "of permutation, teacher and shuffled order", seed_range));

  k.push_back(key("training.loss", MEMBER(training.loss), "mse has the factor 1/2"));
  k.push_back(key("training.dynamics", MEMBER(training.dynamics), "gradient descent, or its flow (lr -> 0, sgd only)"));
  k.push_back(key("training.steps", MEMBER(training.steps), "updates T; of a flow: intervals between recorded states",
                  not_negative));
  k.push_back(key("training.time", MEMBER(training.time),
                  "end of a flow, in steps of gradient descent with the same lr; 0 = training.steps", not_negative));
  k.push_back(key("training.stepper", MEMBER(training.stepper),
                  "of a flow: Dormand-Prince with error control, fixed Runge-Kutta 4, Adams-Bashforth-Moulton 4"));
  k.push_back(key("training.step_size", MEMBER(training.step_size),
                  "of a flow: largest step of rk4 and abm, first attempt of dopri5; unit of training.time", positive));
  k.push_back(
      key("training.rtol", MEMBER(training.rtol), "of a flow, dopri5: error of a step relative to an entry", positive));
  k.push_back(key("training.atol", MEMBER(training.atol), "of a flow, dopri5: absolute error of a step", positive));
  k.push_back(key("training.batch", MEMBER(training.batch), "samples per step, 0 = full batch", not_negative));
  k.push_back(key("training.batch_order", MEMBER(training.batch_order), "shuffled: a new permutation each epoch"));
  k.push_back(key("training.eval_every", MEMBER(training.eval_every),
                  "steps between whole-set evaluations; 0 = 1 with full batches, steps/20 with mini-batches",
                  not_negative));
  k.push_back(key("training.test_every", MEMBER(training.test_every),
                  "steps between test-set evaluations; 0 = eval_every or steps/20, whichever is larger", not_negative));
  k.push_back(key("training.stop_at_loss", MEMBER(training.stop_at_loss),
                  "end the run once a whole-set evaluation has this loss; 0 = never", not_negative));

  k.push_back(
      key("sampling.neurons", MEMBER(sampling.neurons), "neuron samples S, 0 = chosen for the regime", size_or_unsaid));
  k.push_back(key("sampling.experts", MEMBER(sampling.experts), "expert samples (II, III), 0 = M/N times neurons",
                  size_or_unsaid));
  k.push_back(key("sampling.hidden", MEMBER(sampling.hidden), "hidden samples (I, III), 0 = N_e/N times neurons",
                  size_or_unsaid));
  k.push_back(key("sampling.matching", MEMBER(sampling.matching), "moment matching; auto: off where it would bias"));
  k.push_back(
      key("sampling.replicas", MEMBER(sampling.replicas), "independent repetitions", {.low = 1, .high = 1 << 20}));
  k.push_back(key("sampling.seed", MEMBER(sampling.seed), "of the limit; networks use seed, seed+1, ...", seed_range));
  k.push_back(
      key("sampling.tolerance", MEMBER(sampling.tolerance), "of the query bases, of what a query has changed", decay));
  k.push_back(key(
      "sampling.form", MEMBER(sampling.form),
      "of initial matrices: bases of what was asked, dense, or auto: bases while they are small; a flow starts dense"));
  k.push_back(key("sampling.precision", MEMBER(sampling.precision), "of every program"));
  k.push_back(key("sampling.method", MEMBER(sampling.method), "causal sweep or kernel iteration"));
  k.push_back(key("sampling.site_batches", MEMBER(sampling.site_batches),
                  "iterate only: batches of sites per iteration and replica", {.low = 1, .high = 1 << 20}));
  k.push_back(key("sampling.draws", MEMBER(sampling.draws),
                  "iterate only: sets of random numbers that are averaged over", {.low = 1, .high = 1 << 10}));
  k.push_back(key("sampling.iterations", MEMBER(sampling.iterations),
                  "iterate only: most iterations of a draw, 0 = 40 + 4 steps", not_negative));
  k.push_back(key("sampling.start", MEMBER(sampling.start),
                  "iterate only: of a draw, one pass through time or zero kernels; auto: the pass where it fits"));
  k.push_back(key("sampling.window", MEMBER(sampling.window),
                  "iterate from zero only: steps by which the horizon grows, 0 = all at once", not_negative));
  k.push_back(key("sampling.damping", MEMBER(sampling.damping),
                  "iterate from zero only: share of the last iterate that is kept", decay));
  k.push_back(key("sampling.anderson", MEMBER(sampling.anderson),
                  "iterate from zero only, linear rules: past iterates that Anderson acceleration combines",
                  {.low = 0, .high = 1 << 6}));

  k.push_back(key("network.widths", MEMBER(network.widths), "widths N", size_range));
  k.push_back(key("network.seeds", MEMBER(network.seeds), "networks per width", {.low = 1, .high = 1 << 20}));
  k.push_back(key("network.init_from", MEMBER(network.init_from), "HDF5 file with given initial weights", {}, {}, "*"));
  k.push_back(key("network.tf32", MEMBER(network.tf32),
                  "on a GPU: factors of large products in TF32, 10 bits of mantissa instead of 23"));

  k.push_back(key("output.observables", MEMBER(output.observables), "standard, all, none or a list of names", {},
                  observable_words()));
  k.push_back(key("output.observe_every", MEMBER(output.observe_every),
                  "steps between observations; unsaid with mini-batches: steps/100", at_least_one));
  k.push_back(key("output.weights", MEMBER(output.weights), "store the trained weights of networks"));
  k.push_back(key("output.kernels_at", MEMBER(output.kernels_at), "steps at which to store kernels", not_negative));
  k.push_back(key("output.distributions_at", MEMBER(output.distributions_at),
                  "steps at which to store the distributions of h, u and r", not_negative));
  return k;
}

#undef MEMBER

/// A leaf name that is unique is a flag; three keys have a short name besides.
void name_flags(std::vector<Key>& keys) {
  static const std::map<std::string, std::string> short_names = {
      {"optimizer.name", "--optimizer"}, {"sampling.seed", "--seed"}, {"data.seed", "--data-seed"}};
  std::map<std::string, int> uses;
  for (const auto& k : keys) ++uses[k.leaf()];
  for (auto& k : keys) {
    if (const auto it = short_names.find(k.path); it != short_names.end()) k.flags.push_back(it->second);
    if (uses[k.leaf()] > 1) continue;
    std::string flag = "--" + k.leaf();
    std::replace(flag.begin(), flag.end(), '_', '-');
    k.flags.push_back(flag);
  }
}

}  // namespace

const std::vector<Key>& config_keys() {
  static const std::vector<Key> keys = [] {
    std::vector<Key> table = rows();
    name_flags(table);
    return table;
  }();
  return keys;
}

const Key* find_config_key(const std::string& path) {
  static const std::map<std::string, const Key*> index = [] {
    std::map<std::string, const Key*> by_path;
    for (const auto& k : config_keys()) by_path[k.path] = &k;
    return by_path;
  }();
  const auto it = index.find(path);
  return it == index.end() ? nullptr : it->second;
}

bool Key::stands_for_path(const std::string& value) const {
  if (value.empty() || path_ending.empty()) return false;
  return path_ending == "*" || (value.size() > path_ending.size() && value.ends_with(path_ending));
}

std::string to_string(Activation x) { return enum_name(x); }
std::string to_string(Gate x) { return enum_name(x); }
std::string to_string(Routing x) { return enum_name(x); }
std::string to_string(Loss x) { return enum_name(x); }
std::string to_string(OptimizerKind x) { return enum_name(x); }
std::string to_string(Precision x) { return enum_name(x); }

}  // namespace moe
