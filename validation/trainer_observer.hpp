/// What is measured on a finite network while it trains (theory section 7), by the names of support/observable.hpp. The fields of the
/// step are at hand; the parts that stem from the initial weights cost a product with W(0) each, what was learned is the difference.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/distribution.hpp"
#include "support/observable.hpp"
#include "validation/network_statistics.hpp"
#include "validation/trainer_step.hpp"

namespace moe::trainer {

template <class B>
class Observer {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;
  using P = Products<B>;
  using Dispatch = typename Pairs<B>::Dispatch;

  /// names: of observables. fixed_samples: every step has the same samples, so that fields of t = 0 stay comparable.
  Observer(const Step<B>& step, const std::vector<std::string>& names, bool fixed_samples)
      : step_(step), names_(names.begin(), names.end()), fixed_samples_(fixed_samples) {}

  bool empty() const { return names_.empty(); }
  /// Whether the backward pass is to keep BlockBackward::x_A.
  bool wants_x_A() const { return wants("rms_xi_A_init", "rms_xi_A_effective"); }

  /// Tensors whose initial values are needed from t = 1 on.
  std::vector<Tensor> initial_tensors() const {
    std::vector<Tensor> tensors;
    const bool v0 = wants_y() && !fixed_samples_;  // by a pass at the initial weights
    if (v0) tensors.push_back(Tensor::input);
    if (wants("rms_r_init", "rms_r_effective") || wants("rms_xi_Q_init", "rms_xi_Q_effective") ||
        (v0 && step_.model().shape.L > 1))
      tensors.push_back(Tensor::router);
    if (wants("rms_u_init", "rms_u_effective") || wants_x_A() || v0) tensors.push_back(Tensor::expert_in);
    if (wants_y() || wants("rms_zeta_init", "rms_zeta_effective")) tensors.push_back(Tensor::expert_out);
    return tensors;
  }

  /// Values of all names in the state before update state.step, on the samples x of the step. At step 0 fields that later steps
  /// compare with are put into the state.
  std::map<std::string, double> observe(TrainingState<B>& state, View x, Forward<B>& a, Backward<B>& g) {
    values_.clear();
    state_ = &state;
    field("h", a.h);
    field("phi", a.phi);
    field("f", a.f);
    field("xi", g.phi(), step_.model().shape.N);  // (T10)
    begin_initial_pass(x);
    for (l_ = 0; l_ < step_.model().shape.L; ++l_) {
      a_ = &a.blocks[static_cast<std::size_t>(l_)], g_ = &g.blocks[static_cast<std::size_t>(l_)];
      observe_block();
    }
    step_.settle();  // of a pass at the initial weights
    return values_;
  }

  /// One of distribution_table, over all experts, active or not.
  std::vector<double> distribution(const Recorded& one, TrainingState<B>& state, Forward<B>& a) {
    state_ = &state, l_ = one.block, a_ = &a.blocks[static_cast<std::size_t>(l_)];
    if (one.name == "h") return moe::distribution(B::download(a.h));
    if (one.name == "r") return moe::distribution(B::download(a_->r));
    return moe::distribution(B::download(all_experts(a_->u, a_->in.out, Tensor::expert_in, 1, u_all_, true)));
  }

  /// One of kernel_table: (P, P), the average over all units (inactive experts count as zero).
  Eigen::MatrixXd kernel(const Recorded& one, Forward<B>& forward, Backward<B>& backward) {
    const NetworkShape& z = step_.model().shape;
    BlockForward<B>& a = forward.blocks[static_cast<std::size_t>(one.block)];
    BlockBackward<B>& g = backward.blocks[static_cast<std::size_t>(one.block)];
    if (one.name == "Phi") return B::gram(a.in.out);
    if (one.name == "DD") return static_cast<double>(z.N) * z.N * B::gram(g.y);
    if (one.name == "GvGv") return Pairs<B>::gram(a.in.out.cols, scattered(a.dispatch, a.Gv));
    return std::pow(static_cast<double>(z.K) * z.Ne, 2) *
           Pairs<B>::gram(a.in.out.cols, scattered(a.dispatch, g.u));  // ghatghat
  }

 private:
  struct Scratch {
    Matrix data;
    View view;
    operator View() const { return view; }  // NOLINT(google-explicit-constructor): as an array
  };

  void observe_block() {
    const NetworkShape& z = step_.model().shape;
    const double N = z.N, K = z.K, Ne = z.Ne;
    BlockForward<B>& a = *a_;
    BlockBackward<B>& g = *g_;
    const View u = all_experts(a.u, a.in.out, Tensor::expert_in, 1, u_all_,
                               wants("rms_u_all", "change_u") || needs_v() || wants("rms_u_effective"));
    const View v = needs_v() ? activated(u) : View{};
    const View zeta = all_experts(g.Gv, g.y, Tensor::expert_out, step_.model().aggregation, zeta_all_,
                                  wants("rms_zeta", "change_zeta", "rms_zeta_effective"));
    field("r", a.r);
    field("u", u, 1, "rms_u_all");
    field("v", v, 1, "rms_v_all");
    field("y", a.y);
    field("D", g.y, N);           // (T6)
    field("zeta", zeta, K * Ne);  // (T7)
    field("rho", g.r, K);         // (T9)
    of_active("rms_u", a.u);
    of_active("rms_v", a.v);
    gates();
    parts(u, zeta);
  }

  template <class... Name>
  bool wants(const Name&... names) const {
    return (names_.contains(names) || ...);
  }
  bool wants_y() const { return wants("rms_y_init", "rms_y_propagating", "rms_y_effective"); }
  bool needs_v() const { return wants("rms_v_all", "change_v") || (wants_y() && fixed_samples_ && state_->step == 0); }
  /// Of the block in hand, or of the stream.
  std::string key(const std::string& name) const {
    const auto of_blocks = recorded(name, step_.model().shape.L);
    return of_blocks.size() == 1 ? name : of_blocks[static_cast<std::size_t>(l_)].key;
  }
  template <class F>
  void put(const std::string& name, F&& value) {
    if (wants(name)) values_[key(name)] = value();
  }

  /// RMS over active pairs. Where all are active it is that over all, rms_..._all, if that has been taken.
  void of_active(const std::string& name, View x) {
    const auto all = values_.find(key(name + "_all"));
    put(name, [&] { return a_->dispatch.dense() && all != values_.end() ? all->second : rms(x); });
  }

  static double rms(View x) { return std::sqrt(sum_squares<B>(x) / static_cast<double>(x.size())); }
  static double rms_difference(View x, View from) {
    return std::sqrt(sum_squared_differences<B>(x, from) / static_cast<double>(x.size()));
  }

  /// rms_NAME and change_NAME of `scale` times a field; keeps the field of t = 0 where something compares with it.
  void field(const std::string& name, View x, double scale = 1, const std::string& rms_name = "") {
    put(rms_name.empty() ? "rms_" + name : rms_name, [&] { return scale * rms(x); });
    const bool for_parts = name == "v" && fixed_samples_ && wants_y();
    if (!wants("change_" + name) && !for_parts) return;
    if (state_->step == 0) state_->initial_fields[key(name)] = copy_of<B>(x);
    put("change_" + name, [&] { return scale * rms_difference(x, state_->initial_fields.at(key(name))); });
  }

  /// A field over pairs as one over all pairs (N_e, M P): with top-K it takes the product scale W^T X once more, for all experts.
  View all_experts(View pairs, View X, Tensor tensor, double scale, Scratch& scratch, bool needed) {
    if (a_->dispatch.dense()) return pairs;
    if (!needed) return {};
    return all_answers(step_.block(state_->weights, tensor, l_), scale, X, scratch);
  }
  /// scale W^T X of all experts (N_e, M P).
  View all_answers(View W, double scale, View X, Scratch& scratch) {
    const NetworkShape& z = step_.model().shape;
    Dispatch everyone;
    everyone.choose_all(z.M, X.cols);
    P::answer(everyone, W, static_cast<Real>(scale), X, sized(scratch, z.Ne, z.M * X.cols));
    return scratch;
  }
  View activated(View u) {
    if (a_->dispatch.dense()) return a_->v;
    activate<B>(step_.activation(), u, sized(v_all_, u.rows, u.cols));
    return v_all_;
  }

  void gates() {
    const Dispatch& d = a_->dispatch;
    put("router_entropy", [&] { return Pairs<B>::router_entropy(d, a_->G); });
    if (wants("load_q99", "load_max")) {
      const Eigen::VectorXd loads = Pairs<B>::loads(d);
      put("load_q99", [&] { return network::quantile(loads, 0.99); });
      put("load_max", [&] { return network::quantile(loads, 1.0); });
    }
    put("ess_forward", [&] { return Pairs<B>::effective_experts(d, a_->Gv); });
    put("ess_backward", [&] { return Pairs<B>::effective_experts(d, g_->u); });
  }

  /// W(0) and W(t) - W(0), each acting on the query of time t, and the three terms at the aggregation (T26).
  void parts(View u, View zeta) {
    const NetworkShape& z = step_.model().shape;
    const double N = z.N, K = z.K, Ne = z.Ne, c = step_.model().aggregation;
    BlockForward<B>& a = *a_;
    BlockBackward<B>& g = *g_;
    const View read = a.in.out;
    const Index Ptokens = read.cols;
    two_parts(
        "r", 1, [&] { return View(a.r); },
        [&] { P::answer(initial(Tensor::router), 1, read, sized(scratch_, a.r.rows(), Ptokens)); });
    two_parts(
        "u", 1, [&] { return u; }, [&] { all_answers(initial(Tensor::expert_in), 1, read, scratch_); });
    two_parts(
        "zeta", K * Ne, [&] { return zeta; }, [&] { all_answers(initial(Tensor::expert_out), c, g.y, scratch_); });
    two_parts(
        "xi_A", N, [&] { return View(g.x_A); },
        [&] { P::collect(a.dispatch, initial(Tensor::expert_in), 1, g.u, sized(scratch_, read.rows, Ptokens)); });
    two_parts(
        "xi_Q", N,
        [&] {
          P::collect(step_.block(state_->weights, Tensor::router, l_), 1, g.r, 0, sized(present_, read.rows, Ptokens));
          return View(present_);
        },
        [&] { P::collect(initial(Tensor::router), 1, g.r, 0, sized(scratch_, read.rows, Ptokens)); });
    aggregation();
  }

  /// `init` fills scratch_ with the part of W(0); `now` hands the field of W(t).
  template <class Now, class Init>
  void two_parts(const std::string& name, double scale, Now&& now, Init&& init) {
    const std::string of_init = "rms_" + name + "_init", of_learned = "rms_" + name + "_effective";
    if (!wants(of_init, of_learned)) return;
    if (state_->step == 0) {
      put(of_init, [&] { return scale * rms(now()); });
      put(of_learned, [] { return 0.0; });
      return;
    }
    init();
    put(of_init, [&] { return scale * rms(scratch_); });
    put(of_learned, [&] { return scale * rms_difference(now(), scratch_); });
  }

  void aggregation() {
    if (!wants_y()) return;
    BlockForward<B>& a = *a_;
    if (state_->step == 0) {
      put("rms_y_init", [&] { return rms(a.y); });
      put("rms_y_propagating", [] { return 0.0; });
      put("rms_y_effective", [] { return 0.0; });
      return;
    }
    const Real c = static_cast<Real>(step_.model().aggregation);
    const Dispatch& d = a.dispatch;
    const View v0 = initial_v(), Gv0 = sized(Gv0_, a.v.rows(), a.v.cols());
    Pairs<B>::times_gate(d, a.G, v0, Gv0);
    P::collect(d, initial(Tensor::expert_out), c, Gv0, sized(scratch_, a.y.rows(), a.y.cols()));   // y_init
    P::collect(d, initial(Tensor::expert_out), c, a.Gv, sized(present_, a.y.rows(), a.y.cols()));  // and y_propagating
    put("rms_y_init", [&] { return rms(scratch_); });
    put("rms_y_propagating", [&] { return rms_difference(present_, scratch_); });
    put("rms_y_effective", [&] { return rms_difference(a.y, present_); });
  }

  /// Under mini-batches v(0) of block l takes a pass through the blocks before it, at the initial weights on these samples.
  bool passes_initially() const { return wants_y() && !fixed_samples_ && state_->step > 0; }
  void begin_initial_pass(View x) {
    if (!passes_initially()) return;
    const Model& model = step_.model();
    if (!initial_pass_ || initial_pass_->h.cols() != x.cols)
      initial_pass_.emplace(model.spec.norm, model.shape, x.cols);
    initial_stream_ = step_.features(state_->initial, x, state_->step, *initial_pass_);
  }

  /// v of the initial weights on the active pairs of the present.
  View initial_v() {
    BlockForward<B>& a = *a_;
    const Dispatch& d = a.dispatch;
    const View out = sized(v0_, a.v.rows(), a.v.cols());
    if (!fixed_samples_) {
      BlockForward<B>& b = initial_pass_->blocks[static_cast<std::size_t>(l_)];
      if (l_ + 1 < step_.model().shape.L)
        step_.block_forward(state_->initial, {}, l_, initial_stream_, state_->step, b);  // b(0) = 0
      else
        step_.normalise(initial_stream_, b.in);
      initial_stream_ = b.out;
      P::answer(d, initial(Tensor::expert_in), 1, b.in.out, out);
      activate<B>(step_.activation(), out, out);
      return out;
    }
    const View all = state_->initial_fields.at(key("v"));
    if (d.dense()) return {all.data, out.rows, out.cols, out.rows};
    Pairs<B>::gather(d, all, out);
    return out;
  }

  /// A field over pairs as one over all pairs (N_e, M P), zero where not active.
  View scattered(const Dispatch& d, View pairs) {
    if (d.dense()) return pairs;
    const View all = sized(scratch_, pairs.rows, d.experts() * d.tokens());
    Pairs<B>::scatter(d, pairs, all);
    return all;
  }

  View initial(Tensor t) { return step_.block(state_->initial, t, l_); }
  /// A window of this shape on scratch that grows as needed.
  static View sized(Scratch& scratch, Index rows, Index cols) {
    if (scratch.data.size() < rows * cols) scratch.data = Matrix::uninitialized(rows * cols, 1);
    scratch.view = {scratch.data.view().data, rows, cols, rows};
    return scratch.view;
  }

  const Step<B>& step_;
  std::set<std::string> names_;
  bool fixed_samples_;
  std::map<std::string, double> values_;
  TrainingState<B>* state_ = nullptr;
  Index l_ = 0;  ///< the block in hand, and its fields
  BlockForward<B>* a_ = nullptr;
  BlockBackward<B>* g_ = nullptr;
  std::optional<Forward<B>> initial_pass_;  ///< mini-batches only
  View initial_stream_;
  Scratch u_all_, v_all_, zeta_all_, v0_, Gv0_, present_, scratch_;
};

}  // namespace moe::trainer
