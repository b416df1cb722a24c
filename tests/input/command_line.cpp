/// Flags, --set, the configuration file beside them, and what is printed for --help, --version and --print-config.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "support/config.hpp"
#include "support/config_keys.hpp"
#include "support/gpu.hpp"
#include "tests/faults.hpp"

using namespace moe;

namespace {

const ProgramInfo program{"dmft_solve", "solves the limit", "limit.h5"};

Invocation parse(std::vector<std::string> words) {
  words.insert(words.begin(), program.name);
  std::vector<const char*> argv;
  for (const auto& word : words) argv.push_back(word.c_str());
  return parse_command_line(program, static_cast<int>(argv.size()), argv.data());
}

std::vector<std::string> faults_of(const std::vector<std::string>& words) {
  return thrown_faults([&] { parse(words); });
}

bool only(const std::vector<std::string>& words, const std::vector<std::string>& pieces) {
  const auto faults = faults_of(words);
  return faults.size() == 1 && any_has(faults, pieces);
}

/// What `action` writes to stdout.
template <class Action>
std::string printed(Action action) {
  TemporaryFolder folder;
  const std::string file = folder / "stdout";
  std::fflush(stdout);
  const int saved = ::dup(STDOUT_FILENO);
  REQUIRE(std::freopen(file.c_str(), "w", stdout) != nullptr);
  action();
  std::fflush(stdout);
  ::dup2(saved, STDOUT_FILENO);
  ::close(saved);
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("no argument at all is the default run") {
  const Invocation call = parse({});
  CHECK(call.exit_code == -1);
  CHECK(print_config(call.spec) == print_config(RunSpec{}));
  CHECK(call.options.config_file.empty());
  CHECK(call.options.threads == 0);
  CHECK(call.options.device == Device::automatic);
  CHECK(!call.options.quiet);
}

TEST_CASE("flags of every kind of value") {
  const RunSpec s =
      parse({"--regime",      "III",         "--lr",         "1e-3",    "--expert-width=16", "--active-fraction",
             "0.25",          "--residual",  "--weights",    "false",   "--widths",          "32,64",
             "--observables", "rms_h,rms_u", "--kernels-at", "0, 5",    "--optimizer",       "momentum",
             "--seed",        "5",           "--data-seed",  "6",       "--aggregation",     "K=-1,const=2",
             "--activation",  "gelu",        "--precision",  "float64", "--source",          "gaussian"})
          .spec;
  CHECK(s.model.regime == "III");
  CHECK(s.optimizer.lr == 1e-3);
  CHECK(s.model.expert_width == 16);
  CHECK(s.model.active_fraction == 0.25);
  CHECK(s.model.residual);
  CHECK(!s.output.weights);
  CHECK(s.network.widths == std::vector<int>{32, 64});
  CHECK(s.output.observables == std::vector<std::string>{"rms_h", "rms_u"});
  CHECK(s.output.kernels_at == std::vector<int>{0, 5});
  CHECK(s.optimizer.name == OptimizerKind::momentum);
  CHECK(s.sampling.seed == 5);
  CHECK(s.data.seed == 6);
  CHECK(s.model.aggregation == std::map<std::string, double>{{"K", -1}, {"const", 2}});
  CHECK(s.model.activation == Activation::gelu);
  CHECK(s.sampling.precision == Precision::float64);
  CHECK(s.data.source == "gaussian");
  CHECK(s.place("optimizer.lr") == "--lr on the command line");
  CHECK(parse({"--name", "sgd"}).spec.optimizer.name == OptimizerKind::sgd);
  CHECK(parse({"--observables", "all"}).spec.output.observables == std::vector<std::string>{"all"});
  CHECK(parse({"--lr", "0.5", "--lr", "0.25"}).spec.optimizer.lr == 0.25);  // the last one counts
}

TEST_CASE("a key is a flag exactly when its leaf name is unique") {
  std::map<std::string, int> uses;
  for (const auto& key : config_keys()) ++uses[key.leaf()];
  std::map<std::string, int> flags;
  for (const auto& key : config_keys()) {
    std::string expected = "--" + key.leaf();
    std::replace(expected.begin(), expected.end(), '_', '-');
    const bool has = std::find(key.flags.begin(), key.flags.end(), expected) != key.flags.end();
    CAPTURE(key.path);
    if (key.path == "sampling.seed")
      CHECK(has);  // --seed stands for it although data.seed has the same leaf
    else
      CHECK(has == (uses[key.leaf()] == 1));
    for (const auto& flag : key.flags) ++flags[flag];
  }
  for (const auto& [flag, count] : flags) CHECK_MESSAGE(count == 1, flag);
  CHECK(uses["experts"] == 2);
  CHECK(flags.count("--experts") == 0);
}

TEST_CASE("--set reaches every key by its full name, with the value that stands there already") {
  RunSpec defaults;
  std::vector<std::string> words;
  for (const auto& key : config_keys()) {
    words.push_back("--set");
    words.push_back(key.path + "=" + value_as_toml(key.field(defaults)));
  }
  const RunSpec spec = parse(words).spec;
  for (const auto& key : config_keys()) CHECK(spec.place(key.path) == "--set on the command line");
  RunSpec expected;
  expected.origin["output.observe_every"] = "said";
  CHECK(print_config(spec) == print_config(expected));

  const RunSpec set = parse({"--set", "sampling.experts=512", "--set=model.experts=3", "--set",
                             "optimizer.lr_scale.router=0.5", "--set", "model.aggregation={K = -1, const = 3}"})
                          .spec;
  CHECK(set.sampling.experts == 512);
  CHECK(set.model.experts == 3);
  CHECK(set.optimizer.lr_scale[Tensor::router] == 0.5);
  CHECK(set.model.aggregation.at("const") == 3);
}

TEST_CASE("flags override the file, whether it comes first, last or by --config") {
  TemporaryFolder folder;
  const std::string file = write(folder, "run.toml", "[optimizer]\nlr = 0.7\neps = -1\n[data]\ntrain = 16\n");
  for (const auto& words : {std::vector<std::string>{file, "--eps", "0.5", "--train", "8"},
                            std::vector<std::string>{"--eps", "0.5", "--train", "8", file},
                            std::vector<std::string>{"--eps", "0.5", "--train", "8", "--residual", file},
                            std::vector<std::string>{"--eps", "0.5", "--config", file, "--train", "8"}}) {
    const Invocation call = parse(words);  // the file's eps is out of range, the flag's is not
    CHECK(call.options.config_file == file);
    CHECK(call.spec.optimizer.lr == 0.7);
    CHECK(call.spec.optimizer.eps == 0.5);
    CHECK(call.spec.data.train == 8);
    CHECK(call.spec.place("optimizer.lr") == file + ":2");
  }
  CHECK(any_has(faults_of({file}), {"optimizer.eps = -1.0", "run.toml:3"}));
  CHECK(any_has(faults_of({file, file, "--eps", "1"}), {"second configuration file"}));
  CHECK(any_has(faults_of({folder / "none.toml"}), {"none.toml", "cannot be read"}));
}

TEST_CASE("relative paths on the command line are resolved against the current folder") {
  const auto here = std::filesystem::current_path();
  const RunSpec s =
      parse({"--param", "a/mine.toml", "--source", "x.h5", "--path", "sets", "--init-from", "../i.h5"}).spec;
  CHECK(s.model.param == (here / "a/mine.toml").string());
  CHECK(s.data.source == (here / "x.h5").string());
  CHECK(s.data.path == (here / "sets").string());
  CHECK(s.network.init_from == (here.parent_path() / "i.h5").string());
}

TEST_CASE("options of the program itself") {
  const Invocation call = parse({"--out", "here.h5", "--threads", "3", "--device", "cpu", "--quiet"});
  CHECK(call.options.out == "here.h5");
  CHECK(call.options.threads == 3);
  CHECK(call.options.device == Device::cpu);
  CHECK(call.options.quiet);
  CHECK(only({"--threads", "-1"}, {"threads = -1", "0 to 65536"}));
  CHECK(only({"--threads", "two"}, {"threads = two"}));
  CHECK(only({"--device", "gpu"}, {"device = gpu", "auto, cpu or cuda"}));
  if (!moe::gpu::device().present)
    CHECK(only({"--device", "cuda"}, {"--device cuda: ", "CUDA", "--device cpu"}));
  else
    CHECK(parse({"--device", "cuda"}).options.device == Device::cuda);
}

TEST_CASE("faults of the command line come together with those of the file") {
  TemporaryFolder folder;
  const std::string file = write(folder, "run.toml", "model.gate = \"sigmod\"\n");
  const auto faults =
      faults_of({"--lr", "nan", "--foo", "3", "--residual", "maybe", "--experts", "4", "--set", "model.gat=2",
                 "--widths", "64,x", "--set", "oops", "--expert-widht", "3", "--data-path", "x", file});
  CHECK(faults.size() == 10);
  CHECK(any_has(faults, {"optimizer.lr = nan (--lr on the command line)", "not finite"}));
  CHECK(any_has(faults, {"--foo is an unknown flag"}));
  CHECK(any_has(faults, {"model.residual = \"maybe\"", "true or false"}));
  CHECK(any_has(faults, {"--experts", "--set model.experts=VALUE or --set sampling.experts=VALUE"}));
  CHECK(any_has(faults, {"model.gat = 2 (--set on the command line)", "Did you mean model.gate?"}));
  CHECK(any_has(faults, {"network.widths", "has the element \"x\""}));
  CHECK(any_has(faults, {"--set oops has no value"}));
  CHECK(any_has(faults, {"--data-path", "Did you mean --path?"}));
  CHECK(any_has(faults, {"--expert-widht", "Did you mean --expert-width?"}));
  CHECK(any_has(faults, {"model.gate = \"sigmod\"", "run.toml:1"}));
}

TEST_CASE("hostile values on the command line") {
  CHECK(only({"--lr", "-0.1"}, {"optimizer.lr = -0.1", ">= 0"}));
  CHECK(only({"--lr", "1e999"}, {"optimizer.lr", "is not a number"}));
  CHECK(only({"--lr", "0.1x"}, {"optimizer.lr = \"0.1x\"", "is not a number"}));
  CHECK(only({"--lr", ""}, {"optimizer.lr"}));
  CHECK(only({"--train", "99999999999"}, {"data.train", "out of range"}));
  CHECK(only({"--steps", "2147483648"}, {"training.steps", "an integer >= 0 and <= 2147483647"}));
  CHECK(only({"--train", "99999999999999999999"}, {"data.train", "is not an integer"}));
  CHECK(only({"--neurons", "1e3"}, {"sampling.neurons", "is not an integer"}));
  CHECK(only({"--seed", "-1"}, {"sampling.seed = -1", ">= 0"}));
  CHECK(only({"--widths", "64,,128"}, {"network.widths"}));
  CHECK(only({"--widths", ""}, {"names no width"}));
  CHECK(only({"--observables", "rms_h,rms_h"}, {"twice"}));
  CHECK(only({"--path", "\xff\xfe"}, {"data.path", "UTF-8"}));
  CHECK(only({"--regime", std::string(100000, 'I')}, {"model.regime"}));
  CHECK(only({"--lr"}, {"--lr"}));
  CHECK(only({"-x"}, {"-x is an unknown flag"}));
  CHECK(parse({"--lr", "-0.0"}).spec.optimizer.lr == 0);
}

TEST_CASE("--help lists every key with its default, --version the version, and both end with status 0") {
  Invocation call;
  const std::string help = printed([&] { call = parse({"--help"}); });
  CHECK(call.exit_code == 0);
  for (const auto& key : config_keys()) {
    CAPTURE(key.path);
    CHECK(help.find(key.flags.empty() ? key.path : key.flags.front()) != std::string::npos);
    RunSpec defaults;
    CHECK(help.find("(default " + value_as_toml(key.field(defaults)) + ")") != std::string::npos);
  }
  CHECK(help.find("default limit.h5") != std::string::npos);
  const std::string version = printed([&] { call = parse({"--version", "--lr", "nan"}); });
  CHECK(call.exit_code == 0);
  CHECK(version.starts_with("dmft_solve "));
  CHECK(printed([&] { call = parse({"--lr", "nan", "-h"}); }) == help);
}

TEST_CASE("--print-config prints what runs again as the same run") {
  Invocation call;
  const std::string text = printed([&] { call = parse({"--lr", "0.3", "--param", "my.toml", "--print-config"}); });
  CHECK(call.exit_code == 0);
  const RunSpec again = read_config_text(text, "printed");
  CHECK(again.optimizer.lr == 0.3);
  CHECK(again.model.param == (std::filesystem::current_path() / "my.toml").string());
  CHECK(print_config(again) == text);
}
