/// Printing a configuration and reading it back gives the same run, for random valid runs.
#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <cmath>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "support/config.hpp"
#include "support/config_keys.hpp"

using namespace moe;

namespace {

/// A double in the key's range, of any order of magnitude, with all its bits in use.
double number_in(const Range& range) {
  const auto bits = *rc::gen::resize(rc::kNominalSize, rc::gen::arbitrary<std::uint64_t>());
  const double u = (static_cast<double>(bits >> 12) + 0.5) / std::ldexp(1.0, 52);  // inside (0, 1)
  if (std::isfinite(range.low) && std::isfinite(range.high))
    return range.low + (range.high - range.low) * std::pow(u, *rc::gen::inRange(1, 9));
  const double x = std::ldexp(u, *rc::gen::inRange(-300, 300));
  return std::isfinite(range.low) || bits % 2 == 0 ? std::max(range.low, 0.0) + x : -x;
}

template <class Integer>
Integer integer_in(const Range& range) {
  const double top = static_cast<double>(std::numeric_limits<Integer>::max());
  const auto low = static_cast<std::int64_t>(std::max(range.low, 0.0));
  const auto high = static_cast<std::int64_t>(std::min({range.high, top, 9.2e18}));
  return static_cast<Integer>(*rc::gen::inRange<std::int64_t>(low, high));
}

/// Text with everything that TOML must escape, and some that it must not.
std::string text() {
  static const std::vector<std::string> pieces = {"a",  "Z", " ", "/", "\\", "\"", "'",  "#",    "=",    "\n",
                                                  "\t", "]", "{", ",", "é",  "µ",  "漢", "\x7f", "\x01", "😀"};
  std::string result;
  for (const auto& piece : *rc::gen::container<std::vector<std::string>>(rc::gen::elementOf(pieces))) result += piece;
  return result;
}

void randomize(const Key& key, RunSpec& spec) {
  const Field field = key.field(spec);
  if (auto* const* x = std::get_if<double*>(&field)) **x = number_in(key.range);
  if (auto* const* n = std::get_if<int*>(&field)) **n = integer_in<int>(key.range);
  if (auto* const* n = std::get_if<std::uint64_t*>(&field)) **n = integer_in<std::uint64_t>(key.range);
  if (auto* const* b = std::get_if<bool*>(&field)) **b = *rc::gen::arbitrary<bool>();
  if (const auto* e = std::get_if<EnumField>(&field)) e->set(*rc::gen::inRange<std::size_t>(0, e->names.size()));
  if (auto* const* s = std::get_if<std::string*>(&field))
    **s = key.words.empty() ? text() : *rc::gen::elementOf(key.words);
  if (auto* const* list = std::get_if<std::vector<int>*>(&field)) {
    **list = *rc::gen::unique<std::vector<int>>(rc::gen::inRange(1, 100000));
    if (key.path == "network.widths" && (*list)->empty()) (*list)->push_back(7);
  }
  if (auto* const* list = std::get_if<std::vector<std::string>*>(&field)) {
    const std::vector<std::string> names(key.words.begin() + 3, key.words.end());  // after standard, all, none
    **list = *rc::gen::arbitrary<bool>() ? std::vector<std::string>{*rc::gen::elementOf(key.words)}
                                         : *rc::gen::unique<std::vector<std::string>>(rc::gen::elementOf(names));
  }
  if (auto* const* keys = std::get_if<std::map<std::string, double>*>(&field)) {
    (*keys)->clear();
    for (const char* name : power_law_keys)
      if (*rc::gen::arbitrary<bool>())
        (**keys)[name] = number_in(std::string(name) == "const" ? Range{.low = 0, .low_open = true}
                                                                : Range{.low = -100, .high = 100});
  }
}

RunSpec random_run() {
  RunSpec spec;
  for (const auto& key : config_keys()) randomize(key, spec);
  // Combinations that validate() refuses.
  spec.training.batch = std::min(spec.training.batch, spec.data.train);
  spec.training.steps = std::max(spec.training.steps, 100000);
  if (spec.sampling.window > 0 || spec.sampling.damping > 0 || spec.sampling.anderson > 0) {
    spec.sampling.method = Method::iterate;
    spec.sampling.start = Start::zero;
  }
  if (spec.training.dynamics == Dynamics::flow) {
    spec.optimizer.name = OptimizerKind::sgd;
    spec.training.batch = 0;
    spec.model.balance_bias = 0;
    spec.training.rtol = std::max(spec.training.rtol, 1e-5);
  }
  return spec;
}

bool same_value(const Field& a, const Field& b) {
  return std::visit(
      [&b](const auto& left) {
        using Left = std::remove_cvref_t<decltype(left)>;
        if constexpr (std::is_same_v<Left, EnumField>)
          return left.get() == std::get<EnumField>(b).get();
        else
          return *left == *std::get<Left>(b);
      },
      a);
}

}  // namespace

TEST_CASE("print_config and read_config_text are inverse for random valid runs") {
  CHECK(rc::check("round trip", [] {
    RunSpec spec = random_run();
    RunSpec again = read_config_text(print_config(spec), "printed");
    for (const auto& key : config_keys())
      if (!same_value(key.field(spec), key.field(again))) RC_FAIL(key.path);
  }));
}

TEST_CASE("a changed value changes the printed configuration, key by key") {
  // So that the round trip above cannot pass by leaving a key out.
  CHECK(rc::check("every key is printed", [] {
    RunSpec spec;
    spec.origin["output.observe_every"] = "said";
    const std::string before = print_config(spec);
    const auto& key = *rc::gen::elementOf(config_keys());
    RunSpec changed = spec;
    randomize(key, changed);
    RC_PRE(!same_value(key.field(spec), key.field(changed)));
    RC_ASSERT(print_config(changed) != before);
  }));
}

TEST_CASE("numbers print as the shortest text that reads back, and integers stay numbers") {
  RunSpec spec;
  spec.optimizer.lr = 0.1;
  spec.optimizer.eps = 1e-8;
  spec.model.output_scale = 3;
  spec.sampling.seed = 9200000000000000000u;
  const std::string text = print_config(spec);
  CHECK(text.find("\nlr = 0.1\n") != std::string::npos);
  CHECK(text.find("\neps = 1e-08\n") != std::string::npos);
  CHECK(text.find("\noutput_scale = 3.0\n") != std::string::npos);
  CHECK(text.find("\nseed = 9200000000000000000\n") != std::string::npos);
}

TEST_CASE("observe_every stays unsaid through a round trip, because its default depends on that") {
  RunSpec spec;
  spec.training.batch = 16;
  CHECK(!read_config_text(print_config(spec), "printed").origin.contains("output.observe_every"));
  const RunSpec said = read_config_text("training.batch = 16\noutput.observe_every = 1\n", "run.toml");
  CHECK(read_config_text(print_config(said), "printed").origin.contains("output.observe_every"));
}
