/// Parameterization files: precedence of sections, faults with file and line, tables that do not cover a run.
#include <doctest/doctest.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "parameterizations/parameterization.hpp"
#include "tests/faults.hpp"

using namespace moe;

namespace {

struct Loaded {
  Parameterization param;
  std::vector<std::string> faults;
  bool has(const std::vector<std::string>& pieces) const { return any_has(faults, pieces); }
};

Loaded load(const std::string& param, const std::string& regime, OptimizerKind optimizer) {
  RunSpec spec;
  spec.model.param = param;
  spec.model.regime = regime;
  spec.optimizer.name = optimizer;
  Faults faults;
  Loaded loaded;
  loaded.param = load_parameterization(spec, faults);
  loaded.faults = faults.list();
  return loaded;
}

constexpr auto sgd = OptimizerKind::sgd, adam = OptimizerKind::adam;

/// The five tensors in one section, every key.
std::string section(const std::string& name, double constant, const std::string& keys = "std lr eps") {
  std::string text;
  for (const char* tensor : tensor_names) {
    text += "[" + name + "." + tensor + "]\n";
    for (const std::string key : {"std", "lr", "eps"})
      if (keys.find(key) != std::string::npos) text += key + " = {const = " + std::to_string(constant) + "}\n";
  }
  return text;
}

}  // namespace

TEST_CASE("for each key REGIME.OPTIMIZER wins over REGIME.any, that over any.OPTIMIZER, that over any.any") {
  TemporaryFolder folder;
  const std::string all = section("any.any", 1) + section("any.sgd", 2) + section("II.any", 3) + section("II.sgd", 4);
  // Order in the file does not matter.
  const std::string reversed =
      section("II.sgd", 4) + section("II.any", 3) + section("any.sgd", 2) + section("any.any", 1);
  for (const auto& text : {all, reversed}) {
    const std::string file = write(folder, "t.toml", text);
    const auto constant = [&](const char* regime, OptimizerKind optimizer) {
      const Loaded l = load(file, regime, optimizer);
      CHECK(l.faults.empty());
      return l.param.rule[Tensor::expert_in].lr.constant;
    };
    CHECK(constant("II", sgd) == 4);
    CHECK(constant("II", OptimizerKind::momentum) == 4);
    CHECK(constant("II", adam) == 3);
    CHECK(constant("II", OptimizerKind::signsgd) == 3);
    CHECK(constant("I", sgd) == 2);
    CHECK(constant("I", adam) == 1);
  }
}

TEST_CASE("keys are taken one by one: a section may state only some of them") {
  TemporaryFolder folder;
  const std::string file =
      write(folder, "t.toml",
            section("any.any", 1) + section("any.adam", 5, "eps") + "[III.any.expert_in]\nshared = true\n" +
                "[III.adam.expert_in]\nlr = {N = -1, L = -0.5}\n");
  const Loaded l = load(file, "III", adam);
  REQUIRE(l.faults.empty());
  const TensorRule& rule = l.param.rule[Tensor::expert_in];
  CHECK(rule.std.constant == 1);
  CHECK(rule.lr.exponents.N == -1);
  CHECK(rule.lr.constant == 1);  // a power law is replaced as a whole
  CHECK(rule.eps.constant == 5);
  CHECK(rule.shared);
  CHECK(rule.names_depth);
  CHECK(!l.param.rule[Tensor::expert_out].shared);
  CHECK(!l.param.rule[Tensor::router].names_depth);
  CHECK(!load(file, "II", adam).param.rule[Tensor::expert_in].shared);
  CHECK(!load(file, "III", sgd).param.rule[Tensor::expert_in].names_depth);
}

TEST_CASE("absolute constants of one network serve without eps where the rule needs none") {
  TemporaryFolder folder;
  const std::string file = write(folder, "net.toml", section("any.any", 0.25, "std lr"));
  for (const auto optimizer : {sgd, OptimizerKind::momentum, OptimizerKind::signsgd})
    CHECK(load(file, "I", optimizer).faults.empty());
  const Loaded l = load(file, "II", adam);
  CHECK(l.faults.size() == 5);
  CHECK(l.has({"II.adam.expert_out.eps is missing in", "net.toml", "[II.adam.expert_out]"}));
}

TEST_CASE("missing tensors and keys are named, all of them") {
  TemporaryFolder folder;
  const Loaded l =
      load(write(folder, "t.toml", "[any.any.input]\nstd = {}\nlr = {}\n[any.any.router]\nlr = {}\n"), "II", sgd);
  CHECK(l.faults.size() == 7);
  CHECK(l.has({"II.sgd.router.std is missing"}));
  CHECK(l.has({"II.sgd.readout.lr is missing"}));
  CHECK(l.has({"II.sgd.expert_in.std is missing"}));
}

TEST_CASE("faults of a table come together with file and line") {
  TemporaryFolder folder;
  const std::string file = write(folder, "bad.toml", R"(nme = "x"
description = 3
[IV.any.input]
std = {}
[any.adamw.input]
lr = {}
[any.any.inptu]
std = {}
[any.any.input]
sdt = {}
std = 0.5
lr = {N = "x", P = 1}
eps = {const = -1}
shared = true
[any.any.expert_in]
shared = "yes"
std = {N = inf}
)");
  const Loaded l = load(file, "II", sgd);
  const auto at = [](int line) { return "bad.toml:" + std::to_string(line); };
  CHECK(l.has({"nme", "unknown regime", at(1)}));
  CHECK(l.has({"description", at(2)}));
  CHECK(l.has({"unknown regime 'IV'", at(3)}));
  CHECK(l.has({"adamw", "sgd, adam or any", at(5)}));
  CHECK(l.has({"unknown tensor 'inptu'", "Did you mean 'input'?", at(7)}));
  CHECK(l.has({"unknown key 'sdt'", "Did you mean 'std'?", at(10)}));
  CHECK(l.has({"any.any.input.std = 0.5", "is not a power law", at(11)}));
  CHECK(l.has({"unknown size 'P'", at(12)}));
  CHECK(l.has({"any.any.input.lr.N = \"x\"", at(12)}));
  CHECK(l.has({"any.any.input.eps.const = -1", ">= 0", at(13)}));
  CHECK(l.has({"any.any.input.shared", "exists once", at(14)}));
  CHECK(l.has({"any.any.expert_in.shared = \"yes\"", at(16)}));
  CHECK(l.has({"any.any.expert_in.std.N = inf", at(17)}));
  CHECK(l.faults.size() == 13);  // nothing is reported as missing that could not be read
}

TEST_CASE("an unknown name of a section does not hide what else is wrong below it, nor does the section count") {
  TemporaryFolder folder;
  const std::string file = write(folder, "hidden.toml", R"(nme = "x"
[IV.any.input]
sdt = {}
[IV.adamw.input]
lr = {P = 1}
[any.adamw.input]
lr = 0.5
[any.any.exprt_in]
std = {N = "x"}
shared = true
)");
  const Loaded l = load(file, "II", sgd);
  const auto at = [](int line) { return "hidden.toml:" + std::to_string(line); };
  CHECK(l.has({"unknown regime 'nme'", at(1)}));
  CHECK(l.has({"unknown regime 'IV'", at(2)}));
  CHECK(l.has({"IV.any.input.sdt", "unknown key 'sdt'", at(3)}));
  CHECK(l.has({"unknown optimizer of a table 'adamw'", at(4)}));
  CHECK(l.has({"IV.adamw.input.lr.P", "unknown size 'P'", at(5)}));
  CHECK(l.has({"any.adamw.input.lr = 0.5", "is not a power law", at(7)}));
  CHECK(l.has({"unknown tensor 'exprt_in'", "Did you mean 'expert_in'?", at(8)}));
  CHECK(l.has({"any.any.exprt_in.std.N = \"x\"", at(9)}));
  CHECK(l.faults.size() == 9);
  // What stands in a section of an unknown regime serves none.
  const Loaded none = load(write(folder, "none.toml", section("IV.any", 3)), "II", sgd);
  CHECK(none.faults.size() == 1);
  CHECK(none.param.rule[Tensor::input].lr.constant != 3);
}

TEST_CASE("a regime or optimizer that a source does not treat is refused by saying so") {
  const Loaded l = load("simplep", "I", sgd);
  REQUIRE(l.faults.size() == 1);
  CHECK(l.has({"gives no learning rates for sgd in regime I", "states them for I.adam only"}));
  CHECK(load("mup_moe", "II", adam).has({"no learning rates for adam in regime II"}));
  CHECK(load("jiang", "III", sgd).has({"no learning rates for sgd in regime III"}));
  CHECK(load("jiang", "III", OptimizerKind::adamw).faults.empty());
}

TEST_CASE("names and paths: unknown names list what there is, broken files say where") {
  CHECK(load("mspp", "II", sgd).has({"model.param = \"mspp\"", "Did you mean 'mssp'?", "mup_moe"}));
  CHECK(load("../mup", "II", sgd).faults.size() == 1);
  CHECK(load("", "II", sgd).faults.size() == 1);
  CHECK(load("/nowhere/x.toml", "II", sgd).has({"/nowhere/x.toml", "is not a file"}));
  TemporaryFolder folder;
  CHECK(load(write(folder, "broken.toml", "[any.any.input]\nstd = {\n"), "II", sgd)
            .has({"broken.toml:2", "Correct the TOML"}));
  CHECK(load(write(folder, "noise.toml", std::string("\x80\xff\x00", 3)), "II", sgd).has({"noise.toml:1"}));
  CHECK(load(write(folder, "empty.toml", ""), "II", sgd).has({"gives no learning rates"}));
  CHECK(load(folder / "folder.toml", "II", sgd).faults.size() == 1);
}

TEST_CASE("the tables that ship are found beside the program and cite their sources") {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(parameterizations_folder()))
    if (entry.path().extension() == ".toml") names.insert(entry.path().stem().string());
  const std::set<std::string> expected = {"mup", "mssp", "sp", "sp_lr_over_n", "ntp", "simplep", "mup_moe", "jiang"};
  CHECK(names == expected);
  for (const auto& name : names) {
    CAPTURE(name);
    const std::string regime = name == "jiang" ? "III" : "I";
    const Loaded l = load(name, regime, adam);
    CHECK(l.faults.empty());
    CHECK(l.param.name == name);
    CHECK(l.param.description.find("Source: ") != std::string::npos);
  }
}
