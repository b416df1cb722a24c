/// What a network is trained on, in the memory of a backend B: inputs and targets of every step, the whole set or its own batch.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "data/dataset.hpp"
#include "support/host_device.hpp"
#include "support/run_spec.hpp"
#include "validation/trainer_backend.hpp"
#include "validation/trainer_state.hpp"

namespace moe::trainer {

/// The backend B with numbers of another type.
template <class B, class Number>
struct SameMemory;
template <template <class> class Backend, class Real, class Number>
struct SameMemory<Backend<Real>, Number> {
  using type = Backend<Number>;
};

namespace maps {
/// dL/df of sample p, with its 1/P.
template <class View, class Targets>
struct LossGradient {
  Loss kind;
  View f;
  Targets y;
  View g;

  MOE_HD void operator()(Index, Index p) const {
    const auto P = static_cast<double>(f.cols);
    const auto put = [&](Index c, double value) {
      g(c, p) = static_cast<std::remove_reference_t<decltype(g(c, p))>>(value / P);
    };
    const auto output = [&](Index c) { return static_cast<double>(f(c, p)); };
    if (kind == Loss::mse) {
      for (Index c = 0; c < f.rows; ++c) put(c, output(c) - y(c, p));
      return;
    }
    double largest = output(0), sum = 0, of_targets = 0;
    for (Index c = 1; c < f.rows; ++c) largest = output(c) > largest ? output(c) : largest;
    for (Index c = 0; c < f.rows; ++c) {
      sum += std::exp(output(c) - largest);
      of_targets += y(c, p);
    }
    const double log_sum = std::log(sum);  // targets that do not sum to one are weighted as they stand
    for (Index c = 0; c < f.rows; ++c) put(c, std::exp(output(c) - largest - log_sum) * of_targets - y(c, p));
  }
};
}  // namespace maps

template <class B>
class Samples {
 public:
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  Samples(const RunSpec& spec, const Dataset& data) : spec_(spec), data_(data) {
    all_ = {Matrix::uninitialized(data.x.rows(), data.x.cols()),
            Wide::Matrix::uninitialized(data.y.rows(), data.y.cols())};
    B::upload(data.x, all_.x);
    Wide::upload(data.y, all_.y);
    if (mini_batches())
      chosen_ = {Matrix::uninitialized(data.x.rows(), spec.training.batch),
                 Wide::Matrix::uninitialized(data.y.rows(), spec.training.batch)};
  }

  /// Those of a step from here on.
  void choose(int step) {
    if (!mini_batches()) return;
    if (step < first_ || step >= first_ + lists_.cols()) draw(step);
    const Index at = step - first_, batch = spec_.training.batch;
    Products<B>::columns_at(all_.x, lists_.columns(at, 1), chosen_.x);
    Products<Wide>::columns_at(all_.y, lists_.columns(at, 1), chosen_.y);
    chosen_y_ = data_.y(Eigen::all, Eigen::Map<const Eigen::VectorXi>(rows_.data() + at * batch, batch));
  }
  View x() { return of_step().x; }
  const Eigen::MatrixXd& y() const { return mini_batches() ? chosen_y_ : data_.y; }

  bool mini_batches() const { return spec_.training.batch > 0; }
  Matrix& all_x() { return all_.x; }

  /// g = dL/df at the outputs f of the step, made where they are: on a device nobody waits for them.
  void loss_gradient(View f, View g) {
    B::each(1, f.cols, maps::LossGradient<View, typename Wide::View>{spec_.training.loss, f, of_step().y, g});
  }

 private:
  using Wide = typename SameMemory<B, double>::type;
  using Lists = typename SameMemory<B, int>::type;
  /// Steps whose samples are drawn together: an epoch is shuffled, and the host waits for a device, once for all of them.
  static constexpr int drawn_at_once = 64;

  struct Arrays {
    Matrix x;
    typename Wide::Matrix y;
  };
  Arrays& of_step() { return mini_batches() ? chosen_ : all_; }

  void draw(int step) {
    const int steps = std::min(drawn_at_once, spec_.training.steps + 1 - step);
    first_ = step;
    rows_ = batch_rows(spec_, static_cast<int>(data_.x.cols()), step, steps);
    auto lists = HostMatrix<int>::uninitialized(spec_.training.batch, steps);
    std::copy(rows_.begin(), rows_.end(), lists.data());
    lists_ = moved<Lists>(std::move(lists));
  }

  const RunSpec& spec_;
  const Dataset& data_;
  Arrays all_, chosen_;
  Eigen::MatrixXd chosen_y_;
  int first_ = 0;
  std::vector<int> rows_;         ///< of steps from first_ on
  typename Lists::Matrix lists_;  ///< the same, a column each
};

}  // namespace moe::trainer
