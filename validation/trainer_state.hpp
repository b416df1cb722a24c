/// Everything that a training run carries from one step to the next, so that it can be saved, loaded and continued.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "support/matrix.hpp"
#include "support/run_spec.hpp"
#include "validation/network.hpp"
#include "validation/trainer_rule.hpp"

namespace moe::trainer {

/// The five tensors, each with the N neurons as rows: W_in (N, D), Q^T (N, L M), A^T (N, L M N_e), B (N, L M N_e), W_out^T (N, C).
/// What belongs to a block is contiguous, and within it what belongs to an expert.
template <class B>
using Tensors = PerTensor<typename B::Matrix>;

/// Block l of L of a tensor that all blocks have.
template <class View>
View of_block(View tensor, Index l, Index L) {
  return tensor.columns(l * (tensor.cols / L), tensor.cols / L);
}
template <class B>
Update<B> of_block(const Update<B>& whole, Index l, Index L) {
  const Slot<B>& s = whole.slot;
  return {whole.rule, {of_block(s.value, l, L), of_block(s.first, l, L), of_block(s.second, l, L)}};
}

template <class B>
struct TrainingState {
  using Matrix = typename B::Matrix;

  int step = 0;           ///< updates made
  double first_loss = 0;  ///< at step 0, on its samples
  double loss = 0;        ///< of the state before the present update
  Tensors<B> weights;     ///< W(t)
  Tensors<B> first;    ///< velocities or first moments, or what Adafactor keeps (Slot); empty where the rule has none
  Tensors<B> second;   ///< second moments; likewise
  Tensors<B> initial;  ///< W(0), where an observable needs it; of a flow all
  Matrix bias;         ///< (M, L) b of the selection, where it moves
  std::map<std::string, Matrix> initial_fields;  ///< those of t = 0 that observables compare with
  NetworkRun run;                                ///< what was recorded so far

  Slot<B> slot(Tensor t) { return {weights[t], first[t], second[t]}; }

  void transfer(Archive& a) {
    a("step", step);
    a("first_loss", first_loss);
    a("loss", loss);
    for (const auto& [name, tensors] :
         {std::pair{"weights", &weights}, {"first", &first}, {"second", &second}, {"initial", &initial}})
      for (std::size_t t = 0; t < num_tensors; ++t) a(fmt::format("{}/{}", name, tensor_names[t]), tensors->values[t]);
    a("bias", bias);
    a("initial_fields", initial_fields);
    a("run", run);
  }
};

template <class B>
typename B::Matrix copy_of(typename B::View from) {
  auto to = B::Matrix::uninitialized(from.rows, from.cols);
  B::copy(from, to);
  return to;
}

/// An array of the host in the memory of B.
template <class B>
typename B::Matrix moved(HostMatrix<typename B::Real> host) {
  if constexpr (std::is_same_v<typename B::Matrix, HostMatrix<typename B::Real>>)
    return host;
  else
    return B::Matrix::from_host(host.view());
}

/// Precision and layout of the public weights to those above, and back.
template <class B>
Tensors<B> tensors_of(const NetworkWeights& w) {
  using Real = typename B::Real;
  const auto plain = [](const Eigen::MatrixXd& from) {
    auto to = HostMatrix<Real>::uninitialized(from.rows(), from.cols());
    const Index size = from.size();
#pragma omp parallel for schedule(static) if (size > 16384)
    for (Index k = 0; k < size; ++k) to.data()[k] = static_cast<Real>(from.data()[k]);
    return moved<B>(std::move(to));
  };
  const auto transposed = [](const Eigen::MatrixXd& from) {
    constexpr Index side = 32;  // of squares, of which caches hold both sides
    const Index rows = from.rows(), cols = from.cols();
    auto to = HostMatrix<Real>::uninitialized(cols, rows);
#pragma omp parallel for schedule(static) if (rows * cols > 16384)
    for (Index i0 = 0; i0 < rows; i0 += side)
      for (Index j0 = 0; j0 < cols; j0 += side)
        for (Index i = i0; i < std::min(rows, i0 + side); ++i)
          for (Index j = j0; j < std::min(cols, j0 + side); ++j) to(j, i) = static_cast<Real>(from(i, j));
    return moved<B>(std::move(to));
  };
  return {{plain(w.w_in), transposed(w.router), transposed(w.expert_in), plain(w.expert_out), transposed(w.readout)}};
}
template <class B>
NetworkWeights weights_of(const Tensors<B>& tensors) {
  const auto plain = [&](Tensor t) { return B::download(tensors[t].view()); };
  return {plain(Tensor::input), plain(Tensor::router).transpose(), plain(Tensor::expert_in).transpose(),
          plain(Tensor::expert_out), plain(Tensor::readout).transpose()};
}

}  // namespace moe::trainer
