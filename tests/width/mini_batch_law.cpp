// Check (9) of theory section 10 under mini-batches: the plain sweep has the law of finite networks of N = neurons, mean and variance over
// seeds, of the batches' losses, of whole-set losses by evaluation-only queries, and of the observables of each step's own batch, while
// the bases fill and the dense form takes over.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "dmft/march.hpp"
#include "dmft/observer.hpp"
#include "support/schedule.hpp"
#include "tests/limit_fixture.hpp"
#include "validation/network.hpp"
#include "validation/statistics.hpp"

namespace {

using enum moe::OptimizerKind;
using enum moe::BatchOrder;
using moe::Gate;
using moe::Routing;

// Fresh rows of many dimensions: each batch asks new directions, of the dense form as well. Step 7 starts over.
constexpr int T = 8, batch = 4, train = 30, inputs = 16;

struct Law {
  std::string regime, param;
  moe::OptimizerKind optimizer;
  moe::BatchOrder order;
  int N;
  double lr;
  Routing routing = Routing::soft;
};

moe::RunSpec describe(const Law& law, int seeds) {
  moe::RunSpec s =
      limit_fixture::as_network(limit_fixture::spec(law.regime, law.param, law.optimizer, law.lr, T), law.N);
  s.model.routing = law.routing;
  s.training.batch = batch;
  s.training.batch_order = law.order;
  s.training.eval_every = 2;
  s.sampling.replicas = seeds;
  s.network.widths = {law.N};
  s.network.seeds = seeds;
  s.output.observables = {"rms_h",           "rms_r",    "rms_u_init", "rms_y_init", "rms_y_propagating",
                          "rms_y_effective", "rms_zeta", "rms_xi"};
  s.output.observe_every = 3;
  return s;
}

using Samples = std::map<std::string, std::vector<double>>;  ///< "loss 4" -> one value per seed

void take(Samples& samples, const std::vector<double>& batch_loss, const std::vector<double>& loss) {
  for (int t : {1, 3, 5, 7})
    samples["batch loss " + std::to_string(t)].push_back(batch_loss.at(static_cast<std::size_t>(t)));
  for (int t : {2, 4, 8})
    samples["whole-set loss " + std::to_string(t)].push_back(loss.at(static_cast<std::size_t>(t / 2)));
}

constexpr int observed[] = {0, 3, 6, 8};

Samples of_networks(const moe::RunSpec& s, const moe::Dataset& d) {
  Samples samples;
  const auto runs = moe::train_networks(s, d, 0);
  for (const auto& run : runs.at(0)) {
    REQUIRE(run.observe_steps == std::vector<int>(std::begin(observed), std::end(observed)));
    take(samples, run.batch_loss, run.loss);
    for (const auto& [name, values] : run.observables)
      for (std::size_t k : {1U, 3U}) samples[name + " " + std::to_string(observed[k])].push_back(values.at(k));
  }
  return samples;
}

/// Which forms the comparison has seen, over all replicas.
struct Forms {
  bool sparse_at_first = true;  ///< after the first step some operator still conditions on its queries
  bool dense_at_last =
      true;  ///< before the last comparisons most do not (an expert that no token chooses stays sparse)
};

Samples of_limit(const moe::RunSpec& s, const moe::Dataset& d, Forms& forms) {
  moe::Faults faults;
  std::vector<std::string> warnings;
  moe::Plan plan{&s, &d, moe::limit_spec(s, moe::step_shape(s, d), faults, warnings), {}, {}, {}, {}, {}, false};
  faults.throw_if_any();
  plan.limit.block.matching = false;
  plan.eval_steps = moe::eval_steps(s.training);
  plan.observe_steps = moe::observe_steps(s);
  plan.observables = moe::selected_observables(s);
  Samples samples;
  for (int k = 0; k < s.sampling.replicas; ++k) {
    moe::Record record;
    moe::march<moe::Cpu<double>>(plan, k, {}, std::atomic<bool>{false}, record);
    const std::vector<double>& dense = record.diagnostics.at("dense_fraction");
    forms.sparse_at_first = forms.sparse_at_first && dense.front() < 1;
    forms.dense_at_last = forms.dense_at_last && record.dense_since >= 0 && dense[T - 3] > 0.5;
    take(samples, record.batch_loss, record.loss);
    for (std::size_t o = 0; o < plan.observables.size(); ++o)
      for (std::size_t step : {1U, 3U})
        samples[plan.observables[o] + " " + std::to_string(observed[step])].push_back(record.observables.at(step)[o]);
  }
  return samples;
}

void agree(const std::string& what, const std::vector<double>& networks, const std::vector<double>& limit,
           double bound) {
  const double zm = moe::statistics::mean_z(networks, limit), zv = moe::statistics::variance_z(networks, limit);
  const moe::statistics::Moments a = moe::statistics::moments(networks), b = moe::statistics::moments(limit);
  INFO(what, ": networks mean ", a.mean, " +- ", a.mean_error, ", sd ", std::sqrt(a.variance), "; sweep mean ", b.mean,
       " +- ", b.mean_error, ", sd ", std::sqrt(b.variance), "; z ", zm, ", ", zv);
  CHECK(std::abs(zm) < bound);
  CHECK(std::abs(zv) < bound);
}

/// 46 comparisons of 8 laws at 4.4 standard errors: one false alarm in 250 choices of the seeds, which are fixed.
void compare(const Law& law, int seeds) {
  const moe::RunSpec s = describe(law, seeds);
  const moe::Dataset d = limit_fixture::data(train, inputs, 1);
  Forms forms;
  const Samples networks = of_networks(s, d), limit = of_limit(s, d, forms);
  REQUIRE(networks.size() == limit.size());
  for (const auto& [name, values] : networks)
    agree(law.regime + " " + law.param + ", " + name, values, limit.at(name), 4.4);
  // The bases of N directions fill within N / batch steps; what was compared above lies before and after.
  CHECK(forms.sparse_at_first);
  CHECK(forms.dense_at_last);
}

}  // namespace

TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [I mssp sgd, sequential, N=24]") {
  compare({"I", "mssp", sgd, sequential, 24, 0.7}, 400);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [I mup sgd topk, shuffled, N=24]") {
  compare({"I", "mup", sgd, shuffled, 24, 0.7, Routing::topk}, 400);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [II mssp sgd, shuffled, N=24]") {
  compare({"II", "mssp", sgd, shuffled, 24, 0.5}, 400);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [II mssp sgd topk, sequential, N=24]") {
  compare({"II", "mssp", sgd, sequential, 24, 0.5, Routing::topk}, 400);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [II mssp momentum, sequential, N=24]") {
  compare({"II", "mssp", momentum, sequential, 24, 0.2}, 400);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [II mssp adam, shuffled, N=24]") {
  compare({"II", "mssp", adam, shuffled, 24, 0.1}, 400);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [III mssp sgd, sequential, N=32]") {
  compare({"III", "mssp", sgd, sequential, 32, 0.5}, 300);
}
TEST_CASE("mini-batches: the sweep has the law of networks, sparse and dense [III mssp adam, shuffled, N=32]") {
  compare({"III", "mssp", adam, shuffled, 32, 0.1}, 300);
}

TEST_CASE("whole-set evaluation has the law of networks, in pieces their mean [II, III mssp]") {
  // Pieces are drawn independently of each other: every sample keeps its law, samples of different pieces lose the correlation that a
  // common network gives them beyond the stored queries.
  constexpr int many = 30;
  for (const auto& [regime, N] : {std::pair{"II", 32}, std::pair{"III", 16}}) {
    constexpr int seeds = 500;
    moe::RunSpec s = limit_fixture::as_network(limit_fixture::spec(regime, "mssp", sgd, 0.5, 1), N);
    s.training.batch = batch;
    s.training.eval_every = 1;
    s.network.widths = {N};
    s.network.seeds = seeds;
    s.output.observables = {"none"};
    const moe::Dataset d = limit_fixture::data(many, 5, 1);
    Samples networks, whole, pieces;
    const auto names = {"loss 0", "loss 1"};
    const auto runs = moe::train_networks(s, d, 0);
    for (const auto& run : runs.at(0))
      for (std::size_t t : {0U, 1U}) networks[std::data(names)[t]].push_back(run.loss.at(t));
    moe::Faults faults;
    std::vector<std::string> warnings;
    moe::LimitSpec limit = moe::limit_spec(s, moe::step_shape(s, d), faults, warnings);
    faults.throw_if_any();
    limit.block.matching = false;
    for (std::uint32_t k = 0; k < seeds; ++k) {
      moe::Replica<moe::Cpu<double>> replica(limit, 5, 1, batch, k);
      for (int t : {0, 1}) {
        const auto rows = moe::batch_rows(s, many, t);
        replica.set_batch(d.x(Eigen::all, rows), d.y(Eigen::all, rows));
        replica.forward();
        replica.backward();
        const char* name = std::data(names)[t];
        whole[name].push_back(moe::loss_value(s.training.loss, replica.evaluate(d.x, many), d.y));
        pieces[name].push_back(moe::loss_value(s.training.loss, replica.evaluate(d.x, 5), d.y));
        replica.update();
      }
    }
    for (const auto& [name, values] : networks) {
      agree(std::string(regime) + " one piece, " + name, values, whole.at(name), 4.2);
      const double z = moe::statistics::mean_z(values, pieces.at(name));
      INFO(regime, " pieces of 5, ", name, ": z of the mean ", z);
      CHECK(std::abs(z) < 4.2);
      CHECK(moe::statistics::variance_z(values, pieces.at(name)) > -4.2);
    }
  }
}

TEST_CASE(
    "mini-batches: change_* are left out, said by name they are warned of, and (T26) starts with what is [limit]") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", sgd, 0.5, 4);
  s.sampling.neurons = 60;
  s.sampling.replicas = 2;
  s.sampling.tolerance = 0.3;  // directions are dropped: v(0) by a new query would not be the stored v
  s.training.batch = batch;
  s.output.observables = {"all"};
  const moe::Dataset d = limit_fixture::data(train, inputs, 1);
  const moe::LimitResult r = moe::solve_limit(s, d);
  for (const auto& info : moe::observable_table)
    CHECK_MESSAGE(r.observables.contains(info.name) != std::string(info.name).starts_with("change_"), info.name);
  for (const auto& [name, curve] : r.observables) {
    CHECK_MESSAGE(curve.mean.size() == 5, name);
    for (double v : curve.mean) CHECK_MESSAGE(std::isfinite(v), name);
  }
  CHECK(r.observables.at("rms_y_propagating").mean[0] == 0);
  CHECK(r.observables.at("rms_y_init").mean[0] == doctest::Approx(r.observables.at("rms_y").mean[0]));
  CHECK(r.warnings.empty());
  s.output.observables = {"rms_h", "change_h"};
  const moe::LimitResult named = moe::solve_limit(s, d);
  CHECK_FALSE(named.observables.contains("change_h"));
  REQUIRE(named.warnings.size() == 1);
  CHECK(named.warnings[0].find("change_h") != std::string::npos);
}
