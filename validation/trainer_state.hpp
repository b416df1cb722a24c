/// Everything that a training run carries from one step to the next, so that it can be saved, loaded and continued.
#pragma once

#include <fmt/format.h>

#include <map>
#include <string>
#include <utility>

#include "support/matrix.hpp"
#include "support/run_spec.hpp"
#include "validation/network.hpp"
#include "validation/trainer_rule.hpp"

namespace moe::trainer {

/// The five tensors, each with the N neurons as rows: W_in (N, D), Q^T (N, L M), A^T (N, L M N_e), B (N, L M N_e), W_out^T (N, C).
/// What belongs to a block is contiguous, and within it what belongs to an expert.
template <class Real>
using Tensors = PerTensor<HostMatrix<Real>>;

/// Block l of L of a tensor that all blocks have.
template <class Real>
HostView<Real> of_block(HostView<Real> tensor, Index l, Index L) {
  return tensor.columns(l * (tensor.cols / L), tensor.cols / L);
}
template <class Real>
Slot<Real> of_block(const Slot<Real>& whole, Index l, Index L) {
  return {of_block(whole.value, l, L), of_block(whole.first, l, L), of_block(whole.second, l, L)};
}

template <class Real>
struct TrainingState {
  int step = 0;           ///< updates made
  double first_loss = 0;  ///< at step 0, on its samples
  double loss = 0;        ///< of the state before the present update
  Tensors<Real> weights;  ///< W(t)
  Tensors<Real> first;   ///< velocities or first moments, or what Adafactor keeps (Slot); empty where the rule has none
  Tensors<Real> second;  ///< second moments; likewise
  Tensors<Real> initial;                                   ///< W(0), where an observable needs it; of a flow all
  HostMatrix<Real> bias;                                   ///< (M, L) b of the selection, where it moves
  std::map<std::string, HostMatrix<Real>> initial_fields;  ///< those of t = 0 that observables compare with
  NetworkRun run;                                          ///< what was recorded so far

  Slot<Real> slot(Tensor t) { return {weights[t], first[t], second[t]}; }

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

template <class Real>
HostMatrix<Real> copy_of(HostView<Real> from) {
  auto to = HostMatrix<Real>::uninitialized(from.rows, from.cols);
  for (Index j = 0; j < from.cols; ++j) std::copy_n(from.data + j * from.ld, from.rows, to.data() + j * from.rows);
  return to;
}

/// Precision and layout of the public weights to those above, and back.
template <class Real>
Tensors<Real> tensors_of(const NetworkWeights& w) {
  const auto plain = [](const Eigen::MatrixXd& from) {
    auto to = HostMatrix<Real>::uninitialized(from.rows(), from.cols());
    for (Index k = 0; k < from.size(); ++k) to.data()[k] = static_cast<Real>(from.data()[k]);
    return to;
  };
  const auto transposed = [](const Eigen::MatrixXd& from) {
    auto to = HostMatrix<Real>::uninitialized(from.cols(), from.rows());
    for (Index j = 0; j < from.cols(); ++j)
      for (Index i = 0; i < from.rows(); ++i) to(j, i) = static_cast<Real>(from(i, j));
    return to;
  };
  return {{plain(w.w_in), transposed(w.router), transposed(w.expert_in), plain(w.expert_out), transposed(w.readout)}};
}
template <class Real>
NetworkWeights weights_of(const Tensors<Real>& tensors) {
  const auto plain = [&](Tensor t) {
    const auto& from = tensors[t];
    return Eigen::MatrixXd(
        Eigen::Map<const Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>>(from.data(), from.rows(), from.cols())
            .template cast<double>());
  };
  return {plain(Tensor::input), plain(Tensor::router).transpose(), plain(Tensor::expert_in).transpose(),
          plain(Tensor::expert_out), plain(Tensor::readout).transpose()};
}

}  // namespace moe::trainer
