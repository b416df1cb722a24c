// Identities of whole solves: threads, precision, replicas' errors, evaluation-only answers, what is kept of a run that ends early.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "dmft/limit_file.hpp"
#include "support/hdf5.hpp"
#include "tests/limit_fixture.hpp"
#include "tests/temporary_folder.hpp"
#include "validation/network.hpp"

namespace {

using enum moe::OptimizerKind;

moe::LimitResult solve(const moe::RunSpec& s, const moe::Dataset& d, int threads = 2) {
  moe::SolveOptions options;
  options.threads = threads;
  return moe::solve_limit(s, d, options);
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t k = 0; k < a.size(); ++k)
    if (!(a[k] == b[k] || (std::isnan(a[k]) && std::isnan(b[k])))) return false;
  return true;
}

}  // namespace

TEST_CASE(
    "solve: one and two threads give the same numbers, bit for bit [replicas side by side, and threads inside one "
    "replica] [threads]") {
  for (const int replicas : {1, 3})
    for (const auto& [regime, optimizer] : {std::pair{"II", sgd}, std::pair{"I", adam}}) {
      moe::RunSpec s = limit_fixture::spec(regime, "mssp", optimizer, 0.2, 4);
      s.sampling.precision = moe::Precision::float32;
      s.sampling.replicas = replicas;
      s.sampling.neurons = 1200;
      moe::Dataset d = limit_fixture::data(40, 6, 1);
      d.x_test = limit_fixture::data(20, 6, 1, 2).x;
      d.y_test = limit_fixture::data(20, 6, 1, 2).y;
      const moe::LimitResult one = solve(s, d, 1), two = solve(s, d, 2);
      CHECK(same_bits(one.loss.mean, two.loss.mean));
      CHECK(same_bits(one.loss.sem, two.loss.sem));
      CHECK(same_bits(one.test_loss.mean, two.test_loss.mean));
      for (const auto& [name, curve] : one.observables)
        CHECK_MESSAGE(same_bits(curve.mean, two.observables.at(name).mean), name);
    }
}

TEST_CASE(
    "solve: training does not depend on what is observed and tested, bit for bit [dense from the start and later]") {
  moe::Dataset d = limit_fixture::data(12, 6, 1);
  d.x_test = limit_fixture::data(20, 6, 1, 2).x;
  d.y_test = limit_fixture::data(20, 6, 1, 2).y;
  for (const auto& [regime, form] : {std::pair{"II", moe::Form::automatic}, std::pair{"III", moe::Form::dense}}) {
    moe::RunSpec s = limit_fixture::spec(regime, "mssp", sgd, 0.5, 8);
    s.sampling.neurons = 64;
    s.sampling.form = form;
    s.training.test_every = 8;
    s.output.observables = {"none"};
    const moe::LimitResult little = solve(s, d);
    s.training.test_every = 1;
    s.output.observables = {"all"};
    const moe::LimitResult all = solve(s, d);
    REQUIRE(all.summary.at("dense_since_step") >= 0);
    for (std::size_t k = 0; k < all.loss_per_replica.size(); ++k)
      CHECK(same_bits(little.loss_per_replica[k], all.loss_per_replica[k]));
  }
}

TEST_CASE(
    "solve: one block is the same whatever the branch exponent, bit for bit [L^-alpha and the factors of (T29) are "
    "one; "
    "SGD, Adam, Adafactor; norm or none]") {
  const moe::Dataset d = limit_fixture::data(6, 5, 3);
  for (const auto& [regime, optimizer, norm] :
       {std::tuple{"I", sgd, moe::Norm::none}, {"II", adam, moe::Norm::rms}, {"III", adafactor, moe::Norm::none}}) {
    moe::RunSpec s = limit_fixture::spec(regime, "mssp", optimizer, 0.1, 4);
    s.model.norm = norm;
    s.model.residual = true;
    s.sampling.neurons = 64;
    s.sampling.replicas = 1;
    s.output.observables = {"all"};
    const moe::LimitResult unsaid = solve(s, d);
    CHECK(unsaid.loss.mean.back() < unsaid.loss.mean.front());
    for (const double alpha : {0.0, 0.5, 1.7}) {
      s.model.branch_exponent = alpha;
      const moe::LimitResult said = solve(s, d);
      CHECK(same_bits(said.loss.mean, unsaid.loss.mean));
      for (const auto& [name, curve] : unsaid.observables)
        CHECK_MESSAGE(same_bits(curve.mean, said.observables.at(name).mean), std::string(regime), " ", name, ", alpha ",
                      alpha);
    }
  }
}

TEST_CASE("solve: another seed agrees within the standard errors of both, which are not too large either [check (3)]") {
  for (const auto& [regime, param] :
       {std::pair{"I", "mup"}, std::pair{"II", "mssp"}, std::pair{"III", "mssp"}, std::pair{"III", "mup"}}) {
    moe::RunSpec s = limit_fixture::spec(regime, param, sgd, 0.5, 8);
    s.sampling.neurons = std::string(regime) == "III" ? 120 : 300;
    s.sampling.replicas = 12;
    const moe::Dataset d = limit_fixture::data(6, 5, 1);
    const moe::LimitResult a = solve(s, d);
    s.sampling.seed = 77;
    const moe::LimitResult b = solve(s, d);
    for (std::size_t t = 1; t < a.loss.mean.size(); ++t) {
      const double error = std::hypot(a.loss.sem[t], b.loss.sem[t]);
      INFO(regime, " ", param, " step ", t, ": ", a.loss.mean[t], " and ", b.loss.mean[t], ", error ", error);
      CHECK(std::abs(a.loss.mean[t] - b.loss.mean[t]) <
            4.5 * error);  // 32 correlated comparisons, 22 degrees of freedom
      CHECK(a.loss.mean[t] != b.loss.mean[t]);
      CHECK(error < 0.02 * a.loss.mean[0]);
    }
  }
}

TEST_CASE(
    "solve: the training set as a test set has the training loss, by evaluation-only queries [check (10), every "
    "structure]") {
  for (const auto& [regime, param] : {std::pair{"I", "mssp"}, std::pair{"II", "mssp"}, std::pair{"II", "mup"},
                                      std::pair{"III", "mssp"}, std::pair{"III", "mup"}})
    for (const auto optimizer : {sgd, adamw})
      for (const double tolerance :
           {1e-6, 0.3}) {  // 0.3 drops directions: the fresh noise then stands for what was dropped
        moe::RunSpec s = limit_fixture::spec(regime, param, optimizer, 0.1, 5);
        s.optimizer.weight_decay = 0.3;
        s.sampling.neurons = 120;
        s.sampling.replicas = 2;
        s.sampling.tolerance = tolerance;
        s.training.test_every = 1;
        moe::Dataset d = limit_fixture::data(5, 5, 1);
        d.x_test = d.x;
        d.y_test = d.y;
        const moe::LimitResult r = solve(s, d);
        for (std::size_t t = 0; t < r.loss.mean.size(); ++t) {
          INFO(regime, " ", param, " step ", t, " tolerance ", tolerance);
          CHECK(std::abs(r.test_loss.mean[t] - r.loss.mean[t]) <=
                3 * tolerance * tolerance + 20 * tolerance / std::sqrt(120.0) * 0.1 + 1e-9);
        }
      }
}

namespace {
/// Two blocks with all that stands between their matrices, and experts that a bias selects.
moe::RunSpec balanced_stack(const std::string& regime, const std::string& param, moe::OptimizerKind optimizer) {
  moe::RunSpec s = limit_fixture::spec(regime, param, optimizer, moe::is_linear(optimizer) ? 0.5 : 0.1, 4);
  s.model.depth = 2;
  s.model.norm = moe::Norm::rms;
  s.model.residual = true;
  s.model.post_activation = moe::Activation::tanh;
  s.model.routing = moe::Routing::topk;
  s.model.experts = 4;
  s.model.balance_bias = 0.4;
  s.optimizer.weight_decay = 0.3;
  s.sampling.neurons = 64;
  s.sampling.replicas = 2;
  s.sampling.matching = moe::Matching::off;
  return s;
}
}  // namespace

TEST_CASE(
    "solve: the training set as a test set has the training loss in stacks, in every piece of it [norm, residual, psi; "
    "top-K with a selection bias; 300 samples]") {
  for (const auto& [regime, param] : {std::pair{"I", "mup"}, std::pair{"II", "mssp"}, std::pair{"III", "mssp"}})
    for (const auto optimizer : {sgd, adamw}) {
      moe::RunSpec s = balanced_stack(regime, param, optimizer);
      s.sampling.tolerance = 1e-7;
      s.training.test_every = 1;
      moe::Dataset d = limit_fixture::data(5, 5, 1);
      d.x_test = d.x.replicate(1, 60);  // 256 are a piece, of which five is no divisor
      d.y_test = d.y.replicate(1, 60);
      const moe::LimitResult r = solve(s, d);
      for (std::size_t t = 0; t < r.loss.mean.size(); ++t) {
        INFO(regime, " ", param, " step ", t, ": ", r.test_loss.mean[t], " and ", r.loss.mean[t]);
        // What bases leave out of a query, and what two norms make of it.
        CHECK(std::abs(r.test_loss.mean[t] - r.loss.mean[t]) <= 100 * s.sampling.tolerance);
      }
      CHECK(std::abs(r.loss.mean.back() - r.loss.mean.front()) > 0.01);
    }
}

TEST_CASE(
    "solve: mini-batches of the whole set measure what full batches do, v(0) by the initial weights and not by what "
    "was "
    "kept (T26) [two blocks, norm, residual, psi, top-K with a selection bias]") {
  for (const auto& [regime, param] : {std::pair{"I", "mup"}, std::pair{"II", "mssp"}, std::pair{"III", "mssp"}})
    for (const auto optimizer : {sgd, adamw}) {
      moe::RunSpec s = balanced_stack(regime, param, optimizer);
      s.sampling.form = moe::Form::dense;  // in which what was not asked has no noise of its own
      s.output.observables = {"all"};
      s.output.observe_every = 1;
      s.origin["output.observe_every"] = "here";
      const moe::Dataset d = limit_fixture::data(5, 5, 1);
      const moe::LimitResult full = solve(s, d);
      s.training.batch = 5;
      const moe::LimitResult batches = solve(s, d);
      int compared = 0;
      for (const auto& [name, curve] : batches.observables) {
        const std::vector<double>& expected = full.observables.at(name).mean;
        REQUIRE(curve.mean.size() == expected.size());
        for (std::size_t t = 0; t < expected.size(); ++t) {
          INFO(regime, " ", param, " ", name, " at step ", t, ": ", curve.mean[t], ", of full batches ", expected[t]);
          CHECK(std::abs(curve.mean[t] - expected[t]) <= 1e-11 * (1 + expected[t]));
        }
        compared += name.starts_with("rms_y_propagating") ? 1 : 0;
      }
      CHECK(compared == 2);
      CHECK(full.observables.at("rms_y_propagating.2").mean.back() > 1e-3);
    }
}

TEST_CASE("solve: float32 and float64 agree within the Monte Carlo error, tolerance 0.01 and 0.001 likewise") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", sgd, 0.5, 10);
  s.sampling.replicas = 8;
  s.sampling.tolerance = 0.01;
  const moe::Dataset d = limit_fixture::data(8, 6, 1);
  const moe::LimitResult reference = solve(s, d);
  moe::RunSpec single = s, fine = s;
  single.sampling.precision = moe::Precision::float32;
  fine.sampling.tolerance = 0.001;
  for (const auto& other : {solve(single, d), solve(fine, d)})
    for (std::size_t t = 0; t < reference.loss.mean.size(); ++t)
      CHECK(std::abs(other.loss.mean[t] - reference.loss.mean[t]) <=
            4 * std::hypot(other.loss.sem[t], reference.loss.sem[t]) + 1e-5);
}

TEST_CASE(
    "solve: changes of every field are proportional to a small learning rate, at the default tolerance [float32]") {
  const moe::Dataset d = limit_fixture::data(8, 6, 1);
  for (const auto& [regime, param] : {std::pair{"I", "mssp"}, std::pair{"II", "mssp"}, std::pair{"III", "mssp"}}) {
    moe::RunSpec s = limit_fixture::spec(regime, param, sgd, 0, 3);
    s.sampling.precision = moe::Precision::float32;
    s.sampling.tolerance = moe::RunSpec().sampling.tolerance;
    s.sampling.form = moe::Form::bases;
    s.output.observables = {"all"};
    const auto with = [&](double lr) {
      s.optimizer.lr = lr;
      return solve(s, d);
    };
    const double lr = 0.04, factor = 30;
    const moe::LimitResult large = with(lr), small = with(lr / factor);
    for (const auto& [name, curve] : small.observables) {
      if (!name.starts_with("change_") && name != "rms_y_propagating") continue;
      // In regime I logits are zero at first and the router has no gradient (theory, section 5): they change in second order.
      const int order = std::string(regime) == "I" && name == "change_r" ? 2 : 1;
      // The same draws meet the same directions: between them stand the next order in lr, what the tolerance leaves out, and rounding.
      const double ratio = large.observables.at(name).mean[3] / (std::pow(factor, order) * curve.mean[3]);
      INFO(regime, " ", param, ": ", name, " is ", curve.mean[3], ", with ", factor, " times the rate ",
           large.observables.at(name).mean[3]);
      CHECK(ratio == doctest::Approx(1).epsilon(2 * lr + s.sampling.tolerance));
    }
  }
}

TEST_CASE("solve: terms add up to their wholes and vanish where a part is absent [observables]") {
  moe::RunSpec s = limit_fixture::spec("II", "mup", sgd, 0.5, 5);
  s.output.observables = {"all"};
  const moe::LimitResult r = solve(s, limit_fixture::data(6, 5, 1));
  for (std::size_t t = 0; t < r.loss.mean.size(); ++t) {
    CHECK(r.observables.at("rms_y_init").mean[t] == 0);  // II muP: B(0) is absent in the limit
    CHECK(r.observables.at("rms_y_propagating").mean[t] == 0);
    CHECK(r.observables.at("rms_zeta_init").mean[t] == 0);
    CHECK(r.observables.at("rms_y").mean[t] == doctest::Approx(r.observables.at("rms_y_effective").mean[t]));
    CHECK(r.observables.at("load_max").mean[t] == 1);
    CHECK(r.observables.at("ess_forward").mean[t] <= r.counts.experts);
    CHECK(r.observables.at("router_entropy").mean[t] <= 1 + 1e-9);
  }
  CHECK(r.observables.at("change_h").mean[0] == 0);
  CHECK(r.observables.at("change_h").mean[5] > 0);
  CHECK(r.observables.at("rms_u_init").mean[0] == doctest::Approx(r.observables.at("rms_u_all").mean[0]));
}

TEST_CASE("solve: with a zero readout muP stands still in regime II, and MSSP learns [theory section 7]") {
  const moe::Dataset d = limit_fixture::data(6, 5, 1);
  for (const char* param : {"mup", "mssp"}) {
    moe::RunSpec s = limit_fixture::spec("II", param, sgd, 0.5, 6);
    s.model.readout_init = moe::ReadoutInit::zero;
    const moe::LimitResult r = solve(s, d);
    INFO(std::string(param));
    if (std::string(param) == "mup")
      CHECK(r.loss.mean.back() == r.loss.mean.front());
    else
      CHECK(r.loss.mean.back() < 0.95 * r.loss.mean.front());
  }
}

TEST_CASE("solve: divergence names step and field, keeps the curves before it, and the file says so") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", sgd, 1e12, 30);
  s.model.activation = moe::Activation::relu;
  const moe::Dataset d = limit_fixture::data(6, 5, 1);
  const moe::LimitResult r = solve(s, d);
  REQUIRE(r.failure);
  CHECK(r.failure->step >= 1);
  CHECK_FALSE(r.failure->field.empty());
  CHECK(static_cast<int>(r.loss.mean.size()) >= 1);
  CHECK(static_cast<int>(r.loss.mean.size()) <= r.failure->step);
  CHECK(r.eval_steps.size() == r.loss.mean.size());
  CHECK(std::isfinite(r.loss.mean.back()));
  const TemporaryFolder folder;
  const std::string path = folder / "diverged.h5";
  moe::write_limit_file(path, "dmft_solve", s, d, r);
  const moe::H5Reader file(path);
  CHECK(file.attribute_text("/limit", "status").find("step") != std::string::npos);
  CHECK(file.read("/limit/loss").values.size() == r.loss.mean.size());
}

TEST_CASE("solve: a set of which one loss is no number stops the run, as it stops networks [mini-batches, test set]") {
  // A sample of zeros has no norm: NaN from there on, where no batch has it and only the set does.
  moe::RunSpec s = limit_fixture::spec("II", "mssp", sgd, 0.5, 3);
  s.model.norm = moe::Norm::rms;
  s.model.residual = true;
  moe::Dataset whole = limit_fixture::data(6, 5, 1), tested = whole;
  whole.x.col(5).setZero();
  tested.x_test = whole.x;
  tested.y_test = whole.y;
  moe::RunSpec batches = s;
  batches.training.batch = 2;
  batches.training.eval_every = 1;
  s.data.test = 6;
  s.training.test_every = 1;
  for (const auto& [spec, data, field] :
       {std::tuple{batches, whole, "loss of the whole set"}, {s, tested, "loss of the test set"}}) {
    const moe::LimitResult r = solve(spec, data);
    REQUIRE(r.failure);
    CHECK(r.failure->step == 0);
    CHECK(r.failure->field == field);
    CHECK(std::string(r.failure->what()).find("model.norm = rms") != std::string::npos);
  }
}

TEST_CASE("solve: an interrupt finishes the step and returns what there is") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", sgd, 0.1, 500);
  std::atomic<bool> interrupt{false};
  moe::SolveOptions options;
  options.threads = 1;
  options.interrupt = &interrupt;
  options.on_step = [&](int, int step, double) {
    if (step == 7) interrupt = true;
  };
  const moe::LimitResult r = moe::solve_limit(s, limit_fixture::data(6, 5, 1), options);
  CHECK(r.interrupted);
  CHECK(r.loss.mean.size() == 8);
  CHECK(r.replicas == 1);
}

TEST_CASE("solve: what auto matching comes to, and the warnings that go with it") {
  const moe::Dataset d = limit_fixture::data(6, 5, 1);
  const auto warned = [](const moe::LimitResult& r, const std::string& word) {
    for (const auto& w : r.warnings)
      if (w.find(word) != std::string::npos) return true;
    return false;
  };
  moe::RunSpec plain = limit_fixture::spec("II", "mssp", sgd, 0.1, 1);
  CHECK(solve(plain, d).matching);
  CHECK_FALSE(solve(plain, d).random_limit);
  moe::RunSpec random = limit_fixture::spec("I", "mup", sgd, 0.1, 1);
  random.model.routing = moe::Routing::topk;
  const moe::LimitResult r = solve(random, d);
  CHECK_FALSE(r.matching);
  CHECK(r.random_limit);
  CHECK(warned(r, "realisations"));
  moe::RunSpec small_eps = limit_fixture::spec("II", "mup", adam, 0.1, 1);
  small_eps.optimizer.eps = 1e-8;
  CHECK(warned(solve(small_eps, d),
               "random sign"));  // B is absent: zeta is exactly zero here, of order N^-1/2 in networks
  CHECK(solve(small_eps, d).matching);
  small_eps.model.param = "mssp";  // no gradient vanishes there
  CHECK(solve(small_eps, d).matching);
  CHECK(solve(small_eps, d).warnings.empty());
  small_eps.model.regime = "I";  // rho does, and the samples hold its noise
  CHECK_FALSE(solve(small_eps, d).matching);
  CHECK(warned(solve(small_eps, d), "drawn plainly"));
  moe::RunSpec crooked = plain;
  crooked.sampling.experts = 20;
  crooked.training.steps = 6;
  CHECK(warned(solve(crooked, d), "bias the result"));
}

TEST_CASE("limit file: names, shapes, attributes of the interface") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", adam, 0.1, 4);
  s.output.kernels_at = {0, 4};
  s.training.test_every = 2;
  moe::Dataset d = limit_fixture::data(6, 5, 3);
  d.x_test = limit_fixture::data(4, 5, 3, 2).x;
  d.y_test = limit_fixture::data(4, 5, 3, 2).y;
  const moe::LimitResult r = solve(s, d);
  const TemporaryFolder folder;
  const std::string path = folder / "limit.h5";
  moe::write_limit_file(path, "dmft_solve", s, d, r);
  const moe::H5Reader file(path);
  using Shape = std::vector<std::size_t>;
  CHECK(file.attribute_text("/", "format") == "moe-dmft");
  CHECK(file.attribute_text("/", "kind") == "limit");
  CHECK(file.attribute_number("/", "format_version") == 1);
  CHECK(file.read("/limit/loss").shape == Shape{5});
  CHECK(file.read("/limit/loss_sem").shape == Shape{5});
  CHECK(file.read("/limit/f").shape == Shape{5, 6, 3});
  CHECK(file.read("/limit/f").values[1 * 18 + 2 * 3 + 1] == r.f[1](1, 2));
  CHECK(file.read("/limit/test_loss").shape == Shape{3});
  CHECK(file.read("/limit/test_steps").values == std::vector<double>{0, 2, 4});
  CHECK(file.read("/limit/kernels/Phi").shape == Shape{2, 6, 6});
  CHECK(file.read("/limit/kernels/steps").values == std::vector<double>{0, 4});
  CHECK(file.read("/limit/observables/rms_h").shape == Shape{5});
  CHECK(file.read("/limit/observables/rms_y_init_sem").shape == Shape{5});
  CHECK(file.read("/data/x").shape == Shape{6, 5});
  CHECK(file.read("/limit/diagnostics/rank_phi").shape == Shape{4});
  CHECK(file.attribute_text("/limit", "status") == "complete");
  CHECK_FALSE(file.has("/limit/eval_steps"));
}

TEST_CASE(
    "one block without norm is the same bit for bit whatever the exponent of the branch multiplier [limit, networks]") {
  for (const moe::OptimizerKind rule : {sgd, adam, adafactor}) {
    moe::RunSpec s = limit_fixture::spec("II", "mssp", rule, moe::is_linear(rule) ? 0.5 : 0.05, 3);
    s.model.residual = true;
    s.sampling.neurons = 48;
    const moe::Dataset data = limit_fixture::data(5, 6, 1);
    const auto limit = moe::solve_limit(s, data).loss_per_replica;
    const auto network = moe::train_network(s, data, 24, 1).loss;
    s.model.branch_exponent = 0.37;
    CHECK(moe::solve_limit(s, data).loss_per_replica == limit);
    CHECK(moe::train_network(s, data, 24, 1).loss == network);
    s.model.depth = 2;  // where it counts
    CHECK(moe::solve_limit(s, data).loss_per_replica != limit);
    CHECK(moe::train_network(s, data, 24, 1).loss != network);
  }
}
