#include "dmft/memory_estimate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "support/gpu.hpp"
#include "support/observable.hpp"
#include "support/resources.hpp"
#include "support/schedule.hpp"

namespace moe {
namespace {

/// Bases, images and lists of draws grow by half when they are full.
constexpr double growth = 1.5;
/// Samples that Replica::evaluate takes at once.
constexpr double piece = 256;
/// Square matrices of float64 that a Gram matrix, its partial sums and its eigenvectors take at once.
constexpr double gram_copies = 14;
/// Numbers kept per training step (diagnostics) and per evaluation (losses, observables).
constexpr double per_step = 8, per_record = 24, per_block_record = 40;

/// One operator (or `copies` equal ones), X sites by Y sites, and how far its bases go.
struct OperatorSize {
  std::string name;
  double X = 0, Y = 0, copies = 1;
  double chi2 = 0, beta2 = 0;
  UpdateRule rule;
  double rank_x = 0, rank_y = 0;  ///< of the bases on X and on Y
  bool keeps_bases = false, becomes_dense = false;
  double matrices = 1;  ///< that learn by themselves, one above another

  bool learns() const { return rule.lr != 0; }
  /// Numbers that a linear rule learns, in the form that has more of them.
  double learned() const { return learns() ? copies * (becomes_dense ? X * Y : rank_x * rank_y) : 0; }
};

/// Ranks: as many as queries and sites, and no more than the change to the dense form leaves (r + q > X Y / (X + Y)).
OperatorSize sized(std::string name, double X, double Y, double copies, const GaussianConstants& c,
                   const UpdateRule& rule, double x_queries, double y_queries, double batch, bool starts_dense) {
  OperatorSize o{std::move(name), X, Y, copies, c.chi2, c.beta2, rule};
  o.keeps_bases = (rule.linear() && o.learns()) || c.chi2 > 0 || c.beta2 > 0;
  if (!o.keeps_bases) return o;
  o.rank_x = std::min(x_queries, X);
  o.rank_y = std::min(y_queries, Y);
  const double limit = X * Y / (X + Y);
  const bool may = c.chi2 == 0 || c.beta2 == 0 || std::abs(c.chi2 * Y / (c.beta2 * X) - 1) <= 0.02;
  o.becomes_dense = may && (starts_dense || o.rank_x + o.rank_y > limit);
  if (o.becomes_dense && starts_dense) {
    o.rank_x = o.rank_y = 0;
  } else if (o.becomes_dense) {
    const double shrink = std::min(1.0, (limit + 2 * std::min(batch, std::min(X, Y))) / (o.rank_x + o.rank_y));
    o.rank_x *= shrink;
    o.rank_y *= shrink;
  }
  return o;
}

class Account {
 public:
  Account(double bytes_per_number, int blocks) : b_(bytes_per_number), blocks_(blocks) {}

  void add(const std::string& name, double numbers) {
    if (numbers > 0) items_.push_back({name, numbers * b_});
  }
  /// The same in each block.
  void add_of_blocks(const std::string& name, double numbers) {
    add(blocks_ == 1 ? name : fmt::format("{}, in each of {} blocks", name, blocks_), blocks_ * numbers);
  }
  void add_bytes(const std::string& name, double bytes) {
    if (bytes > 0) items_.push_back({name, bytes});
  }
  /// Everything an operator (one in each block) owns but what it shares with others: the basis on neurons and the lists of draws. One that becomes
  /// dense has bases and images first and arrays later; both only at the change, which no two make at once.
  void add(const OperatorSize& o) {
    const std::string size = fmt::format("{:.0f} x {:.0f}{}{}", o.X, o.Y,
                                         o.copies > 1 ? fmt::format(" for each of {:.0f} experts", o.copies) : "",
                                         blocks_ > 1 ? fmt::format(" in each of {} blocks", blocks_) : "");
    std::vector<MemoryItem> bases, arrays;
    const auto put = [&](std::vector<MemoryItem>& items, const std::string& what, double numbers) {
      if (numbers > 0) items.push_back({o.name + ": " + what, blocks_ * o.copies * numbers * b_});
    };
    const bool pairs_from_start = o.learns() && !o.rule.linear();
    const double count = o.rule.has_moments() ? 3 : o.rule.has_velocity() ? 2 : 1;
    const double images = (o.chi2 > 0 ? o.X * o.rank_y : 0) + (o.beta2 > 0 ? o.Y * o.rank_x : 0);
    put(bases, "Gaussian images of its queries", growth * images);
    put(bases, "basis of its queries on experts", growth * o.X * o.rank_x);
    if (o.rule.linear() && o.learns())
      put(bases, "coefficients of what it learned", (o.rule.has_velocity() ? 3 : 2) * o.rank_x * o.rank_y);
    if (o.learns() && (pairs_from_start || o.becomes_dense))
      put(pairs_from_start ? items_ : arrays,
          fmt::format("learned part as {:.0f} array{} of {}", count, count > 1 ? "s" : "", size), count * o.X * o.Y);
    if (o.learns() && o.rule.kind == OptimizerKind::adafactor)
      put(items_, "running means of squared gradients", o.X + o.matrices * o.Y);
    if (o.becomes_dense && (o.chi2 > 0 || o.beta2 > 0))
      put(arrays, fmt::format("initial matrix in dense form, {}", size), o.X * o.Y);
    const double of_bases = bytes(bases), of_arrays = bytes(arrays);
    const auto& larger = of_bases >= of_arrays ? bases : arrays;
    items_.insert(items_.end(), larger.begin(), larger.end());
    const double smaller = std::min(of_bases, of_arrays) / (blocks_ * o.copies);
    if (smaller > change_.bytes)
      change_ = {o.name + ": bases beside arrays while it changes to the dense form", smaller};
  }

  std::vector<MemoryItem> sorted() {
    if (change_.bytes > 0) items_.push_back(std::exchange(change_, {}));
    std::stable_sort(items_.begin(), items_.end(),
                     [](const MemoryItem& a, const MemoryItem& b) { return a.bytes > b.bytes; });
    return items_;
  }

 private:
  static double bytes(const std::vector<MemoryItem>& items) {
    double total = 0;
    for (const MemoryItem& item : items) total += item.bytes;
    return total;
  }

  double b_;
  int blocks_;
  std::vector<MemoryItem> items_;
  MemoryItem change_;
};

double moments(const UpdateRule& rule) { return rule.has_moments() ? 2 : rule.has_velocity() ? 1 : 0; }

}  // namespace

SolveSizes solve_sizes(const RunSpec& spec, const Dataset& data, int threads) {
  SolveSizes s;
  s.D = static_cast<double>(data.x.rows());
  s.C = static_cast<double>(data.y.rows());
  s.train = static_cast<double>(data.x.cols());
  s.test = static_cast<double>(data.x_test.cols());
  s.batch = spec.training.batch > 0 ? spec.training.batch : s.train;
  s.steps = spec.training.steps;
  s.records = std::ceil(s.steps / std::min(eval_interval(spec.training), observe_interval(spec))) + 1;
  s.kernels = static_cast<double>(kernel_steps(spec).size());
  s.float64 = spec.sampling.precision == Precision::float64;
  s.replicas = spec.sampling.replicas;
  s.concurrent = std::min<double>(thread_count(threads), s.replicas);
  return s;
}

MemoryEstimate memory_estimate(const LimitSpec& limit, const SolveSizes& sizes) {
  const BlockSpec& block = limit.block;
  const LimitConstants& c = block.constants;
  const double S = block.counts.neurons, SE = block.counts.experts, Sa = block.counts.hidden, sites = SE * Sa;
  const double P = sizes.batch, D = sizes.D, C = sizes.C, queries = limit.flows ? HUGE_VAL : (sizes.steps + 1) * P;
  const int L = limit.depth;
  double learned = S * D + S * C;  // of a flow, by its stepper's stages
  const auto size_of = [&](std::string name, double X, double copies, const GaussianConstants& g,
                           const UpdateRule& rule, double neuron_queries) {
    OperatorSize o = sized(std::move(name), X, S, copies, g, rule, queries, neuron_queries, P, block.starts_dense);
    learned += L * o.learned();
    return o;
  };
  Account account(sizes.float64 ? 8 : 4, L);

  const double of_norm = limit.layer.norm == Norm::none ? 0 : 1;
  account.add_of_blocks(fmt::format("fields on {:.0f} expert sites x {:.0f} samples", sites, P), 8 * sites * P);
  account.add_of_blocks(fmt::format("fields on {:.0f} neurons x {:.0f} samples", S, P),
                        (6 + of_norm) * S * P + 7 * SE * P);
  account.add("the stream outside blocks", (9 + of_norm) * S * P);
  account.add(fmt::format("input weights, {:.0f} x {:.0f}", S, D), S * D * (2 + moments(limit.input)));
  account.add("readout weights", S * C * (1 + moments(limit.readout)));

  // Of one block without psi and norm, D = wbar(t) delta lies in the span of the C readout vectors of its step.
  const double D_queries =
      L == 1 && limit.layer.norm == Norm::none && limit.layer.post_activation == Activation::identity
          ? std::min(queries, (sizes.steps + 1) * C)
          : queries;
  std::vector<OperatorSize> of_A, of_B;
  const auto matrix = [&](std::vector<OperatorSize>& ops, const char* name, bool shared, const GaussianConstants& g,
                          const UpdateRule& rule, double neuron_queries) {
    if (shared) {
      UpdateRule frozen = rule;
      frozen.lr = 0;
      ops.push_back(size_of(fmt::format("{} (common part)", name), Sa, 1, g, frozen, neuron_queries));
      ops.push_back(size_of(name, sites, 1, {}, rule, neuron_queries));
      ops.back().matrices = SE;
    } else if (block.experts_sampled) {
      ops.push_back(size_of(name, sites, 1, g, rule, neuron_queries));
      ops.back().matrices = SE;
    } else {
      ops.push_back(size_of(name, Sa, SE, g, rule, neuron_queries));
    }
  };
  matrix(of_A, "expert_in", c.expert_in_shared, c.expert_in, block.expert_in, queries);
  matrix(of_B, "expert_out", c.expert_out_shared, {c.expert_out.beta2, c.expert_out.chi2}, block.expert_out, D_queries);

  // Largest ranks on the neurons: one basis of phi for A and Q, one of D for B.
  double rank_phi = 0, rank_D = 0, drawn_on_neurons = 0, drawn_on_sites = 0;  // draws of one block
  const auto take = [&](const std::vector<OperatorSize>& ops, double& rank) {
    for (const OperatorSize& o : ops) {
      rank = std::max(rank, o.rank_y);
      if (o.beta2 > 0) drawn_on_neurons += o.copies * o.rank_x;
      if (o.chi2 > 0) drawn_on_sites += o.copies * o.X * std::min(o.X / 2, o.rank_y);
      account.add(o);
    }
  };
  take(of_A, rank_phi);
  take(of_B, rank_D);
  if (block.experts_sampled) {
    const OperatorSize router = size_of("router", SE, 1, c.router, block.router, queries);
    rank_phi = std::max(rank_phi, router.rank_y);
    if (router.beta2 > 0) drawn_on_neurons += router.rank_x;
    if (router.chi2 > 0) drawn_on_sites += SE * std::min(SE / 2, router.rank_y);
    account.add(router);
  } else {
    account.add_of_blocks(fmt::format("router: explicit matrix of {:.0f} x {:.0f}", SE, S),
                          SE * S * (2 + (block.router.lr != 0 ? 1 + moments(block.router) : 0)));
  }
  account.add_of_blocks(fmt::format("bases of {:.0f} queries on {:.0f} neurons", rank_phi + rank_D, S),
                        growth * S * (rank_phi + rank_D));
  if (block.matching) {
    account.add_of_blocks("moment matching: earlier draws on neurons",
                          growth * S * std::min(S / 2, (D > S / 4 ? 0 : D) + C + drawn_on_neurons));
    account.add_of_blocks("moment matching: earlier draws on expert sites", growth * drawn_on_sites);
  }

  if (limit.flows)
    account.add("flow: stages of the stepper, each as large as all that learns",
                (limit.flow.stepper == Stepper::rk4 ? 6 : 12) * learned);

  // Work space: of a step, or of a piece of an evaluation.
  const double test_piece = std::min(piece, sizes.batch < sizes.train ? std::max(sizes.train, sizes.test) : sizes.test);
  const double ranks = rank_phi + rank_D;
  const bool factored = block.expert_in.kind == OptimizerKind::adafactor;  // with a gradient of some columns at a time
  const double in_step = (3 * std::max(sites, S) + 2 * ranks) * P +
                         (factored ? std::min(262144.0, S * std::max(sites, D)) : 0),
               at_test = (4 * sites + 8 * S + 4 * SE + 2 * ranks + D) * test_piece;
  account.add(at_test > in_step ? fmt::format("work space of an evaluation of {:.0f} samples at once", test_piece)
                                : std::string("work space of a step"),
              std::max(in_step, at_test));
  const double columns = std::max(P, test_piece);
  account.add_bytes(fmt::format("Gram matrices of {:.0f} x {:.0f}", columns, columns),
                    gram_copies * columns * columns * sizeof(double));

  MemoryEstimate e;
  e.items = account.sorted();
  for (const MemoryItem& item : e.items) e.per_replica += item.bytes;
  e.concurrent = sizes.concurrent;
  const double f_bytes = sizes.records * C * sizes.train * sizeof(double);
  const double kept_f = f_bytes <= 64.0 * 1048576 ? f_bytes : 0;
  const double kernel_bytes = 4 * L * sizes.kernels * P * P * sizeof(double);
  const double curves = (per_step * sizes.steps + (per_record + L * per_block_record) * sizes.records) * sizeof(double);
  e.common = (sizes.replicas + 1) * (kept_f + kernel_bytes + growth * curves);
  e.output = (D + C) * (sizes.train + sizes.test) * sizeof(double) + kept_f + kernel_bytes + 2 * curves +
             sizes.replicas * sizes.records * sizeof(double);
  return e;
}

void require_memory(const MemoryEstimate& e, const RunSpec& spec, const LimitSpec& limit,
                    const AvailableMemory& available) {
  if (e.total() <= available.bytes) return;
  const double fitting = std::floor((available.bytes - e.common) / e.per_replica);
  const SampleCounts& counts = limit.block.counts;
  std::vector<std::string> remedies;
  if (e.concurrent > 1 && fitting >= 1)
    remedies.push_back(
        fmt::format("give --threads {:.0f}, so that fewer replicas run at once", std::min(fitting, e.concurrent - 1)));
  if (spec.sampling.precision == Precision::float64) remedies.emplace_back("use sampling.precision = \"float32\"");
  if (e.common > e.per_replica)
    remedies.emplace_back("lower training.steps or record less often (training.eval_every, output.observe_every)");
  if (const double P = spec.training.batch > 0 ? spec.training.batch : spec.data.train; P > counts.neurons)
    remedies.push_back(
        fmt::format("lower {}", spec.training.batch > 0 ? "training.batch" : "data.train or set training.batch"));
  const Regime& regime = regime_named(spec.model.regime);
  const auto many = [&](int count, const char* key) {
    if (count > counts.neurons) remedies.push_back(fmt::format("lower {} = {}", key, count));
  };
  many(counts.experts, regime.experts_sampled ? "sampling.experts" : "model.experts");
  many(counts.hidden, regime.hidden_sampled ? "sampling.hidden" : "model.expert_width");
  remedies.push_back(fmt::format("lower sampling.neurons = {}", counts.neurons));
  const bool records = e.common > e.concurrent * e.per_replica;
  throw ConfigError({fmt::format(
      "memory: this run needs about {} ({} replica{} at once with {} each, {} for records), and {} are available ({}). "
      "The largest part is {}: {}. To need less: {}.",
      bytes_text(e.total()), e.concurrent, e.concurrent > 1 ? "s" : "", bytes_text(e.per_replica), bytes_text(e.common),
      bytes_text(available.bytes), available.source,
      records ? fmt::format("the records of {} steps and {} replicas", spec.training.steps, spec.sampling.replicas)
              : e.items.front().name + ", of every replica",
      bytes_text(records ? e.common : e.items.front().bytes), fmt::join(remedies, "; or "))});
}

void require_gpu_memory(MemoryEstimate& e, const RunSpec& spec, const LimitSpec& limit, const AvailableMemory& card) {
  const double replica = e.per_replica + gpu::library_bytes;
  e.concurrent = std::clamp(std::floor(card.bytes / replica), 1.0, e.concurrent);
  MemoryEstimate on_card = e, on_host = e;
  on_card.common = 0;
  on_card.per_replica = replica;
  on_host.per_replica = 0;
  require_memory(on_card, spec, limit, card);
  require_memory(on_host, spec, limit);
}

}  // namespace moe
