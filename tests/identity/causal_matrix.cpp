// Matrices over queries that end at the present: in memory and in a file they are the same.
#include <doctest/doctest.h>

#include <memory>

#include "dmft/causal_array.hpp"
#include "dmft/causal_matrix.hpp"
#include "tests/temporary_folder.hpp"

namespace {

using Eigen::MatrixXd;
using moe::CausalMatrix;
using moe::CausalShape;
using moe::Index;

/// More numbers than one stretch has.
constexpr CausalShape shape{64, 24};

/// Whole numbers, whose sums are exact.
MatrixXd block(const CausalShape& of, Index t, int which) {
  return MatrixXd::NullaryExpr(of.rows(t), of.P, [&](Index i, Index j) {
    return static_cast<double>((7 * i + 13 * j + 5 * t + 3 * which) % 17 - 8);
  });
}

CausalMatrix filled(const std::shared_ptr<moe::ScratchFile>& file, int which) {
  CausalMatrix m(shape, file);
  for (Index t = 0; t < shape.steps; ++t) m.add(t, block(shape, t, which));
  return m;
}

bool same(const MatrixXd& a, const MatrixXd& b) { return a == b; }  // without thousands of numbers in a message

}  // namespace

TEST_CASE("matrices over queries: sums, norms and copies, in memory and in a file whose places are used again") {
  const TemporaryFolder folder;
  REQUIRE(shape.size() > (1 << 20));
  for (const bool on_disk : {false, true}) {
    INFO("in a file: ", on_disk);
    const auto file = on_disk ? std::make_shared<moe::ScratchFile>(folder.path().string()) : nullptr;
    double square = 0, distance = 0;
    for (Index t = 0; t < shape.steps; ++t) {
      square += block(shape, t, 0).squaredNorm();
      distance += (block(shape, t, 0) - block(shape, t, 1)).squaredNorm();
    }
    for (int round = 0; round < 2; ++round) {  // the second in the places of the first
      CausalMatrix a = filled(file, 0);
      const CausalMatrix b = filled(file, 1);
      CHECK(a.squared_norm() == doctest::Approx(square).epsilon(1e-12));
      CHECK(squared_distance(a, b) == doctest::Approx(distance).epsilon(1e-12));
      CausalMatrix sum = a;
      sum += b;
      sum *= 0.5;
      a.add(3, block(shape, 3, 0));
      for (const Index t : {Index{0}, Index{3}, shape.steps - 1}) {
        CHECK(same(sum.step(t), 0.5 * (block(shape, t, 0) + block(shape, t, 1))));
        CHECK(same(a.step(t), (t == 3 ? 2 : 1) * block(shape, t, 0)));
        CHECK(same(b.at_equal_time(t), block(shape, t, 1).bottomRows(shape.P)));
      }
      sum.resize(shape.steps - 1);
      CHECK(sum.shape().size() == shape.size() - shape.rows(shape.steps - 1) * shape.P);
      sum.resize(shape.steps + 1);
      CHECK(same(sum.step(2), 0.5 * (block(shape, 2, 0) + block(shape, 2, 1))));
      CHECK(sum.step(shape.steps - 1).isZero(0));
      CHECK(sum.step(shape.steps).isZero(0));
      CHECK(CausalMatrix(shape, file).squared_norm() == 0);
      CausalMatrix moved = std::move(sum);
      CHECK(same(moved.step(2), 0.5 * (block(shape, 2, 0) + block(shape, 2, 1))));
      moved.clear();
      CHECK(moved.empty());
      CHECK(moved.file() == file);
    }
  }
  CHECK(folder.file_count() == 0);
}

TEST_CASE_TEMPLATE("arrays over queries: steps come back from memory and from a file in the backend's precision", Real,
                   float, double) {
  const TemporaryFolder folder;
  using Array = moe::CausalArray<moe::Cpu<Real>>;
  for (const bool on_disk : {false, true}) {
    const auto file = on_disk ? std::make_shared<moe::ScratchFile>(folder.path().string()) : nullptr;
    Array first(shape, file), second(shape, file);
    for (Index t = 0; t < shape.steps; ++t) first.set(t, block(shape, t, 0)), second.set(t, block(shape, t, 1));
    const Array moved = std::move(first);
    typename Array::Room room;
    for (Index t = 0; t < shape.steps; ++t) {
      const MatrixXd expected = block(shape, t, 0).cast<Real>().template cast<double>();
      CHECK(same(moved.on_host(t, room), expected));
      CHECK(same(moe::Cpu<Real>::download(moved.step(t).view), expected));
    }
  }
}
