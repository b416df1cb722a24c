/// One Monte Carlo replica of the causal sweep: input, a stack of layers, readout, training step by step (theory section 6).
#pragma once

#include <memory>
#include <vector>

#include "dmft/layer.hpp"
#include "dmft/loss.hpp"
#include "support/ode.hpp"

namespace moe {

/// The state marches: forward() and backward() of the batch that was set, then update(). Fields are those of the last step.
template <class B>
class Replica {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// D inputs, C outputs, P samples per step. `index` is the replica's number.
  Replica(const LimitSpec& spec, Index D, Index C, Index P, std::uint32_t index)
      : spec_(spec),
        streams_(spec.seed, index),
        x_(D, P),
        h_(S(), P),
        phi_(S(), P),
        D0_(S(), P),
        input_gradient_(S(), P),
        delta_(C, P),
        W_in_(S(), D, spec.input, 1.0 / static_cast<double>(D)),
        w_bar_(S(), C, spec.readout),
        norm_(spec.layer.norm, S(), P) {
    const LimitConstants& constants = spec.block.constants;
    Population<B> neurons(S(), streams_.next(), spec.block.matching);
    neurons.draw(W_in_.value(), D > S() / 4);
    scale(W_in_.value(), std::sqrt(constants.input_var / static_cast<double>(D)));
    if (constants.readout_var > 0) {
      neurons.draw(w_bar_.value());
      scale(w_bar_.value(), std::sqrt(constants.readout_var));
    }
    W_in_initial_ = Matrix(S(), D);
    B::copy(W_in_.value(), W_in_initial_);
    for (int l = 0; l < spec.depth; ++l) {
      auto own = neurons.fork(l == 0 ? neurons.key() : streams_.next());
      layers_.push_back(std::make_unique<Layer<B>>(spec.layer, spec.block, std::move(own), streams_, P));
    }
  }

  /// Batch of the next step: x (D, P), y (C, P).
  void set_batch(const Eigen::MatrixXd& x, const Eigen::MatrixXd& y) {
    B::upload(x, x_);
    targets_ = y;
  }

  void forward() {
    preactivation(W_in_.value(), x_, h_);  // (T1), (T21)
    activate(h_, phi_);
    View stream = phi_;
    for (auto& layer : layers_) stream = layer->forward(stream);  // (T2)-(T5), (T28)
    s_ = norm_.forward(stream);
    f_ = readout(s_);
  }

  void backward() {
    const Eigen::MatrixXd delta = loss_delta(spec_.loss, f_, targets_);
    B::upload(delta, delta_);
    B::gemm(Op::plain, Op::plain, 1, w_bar_.value(), delta_, 0, D0_);  // (T6)
    norm_.backward(D0_);
    View g = D0_;
    for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) g = (*layer)->backward(g);  // (T7)-(T10)
    xi_ = g;
  }

  /// One optimizer step with the gradients of this step.
  void update() {
    for_each_gradient([](auto& tensor, View z, View x) { tensor.update(z, x); });
    for (auto& layer : layers_) layer->block().move_selection_bias();
    settle();
  }
  /// Between steps: operators for which it pays by now become dense. True if one did.
  bool settle() {
    bool changed = false;
    for (auto& layer : layers_) changed |= layer->block().settle();
    return changed;
  }

  /// What SGD learns, by tensor and operator; a flow of it passes through states between steps.
  void learned(ArrayList<B>& w) {
    w.arrays.clear();
    for_each_learned([&](auto& tensor) { tensor.learned(w.arrays.emplace_back()); });
  }
  void set_learned(const ArrayList<B>& w) {
    std::size_t k = 0;
    for_each_learned([&](auto& tensor) { tensor.set_learned(w.arrays[k++].view()); });
  }
  /// Its time derivative, with the gradients of this step.
  void learned_derivative(ArrayList<B>& d) {
    d.arrays.clear();
    for_each_gradient([&](auto& tensor, View z, View x) { tensor.derivative(z, x, d.arrays.emplace_back()); });
  }

  /// Outputs (C, P) and loss of the batch at this step.
  const Eigen::MatrixXd& outputs() const { return f_; }
  double loss() const { return loss_value(spec_.loss, f_, targets_); }

  /// Outputs (C, E) of other inputs (D, E) at the present weights: evaluation-only queries, in pieces of at most `piece` samples.
  /// Call after forward() and backward().
  Eigen::MatrixXd evaluate(const Eigen::MatrixXd& inputs, Index piece = 256) {
    Eigen::MatrixXd out(w_bar_.value().cols, inputs.cols());
    for (Index first = 0; first < inputs.cols(); first += piece) {
      const Index E = std::min(piece, static_cast<Index>(inputs.cols()) - first);
      auto x = Matrix::uninitialized(inputs.rows(), E);
      auto stream = Matrix::uninitialized(S(), E);
      B::upload(inputs.middleCols(first, E), x);
      preactivation(W_in_.value(), x, stream);
      activate(stream, stream);
      for (auto& layer : layers_) layer->evaluate(stream, Weights::now);
      norm_.evaluate(stream);
      out.middleCols(first, E) = readout(stream);
    }
    return out;
  }

  /// Hidden features v(0) (sites, P) of every block for the present batch at initialisation, by evaluation-only queries.
  std::vector<Matrix> initial_features() {
    auto stream = Matrix::uninitialized(S(), x_.cols());
    auto below = Matrix::uninitialized(S(), x_.cols());
    preactivation(W_in_initial_, x_, stream);
    activate(stream, stream);
    std::vector<Matrix> v0;
    for (auto& layer : layers_) {
      v0.push_back(Matrix::uninitialized(layer->block().shape().sites(), x_.cols()));
      B::copy(stream, below);
      layer->initial_features(below, v0.back());
      if (layer != layers_.back()) layer->evaluate(stream, Weights::initial);
    }
    return v0;
  }

  /// State between two steps; fields are made again by the next forward() and backward().
  void transfer(Archive& a) {
    a("W_in", W_in_);
    a("W_in_initial", W_in_initial_);
    a("w_bar", w_bar_);
    a("layers", layers_);
  }

  std::vector<std::unique_ptr<Layer<B>>>& layers() { return layers_; }
  const LimitSpec& spec() const { return spec_; }
  View h() { return h_; }
  View phi() { return phi_; }
  View s() { return s_; }
  View xi() { return xi_; }

 private:
  /// use(tensor or operator, z, x) wherever a gradient sum_mu z_mu x_mu^T of this step belongs.
  template <class Use>
  void for_each_gradient(Use&& use) {
    const BlockSpec& block = spec_.block;
    times_slope<B>(block.activation, block.activation_scale, h_, xi_, input_gradient_);
    use(W_in_, input_gradient_.view(), x_.view());  // (T11), (T21)
    use(w_bar_, s_, delta_.view());                 // (T20)
    for (auto& layer : layers_) layer->block().for_each_gradient(use);
  }
  template <class Use>
  void for_each_learned(Use&& use) {
    use(W_in_);
    use(w_bar_);
    for (auto& layer : layers_) layer->block().for_each_operator(use);
  }

  Index S() const { return spec_.block.counts.neurons; }

  static void scale(View a, double factor) { moe::scale<B>(a, static_cast<Real>(factor)); }
  static void preactivation(View W, View x, View h) { B::gemm(Op::plain, Op::plain, 1, W, x, 0, h); }
  void activate(View in, View out) const {
    moe::activate<B>(spec_.block.activation, spec_.block.activation_scale, in, out);
  }
  /// f = <wbar s> (C, P)                                                                                        (T20)
  Eigen::MatrixXd readout(View s) {
    auto f = Matrix::uninitialized(w_bar_.value().cols, s.cols);
    B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(s.rows), w_bar_.value(), s, 0, f);
    return B::download(f);
  }

  LimitSpec spec_;
  StreamNumbers streams_;
  Matrix x_, h_, phi_, D0_, input_gradient_, delta_;
  View s_, xi_;  ///< what the readout reads; backward field of phi
  Eigen::MatrixXd targets_, f_;
  LearnedArray<B> W_in_, w_bar_;
  Matrix W_in_initial_;
  std::vector<std::unique_ptr<Layer<B>>> layers_;
  StreamNorm<B> norm_;
};

}  // namespace moe
