/// moe_param as a user calls it: every command in every format, Python that runs, bad usage with all faults at once, and refusals of
/// dmft_solve in the same words.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/hdf5.hpp"
#include "tests/folders.hpp"
#include "tests/program.hpp"

namespace {

using Words = std::vector<std::string>;

Words words(std::initializer_list<Words> lists) {
  Words all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

const Words path = {"--base", "N=256,M=16,Ne=64,K=4,L=12", "--target", "N=4096,M=256,Ne=64,K=64,L=48"};

/// What would stop LaTeX, or print as something else: the first line with a special character that is neither escaped nor in math, with
/// open braces or math, or with another number of cells than its table has columns. Empty if there is none.
std::string latex_fault(const std::string& text) {
  std::istringstream in(text);
  std::ptrdiff_t columns = 0;
  for (std::string line; std::getline(in, line);) {
    const std::string begin = "\\begin{tabular}{";
    if (line.starts_with(begin)) {
      columns = std::count(line.begin() + static_cast<std::ptrdiff_t>(begin.size()), line.end(), 'l');
      continue;
    }
    if (line == "\\hline" || line == "\\end{tabular}") continue;
    bool math = false, row = false;
    std::ptrdiff_t cells = 1;
    int open = 0;
    for (std::size_t k = 0; k < line.size(); ++k) {
      const char c = line[k];
      if (c == '\\') {
        if (k + 1 < line.size() && line[k + 1] == '\\') row = true;
        if (k + 1 < line.size() && std::isalpha(static_cast<unsigned char>(line[k + 1])) == 0) ++k;
      } else if (c == '$') {
        math = !math;
      } else if (c == '{' || c == '}') {
        if ((open += c == '{' ? 1 : -1) < 0) return line;
      } else if (c == '&') {
        ++cells;
      } else if (c == '#' || c == '%' || c == '~' ||
                 (!math && std::string_view("^_<>|").find(c) != std::string_view::npos)) {
        return line;
      }
    }
    if (math || open != 0 || (row ? cells != columns : cells != 1)) return line;
  }
  return "";
}

/// The multipliers that the program gives, as JSON.
nlohmann::json multipliers(const Words& flags) {
  const ProgramRun run = run_program("moe_param", words({{"transfer", "--format", "json"}, flags}));
  REQUIRE_MESSAGE(run.status == 0, run.text);
  nlohmann::json by_role;
  const auto report = nlohmann::json::parse(run.text);
  for (const auto& row : report.at("multipliers")) by_role[row.at("role").get<std::string>()] = row;
  return by_role;
}

}  // namespace

TEST_CASE(
    "every command of moe_param speaks text, Markdown, LaTeX and JSON, in every regime, also where it finds nothing") {
  const TemporaryFolder folder;
  write_bytes(folder / "none.toml",
              "[[condition]]\nid = \"grows & more_\"\nquantities = [\"rms_r\"]\nexponent = {min = 1}\n"
              "[[condition]]\nid = \"100 %\"\nquantities = [\"rms_r\"]\nexponent = {max = 0}\n");
  std::vector<std::pair<Words, int>> commands = {{{"list"}, 0},
                                                 {{"derive", "--desiderata", folder / "none.toml"}, 1},
                                                 {{"check", "--desiderata", folder / "none.toml"}, 1},
                                                 {{"constants", "--param", "sp"}, 1}};
  for (const std::string regime : {"I", "II", "III"})
    for (const std::string optimizer : {"sgd", "adam"}) {
      const Words flags = {"--param", regime == "II" ? "mup" : "mssp", "--regime", regime, "--optimizer", optimizer};
      for (const Words& command : {Words{"table"}, Words{"constants"}, Words{"exponents"},
                                   Words{"check", "--desiderata", regime == "II" ? "mu" : "mssp"},
                                   Words{"derive", "--desiderata", "mssp"}, words({{"transfer"}, path})})
        commands.emplace_back(words({command, flags}), 0);
    }
  for (const auto& [command, status] : commands)
    for (const char* format : {"latex", "text", "markdown", "json"}) {
      // The other formats escape nothing: once is enough.
      const bool other_regime = std::find(command.begin(), command.end(), "II") == command.end() && command.size() > 5;
      if (std::string(format) != "latex" && other_regime) continue;
      const ProgramRun run = run_program("moe_param", words({command, {"--format", format}}));
      CAPTURE(fmt::format("{}", fmt::join(command, " ")));
      CAPTURE(std::string(format));
      INFO(run.text);
      CHECK(run.status == status);
      const std::string f = format;
      if (f == "json") CHECK(nlohmann::json::accept(run.text));
      if (f == "latex") CHECK(run.text.find("\\begin{tabular}") != std::string::npos);
      if (f == "latex") CHECK(latex_fault(run.text) == "");
      if (f == "markdown") CHECK(run.text.find("| --- |") != std::string::npos);
    }
}

TEST_CASE("constants of a stack are those of its depth: lr L^-1/2, eps L^-1/2 in a block [II mssp adam, L = 4]") {
  const Words deep = {"--depth", "4", "--branch-exponent", "0.5"};
  const ProgramRun run = run_program(
      "moe_param",
      words({{"constants", "--format", "json", "--optimizer", "adam", "--lr", "0.3", "--eps", "0.2"}, deep}));
  REQUIRE_MESSAGE(run.status == 0, run.text);
  const auto report = nlohmann::json::parse(run.text);
  int seen = 0;
  for (const auto& row : report.at("constants")) {
    const std::string tensor = row.at("tensor"), quantity = row.at("quantity");
    if (!quantity.starts_with("normalised")) continue;
    const bool block = tensor != "input" && tensor != "readout";
    CAPTURE(tensor + ", " + quantity);
    CHECK(row.at("limit").get<double>() == doctest::Approx((quantity.ends_with("rate") ? 0.3 : 0.2) / (block ? 2 : 1)));
    ++seen;
  }
  CHECK(seen == 10);
}

TEST_CASE("multipliers from base to target in regime II, by hand [adamw]") {
  const auto m = multipliers(words({path, {"--param", "mssp", "--optimizer", "adamw"}}));
  const auto is = [&](const char* role, double std, double lr, double eps) {
    CAPTURE(std::string(role));
    CHECK(m.at(role).at("init std").get<double>() == doctest::Approx(std));
    CHECK(m.at(role).at("lr").get<double>() == doctest::Approx(lr));
    CHECK(m.at(role).at("eps").get<double>() == doctest::Approx(eps));
    CHECK(m.at(role).at("weight decay").get<double>() == doctest::Approx(1 / lr));
  };
  // N, M, K by 16, L by 4; CompleteP: eps in a block by 1/L more.
  is("embedding", 1, 1, 1.0 / 16);
  is("attention_q", 1.0 / 4, 1.0 / 16, 1.0 / 16 / 4);
  is("attention_o", 1.0 / 4, 1.0 / 16, 1.0 / 16 / 4);
  is("router", 1.0 / 4, 1.0 / 16, 1.0 / 16 / 4);
  is("expert_up", 1.0 / 4, 1.0 / 16, 1.0 / 16 / 4);
  is("expert_down", 4, 1, 1.0 / 256 / 4);
  is("shared_expert_down", 1, 1, 1.0 / 16 / 4);
  is("unembedding", 1.0 / 16, 1.0 / 16, 1);
  CHECK(m.at("norm").at("init std").is_null());
  CHECK(m.at("norm").at("lr").get<double>() == 1);
  CHECK(m.at("expert_bias").at("lr").get<double>() == 1);
  // Depth-muP: lr by L^-1/2, eps by L^-1/2; SGD under it unchanged.
  const auto half = multipliers(words({path, {"--optimizer", "adam", "--branch-exponent", "0.5"}}));
  CHECK(half.at("expert_up").at("lr").get<double>() == doctest::Approx(1.0 / 16 / 2));
  CHECK(half.at("expert_up").at("eps").get<double>() == doctest::Approx(1.0 / 16 / 2));
  CHECK(half.at("embedding").at("lr").get<double>() == 1);
  const auto sgd = multipliers(words({path, {"--optimizer", "sgd"}}));
  CHECK(sgd.at("expert_up").at("lr").get<double>() == doctest::Approx(4));  // K N_e/N, L^(2 alpha - 1)
  CHECK(sgd.at("expert_down").at("lr").get<double>() == doctest::Approx(256 * 4));
  CHECK(sgd.at("attention_q").at("lr").get<double>() == doctest::Approx(4));
}

TEST_CASE("paths: each regime is recognised, what is between is said to be, and what then drifts is listed") {
  const auto text = [](const char* base, const char* target, const Words& more = {}) {
    return run_program("moe_param", words({{"transfer", "--base", base, "--target", target}, more})).text;
  };
  const auto has = [](const std::string& all, const char* part) {
    CHECK_MESSAGE(all.find(part) != std::string::npos, all);
  };
  has(text("N=64,M=4,Ne=32,K=2", "N=256,M=4,Ne=128,K=2"), "Regime I: N by 4");
  has(text("N=64,M=4,Ne=32,K=2", "N=256,M=16,Ne=32,K=8"), "Regime II: N by 4");
  has(text("N=64,M=4,Ne=32,K=2", "N=256,M=16,Ne=128,K=8"), "Regime III: N by 4");
  has(text("N=64,M=4,Ne=32,K=2", "N=256,M=16,Ne=128,K=8"), "Every quantity of the limit is the same at both ends");
  const std::string between = text("N=64,M=4,Ne=32,K=2", "N=256,M=8,Ne=32,K=4");
  has(between,
      "Between the regimes: the same sizes grow as in regime II, but M ~ N^0.5 instead of N^1, K ~ N^0.5 instead of "
      "N^1");
  has(between, "expert_out  s_beta^2");
  const std::string granular = text("N=1024,M=16,Ne=512,K=4", "N=1024,M=64,Ne=128,K=16");
  has(granular, "it changes the granularity, M and K by 4, N_e by 0.25, at fixed width");
  has(granular, "The multipliers follow the table of regime III. What they leave");
  has(text("N=64,M=4,Ne=32,K=2,L=2", "N=64,M=4,Ne=32,K=2,L=8"), "nothing but depth changes");
  // As many active experts of more and more: the share of active ones is a number of the limit that no table can keep.
  const std::string sparser = text("N=64,M=8,Ne=32,K=8", "N=256,M=32,Ne=128,K=8");
  has(sparser, "K ~ N^0 instead of N^1");
  has(sparser, "-       kappa = K/M  0.25");
  CHECK_FALSE_MESSAGE(contains(sparser, "Every quantity of the limit is the same"), sparser);
  // A module of multipliers says so where its user reads it.
  const std::string module =
      text("N=64,M=8,Ne=32,K=8", "N=256,M=32,Ne=128,K=8", {"--param", "mup", "--format", "python"});
  has(module, "\n# Between the regimes: ");
  has(module, "\n# Not the same at both ends: kappa = K/M, 0.25 times the base's.\n");
  // Between regimes no table keeps both gains of a matrix whose ratio changes.
  const auto drift = nlohmann::json::parse(text("N=1024,M=16,Ne=512,K=4", "N=1024,M=64,Ne=128,K=16",
                                                {"--param", "mup", "--format", "json"}))
                         .at("drift");
  int found = 0;
  for (const auto& row : drift)
    if (row.at("tensor") == "expert_out") {
      ++found;
      CHECK(row.at("target / base").get<double>() == doctest::Approx(0.25));
    }
  CHECK(found == 2);
  // A table of regime I on such a path: what adds up is still that of the path. By hand, with simplep's laws in the normal form of III:
  // router: s_beta^2 = N^2 Var Q/M, eps K; expert_out: s_chi^2 = N_e Var B/M, s_beta^2 = N_e^2 Var B/N, eps K N.
  const ProgramRun other =
      run_program("moe_param", {"transfer", "--base", "N=1024,M=16,Ne=512,K=4", "--target", "N=1024,M=64,Ne=128,K=16",
                                "--param", "simplep", "--optimizer", "adam", "--regime", "I", "--format", "json"});
  has(other.text, "The multipliers follow the table of regime I, as asked for.");
  std::string left;
  const auto report = nlohmann::json::parse(other.text);
  for (const auto& row : report.at("drift"))
    left += fmt::format("{} {} {:g}\n", row.at("tensor").get<std::string>(), row.at("quantity").get<std::string>(),
                        row.at("target / base").get<double>());
  CHECK(left ==
        "router s_beta^2 0.25\nexpert_out s_chi^2 0.25\nexpert_out s_beta^2 0.25\n"
        "router normalised eps 4\nexpert_out normalised eps 4\n");
}

TEST_CASE("the Python export runs by itself and gives the numbers of the table [stand-in for PyTorch parameters]") {
  const TemporaryFolder folder;
  const ProgramRun python = run_program(
      "moe_param",
      words({{"transfer", "--format", "python", "--regime", "III"},
             {"--base", "N=64,M=4,Ne=32,K=2,L=2", "--target", "N=256,M=16,Ne=128,K=8,L=8", "--optimizer", "adamw"}}));
  REQUIRE(python.status == 0);
  write_bytes(folder / "groups.py", python.text);
  write_bytes(folder / "use.py", R"(
import json, sys
sys.path.insert(0, sys.argv[1])
import groups

class Data:  # what the snippet uses of a tensor
    def __init__(self, values): self.values = list(values)
    def mul_(self, factor): self.values = [v * factor for v in self.values]
    def copy_(self, other): self.values = list(other.values)
    def __setitem__(self, where, other): self.values[where] = other.values * len(self.values[where])
    def __getitem__(self, where): return Data(self.values[where])

class Parameter:
    def __init__(self, *values): self.data = Data(values)

class Model:
    def __init__(self):
        self.parameters = {
            "embed.weight": Parameter(1.0), "block.0.norm.weight": Parameter(1.0), "block.0.router.weight": Parameter(1.0),
            "block.0.experts.0.up.weight": Parameter(1.0), "block.0.experts.1.up.weight": Parameter(3.0),
            "block.0.down": Parameter(1.0, 2.0, 3.0), "head.weight": Parameter(1.0)}
    def named_parameters(self): return self.parameters.items()

roles = {r"^embed": "embedding", r"norm": "norm", r"router": "router", r"up\.weight": "expert_up", r"down": "expert_down", r"^head": "unembedding"}
model = Model()
result = {}
for group in groups.parameter_groups(model, roles, lr=1e-2, eps=1e-8, weight_decay=0.1):
    names = [n for n, p in model.named_parameters() if any(p is q for q in group["params"])]
    for name in names: result[name] = [group["lr"], group["eps"], group["weight_decay"]]
groups.scale_init_(model, roles)
for name, p in model.named_parameters(): result[name].append(p.data.values)
try:
    groups.role_of("nothing.weight", roles)
except KeyError as error:
    result["error"] = str(error)
result["branch"] = groups.BRANCH
print(json.dumps(result))
)");
  const std::string command = "python3 -B '" + (folder / "use.py") + "' '" + folder.path().string() + "' > '" +
                              (folder / "out.json") + "' 2> '" + (folder / "err") + "'";
  REQUIRE_MESSAGE(std::system(command.c_str()) == 0, read_bytes(folder / "err"));
  const auto out = nlohmann::json::parse(read_bytes(folder / "out.json"));
  const auto is = [&](const char* name, double lr, double eps, const std::vector<double>& init) {
    CAPTURE(std::string(name));
    CHECK(out.at(name).at(0).get<double>() == doctest::Approx(1e-2 * lr));
    CHECK(out.at(name).at(1).get<double>() == doctest::Approx(1e-8 * eps).scale(0));
    CHECK(out.at(name).at(2).get<double>() == doctest::Approx(0.1 / lr));
    CHECK(out.at(name).at(3).get<std::vector<double>>() == init);
  };
  is("embed.weight", 1, 1.0 / 4, {1});
  is("block.0.norm.weight", 1, 1.0 / 16, {1});
  is("block.0.router.weight", 1.0 / 4, 1.0 / 16, {0.5});
  is("block.0.experts.0.up.weight", 1.0 / 4, 1.0 / 64, {0.5});
  is("block.0.experts.1.up.weight", 1.0 / 4, 1.0 / 64, {0.5});  // starts as the first
  is("block.0.down", 1.0 / 4, 1.0 / 64, {0.5, 0.5, 0.5});
  is("head.weight", 1.0 / 4, 1, {0.25});
  CHECK(out.at("branch").get<double>() == 0.25);
  CHECK(out.at("error").get<std::string>().find("nothing.weight") != std::string::npos);
}

TEST_CASE(
    "a table at given sizes has the numbers of its power laws, with the settings and the depth [II mssp adam, by "
    "hand]") {
  const Words rule = {"--regime", "II", "--param", "mssp", "--optimizer", "adam", "--lr", "0.5", "--eps", "0.125"};
  const Words scales = {"--set", "model.init_scale.expert_out=3", "--set", "optimizer.lr_scale.router=0.25"};
  const Words stack = {"--sizes", "N=256,M=64,Ne=16,K=4,D=100,L=4", "--residual", "--branch-exponent", "0.5"};
  const ProgramRun run = run_program("moe_param", words({{"table", "--format", "json"}, rule, scales, stack}));
  REQUIRE_MESSAGE(run.status == 0, run.text);
  const auto rows = nlohmann::json::parse(run.text).at("numbers");
  const auto is = [&](std::size_t row, double std, double lr, double eps) {
    INFO("row ", row);
    CHECK(rows.at(row).at("init std").get<double>() == doctest::Approx(std).epsilon(1e-12));
    CHECK(rows.at(row).at("learning rate").get<double>() == doctest::Approx(lr).epsilon(1e-12));
    CHECK(rows.at(row).at("eps").get<double>() == doctest::Approx(eps).epsilon(1e-12));
  };
  // Tensors of a block have L^(alpha - 1) in the learning rate and L^-alpha in eps, alpha = 1/2 (T29).
  is(0, 0.1, 0.5 / 100, 0.125 / 256);
  is(1, 1.0 / 16, 0.25 * 0.5 / 256 / 2, 0.125 / 4 / 2);
  is(2, 1.0 / 16, 0.5 / 256 / 2, 0.125 / 16 / 4 / 2);
  is(3, 3 * 8.0 / 4, 0.5 / 16 / 2, 0.125 / 256 / 4 / 2);
  is(4, 1.0 / 256, 0.5 / 256, 0.125);
}

TEST_CASE("a table shows a decay only where the rule has one [adamw]") {
  for (const char* rule : {"sgd", "momentum", "adam", "signsgd", "adafactor", "adamw"}) {
    const ProgramRun run = run_program("moe_param", {"table", "--optimizer", rule});
    CHECK_MESSAGE(contains(run.text, "decay a step") == (std::string(rule) == "adamw"), run.text);
  }
}

TEST_CASE("check: a condition that is dropped is not judged, and none is dropped for another that no table satisfies") {
  const auto rows = [](const Words& flags) {
    const ProgramRun run = run_program("moe_param", words({{"check", "--format", "json"}, flags}));
    REQUIRE_MESSAGE(run.status < 2, run.text);
    return nlohmann::json::parse(run.text).at("conditions");
  };
  const auto logits = [](const nlohmann::json& conditions) {
    for (const auto& row : conditions)
      if (row.at("says").get<std::string>().starts_with("logits do not vanish")) return row;
    return nlohmann::json();
  };
  const auto dropped = logits(rows({"--desiderata", "mssp", "--regime", "I", "--param", "mup", "--optimizer", "sgd"}));
  CHECK(dropped.at("says").get<std::string>().ends_with("(no table can: dropped)"));
  CHECK(dropped.at("holds").is_null());

  // Logits of this table are zero at t = 0, which other tables avoid; no table at all has the power that is asked of expert_out.
  const TemporaryFolder folder;
  std::string table = read_bytes(source_folder() + "/parameterizations/mssp.toml");
  table += "[II.any.router]\nstd = {const = 0}\n";
  write_bytes(folder / "zero_router.toml", table);
  write_bytes(folder / "quarter.toml",
              "extends = \"mu\"\n[[condition]]\nid = \"quarter\"\nsays = \"a quarter\"\n"
              "quantities = [\"chi_expert_out\"]\nexponent = -0.25\n");
  const auto judged = logits(rows({"--desiderata", folder / "quarter.toml", "--regime", "II", "--param",
                                   folder / "zero_router.toml", "--optimizer", "sgd"}));
  CHECK(judged.at("says").get<std::string>() == "logits do not vanish at initialisation");
  CHECK(judged.at("holds").get<std::string>() == "NO");
}

TEST_CASE("--out: a report goes to a file, whole or not at all, and replaces nothing that is read") {
  const TemporaryFolder folder;
  const Words command = {"transfer", "--base", "N=64,M=8,Ne=16,K=4", "--target", "N=256,M=32,Ne=16,K=16"};
  for (const char* format : {"text", "python", "latex"}) {
    const Words flags = words({command, {"--format", format}});
    const ProgramRun filed = run_program("moe_param", words({flags, {"--out", folder / "report"}}));
    CHECK(filed.status == 0);
    CHECK(filed.text.empty());
    CHECK(read_bytes(folder / "report") == run_program("moe_param", flags).text);
  }
  CHECK(folder.file_count() == 1);
  const ProgramRun nowhere = run_program("moe_param", {"table", "--out", folder / "none/report"});
  CHECK(nowhere.status == 2);
  CHECK_MESSAGE(contains(nowhere.text, "does not exist"), nowhere.text);
  const std::string mine = read_bytes(source_folder() + "/parameterizations/desiderata/mu.toml");
  write_bytes(folder / "mine.toml", mine);
  const ProgramRun own = run_program(
      "moe_param", {"check", "--desiderata", folder / "mine.toml", "--param", "mup", "--out", folder / "mine.toml"});
  CHECK(own.status == 2);
  CHECK_MESSAGE(contains(own.text, "would replace it"), own.text);
  CHECK(read_bytes(folder / "mine.toml") == mine);
  const ProgramRun word = run_program("moe_param", {"table", "--format", "json", "--out", "json"},
                                      [&] { REQUIRE(::chdir(folder.path().c_str()) == 0); });
  CHECK_MESSAGE(word.status == 0, word.text);  // the word of a flag is no file
}

TEST_CASE("desiderata without a condition are refused: any table would have them") {
  const TemporaryFolder folder;
  write_bytes(folder / "none.toml", "description = \"nothing\"\n");
  for (const Words& flags :
       {Words{"--desiderata", folder / "none.toml"}, Words{"--desiderata", "mu", "--without", "a,b,c,c_prime,d"}}) {
    const ProgramRun run = run_program("moe_param", words({{"check"}, flags}));
    CHECK(run.status == 2);
    CHECK_MESSAGE(contains(run.text, "no condition"), run.text);
  }
}

TEST_CASE("a table that states nothing is told so, and a constant of minus zero is zero") {
  const TemporaryFolder folder;
  write_bytes(folder / "empty.toml", "");
  const ProgramRun empty = run_program("moe_param", {"table", "--param", folder / "empty.toml"});
  CHECK(empty.status == 2);
  CHECK_MESSAGE(contains(empty.text, "no learning rates"), empty.text);
  CHECK_FALSE_MESSAGE(contains(empty.text, "as its source does"), empty.text);
  std::string table = read_bytes(source_folder() + "/parameterizations/mssp.toml");
  write_bytes(folder / "zero.toml", table + "[II.any.readout]\nstd = {const = -0.0}\n");
  const ProgramRun zero = run_program("moe_param", {"table", "--param", folder / "zero.toml"});
  CHECK(zero.status == 0);
  CHECK_FALSE_MESSAGE(contains(zero.text, "-0 "), zero.text);
}

TEST_CASE("verdicts are exit status 1, bad usage is 2 with every fault named") {
  CHECK(run_program("moe_param", {"constants", "--param", "sp"}).status == 1);
  CHECK(run_program("moe_param", {"check", "--desiderata", "mssp", "--param", "mup"}).status == 1);
  CHECK(run_program("moe_param", {"check", "--desiderata", "mu", "--param", "mup"}).status == 0);
  const auto refused = [](const Words& arguments, const Words& parts) {
    const ProgramRun run = run_program("moe_param", arguments);
    CHECK(run.status == 2);
    for (const auto& part : parts) CHECK_MESSAGE(run.text.find(part) != std::string::npos, part << " in\n" << run.text);
  };
  refused({"tabel"}, {"no command 'tabel'"});
  refused({"table", "--sizes", "N=8,M=2,Ne=x,K=1"}, {"'Ne=x'", "--sizes lacks D"});
  refused({"table", "--format", "python"}, {"--format python is not known"});
  refused({"derive"}, {"--desiderata is missing"});
  refused({"derive", "--desiderata"}, {"--desiderata: 1 required"});
  refused({"check", "--desiderata", "mu", "--without", "z"}, {"no condition 'z'"});
  refused({"transfer", "--base", "N=2,M=x,K=3", "--target", "N=8,N=9,Q=1,M=2,Ne=1,K=3"},
          {"'M=x'", "--base lacks Ne", "gives N twice", "'Q=1'", "K = 3 above M = 2"});
  refused({"transfer"}, {"--base is missing", "--target is missing"});
  refused({"transfer", "--base=", "--target", "N=2,M=2,Ne=1,K=1"}, {"--base lacks N"});
  // What a command would not look at, and of two lists of conditions the one that would not count.
  refused({"check", "--desiderata", "mu", "--sizes", "N=8,M=2,Ne=2,K=1,D=3", "--base=x"},
          {"moe_param check does not use --sizes", "moe_param check does not use --base"});
  refused({"table", "--desiderata", "mu", "--without", "a", "--regime", "IV"},
          {"table does not use --desiderata", "table does not use --without", "\"IV\""});
  refused({"check", "--desiderata", "mssp", "--param", "mup", "--desiderata=mu"}, {"--desiderata is given 2 times"});
  refused({"table", "--optimiser", "sgd"}, {"--optimiser is an unknown flag"});
  refused({"exponents", "--format", "yaml", "--regime", "IV"}, {"--format yaml is not known", "\"IV\""});
  refused({"check", "--desiderata", "nosuch", "--param", "nosuch_table"}, {"there is no 'nosuch'", "nosuch_table"});
  refused({"transfer", "--base", "N=2,M=2,Ne=1,K=1", "--target", "N=4,M=4,Ne=1,K=2,L=3"}, {"--base lacks L"});
  refused({"transfer", "--base", "N=2,M=2,Ne=1,K=1,L=3", "--target", "N=4,M=4,Ne=1,K=2"}, {"--target lacks L"});
  refused({"transfer", "--base", "N=2,M=x,Ne=1,K=1"}, {"'M=x'", "--target is missing"});
}

TEST_CASE("dmft_solve refuses a user's table without a limit in the words of moe_param exponents, in every regime") {
  const TemporaryFolder folder;
  const std::string table = folder / "theirs.toml";
  // MSSP but for one entry too large by a power: a gain of a matrix, a learning rate, the readout.
  struct Fault {
    const char *entry, *regime, *clause;
  };
  const std::vector<Fault> faults = {
      {"[any.any.readout]\nstd = {N = -0.5}\n", "any",
       "N W_out of the initial readout grows as N^0.5 (readout.std = N^-0.5; order one wants N^-0.5 times it)"},
      {"[any.any.expert_out]\nlr = {N = 3}\n", "any", "the normalised learning rate of expert_out grows as N^"},
      {"[any.any.router]\nstd = {N = -0.5}\n", "I",
       "the backward answers of the initial router grow as N^0.5 (router.std = N^-0.5; order one wants N^-0.5 times "
       "it)"},
      {"[any.any.expert_out]\nstd = {M = 1, Ne = -0.5}\n", "II",
       "the forward answers of the initial expert_out grow as N^0.5"},
      {"[any.any.expert_in]\nstd = {}\n", "III", "the forward answers of the initial expert_in grow as N^0.5"}};
  const std::string shipped = read_bytes(source_folder() + "/parameterizations/mssp.toml");
  for (const auto& fault : faults) {
    std::string entry = fault.entry;
    const std::size_t end_of_header = entry.find(']');
    const std::string tensor = entry.substr(9, end_of_header - 9), line = entry.substr(end_of_header + 2);
    for (const std::string regime : {"I", "II", "III"}) {
      if (fault.regime != std::string("any") && fault.regime != regime) continue;
      for (const std::string optimizer : {"sgd", "adam"}) {
        // The most specific section wins; so the entry stands in one of its own, in place of MSSP's.
        std::istringstream in(shipped);
        std::string text, section, key = line.substr(0, line.find(' '));
        for (std::string row; std::getline(in, row);) {
          if (row.starts_with("[")) section = row;
          if (section.ends_with("." + tensor + "]") && row.starts_with(key + " =")) continue;
          text += row + "\n";
        }
        text += "[" + regime + "." + optimizer + "." + tensor + "]\n" + line;
        write_bytes(table, text);
        const Words flags = {"--regime", regime, "--param", table, "--optimizer", optimizer};
        const ProgramRun solve = run_program("dmft_solve", words({flags, {"--quiet"}}));
        const ProgramRun exponents = run_program("moe_param", words({{"exponents"}, flags}));
        CAPTURE(text);
        CHECK(solve.status == 2);
        CHECK_MESSAGE(solve.text.find(fault.clause) != std::string::npos, solve.text);
        CHECK_MESSAGE(exponents.text.find(fault.clause) != std::string::npos, exponents.text);
      }
    }
  }
}

TEST_CASE(
    "dmft_solve solves a user's table: other constants are scales of MSSP, an abc-shifted table is MSSP [every regime "
    "and rule]") {
  const TemporaryFolder folder;
  const std::string shipped = read_bytes(source_folder() + "/parameterizations/mssp.toml");
  const auto edited = [&](const char* name, const std::vector<std::pair<std::string, std::string>>& edits) {
    std::string text = shipped;
    for (const auto& [from, to] : edits) {
      const std::size_t at = text.find(from);
      REQUIRE(at != std::string::npos);
      text.replace(at, from.size(), to);
    }
    write_bytes(folder / name, text);
    return folder / name;
  };
  const std::string scaled =
      edited("scaled.toml", {{"std = {Ne = -0.5}", "std = {Ne = -0.5, const = 1.5}"},
                             {"std = {M = 0.5, Ne = -0.5}", "std = {M = 0.5, Ne = -0.5, const = 1.5}"},
                             {"lr = {K = 1, N = -1}", "lr = {K = 1, N = -1, const = 0.5}"},
                             {"[any.adam.router]\nlr = {N = -1}", "[any.adam.router]\nlr = {N = -1, const = 0.5}"}});
  // sum over experts times N^1/2: std / N^1/2, lr / N (linear) or N^1/2 (entrywise), eps N^1/2.
  const std::string shifted =
      edited("shifted.toml", {{"std = {Ne = -0.5}", "std = {Ne = -0.5, N = -0.5}"},
                              {"std = {M = 0.5, Ne = -0.5}", "std = {M = 0.5, Ne = -0.5, N = -0.5}"},
                              {"lr = {K = 1, N = 1, Ne = -1}", "lr = {K = 1, Ne = -1}"},
                              {"[any.adam.expert_out]\nlr = {Ne = -1}\neps = {K = -1, N = -1}",
                               "[any.adam.expert_out]\nlr = {Ne = -1, N = -0.5}\neps = {K = -1, N = -0.5}"}});
  for (const std::string regime : {"I", "II", "III"})
    for (const std::string optimizer : {"sgd", "adam"}) {
      const auto loss = [&](const Words& flags) {
        const std::string out = folder / "limit.h5";
        const ProgramRun run = run_program(
            "dmft_solve", words({{"--source", "gaussian", "--dimension", "6",   "--train",   "8",    "--test",     "0",
                                  "--loss",   "mse",      "--classes",   "2",   "--neurons", "32",   "--replicas", "2",
                                  "--steps",  "3",        "--lr",        "0.5", "--eps",     "0.05", "--quiet"},
                                 {"--precision", "float64", "--regime", regime, "--optimizer", optimizer, "--out", out},
                                 flags}));
        REQUIRE_MESSAGE(run.status == 0, run.text);
        return moe::H5Reader(out).read("/limit/loss").values;
      };
      const auto same = [](const std::vector<double>& a, const std::vector<double>& b) {
        REQUIRE(a.size() == b.size());
        for (std::size_t k = 0; k < a.size(); ++k) CHECK(a[k] == doctest::Approx(b[k]).epsilon(1e-9));
      };
      CAPTURE(regime);
      CAPTURE(optimizer);
      const auto mssp = loss({"--param", "mssp"});
      same(mssp, loss({"--param", shifted, "--aggregation", "K=-1,N=0.5"}));
      const auto scales = loss(
          {"--param", "mssp", "--set", "model.init_scale.expert_out=1.5", "--set", "optimizer.lr_scale.router=0.5"});
      same(scales, loss({"--param", scaled}));
      CHECK(std::abs(scales.back() - mssp.back()) > 1e-3);
    }
}
