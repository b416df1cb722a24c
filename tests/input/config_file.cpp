/// Configuration files: every fault is listed at once with key, value, place and remedy; hostile bytes are refused, not
/// run.
#include <doctest/doctest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "support/config.hpp"
#include "tests/faults.hpp"

using namespace moe;

namespace {

std::vector<std::string> faults_of(const std::string& text) {
  return thrown_faults([&] { read_config_text(text, "run.toml"); });
}

/// Exactly one fault, and it holds all the pieces.
bool only(const std::string& text, const std::vector<std::string>& pieces) {
  const auto faults = faults_of(text);
  return faults.size() == 1 && any_has(faults, pieces);
}

}  // namespace

TEST_CASE("an empty file is the default run") {
  const RunSpec spec = read_config_text("", "run.toml");
  CHECK(print_config(spec) == print_config(RunSpec{}));
  TemporaryFolder folder;
  CHECK(read_config(write(folder, "empty.toml", "")).model.param == RunSpec{}.model.param);
  CHECK(read_config(write(folder, "comment.toml", "# nothing\n\n")).optimizer.lr == RunSpec{}.optimizer.lr);
}

TEST_CASE("every key of the documented file is read") {
  const RunSpec s = read_config_text(R"(
[model]
regime = "III"
param = "mup"
activation = "gelu"
activation_scale = 2.0
post_activation = "relu"
gate = "softmax"
routing = "topk"
active_fraction = 0.25
experts = 6
expert_width = 16
experts_per_width = 0.75
expert_width_per_width = 2
residual = true
depth = 1
branch_exponent = 0.5
norm = "none"
router_temperature = 1.0
balance_loss = 0.0
balance_bias = 0
readout_init = "zero"
aggregation = {const = 2, K = -0.5}
output_scale = 4.0
[model.init_scale]
router = 0.5
[optimizer]
name = "adamw"
lr = 0.01
beta1 = 0.8
beta2 = 0.99
eps = 1e-4
momentum = 0.5
weight_decay = 0.125
[optimizer.lr_scale]
readout = 3
[data]
source = "gaussian"
path = "here"
train = 32
test = 8
classes = 2
dimension = 5
normalize = "feature"
seed = 11
[training]
loss = "mse"
steps = 40
batch = 16
batch_order = "shuffled"
eval_every = 4
test_every = 8
[sampling]
neurons = 500
experts = 100
hidden = 60
matching = "off"
replicas = 3
seed = 7
tolerance = 0.03
precision = "float64"
method = "iterate"
site_batches = 2
draws = 3
iterations = 50
start = "zero"
window = 10
damping = 0.25
anderson = 5
[network]
widths = [16, 32]
seeds = 2
init_from = ""
tf32 = true
[output]
observables = ["rms_h", "rms_u"]
observe_every = 5
weights = true
kernels_at = [0, 40]
)",
                                     "run.toml");
  CHECK(s.model.regime == "III");
  CHECK(s.model.param == "mup");
  CHECK(s.model.activation == Activation::gelu);
  CHECK(s.model.activation_scale == 2);
  CHECK(s.model.post_activation == Activation::relu);
  CHECK(s.model.gate == Gate::softmax);
  CHECK(s.model.routing == Routing::topk);
  CHECK(s.model.active_fraction == 0.25);
  CHECK(s.model.experts == 6);
  CHECK(s.model.expert_width == 16);
  CHECK(s.model.experts_per_width == 0.75);
  CHECK(s.model.expert_width_per_width == 2);
  CHECK(s.model.residual);
  CHECK(s.model.branch_exponent == 0.5);
  CHECK(s.model.readout_init == ReadoutInit::zero);
  CHECK(s.model.aggregation == std::map<std::string, double>{{"const", 2}, {"K", -0.5}});
  CHECK(s.model.output_scale == 4);
  CHECK(s.model.init_scale.values == std::array<double, 5>{1, 0.5, 1, 1, 1});
  CHECK(s.optimizer.name == OptimizerKind::adamw);
  CHECK(s.optimizer.lr == 0.01);
  CHECK(s.optimizer.beta1 == 0.8);
  CHECK(s.optimizer.beta2 == 0.99);
  CHECK(s.optimizer.eps == 1e-4);
  CHECK(s.optimizer.momentum == 0.5);
  CHECK(s.optimizer.weight_decay == 0.125);
  CHECK(s.optimizer.lr_scale.values == std::array<double, 5>{1, 1, 1, 1, 3});
  CHECK(s.data.source == "gaussian");
  CHECK(s.data.path == "here");
  CHECK(s.data.train == 32);
  CHECK(s.data.test == 8);
  CHECK(s.data.classes == 2);
  CHECK(s.data.dimension == 5);
  CHECK(s.data.normalize == Normalize::feature);
  CHECK(s.data.seed == 11);
  CHECK(s.training.loss == Loss::mse);
  CHECK(s.training.steps == 40);
  CHECK(s.training.batch == 16);
  CHECK(s.training.batch_order == BatchOrder::shuffled);
  CHECK(s.training.eval_every == 4);
  CHECK(s.training.test_every == 8);
  CHECK(s.sampling.neurons == 500);
  CHECK(s.sampling.experts == 100);
  CHECK(s.sampling.hidden == 60);
  CHECK(s.sampling.matching == Matching::off);
  CHECK(s.sampling.replicas == 3);
  CHECK(s.sampling.seed == 7);
  CHECK(s.sampling.tolerance == 0.03);
  CHECK(s.sampling.precision == Precision::float64);
  CHECK(s.sampling.method == Method::iterate);
  CHECK(s.sampling.site_batches == 2);
  CHECK(s.sampling.draws == 3);
  CHECK(s.sampling.iterations == 50);
  CHECK(s.sampling.start == Start::zero);
  CHECK(s.sampling.window == 10);
  CHECK(s.sampling.damping == 0.25);
  CHECK(s.sampling.anderson == 5);
  CHECK(s.network.widths == std::vector<int>{16, 32});
  CHECK(s.network.seeds == 2);
  CHECK(s.network.tf32);
  CHECK(s.output.observables == std::vector<std::string>{"rms_h", "rms_u"});
  CHECK(s.output.observe_every == 5);
  CHECK(s.output.weights);
  CHECK(s.output.kernels_at == std::vector<int>{0, 40});
  CHECK(s.place("optimizer.lr") == "run.toml:29");
  CHECK(s.place("training.lr") == "default");
}

TEST_CASE("all faults of a file come together, in file order, each with key, value, place and remedy") {
  const auto faults = faults_of(R"([model]
regime = "IV"
gate = "sigmod"
residual = "maybe"
depht = 2
expert_width = 0
[optimizer]
lr = nan
eps = -1e-8
beta1 = 1.0
name = 3
[trainng]
steps = 3
[data]
train = 99999999999999
path = 1979-05-27
[training]
batch = 1000
lr = 0.1
[sampling]
neurons = 12.5
seed = -1
[network]
widths = [64, "x"]
[output]
observables = ["rms_hh"]
)");
  CHECK(faults.size() == 18);
  CHECK(any_has(faults, {"model.regime = \"IV\" (run.toml:2)", "Use I, II or III"}));
  CHECK(any_has(faults, {"model.gate = \"sigmod\" (run.toml:3)", "Did you mean \"sigmoid\"?"}));
  CHECK(any_has(faults, {"model.residual = \"maybe\" (run.toml:4)", "is not a boolean", "true or false"}));
  CHECK(any_has(faults, {"model.depht = 2 (run.toml:5)", "unknown key", "Did you mean model.depth?"}));
  CHECK(any_has(faults, {"model.expert_width = 0 (run.toml:6)", "out of range", "in [1, "}));
  CHECK(any_has(faults, {"optimizer.lr = nan (run.toml:8)", "is not finite"}));
  CHECK(any_has(faults, {"optimizer.eps = -1e-08 (run.toml:9)", ">= 0"}));
  CHECK(any_has(faults, {"optimizer.beta1 = 1.0 (run.toml:10)", "in [0, 1)"}));
  CHECK(any_has(faults, {"optimizer.name = 3 (run.toml:11)", "Use sgd, momentum, adam"}));
  CHECK(any_has(faults, {"trainng", "(run.toml:12)", "Did you mean training?"}));
  CHECK(any_has(faults, {"data.train = 99999999999999 (run.toml:15)", "out of range"}));
  CHECK(any_has(faults, {"data.path = 1979-05-27 (run.toml:16)", "is not text"}));
  CHECK(any_has(faults, {"training.batch = 1000 (run.toml:18)", "larger than data.train = 64"}));
  CHECK(any_has(faults, {"training.lr = 0.1 (run.toml:19)", "Did you mean optimizer.lr?"}));
  CHECK(any_has(faults, {"sampling.neurons = 12.5 (run.toml:21)", "is not an integer"}));
  CHECK(any_has(faults, {"sampling.seed = -1 (run.toml:22)", ">= 0"}));
  CHECK(any_has(faults, {"network.widths = [64, \"x\"] (run.toml:24)", "has the element \"x\""}));
  CHECK(any_has(faults, {"output.observables", "(run.toml:26)", "Did you mean \"rms_h\"?"}));
  REQUIRE(faults.size() > 2);
  CHECK(faults[0].starts_with("model.gate"));
  CHECK(faults[1].starts_with("model.residual"));
}

TEST_CASE("values out of range, one by one") {
  CHECK(only("optimizer.lr = inf", {"optimizer.lr = inf", "not finite"}));
  CHECK(only("optimizer.lr = -inf", {"optimizer.lr = -inf", "not finite"}));
  CHECK(only("optimizer.lr = -0.1", {">= 0"}));
  CHECK(only("optimizer.momentum = 1", {"in [0, 1)"}));
  CHECK(only("optimizer.weight_decay = -1", {">= 0"}));
  CHECK(only("model.active_fraction = 0", {"in (0, 1]"}));
  CHECK(only("model.active_fraction = 1.01", {"in (0, 1]"}));
  CHECK(only("model.activation_scale = 0.0", {"> 0"}));
  CHECK(only("model.output_scale = 0", {"> 0"}));
  CHECK(only("model.experts = 0", {"model.experts = 0"}));
  CHECK(only("model.experts_per_width = 0.0", {"in (0, 1024]"}));
  CHECK(only("model.expert_width_per_width = 1e300", {"in (0, 1024]"}));
  CHECK(only("model.init_scale.readout = -1", {"model.init_scale.readout"}));
  CHECK(only("model.aggregation = {}\nmodel.branch_exponent = nan", {"not finite"}));
  CHECK(only("model.aggregation = {const = 0}", {"const = 0", "> 0"}));
  CHECK(only("model.aggregation = {K = inf}", {"K = inf", "not finite"}));
  CHECK(only("model.aggregation = {Q = 1}", {"unknown size 'Q'", "const, N, M, Ne, K, D or L"}));
  CHECK(only("model.aggregation = -1", {"is not a power law"}));
  CHECK(only("model.aggregation = {K = \"x\"}", {"has K = \"x\"", "is not a number"}));
  CHECK(only("data.train = 0", {">= 1"}));
  CHECK(only("data.test = -1", {">= 0"}));
  CHECK(only("data.source = \"minst\"", {"is not known", "a path ending in .h5"}));
  CHECK(only("sampling.replicas = 0", {"sampling.replicas"}));
  CHECK(only("sampling.tolerance = 1.0", {"in [0, 1)"}));
  CHECK(only("network.widths = []", {"names no width"}));
  CHECK(only("network.widths = [64, 0]", {"has the element 0", "out of range"}));
  CHECK(only("network.widths = [64, 64]", {"twice"}));
  CHECK(only("network.widths = 64", {"a list of integers"}));
  CHECK(only("network.seeds = 9223372036854775807", {"out of range"}));
  CHECK(only("output.observe_every = 0", {">= 1"}));
  CHECK(only("output.kernels_at = [101]", {"beyond training.steps = 100"}));
  CHECK(only("output.observables = \"\"", {"is not known"}));
  CHECK(only("output.observables = [\"rms_h\", \"all\"]", {"stands in a list"}));
  CHECK(only("output.observables = [1]", {"a name or a list of names"}));
  CHECK(only("model = 3", {"is not a section", "[model]"}));
  CHECK(only("model.regime.x = 3", {"model.regime = {x = 3}", "is not text"}));
  CHECK(only("zzzzzzzz = 1", {"unknown key", "--help"}));
  CHECK(only("[sampling]\nexpert_width = 4", {"Did you mean model.expert_width?"}));
  CHECK(faults_of("optimizer.lr = 0\noptimizer.eps = 0\nmodel.active_fraction = 1\nsampling.tolerance = 0").empty());
}

TEST_CASE("keys that an optimizer, regime or program does not use are ignored") {
  CHECK(
      faults_of("model.regime = \"I\"\nmodel.expert_width = 3\noptimizer.name = \"sgd\"\noptimizer.weight_decay = 0.1\n"
                "data.dimension = 7\nsampling.experts = 9")
          .empty());
}

TEST_CASE("broken TOML and hostile bytes end in one sentence with file and line") {
  CHECK(only("[model]\nregime = \"II\nparam = \"mup\"", {"run.toml:2", "Correct the TOML"}));
  CHECK(only("[model]\nregime = \"I\"\nregime = \"II\"", {"run.toml:3"}));
  CHECK(only("[optimizer]\nlr = 1e999999", {"run.toml:2"}));
  CHECK(only("optimizer.lr = 0x", {"run.toml:1"}));
  CHECK(only("data.train = 99999999999999999999999999", {"run.toml:1"}));
  CHECK(only(std::string("\x00\x01\xff\xfe\x80", 5), {"run.toml:1"}));
  CHECK(only("x = " + std::string(100000, '['), {"run.toml:1"}));
  std::string noise;
  unsigned state = 12345;
  for (int i = 0; i < 4096; ++i) {
    state = state * 1664525u + 1013904223u;
    noise += static_cast<char>(state >> 24);
  }
  CHECK(only(noise, {"run.toml:"}));
  const auto long_key = faults_of(std::string(50000, 'k') + " = 1");
  CHECK(long_key.size() == 1);

  TemporaryFolder folder;
  CHECK_THROWS_AS(read_config(folder / "missing.toml"), ConfigError);
  CHECK_THROWS_AS(read_config(folder.path().string()), ConfigError);
  CHECK_THROWS_WITH_AS(read_config(write(folder, "a.toml", "\n\nmodel.gate = 1")), doctest::Contains("a.toml:3"),
                       ConfigError);
}

TEST_CASE("relative paths in a file are resolved against its folder, names are left alone") {
  TemporaryFolder folder;
  const std::string file = write(folder, "sub/run.toml", R"(
model.param = "tables/mine.toml"
data.source = "../data.h5"
data.path = "sets"
network.init_from = "init.h5"
)");
  const RunSpec spec = read_config(file);
  CHECK(spec.model.param == folder / "sub/tables/mine.toml");
  CHECK(spec.data.source == folder / "data.h5");
  CHECK(spec.data.path == folder / "sub/sets");
  CHECK(spec.network.init_from == folder / "sub/init.h5");

  const RunSpec named =
      read_config(write(folder, "sub/named.toml", "model.param = \"mup\"\ndata.source = \"gaussian\"\n"));
  CHECK(named.model.param == "mup");
  CHECK(named.data.source == "gaussian");
  CHECK(named.data.path.empty());
  CHECK(named.network.init_from.empty());
  const RunSpec absolute = read_config(write(folder, "sub/absolute.toml", "data.source = \"/nowhere/x.h5\"\n"));
  CHECK(absolute.data.source == "/nowhere/x.h5");
}
