// Kernel iteration: paths of sites, and responses from what white numbers meet of them, against finite differences of whole paths.
#include <doctest/doctest.h>

#include <array>
#include <string>
#include <vector>

#include "dmft/kernel_iteration.hpp"
#include "dmft/site_batch_template.hpp"
#include "tests/limit_fixture.hpp"

namespace {

using B = moe::Cpu<double>;
using moe::Index;

constexpr Index T = 4, P = 3;

struct Case {
  const char* name;
  const char* regime;
  const char* param;
  moe::Activation activation, post;
  moe::Gate gate;
  double temperature;
  bool residual;
  moe::OptimizerKind optimizer = moe::OptimizerKind::sgd;
  bool topk = false;
  int depth = 1;
  moe::Norm norm = moe::Norm::none;
  double balance = 0;
  bool steps_in_it() const {
    return topk || activation == moe::Activation::relu || post == moe::Activation::relu ||
           optimizer == moe::OptimizerKind::signsgd;
  }
};
using enum moe::Activation;
using enum moe::Gate;
const std::vector<Case> cases = {
    {"I mssp", "I", "mssp", tanh, identity, sigmoid, 1, false},
    {"I mup softmax", "I", "mup", gelu, tanh, softmax, 0.5, true},
    {"II mssp", "II", "mssp", tanh, tanh, sigmoid, 1, false},
    {"II mup softmax", "II", "mup", tanh, identity, softmax, 0.5, true},
    {"II mssp constant gate", "II", "mssp", gelu, identity, constant, 1, false},
    {"III mup softmax", "III", "mup", gelu, tanh, softmax, 0.5, true},
    {"III mssp", "III", "mssp", tanh, gelu, sigmoid, 2, true},
    {"I mup momentum", "I", "mup", tanh, tanh, sigmoid, 1, true, moe::OptimizerKind::momentum},
    {"II mssp momentum", "II", "mssp", tanh, gelu, softmax, 1, false, moe::OptimizerKind::momentum},
    {"III mssp momentum", "III", "mssp", tanh, identity, sigmoid, 1, false, moe::OptimizerKind::momentum},
    {"I mup adam", "I", "mup", tanh, identity, sigmoid, 1, true, moe::OptimizerKind::adam},
    {"II mssp adamw", "II", "mssp", tanh, gelu, softmax, 1, false, moe::OptimizerKind::adamw},
    {"I mup adafactor", "I", "mup", tanh, identity, sigmoid, 1, true, moe::OptimizerKind::adafactor},
    {"II mssp adafactor", "II", "mssp", tanh, gelu, softmax, 1, false, moe::OptimizerKind::adafactor},
    {"III mup adafactor", "III", "mup", tanh, identity, sigmoid, 1, false, moe::OptimizerKind::adafactor},
    {"III mssp adam", "III", "mssp", gelu, identity, sigmoid, 1, false, moe::OptimizerKind::adam},
    {"II mssp relu", "II", "mssp", relu, identity, sigmoid, 1, false},
    {"II mssp top-K", "II", "mssp", tanh, identity, softmax, 1, false, moe::OptimizerKind::sgd, true},
    {"II mup top-K relu", "II", "mup", relu, tanh, sigmoid, 1, true, moe::OptimizerKind::momentum, true},
    {"II mssp norm", "II", "mssp", tanh, tanh, sigmoid, 1, true, moe::OptimizerKind::sgd, false, 1, moe::Norm::rms},
    {"I mup two blocks", "I", "mup", tanh, identity, sigmoid, 1, true, moe::OptimizerKind::sgd, false, 2,
     moe::Norm::rms},
    {"III mssp two blocks", "III", "mssp", tanh, tanh, sigmoid, 1, true, moe::OptimizerKind::sgd, false, 2,
     moe::Norm::rms},
    {"II mssp adam two blocks, balancing", "II", "mssp", tanh, identity, softmax, 1, true, moe::OptimizerKind::adam,
     true, 2, moe::Norm::rms, 0.1},
    {"II mssp signSGD", "II", "mssp", tanh, identity, sigmoid, 1, false, moe::OptimizerKind::signsgd},
};

/// Sites marched through time, of every block; white numbers moved along directions of their own by `by`.
struct Sampled {
  moe::SiteBatch<B> batch;
  std::vector<moe::HostMatrix<double>> directions;  ///< of fields(0), fields(1), ...

  Sampled(const moe::SiteProblem& problem, std::vector<moe::SiteKernels<B>>& kernels, moe::BatchCounts counts,
          moe::StreamNumbers streams, double by = 0)
      : batch(problem, kernels, counts, streams) {
    std::uint32_t draw = 0;
    for (int l = 0; l < problem.limit->depth; ++l)
      for (moe::SiteField<B>* field : fields(l)) {
        directions.emplace_back(field->white().rows, field->white().cols);
        B::normal(directions.back(), {77, 0, draw++, 0});
        moe::accumulate<B>(directions.back(), by, field->white());
      }
    for (Index t = 0; t < problem.steps; ++t) moe::march<B>({&batch}, t, [](int, moe::Stage) {});
  }
  moe::BlockOfNeurons<B>& neurons(int l = 0) { return batch.neurons.blocks[static_cast<std::size_t>(l)]; }
  moe::ExpertBatch<B>& experts(int l = 0) { return batch.experts[static_cast<std::size_t>(l)]; }
  std::array<moe::SiteField<B>*, 6> fields(int l) {
    return {&neurons(l).chi_B, &neurons(l).beta_A, &neurons(l).beta_Q,
            &experts(l).chi_Q, &experts(l).chi_A,  &experts(l).beta_B};
  }
  /// What each field's matrix is asked.
  std::array<moe::HostMatrix<double>*, 6> asked(int l, const moe::LimitConstants& c) {
    return {&neurons(l).D,
            &neurons(l).phi,
            &neurons(l).phi,
            &experts(l).rho,
            c.expert_in_shared ? &experts(l).shared_ghat : &experts(l).ghat,
            c.expert_out_shared ? &experts(l).shared_Gv : &experts(l).Gv};
  }
};

std::vector<moe::SiteKernels<B>> kernels_of(const moe::SiteProblem& problem, const moe::KernelSet& kernels,
                                            const moe::SitePaths& paths) {
  std::vector<moe::SiteKernels<B>> given;
  for (int l = 0; l < problem.limit->depth; ++l) given.emplace_back(problem, kernels, paths, l);
  return given;
}

moe::LimitSpec limit_of(const moe::RunSpec& s, const moe::Dataset& data) {
  moe::Faults faults;
  std::vector<std::string> warnings;
  moe::LimitSpec limit = moe::limit_spec(s, moe::step_shape(s, data), faults, warnings);
  faults.throw_if_any();
  return limit;
}

moe::RunSpec spec_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, moe::is_linear(c.optimizer) ? 0.7 : 0.15, T - 1);
  s.model.activation = c.activation;
  s.model.post_activation = c.post;
  s.model.gate = c.gate;
  s.model.router_temperature = c.temperature;
  s.model.residual = c.residual;
  if (c.topk) s.model.routing = moe::Routing::topk, s.model.active_fraction = 0.4;
  s.optimizer.weight_decay = 0.1;  // of AdamW
  s.model.depth = c.depth;
  s.model.norm = c.norm;
  s.model.balance_loss = s.model.balance_bias = c.balance;
  return s;
}

}  // namespace

TEST_CASE(
    "kernel iteration: white numbers meet of a query what moving them moves of it [regime x parameterization x gate x "
    "psi "
    "x rule; relu, top-K, blocks, norm, balancing] [slow]") {
  // <Z x> = <dx/dZ> (Stein), the derivative as half the difference of whole paths along +-by of random directions; steps, which have
  // point masses for derivatives, take directions so long that some sites cross them: errors of by^2 times a third derivative.
  for (const Case& c : cases) {
    const moe::RunSpec s = spec_of(c);
    const moe::Dataset data = limit_fixture::data(P, 4, 2);
    moe::IterationOptions options;
    options.batch = {200, 20, 10};
    options.replicas = 3;
    const moe::IterationResult solved = moe::iterate_kernels(s, data, options);
    const moe::LimitSpec limit = limit_of(s, data);
    const moe::SiteProblem problem{&limit, data.x, data.y, T};
    std::vector<moe::SiteKernels<B>> given = kernels_of(problem, solved.kernels, solved.paths);
    const moe::StreamNumbers streams(5, 0);
    const bool sampled = limit.block.experts_sampled, shared = limit.block.constants.expert_in_shared;
    const Index hidden = sampled && !shared ? limit.block.counts.hidden : 2000;
    const moe::BatchCounts counts{4000, sampled ? (shared ? 8 : 2000) : limit.block.counts.experts, hidden};
    const double by = c.steps_in_it() ? 0.1 : 1e-3;
    Sampled plus(problem, given, counts, streams, by), minus(problem, given, counts, streams, -by),
        at(problem, given, counts, streams);
    INFO(std::string(c.name));
    double total = 0, worst = 0;
    int entries = 0;
    for (std::size_t which = 0; which < at.directions.size(); ++which) {
      const auto l = static_cast<int>(which / 6);
      const std::size_t k = which % 6;
      if (!at.fields(l)[k]->present()) continue;
      const auto Z = at.fields(l)[k]->white(), p = at.directions[which].view();
      const auto of = [&](Sampled& sites) { return sites.asked(l, limit.block.constants)[k]->view(); };
      const auto up = of(plus), down = of(minus), x = of(at);
      REQUIRE(x.rows == Z.rows);
      // Units of one expert are not independent, units of explicit or shared experts are.
      const Index together = sampled && !shared && k > 3 ? hidden : 1, samples = Z.rows / together;
      const bool equal_times = k == 0 || k == 3 || k == 4;
      for (Index now = 0; now < problem.n(); ++now)
        for (Index j = 0; j < (now / P + (equal_times ? 1 : 0)) * P; ++j) {
          double mean = 0, square = 0;
          for (Index i = 0; i < samples; ++i) {
            double of_site = 0;
            for (Index a = i * together; a < (i + 1) * together; ++a)
              of_site += Z(a, j) * x(a, now) - p(a, j) * (up(a, now) - down(a, now)) / (2 * by);
            mean += of_site, square += of_site * of_site;
          }
          if (square == 0) continue;
          const double z = mean / std::sqrt(square);
          total += z * z, worst = std::max(worst, std::abs(z)), ++entries;
        }
    }
    INFO("root mean square of ", entries, " deviations in standard errors: ", std::sqrt(total / entries), ", largest ",
         worst);
    CHECK(entries > 50);
    CHECK(total / entries <=
          1 + 4 * std::sqrt(2.0 * (1 + P * T / 4.0) / entries));  // rows of one query are not independent
    CHECK(worst <= 5.5);
  }
}

TEST_CASE(
    "kernel iteration: under linear rules learned parts by pairs of paths are those by the paths' correlations "
    "[regime; "
    "momentum]") {
  for (const Case& c : cases) {
    if (!moe::is_linear(c.optimizer) || c.steps_in_it() || c.depth > 1) continue;
    const moe::RunSpec s = spec_of(c);
    const moe::Dataset data = limit_fixture::data(P, 4, 2);
    const moe::LimitSpec limit = limit_of(s, data);
    const moe::SiteProblem problem{&limit, data.x, data.y, T};
    const bool sampled = limit.block.experts_sampled;
    const moe::BatchCounts counts{40, sampled ? 6 : limit.block.counts.experts, sampled ? 4 : 6};
    moe::BatchMeans means{moe::zero_kernels(limit, problem.shape()), {}, {}, {}};
    std::vector<moe::SiteKernels<B>> zero = kernels_of(problem, means.kernels, {});
    const moe::StreamNumbers streams(5, 0);
    Sampled first(problem, zero, counts, streams);
    for (const moe::Stage stage : moe::all_stages) {
      first.batch.add_columns(0, stage, 0, problem.n(), 1, means.kernels);
    }
    const moe::SitePaths paths{
        {{B::download(first.neurons().phi), B::download(first.neurons().D), B::download(first.experts().rho),
          B::download(first.experts().ghat), B::download(first.experts().Gv)}}};
    std::vector<moe::SiteKernels<B>> of_kernels = kernels_of(problem, means.kernels, {}),
                                     of_paths = kernels_of(problem, means.kernels, paths);
    Sampled by_kernels(problem, of_kernels, counts, streams), by_pairs(problem, of_paths, counts, streams);
    const auto same = [&](moe::HostMatrix<double>& a, moe::HostMatrix<double>& b) {
      const Eigen::MatrixXd values = B::download(a);
      CHECK((values - B::download(b)).norm() <= 1e-12 * values.norm());
      CHECK(values.norm() > 0);
    };
    INFO(std::string(c.name));
    same(by_kernels.neurons().phi, by_pairs.neurons().phi);
    same(by_kernels.neurons().D, by_pairs.neurons().D);
    same(by_kernels.experts().ghat, by_pairs.experts().ghat);
    same(by_kernels.experts().Gv, by_pairs.experts().Gv);
    if (limit.block.experts_sampled && c.gate != constant) same(by_kernels.experts().rho, by_pairs.experts().rho);
  }
}

TEST_CASE(
    "arrays under Adafactor: matrices side by side in the columns learn as those one above another in the rows "
    "[shape]") {
  constexpr Index sites = 7, partners = 130, steps = 3;
  moe::HostMatrix<double> z(sites, P), x(partners, P);
  for (const Index matrices : {1, 13, 65}) {  // of 130, 10 and 2 columns: more and fewer than samples
    const moe::UpdateRule rule{moe::OptimizerKind::adafactor, 0.3, 0.02, 0, 0, 0, 1};
    moe::LearnedArray<B> in_rows(partners, sites, rule, 0.5, {matrices, 1}),
        in_columns(sites, partners, rule, 0.5, {1, matrices});
    for (Index t = 0; t < steps; ++t) {
      B::normal(z, {1, 0, static_cast<std::uint32_t>(t), 0});
      B::normal(x, {2, 0, static_cast<std::uint32_t>(t), 0});
      in_rows.update(x, z);
      in_columns.update(z, x);
    }
    double worst = 0, largest = 0;
    for (Index j = 0; j < partners; ++j)
      for (Index i = 0; i < sites; ++i) {
        worst = std::max(worst, std::abs(in_rows.value()(j, i) - in_columns.value()(i, j)));
        largest = std::max(largest, std::abs(in_rows.value()(j, i)));
      }
    INFO("matrices ", matrices);
    CHECK(worst <= 1e-13);
    CHECK(largest > 0.1);
  }
}

TEST_CASE(
    "kernel iteration: responses by parts come back from their products, what was left out of the root is nobody's") {
  constexpr Index n = T * P;
  const auto number = [](Index i, Index j) { return std::sin(1.0 + 2.3 * double(i) + 5.1 * double(j)); };
  for (const bool equal_times : {false, true}) {
    Eigen::MatrixXd L = Eigen::MatrixXd::NullaryExpr(n, n, number).triangularView<Eigen::Lower>();
    L.diagonal().array() += 2;
    Eigen::MatrixXd R = Eigen::MatrixXd::NullaryExpr(n, n, [&](Index i, Index j) { return number(j, i); });
    for (Index j = 0; j < n; ++j) R.col(j).tail(n - (j / P + (equal_times ? 1 : 0)) * P).setZero();
    for (const Index left_out : {Index{2}, Index{4}}) L.col(left_out).setZero(), R.row(left_out).setZero();
    Eigen::MatrixXd products = L.transpose() * R;
    // What numbers meet that were left out, or are drawn later than x is asked, is noise.
    for (Index j = 0; j < n; ++j)
      for (Index k = 0; k < n; ++k)
        if (L(j, j) == 0 || (!equal_times && j / P == k / P)) products(j, k) += number(3 * j, k % P);
    const moe::CausalShape shape{P, T};
    moe::CausalMatrix of_products(shape, nullptr);
    for (Index t = 0; t < T; ++t) of_products.add(t, products.block(0, t * P, shape.rows(t), P));
    Eigen::MatrixXd held;
    const auto root = [&](Index t) {
      held = L.block(t * P, 0, P, shape.rows(t)).transpose();
      return Eigen::Map<const Eigen::MatrixXd>(held.data(), held.rows(), held.cols());
    };
    for (Index t = 0; t < T; ++t) {
      const Eigen::MatrixXd expected = R.block(0, t * P, shape.rows(t), P),
                            is = moe::detail::response_by_parts(of_products, root, t, equal_times ? t + 1 : t);
      INFO("equal times ", equal_times, ", step ", t, ": is\n", is, "\nexpected\n", expected);
      CHECK((is - expected).cwiseAbs().maxCoeff() <= 1e-11);
    }
  }
}

TEST_CASE(
    "kernel iteration: a root's blocks, one after the other, are those of the whole matrix; what is known already is "
    "left out") {
  // Vectors of which the fifth and the ninth are sums of earlier ones.
  constexpr Index n = T * P;
  moe::HostMatrix<double> numbers(3 * n, n);
  B::normal(numbers, {5, 0, 0, 0});
  Eigen::MatrixXd x = B::download(numbers);
  x.col(4) = x.col(0) - 2 * x.col(3), x.col(8) = x.col(1) + x.col(7);
  const Eigen::MatrixXd correlation = x.transpose() * x;
  Eigen::MatrixXd L = Eigen::MatrixXd::Zero(n, n), held;
  for (Index t = 0; t < T; ++t) {
    const Index rows = (t + 1) * P;
    const Eigen::MatrixXd block = moe::detail::next_of_root(
        correlation.block(0, t * P, rows, P),
        [&](Index s) {
          held = L.block(s * P, 0, P, (s + 1) * P).transpose();
          return Eigen::Map<const Eigen::MatrixXd>(held.data(), held.rows(), held.cols());
        },
        1e-3);
    L.block(t * P, 0, P, rows) = block.transpose();
  }
  CHECK((L * L.transpose() - correlation).norm() <= 1e-10 * correlation.norm());
  CHECK(L.isLowerTriangular());
  for (Index j = 0; j < n; ++j) CHECK((L.col(j).norm() == 0) == (j == 4 || j == 8));
}

TEST_CASE("kernel iteration: what it does not solve is refused by name, all at once") {
  moe::RunSpec s = limit_fixture::spec("I", "mssp", moe::OptimizerKind::adam, 0.7, 2);
  s.optimizer.eps = 1e-8;
  s.model.routing = moe::Routing::topk;
  s.sampling.site_batches = s.sampling.draws = 2;
  moe::IterationOptions options;
  options.replicas = 2;
  const auto refusal = [&] {
    try {
      moe::iterate_kernels(s, limit_fixture::data(4, 4, 1), options);
    } catch (const moe::ConfigError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const std::string message = refusal();
  for (const char* key : {"optimizer.eps", "sampling.site_batches", "sampling.draws", "sampling.replicas"})
    CHECK_MESSAGE(message.find(key) != std::string::npos, key, " in ", message);
}

TEST_CASE("kernel iteration: a diverging iteration ends with the step and what diverged") {
  moe::RunSpec s = limit_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 1e4, 6);
  s.model.activation = identity;
  moe::IterationOptions options;
  options.batch = {200, 100, 0};
  options.replicas = 3;
  try {
    moe::iterate_kernels(s, limit_fixture::data(4, 4, 1), options);
    FAIL("a learning rate of 1e4 was solved");
  } catch (const moe::NumericsError& e) {
    CHECK(e.step >= 1);
    CHECK(e.field.find("of iteration") != std::string::npos);
  }
}
