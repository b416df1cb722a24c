#include "data/preprocessing.hpp"

#include <fmt/format.h>

#include <cmath>

namespace moe {
namespace {

using Eigen::Index;

/// Entries of a vector as (value - mean) / scale. scale 0 marks a constant one.
struct Standard {
  double mean = 0, scale = 0;
};

template <class Vector>
Standard standard_of(const Vector& entries) {
  // Compared exactly: the variance of equal entries is rounding noise, which must not be blown up to 1.
  if (entries.size() == 0 || entries.minCoeff() == entries.maxCoeff()) return {};
  // A power of two near the largest entry keeps squares in range and changes no rounding.
  const double unit = std::ldexp(1.0, std::ilogb(entries.cwiseAbs().maxCoeff()));
  const double mean = (entries / unit).mean();
  return {mean * unit, std::sqrt((entries.array() / unit - mean).square().mean()) * unit};
}

template <class Vector>
void standardize(Vector&& entries, const Standard& s) {
  if (s.scale > 0)
    entries.array() = (entries.array() - s.mean) / s.scale;
  else
    entries.setZero();
}

void check_finite(const Eigen::MatrixXd& values, const char* name, const std::string& source, Faults& faults) {
  for (Index p = 0; p < values.cols(); ++p)
    for (Index i = 0; i < values.rows(); ++i)
      if (!std::isfinite(values(i, p)))
        return faults.add(
            fmt::format("data: {} of {} has the value {} at row {}, column {}. Remove or repair such rows; only finite "
                        "numbers can be trained on.",
                        name, source, values(i, p), p, i));
}

void check_distributions(const Eigen::MatrixXd& y, const char* name, const RunSpec& spec, Faults& faults) {
  constexpr double tolerance = 1e-6;  // rows stored in float32, up to some thousand classes
  for (Index p = 0; p < y.cols(); ++p) {
    const double sum = y.col(p).sum(), smallest = y.col(p).minCoeff();
    if (smallest >= 0 && std::abs(sum - 1) <= tolerance) continue;
    return faults.add("training.loss", "cross_entropy", spec.place("training.loss"),
                      fmt::format("does not fit the targets: row {} of {} in {} has sum {} and smallest entry {}", p,
                                  name, spec.data.source, sum, smallest),
                      "Use one-hot rows (nonnegative, sum 1) or training.loss = \"mse\".");
  }
}

}  // namespace

Eigen::MatrixXd targets(const std::vector<int>& labels, int classes, Loss loss) {
  const auto P = static_cast<Index>(labels.size());
  const bool signs = loss == Loss::mse && classes == 2;
  Eigen::MatrixXd y = Eigen::MatrixXd::Zero(signs ? 1 : classes, P);
  for (Index p = 0; p < P; ++p) {
    const int label = labels[static_cast<std::size_t>(p)];
    if (signs)
      y(0, p) = label == 0 ? -1 : 1;
    else
      y(label, p) = 1;
  }
  return y;
}

void normalize(Dataset& data, Normalize how) {
  if (how == Normalize::sample) {
    for (Eigen::MatrixXd* x : {&data.x, &data.x_test})
      for (Index p = 0; p < x->cols(); ++p) standardize(x->col(p), standard_of(x->col(p)));
  } else if (how == Normalize::feature) {
    for (Index d = 0; d < data.x.rows(); ++d) {
      const Standard s = standard_of(data.x.row(d));
      standardize(data.x.row(d), s);
      standardize(data.x_test.row(d), s);
    }
  }
}

void check_finite(const Dataset& data, const std::string& source, Faults& faults) {
  check_finite(data.x, "x", source, faults);
  check_finite(data.y, "y", source, faults);
  check_finite(data.x_test, "x_test", source, faults);
  check_finite(data.y_test, "y_test", source, faults);
}

void check_targets(const Dataset& data, const RunSpec& spec, Faults& faults) {
  if (spec.training.loss != Loss::cross_entropy) return;
  if (data.y.rows() < 2)
    return faults.add("training.loss", "cross_entropy", spec.place("training.loss"),
                      fmt::format("does not fit targets with {} column{} in {}", data.y.rows(),
                                  data.y.rows() == 1 ? "" : "s", spec.data.source),
                      "Use one-hot rows with a column per class or training.loss = \"mse\".");
  check_distributions(data.y, "y", spec, faults);
  check_distributions(data.y_test, "y_test", spec, faults);
}

}  // namespace moe
