// Gradient flow of the limit: observed orders of the steppers with the randomness frozen (dense from t = 0), error control, gradient
// descent at small rates, linear networks in closed form, the lazy limit as a kernel ODE.
#include <doctest/doctest.h>

#include <boost/numeric/odeint/stepper/runge_kutta4.hpp>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "dmft/replica.hpp"
#include "support/config.hpp"
#include "support/ode.hpp"
#include "tests/limit_fixture.hpp"
#include "tests/temporary_folder.hpp"

namespace {

using moe::Tensor;

/// A flow to time 4 at lr 0.25 that moves all fields by order one, recorded at its end alone.
moe::RunSpec flow(const std::string& regime, const std::string& param, moe::Stepper stepper, double step_size) {
  moe::RunSpec s = limit_fixture::spec(regime, param, moe::OptimizerKind::sgd, 0.25, 1);
  s.training.dynamics = moe::Dynamics::flow;
  s.training.time = 4;
  s.training.stepper = stepper;
  s.training.step_size = step_size;
  s.sampling.neurons = regime == "III" ? 20 : 48;
  s.sampling.replicas = 1;
  s.sampling.matching = moe::Matching::off;
  s.output.observables = {"none"};
  return s;
}

/// Outputs at the end, (C P) numbers.
Eigen::MatrixXd end_of(const moe::RunSpec& s, const moe::Dataset& d) { return moe::solve_limit(s, d).f.back(); }

double mean_evaluations(const moe::LimitResult& r) {
  double sum = 0;
  for (const double n : r.diagnostics.at("flow_evaluations")) sum += n;
  return sum;
}

const char* const tables[][2] = {{"I", "mssp"}, {"II", "mssp"}, {"III", "mssp"}, {"III", "mup"}};

}  // namespace

TEST_CASE(
    "flow: errors of fixed steps fall with the order of the method, the randomness frozen by the dense form [rk4 4, "
    "abm 4 or "
    "more; regime x parameterization]") {
  const moe::Dataset d = limit_fixture::data(5, 5, 1);
  for (const auto& [regime, param] : tables) {
    moe::RunSpec exact = flow(regime, param, moe::Stepper::rk4, 4.0 / 256);
    const Eigen::MatrixXd f = end_of(exact, d);
    for (const auto stepper : {moe::Stepper::rk4, moe::Stepper::abm}) {
      std::vector<double> errors;
      // abm's first three steps are rk4's: it takes more of them to show its own order.
      const int fewest = stepper == moe::Stepper::rk4 ? 8 : 16;
      for (const int steps : {fewest, 2 * fewest, 4 * fewest})
        errors.push_back((end_of(flow(regime, param, stepper, 4.0 / steps), d) - f).norm());
      for (std::size_t k = 0; k + 1 < errors.size(); ++k) {
        const double order = std::log2(errors[k] / errors[k + 1]);
        INFO(std::string(regime), " ", std::string(param), stepper == moe::Stepper::rk4 ? " rk4" : " abm", ": errors ",
             errors[k], ", ", errors[k + 1], ", order ", order);
        MESSAGE(std::string(regime) << " " << param << (stepper == moe::Stepper::rk4 ? " rk4" : " abm") << " order "
                                    << order);
        CHECK(errors[k + 1] > 1e-13);  // above rounding: it is an order that is seen
        // The next term of the error expansion changes the ratio by O(step); halved steps leave half of it.
        CHECK(order > 3.7);
        CHECK(order < (stepper == moe::Stepper::rk4 ? 4.5 : 5.5));
      }
    }
  }
}

TEST_CASE(
    "flow: the adaptive stepper meets its tolerance with fifth-order economy, in the dense form and in bases "
    "[dopri5]") {
  const moe::Dataset d = limit_fixture::data(5, 5, 1);
  const Eigen::MatrixXd f = end_of(flow("II", "mssp", moe::Stepper::rk4, 4.0 / 256), d);
  std::vector<double> errors, evaluations;
  for (const double tolerance : {1e-4, 1e-6, 1e-8}) {
    moe::RunSpec s = flow("II", "mssp", moe::Stepper::dopri5, 1);
    s.training.rtol = s.training.atol = tolerance;
    const moe::LimitResult r = moe::solve_limit(s, d);
    errors.push_back((r.f.back() - f).cwiseAbs().maxCoeff());
    evaluations.push_back(mean_evaluations(r));
    INFO("tolerance ", tolerance, ": error ", errors.back(), ", ", evaluations.back(), " evaluations");
    MESSAGE("dopri5 tolerance " << tolerance << " error " << errors.back() << " evaluations " << evaluations.back());
    // Every entry of every step is within the tolerance; errors of steps add up over a time of order one.
    CHECK(errors.back() <= 10 * tolerance);
  }
  // Error per step ~ step^5 by the embedded fourth order: a hundredth of the tolerance takes 100^(1/5) = 2.5 times the steps.
  for (std::size_t k = 0; k + 1 < evaluations.size(); ++k) {
    CHECK(evaluations[k + 1] / evaluations[k] < 3.5);
    CHECK(errors[k + 1] < 0.1 * errors[k]);
  }
}

TEST_CASE(
    "flow: in growing bases it is the flow of the dense form up to what the bases drop, with the law of the same "
    "replicas "
    "[rk4, abm, dopri5; stages enlarge the bases]") {
  const moe::Dataset d = limit_fixture::data(4, 5, 1);
  for (const auto stepper : {moe::Stepper::rk4, moe::Stepper::abm, moe::Stepper::dopri5}) {
    moe::RunSpec s = flow("II", "mssp", stepper, 0.5);
    s.training.steps = 4;
    s.training.rtol = 1e-4;
    s.sampling.neurons = 256;
    s.sampling.replicas = 8;
    moe::RunSpec bases = s;
    bases.sampling.form = moe::Form::bases;
    bases.sampling.tolerance = 1e-3;
    const moe::LimitResult dense = moe::solve_limit(s, d), grown = moe::solve_limit(bases, d);
    CHECK(grown.diagnostics.at("rank_phi").back() > 4);
    CHECK(grown.diagnostics.at("dense_fraction").back() == 0);
    for (std::size_t t = 0; t < dense.loss.mean.size(); ++t) {
      const double allowed = 4 * std::hypot(dense.loss.sem[t], grown.loss.sem[t]);
      INFO("time ", t, ": dense ", dense.loss.mean[t], ", bases ", grown.loss.mean[t], ", allowed ", allowed);
      CHECK(std::abs(dense.loss.mean[t] - grown.loss.mean[t]) <= allowed);
    }
    CHECK(dense.loss.mean.back() < 0.9 * dense.loss.mean.front());
  }
}

TEST_CASE(
    "flow: gradient descent with lr -> 0 at fixed lr T approaches it at first order [check (5), regime x "
    "parameterization]") {
  const moe::Dataset d = limit_fixture::data(5, 5, 1);
  for (const auto& [regime, param] : tables) {
    const Eigen::MatrixXd f = end_of(flow(regime, param, moe::Stepper::rk4, 4.0 / 64), d);
    std::vector<double> errors;
    for (const int steps : {32, 64, 128}) {
      moe::RunSpec s = flow(regime, param, moe::Stepper::rk4, 1);
      s.training.dynamics = moe::Dynamics::gd;
      s.sampling.form = moe::Form::dense;
      s.training.steps = steps;
      s.optimizer.lr *= 4.0 / steps;
      errors.push_back((end_of(s, d) - f).norm());
    }
    for (std::size_t k = 0; k + 1 < errors.size(); ++k) {
      INFO(std::string(regime), " ", std::string(param), ": errors ", errors[k], " and ", errors[k + 1]);
      CHECK(errors[k] / errors[k + 1] > 1.85);
      CHECK(errors[k] / errors[k + 1] < 2.15);
    }
  }
}

TEST_CASE(
    "flow: a linear limit with one learning tensor relaxes at its tangent kernel's rate [regime x parameterization x "
    "tensor]") {
  // Rates as in tests/closed_form/limit_linear.cpp: f(t) = Y (1 - exp(-lr rate t)). M = 2, N_e = 4, rho_M = rho_e = 1/2.
  struct Rates {
    const char* regime;
    const char* param;
    double input, expert_in, expert_out, readout;
  };
  for (const Rates& row :
       {Rates{"I", "mup", 0.5, 0.5, 1, 0.5}, Rates{"II", "mssp", 1, 2, 1, 1}, Rates{"II", "mup", 0, 0, 1, 0},
        Rates{"III", "mssp", 1, 0.5, 1, 1}, Rates{"III", "mup", 0, 0.5, 1, 0}})
    for (const auto& [tensor, rate] :
         {std::pair{Tensor::input, row.input}, std::pair{Tensor::expert_in, row.expert_in},
          std::pair{Tensor::expert_out, row.expert_out}, std::pair{Tensor::readout, row.readout}}) {
      moe::RunSpec s = limit_fixture::spec(row.regime, row.param, moe::OptimizerKind::sgd, 0.15, 4);
      s.model.activation = moe::Activation::identity;
      s.model.gate = moe::Gate::constant;
      s.training.dynamics = moe::Dynamics::flow;
      s.training.time = 8;
      s.sampling.form = moe::Form::bases;
      s.sampling.neurons = std::string(row.regime) == "III" ? 200 : 600;
      s.sampling.replicas = 6;
      for (std::size_t k = 0; k < moe::num_tensors; ++k)
        if (static_cast<Tensor>(k) != tensor) s.optimizer.lr_scale.values[k] = 0;
      moe::Dataset d = limit_fixture::data(1, 5, 1);
      d.y(0, 0) = 1.5;
      const moe::LimitResult r = moe::solve_limit(s, d);
      REQUIRE(r.f.size() == 5);
      for (std::size_t t = 0; t < r.f.size(); ++t) {
        const double time = 2.0 * static_cast<double>(t), f = r.f[t](0, 0),
                     expected = 1.5 * (1 - std::exp(-0.15 * rate * time));
        // As in limit_linear.cpp: four standard errors and O(1/S) of the sample counts.
        const double allowed = 4 * r.loss.sem[t] / std::abs(1.5 - f) + 12.0 / s.sampling.neurons * time * 0.15;
        INFO(std::string(row.regime), " ", std::string(row.param), ", only ",
             moe::tensor_names[static_cast<std::size_t>(tensor)], ", time ", time, ": f = ", f, ", expected ", expected,
             ", allowed ", allowed);
        CHECK(std::abs(f - expected) <= allowed + 1e-4);
      }
    }
}

TEST_CASE(
    "flow: with the output scale alpha -> infinity and lr / alpha^2 it becomes the flow of the kernel at t = 0 [lazy "
    "limit] [slow]") {
  // f(0) = 0 in the limit; on samples it is alpha O(S^-1/2), and targets Y + f(0) do to f - f(0) what Y does to f.
  const moe::Dataset d = limit_fixture::data(5, 5, 1);
  const auto lazy = [&](const moe::Dataset& data, double alpha, double time, int steps) {
    moe::RunSpec s = flow("II", "mssp", moe::Stepper::rk4, 0.125);
    s.model.output_scale = alpha;
    s.optimizer.lr = 0.25 / (alpha * alpha);
    s.training.time = time;
    s.training.steps = steps;
    s.sampling.neurons = 256;
    s.sampling.replicas = 1;
    return moe::solve_limit(s, data);
  };
  std::vector<double> distances;
  double moved = 0;  // at the largest alpha
  for (const double alpha : {4.0, 16.0, 64.0}) {
    // Tangent kernel of this very sample: outputs after a short time with one output pulled. mse: df/dt = K (Y - f)/P.
    const double short_time = 1e-4;
    const Eigen::Index P = d.x.cols();
    Eigen::MatrixXd K(P, P);
    moe::Dataset pushed = d;
    const Eigen::MatrixXd f0 = lazy(d, alpha, 1, 1).f.front();
    for (Eigen::Index p = 0; p < P; ++p) {
      pushed.y = f0;
      pushed.y(0, p) += 1;
      moe::RunSpec s = flow("II", "mssp", moe::Stepper::rk4, short_time);
      s.model.output_scale = alpha;
      s.optimizer.lr = 0.25 / (alpha * alpha);
      s.training.time = short_time;
      s.sampling.neurons = 256;
      const moe::LimitResult r = moe::solve_limit(s, pushed);
      K.col(p) = (r.f.back() - r.f.front()).transpose() * static_cast<double>(P) / short_time;
    }
    moe::Dataset centred = d;
    centred.y += f0;
    const moe::LimitResult r = lazy(centred, alpha, 8, 8);
    std::vector<double> f(f0.data(), f0.data() + P);
    double farthest = 0;
    boost::numeric::odeint::runge_kutta4<std::vector<double>> kernel_stepper;
    const auto kernel_flow = [&](const std::vector<double>& at, std::vector<double>& rate, double) {
      const Eigen::VectorXd pull = centred.y.row(0).transpose() - Eigen::Map<const Eigen::VectorXd>(at.data(), P);
      Eigen::Map<Eigen::VectorXd>(rate.data(), P) = K * pull / static_cast<double>(P);
    };
    constexpr int kernel_steps = 64;
    for (std::size_t k = 1; k < r.f.size(); ++k) {
      for (int n = 0; n < kernel_steps; ++n) kernel_stepper.do_step(kernel_flow, f, 0, 1.0 / kernel_steps);
      farthest = std::max(
          farthest, (r.f[k].row(0).transpose() - Eigen::Map<const Eigen::VectorXd>(f.data(), P)).cwiseAbs().maxCoeff());
    }
    distances.push_back(farthest);
    INFO("alpha ", alpha, ": largest distance from the kernel ODE ", farthest, ", f(0) of size ",
         f0.cwiseAbs().maxCoeff());
    MESSAGE("lazy alpha " << alpha << " distance " << farthest << ", loss " << r.loss.mean.front() << " -> "
                          << r.loss.mean.back());
    moved = (r.f.back() - r.f.front()).cwiseAbs().maxCoeff();
  }
  // Features move by O(1/alpha): so does the distance.
  for (std::size_t k = 0; k + 1 < distances.size(); ++k) CHECK(distances[k + 1] < 0.4 * distances[k]);
  CHECK(moved > 100 * distances.back());
}

TEST_CASE(
    "flow: what has none is refused by name [other rules, mini-batches, a tolerance below float32, counts out of "
    "ratio]") {
  const auto refusal = [](const std::string& text) {
    return message_of<moe::ConfigError>(
        [&] { moe::read_config_text("[training]\ndynamics = \"flow\"\n" + text, "run.toml"); });
  };
  for (const char* rule : {"momentum", "adam", "adamw", "signsgd"}) {
    const std::string text = refusal(std::string("[optimizer]\nname = \"") + rule + "\"\n");
    CHECK_MESSAGE((contains(text, "optimizer.name") && contains(text, rule) && contains(text, "no gradient flow")),
                  text);
  }
  const std::string text = refusal("batch = 8\nrtol = 1e-7\n[optimizer]\nname = \"sgd\"\n");
  CHECK_MESSAGE((contains(text, "training.batch") && contains(text, "training.rtol")), text);
  CHECK(refusal("[optimizer]\nname = \"sgd\"\n").empty());
  const moe::Dataset d = limit_fixture::data(4, 5, 1);
  moe::RunSpec s = flow("II", "mssp", moe::Stepper::rk4, 1);
  s.sampling.experts = 60;
  s.sampling.form = moe::Form::dense;
  CHECK(contains(message_of<moe::ConfigError>([&] { moe::solve_limit(s, d); }), "sampling.form"));
  s.sampling.form = moe::Form::automatic;  // bases, then
  CHECK(moe::solve_limit(s, d).diagnostics.at("dense_fraction").back() == 0);
}

TEST_CASE(
    "flow: a stepper that pauses anywhere within an interval, is saved and loaded, goes on bit for bit [rk4, abm, "
    "dopri5]") {
  using B = moe::Cpu<double>;
  using State = moe::ArrayList<B>;
  const auto rotate = [](const State& w, State& d) {  // a nonlinear pendulum
    d.arrays.resize(1);
    if (d.arrays[0].empty()) d.arrays[0] = B::Matrix(2, 1);
    d.arrays[0](0, 0) = w.arrays[0](1, 0);
    d.arrays[0](1, 0) = -std::sin(w.arrays[0](0, 0));
  };
  const auto start = [] {
    State w;
    w.arrays.emplace_back(2, 1);
    w.arrays[0](0, 0) = 1;
    return w;
  };
  const moe::FlowInterval intervals[] = {{0, 0, 1.5}, {1, 1.5, 3}};
  for (const auto stepper : {moe::Stepper::rk4, moe::Stepper::abm, moe::Stepper::dopri5}) {
    const moe::FlowSpec spec{stepper, 0.1, 1e-8, 1e-8};
    State whole = start();
    moe::FlowStepper<B> undisturbed(spec);
    int evaluations[2] = {};
    for (const auto& interval : intervals) {
      CHECK(undisturbed.advance(whole, interval, rotate));
      evaluations[interval.step] = undisturbed.work().evaluations;
    }
    const TemporaryFolder folder;
    State w = start();
    auto now = std::make_unique<moe::FlowStepper<B>>(spec);
    int pauses = 0;
    for (const auto& interval : intervals) {
      while (!now->advance(w, interval, rotate, [] { return true; })) {
        ++pauses;
        CHECK(now->inside());
        const auto state = [&](moe::Archive a) {
          a("stepper", *now);
          a("w", w);
        };
        {
          moe::H5Writer file(folder / "state.h5");
          state(moe::Archive(file, "/run"));
          file.commit();
        }
        now = std::make_unique<moe::FlowStepper<B>>(spec);
        w = State();
        const moe::H5Reader file(folder / "state.h5");
        state(moe::Archive(file, "/run"));
      }
      CHECK(now->work().evaluations == evaluations[interval.step]);
    }
    CHECK(pauses > 10);
    CHECK(w.arrays[0](0, 0) == whole.arrays[0](0, 0));
    CHECK(w.arrays[0](1, 0) == whole.arrays[0](1, 0));
  }
}

TEST_CASE("flow: a first attempt that overflows is made again with a shorter step [dopri5; float32; dense, bases]") {
  const moe::Dataset d = limit_fixture::data(5, 5, 1);
  for (const auto form : {moe::Form::dense, moe::Form::bases}) {
    const auto end = [&](double first) {
      moe::RunSpec s = flow("II", "mssp", moe::Stepper::dopri5, first);
      s.optimizer.lr = 100;
      s.training.time = 1;
      s.training.rtol = s.training.atol = 1e-4;
      s.sampling.precision = moe::Precision::float32;
      s.sampling.form = form;
      s.output.kernels_at = {1};
      moe::LimitResult r = moe::solve_limit(s, d);
      REQUIRE_MESSAGE(!r.failure, r.failure->what());
      return r;
    };
    const moe::LimitResult careful = end(1e-3), rash = end(1);
    CHECK(rash.diagnostics.at("flow_rejected").back() > careful.diagnostics.at("flow_rejected").back());
    CHECK(rash.loss.mean.back() < 1e-6 * rash.loss.mean.front());
    if (form == moe::Form::bases) continue;  // other stages, other bases: other draws
    int compared = 0;
    for (const auto& [name, kernels] : careful.kernels) {
      // Errors of steps, each within the tolerance, add up; a step takes six evaluations.
      const double size = kernels.back().cwiseAbs().maxCoeff(),
                   allowed = careful.diagnostics.at("flow_evaluations").back() / 6 * 1e-4 * size,
                   off = (kernels.back() - rash.kernels.at(name).back()).cwiseAbs().maxCoeff();
      if (size < 1e-6) continue;  // of backward fields, which vanish with the residual
      ++compared;
      INFO(name, ": off by ", off, ", allowed ", allowed);
      CHECK(off <= allowed);
    }
    CHECK(compared >= 2);
  }
}
