/// Which tables have what a desideratum asks for: theory section 8, found by search and checked table by table.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "regimes/derive.hpp"
#include "regimes/exponents.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;

namespace {

constexpr double zero = no_exponent;
constexpr auto sgd = OptimizerKind::sgd, adam = OptimizerKind::adam;

RunSpec run(const std::string& regime, OptimizerKind optimizer, const std::string& param = "mssp") {
  RunSpec spec;
  spec.model.regime = regime;
  spec.model.param = param;
  spec.optimizer.name = optimizer;
  spec.optimizer.eps = 0.02;
  spec.training.loss = Loss::mse;
  return spec;
}

Parameterization table(const RunSpec& spec) {
  Faults faults;
  Parameterization param = load_parameterization(spec, faults);
  REQUIRE(faults.empty());
  return param;
}

Desiderata asked(const std::string& name, const std::vector<std::string>& without = {}) {
  Faults faults;
  Desiderata result = load_desiderata(name, known_quantities(), without, faults);
  REQUIRE_MESSAGE(faults.empty(), (faults.empty() ? "" : faults.list().front()));
  return result;
}

using Values = std::vector<double>;
using Sharing = std::vector<int>;

/// The only one; fails where there are more or none.
const TableBox& only(const std::vector<Derivation>& derivations) {
  REQUIRE(derivations.size() == 1);
  REQUIRE(derivations.front().boxes.size() == 1);
  return derivations.front().boxes.front();
}

std::vector<std::string> relaxed(const Derivation& d) {
  std::vector<std::string> ids;
  for (const auto* c : d.relaxed) ids.push_back(c->id);
  return ids;
}

/// Exponents of learning rates and eps along the path by theory section 2, in the order of the tensors.
struct Rates {
  const char* regime;
  OptimizerKind optimizer;
  std::array<double, 5> lr, eps;
};
const std::vector<Rates> rates = {
    {"I", sgd, {1, -1, 0, 0, -1}, {}},
    {"II", sgd, {1, 0, 0, 2, -1}, {}},
    {"III", sgd, {1, 0, 1, 1, -1}, {}},
    {"I", adam, {0, -1, -1, -1, -1}, {-1, 0, -1, -1, 0}},
    {"II", adam, {0, -1, -1, 0, -1}, {-1, -1, -1, -2, 0}},
    {"III", adam, {0, -1, -1, -1, -1}, {-1, -1, -2, -2, 0}},
};

void check_rates(const TableBox& box, const Rates& expected) {
  for (std::size_t i = 0; i < tensor_names.size(); ++i) {
    CAPTURE(tensor_names[i]);
    CHECK(box.lr.values[i] == Values{expected.lr[i]});
    if (expected.optimizer == adam) CHECK(box.eps.values[i] == Values{expected.eps[i]});
  }
}

}  // namespace

TEST_CASE("maximal scale stability gives the factor M in II, shared experts in III, the zero router in I [sgd, adam]") {
  const Desiderata desiderata = asked("mssp");
  for (const auto& r : rates) {
    CAPTURE(r.regime);
    const std::string regime = r.regime;
    const auto derivations = derive(desiderata, run(regime, r.optimizer));
    const TableBox& box = only(derivations);
    check_rates(box, r);
    CHECK(box.std[Tensor::input] == Values{0});
    CHECK(box.std[Tensor::expert_in] == Values{-0.5});
    CHECK(box.std[Tensor::readout].back() == -1);
    CHECK(box.std[Tensor::readout].front() == zero);
    CHECK(box.std[Tensor::router] == (regime == "I" ? Values{zero} : Values{-0.5}));
    // Independent experts of fixed width: variance 1/N_e ~ 1 times a factor that grows as M.
    CHECK(box.std[Tensor::expert_out] == (regime == "II" ? Values{0.5} : Values{-0.5}));
    const Sharing sharing = regime == "I" ? Sharing{0, 1} : regime == "II" ? Sharing{0} : Sharing{1};
    CHECK(box.expert_in_shared == sharing);
    CHECK(box.expert_out_shared == sharing);
    CHECK(relaxed(derivations.front()) ==
          (regime == "I" ? std::vector<std::string>{"a", "m_router"} : std::vector<std::string>{}));
    CHECK(contains(derivations.front(), run(regime, r.optimizer), table(run(regime, r.optimizer, "mssp"))));
    CHECK(!contains(derivations.front(), run(regime, r.optimizer), table(run(regime, r.optimizer, "mup"))));
  }
}

TEST_CASE("maximal update gives muP, unique in each regime up to sharing; the readout is free where B(0) moves it") {
  const Desiderata desiderata = asked("mu");
  for (const auto& r : rates) {
    CAPTURE(r.regime);
    const std::string regime = r.regime;
    const auto derivations = derive(desiderata, run(regime, r.optimizer));
    REQUIRE(derivations.size() == 1);
    for (const TableBox& box : derivations.front().boxes) {
      check_rates(box, r);
      CHECK(box.std[Tensor::input] == Values{0});
      CHECK(box.std[Tensor::router] == (regime == "I" ? Values{-1} : Values{-0.5}));
      CHECK(box.std[Tensor::expert_in] == Values{-0.5});
      CHECK(box.std[Tensor::expert_out] == (regime == "II" ? Values{0} : Values{-0.5}));
      const bool readout_free = regime == "I" || (regime == "III" && box.expert_out_shared == Sharing{1});
      if (!readout_free) CHECK(box.std[Tensor::readout] == Values{-1});
    }
    CHECK(contains(derivations.front(), run(regime, r.optimizer), table(run(regime, r.optimizer, "mup"))));
    // It does not see sharing where hidden units grow: MSSP of III is a solution as well; in I and II it is not.
    CHECK(contains(derivations.front(), run(regime, r.optimizer), table(run(regime, r.optimizer, "mssp"))) ==
          (regime == "III"));
  }
}

TEST_CASE(
    "without (c') rates stay unique and open are: B's variance in II, the router in I, sharing, a vanishing readout") {
  const Desiderata desiderata = asked("mu", {"c_prime"});
  for (const auto& r : rates) {
    CAPTURE(r.regime);
    const std::string regime = r.regime;
    const auto derivations = derive(desiderata, run(regime, r.optimizer));
    REQUIRE(derivations.size() == 1);
    Values router, expert_out;
    for (const TableBox& box : derivations.front().boxes) {
      check_rates(box, r);
      CHECK(box.std[Tensor::input] == Values{0});
      CHECK(box.std[Tensor::expert_in] == Values{-0.5});
      router.insert(router.end(), box.std[Tensor::router].begin(), box.std[Tensor::router].end());
      expert_out.insert(expert_out.end(), box.std[Tensor::expert_out].begin(), box.std[Tensor::expert_out].end());
    }
    const auto [least, most] = std::minmax_element(expert_out.begin(), expert_out.end());
    CHECK(*least == (regime == "II" ? 0 : -0.5));
    CHECK(*most == (regime == "II" ? 0.5 : -0.5));
    CHECK(*std::max_element(router.begin(), router.end()) == (regime == "I" ? -1 : -0.5));
    CHECK(*std::min_element(router.begin(), router.end()) == (regime == "I" ? zero : -0.5));
    for (const char* name : {"mup", "mssp"})
      CHECK(contains(derivations.front(), run(regime, r.optimizer), table(run(regime, r.optimizer, name))));
  }
}

TEST_CASE("neither cure works in the other regime: the ratio of a matrix's gains is fixed by its structure") {
  const auto exponent = [](const char* regime, Tensor t, bool shared) {
    for (const auto& r : gain_ratios(run(regime, sgd)))
      if (r.tensor == t && r.shared == shared) return r.exponent;
    FAIL("no ratio");
    return 0.0;
  };
  CHECK(exponent("I", Tensor::router, false) == 1);
  CHECK(exponent("II", Tensor::router, false) == 0);
  for (const bool shared : {false, true}) {
    CHECK(exponent("II", Tensor::expert_out, shared) == (shared ? -1 : 0));  // M N_e/N; N_e/N
    CHECK(exponent("III", Tensor::expert_out, shared) == (shared ? 0 : 1));
    CHECK(exponent("II", Tensor::expert_in, shared) == (shared ? 1 : 0));  // N/(M N_e); N/N_e
    CHECK(exponent("III", Tensor::expert_in, shared) == (shared ? 0 : -1));
  }
}

TEST_CASE("a single table is checked: what it breaks is what search leaves out, quantity and stage named") {
  for (const char* regime : {"I", "II", "III"})
    for (const auto optimizer : {sgd, adam})
      for (const char* which : {"mu", "mssp"}) {
        const Desiderata desiderata = asked(which);
        const auto derivations = derive(desiderata, run(regime, optimizer));
        REQUIRE(derivations.size() == 1);
        for (const char* param : {"mup", "mssp", "sp", "ntp", "sp_lr_over_n"}) {
          const RunSpec spec = run(regime, optimizer, param);
          const auto broken = violations(desiderata, derivations.front().relaxed, spec, table(spec));
          CAPTURE(regime);
          CAPTURE(which);
          CAPTURE(param);
          CHECK(broken.empty() == contains(derivations.front(), spec, table(spec)));
        }
        // Of an entrywise rule eps counts too.
        const RunSpec of_table = run(regime, optimizer, which == std::string("mu") ? "mup" : "mssp");
        Parameterization param = table(of_table);
        CHECK(contains(derivations.front(), of_table, param));
        param.rule[Tensor::expert_in].eps.exponents.N += 0.5;
        CHECK(contains(derivations.front(), of_table, param) == (optimizer == sgd));
      }
  const Desiderata desiderata = asked("mssp");
  const RunSpec spec = run("II", sgd, "mup");
  const auto broken = violations(desiderata, derive(desiderata, spec).front().relaxed, spec, table(spec));
  REQUIRE(!broken.empty());
  for (const auto& v : broken) {
    CHECK(v.condition->id == "m_expert_out");
    CHECK(v.exponent == -0.5);
    CHECK(v.reason.find("expert_out.std = Ne^-0.5") != std::string::npos);
  }
}

TEST_CASE("a desideratum of one's own: conditions on named quantities, no code") {
  const TemporaryFolder folder;
  const auto file = [&](const std::string& text) {
    write_bytes(folder / "mine.toml", text);
    return folder / "mine.toml";
  };
  // Only that logits start at order one and nothing grows at t = 0.
  const Desiderata mine = asked(file(R"(
description = "logits"
[[condition]]
id = "logits"
quantities = ["rms_r_init"]
at = ["init"]
exponent = 0
[[condition]]
id = "size"
quantities = ["rms_h", "rms_r"]
at = ["init"]
exponent = {max = 0}
)"));
  CHECK(mine.name == "mine");
  const RunSpec spec = run("I", sgd, "mup");
  CHECK(violations(mine, {}, spec, table(spec)).size() == 1);  // r ~ N^-1/2 at t = 0
  const RunSpec other = run("II", sgd, "mup");
  CHECK(violations(mine, {}, other, table(other)).empty());

  Faults faults;
  load_desiderata(file(R"(
without = ["x"]
[[condition]]
quantities = ["rms_hh"]
at = ["init", "soon"]
exponent = {min = 1, max = 0, mean = 2}
[[condition]]
id = "b"
quantites = ["rms_h"]
if_impossible = "shrug"
)"),
                  known_quantities(), {"nothing"}, faults);
  std::string all;
  for (const auto& f : faults.list()) all += f + "\n";
  for (const char* part :
       {"mine.toml:2: 'without' says what to leave out", "a condition without 'id'",
        "unknown quantity 'rms_hh'. Did you mean 'rms_h'", "unknown stage 'soon'", "min = 1 is above max = 0",
        "unknown key 'mean'", "unknown key 'quantites'", "a condition without 'quantities'",
        "a condition without 'exponent'", "\"shrug\"", "no condition 'nothing'"})
    CHECK_MESSAGE(all.find(part) != std::string::npos, part << " in\n" << all);
  Faults unsafe;
  load_desiderata(file("name = \"mine\"\n\u00E9 = 1\n"), known_quantities(), {}, unsafe);
  REQUIRE(unsafe.list().size() == 1);
  CHECK(unsafe.list().front().find("mine.toml:2:1: '\u00E9' (U+00E9) stands outside quotes") != std::string::npos);
  Faults absent;
  load_desiderata("nothing_of_this_name", known_quantities(), {}, absent);
  REQUIRE(absent.list().size() == 1);
  CHECK(absent.list().front().find("Use mssp or mu") != std::string::npos);
}

TEST_CASE("where no table is found, the conditions that exclude one another are named, and no others [slow]") {
  const TemporaryFolder folder;
  using Sets = std::vector<std::vector<std::string>>;
  const auto named = [](const std::vector<Conditions>& sets) {
    Sets ids;
    for (const auto& set : sets) {
      ids.emplace_back();
      for (const auto* c : set) ids.back().push_back(c->id + ": " + c->quantities.front());
    }
    return ids;
  };
  const auto file = [&](const std::string& text) {
    write_bytes(folder / "mine.toml", text);
    return asked(folder / "mine.toml");
  };
  // Late logits cannot both grow (mine) and not grow (a).
  const Desiderata grows = file(
      "extends = \"mu\"\n[[condition]]\nid = \"mine\"\nquantities = [\"rms_r\"]\nat = [\"late\"]\n"
      "exponent = {min = 0.5}\n");
  for (const auto optimizer : {sgd, adam}) {
    REQUIRE(derive(grows, run("II", optimizer)).empty());
    CHECK(named(conflicts(grows, run("II", optimizer))) == Sets{{"a: rms_h", "mine: rms_r"}});
  }
  // Both gains of the router in I: their ratio N^2/(M N) grows, whatever the std (theory section 8).
  const Desiderata router = file(
      "extends = \"mu\"\n[[condition]]\nid = \"both\"\nquantities = [\"chi_router\", \"beta_router\"]\nexponent = 0\n");
  REQUIRE(derive(router, run("I", sgd)).empty());
  CHECK(named(conflicts(router, run("I", sgd))) == Sets{{"both: chi_router"}});
  CHECK(!derive(router, run("II", sgd)).empty());  // possible there
}

TEST_CASE("what has to be relaxed is found without listing all tables, and too many tables are not listed") {
  for (const char* regime : {"I", "II", "III"})
    for (const char* which : {"mu", "mssp"}) {
      const Desiderata desiderata = asked(which);
      std::vector<Conditions> by_search;
      for (const auto& d : derive(desiderata, run(regime, sgd))) by_search.push_back(d.relaxed);
      CHECK(relaxations(desiderata, run(regime, sgd)) == by_search);
    }
  const TemporaryFolder folder;
  write_bytes(folder / "loose.toml",
              "[[condition]]\nid = \"q\"\nquantities = [\"rms_f\"]\nat = [\"late\"]\nexponent = 0.25\n");
  const Desiderata loose = asked(folder / "loose.toml");
  const RunSpec spec = run("II", sgd, "mup");
  CHECK_THROWS_WITH_AS(derive(loose, spec, 2000), doctest::Contains("the conditions leave too many tables"),
                       ConfigError);
  CHECK(violations(loose, relaxations(loose, spec).front(), spec, table(spec)).size() == 1);
  // What all tables of a large box have is seen before they are listed: so many evaluations would take two minutes.
  for (const char* loosest : {"quantities = [\"rms_h\"]\nexponent = {max = 0}\n",
                              "quantities = [\"rms_r_init\"]\nat = [\"init\"]\nexponent = 0\n"}) {
    write_bytes(folder / "loosest.toml", std::string("[[condition]]\nid = \"q\"\n") + loosest);
    CHECK_THROWS_WITH_AS(derive(asked(folder / "loosest.toml"), spec, 4'000'000),
                         doctest::Contains("the conditions leave too many tables"), ConfigError);
  }
}

TEST_CASE("every table that search finds passes the check, and its neighbours fail it [II, III, SGD]") {
  // The search uses bounds; the check one table at a time.
  for (const char* regime : {"II", "III"})
    for (const char* which : {"mu", "mssp"}) {
      const Desiderata desiderata = asked(which);
      const RunSpec spec = run(regime, sgd);
      const auto derivations = derive(desiderata, spec);
      REQUIRE(derivations.size() == 1);
      for (const TableBox& box : derivations.front().boxes) {
        const auto law = [](double exponent) {
          return exponent == zero ? power_law({{"const", 0}}) : power_law({{"N", exponent}});
        };
        Parameterization param;
        for (std::size_t i = 0; i < tensor_names.size(); ++i) {
          param.rule.values[i].std = law(box.std.values[i].back());
          param.rule.values[i].lr = law(box.lr.values[i].back());
        }
        param.rule[Tensor::expert_in].shared = box.expert_in_shared.back() != 0;
        param.rule[Tensor::expert_out].shared = box.expert_out_shared.back() != 0;
        CHECK(violations(desiderata, derivations.front().relaxed, spec, param).empty());
        for (std::size_t i = 0; i < tensor_names.size(); ++i)
          for (const double step : {-0.5, 0.5}) {
            for (PowerLaw TensorRule::*entry : {&TensorRule::std, &TensorRule::lr}) {
              Parameterization neighbour = param;
              PowerLaw& changed = neighbour.rule.values[i].*entry;
              changed = changed * power_law({{"N", step}});
              CAPTURE(tensor_names[i]);
              CAPTURE(step);
              CHECK(violations(desiderata, derivations.front().relaxed, spec, neighbour).empty() ==
                    contains(derivations.front(), spec, neighbour));
            }
          }
      }
    }
}
