// One body for the GPU and for the host that stands in for it: operations of the GPU backend against those of the CPU's. Including
// files define MOE_DEVICE_NAME and on_device(check).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/cpu.hpp"
#include "support/cuda.hpp"

namespace gpu_operations {
inline namespace MOE_DEVICE_SPACE {

using moe::Index;
using moe::Op;

template <class Real>
constexpr double rounding = std::numeric_limits<Real>::epsilon();

/// Values in (-1, 1) without a pattern.
inline Eigen::MatrixXd values(Index rows, Index cols, double seed = 0) {
  Eigen::MatrixXd m(rows, cols);
  for (Index j = 0; j < cols; ++j)
    for (Index i = 0; i < rows; ++i)
      m(i, j) = std::sin(1.0 + seed + 12.9898 * double(i) + 78.233 * double(j) * double(j));
  return m;
}
template <class B>
typename B::Matrix on(const Eigen::MatrixXd& m) {
  auto matrix = B::Matrix::uninitialized(m.rows(), m.cols());
  B::upload(m, matrix);
  return matrix;
}
/// Largest difference between entries; infinite where one is not finite.
inline double farthest(const Eigen::MatrixXd& a, const Eigen::MatrixXd& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return HUGE_VAL;
  double most = 0;
  for (Index k = 0; k < a.size(); ++k) {
    const double d = std::abs(a.data()[k] - b.data()[k]);
    most = d <= most ? most : std::isnan(d) ? HUGE_VAL : d;
  }
  return most;
}

template <class View>
struct ScaleEntries {
  View v;
  MOE_HD void operator()(Index i, Index j) const { v(i, j) *= static_cast<decltype(v(i, j) + 0)>(i + 3 * j + 1); }
};
template <class View>
struct Entry {
  View v;
  MOE_HD auto operator()(Index i, Index j) const { return v(i, j); }
};
template <class Real>
struct CountAndAdd {
  MOE_HD void operator()(Real g, Real& total, Real& count) const {
    total += g;
    count += 1;
  }
};

/// Extents that are no multiples of blocks, tiles and pieces, and such that are.
inline const std::vector<std::pair<Index, Index>> shapes = {{1, 1}, {1, 70}, {8, 40}, {300, 2}, {257, 5}, {8193, 2}};

template <class Real>
void check_arrays() {
  using B = moe::Cuda<Real>;
  for (const auto& [rows, cols] : shapes) {
    INFO("shape ", rows, " x ", cols);
    const Eigen::MatrixXd m = values(rows, cols).template cast<Real>().template cast<double>();
    auto a = on<B>(m);
    CHECK(B::download(a) == m);
    typename B::Matrix zeros(rows, cols);
    CHECK(B::download(zeros) == Eigen::MatrixXd::Zero(rows, cols));
    zeros.fill(Real(2));
    CHECK(B::download(zeros) == Eigen::MatrixXd::Constant(rows, cols, 2));
    a.set_columns(cols + 3);
    a.set_columns(2 * cols + 9);
    CHECK(a.cols() == 2 * cols + 9);
    CHECK(B::download(a.columns(0, cols)) == m);
    if (rows > 2 && cols > 1) {  // windows inside of arrays
      const auto from = a.view().row_range(1, rows - 2).columns(1, cols - 1);
      const auto to = zeros.view().row_range(2, rows - 2).columns(0, cols - 1);
      B::copy(from, to);
      Eigen::MatrixXd expected = Eigen::MatrixXd::Constant(rows, cols, 2);
      expected.block(2, 0, rows - 2, cols - 1) = m.block(1, 1, rows - 2, cols - 1);
      CHECK(B::download(zeros) == expected);
    }
  }
}

template <class Real>
void check_maps_and_sums() {
  using B = moe::Cuda<Real>;
  using H = moe::Cpu<Real>;
  for (const auto& [rows, cols] : shapes) {
    INFO("shape ", rows, " x ", cols);
    const Eigen::MatrixXd m = values(rows, cols);
    auto a = on<B>(m);
    auto h = on<H>(m);
    B::each(rows, cols, ScaleEntries<typename B::View>{a});
    H::each(rows, cols, ScaleEntries<typename H::View>{h});
    CHECK(B::download(a) == H::download(h));  // one multiplication an entry
    // Terms are summed in double on both sides: n^(1/2) roundings of the largest partial sum.
    const double size = H::download(h).cwiseAbs().sum();
    CHECK(std::abs(B::sum(rows, cols, Entry<typename B::View>{a}) - H::sum(rows, cols, Entry<typename H::View>{h})) <=
          8 * rounding<double> * size);
    auto sums = B::Matrix::uninitialized(2, cols);
    auto host_sums = H::Matrix::uninitialized(2, cols);
    B::column_sums(rows, cols, Entry<typename B::View>{a}, sums.view().row_range(1, 1));
    H::column_sums(rows, cols, Entry<typename H::View>{h}, host_sums.view().row_range(1, 1));
    CHECK(farthest(B::download(sums.view().row_range(1, 1)), H::download(host_sums.view().row_range(1, 1))) <=
          2 * rounding<Real> * size);
    B::column_maxima(a, sums.view().row_range(0, 1));
    H::column_maxima(h, host_sums.view().row_range(0, 1));
    CHECK(B::download(sums.view().row_range(0, 1)) == H::download(host_sums.view().row_range(0, 1)));
    CHECK(farthest(B::gram(a), H::gram(h)) <= rounding<double> * H::download(h).colwise().squaredNorm().maxCoeff());
  }
}

/// op(m)
inline Eigen::MatrixXd values_of(Op op, const Eigen::MatrixXd& m) {
  return op == Op::plain ? m : Eigen::MatrixXd(m.transpose());
}

template <class Real>
void check_products() {
  using B = moe::Cuda<Real>;
  using H = moe::Cpu<Real>;
  const Index sizes[][3] = {{1, 1, 1}, {5, 3, 7}, {64, 10, 300}, {33, 65, 17}, {4, 6, 0}};
  for (const auto& [m, n, k] : sizes)
    for (const Op a : {Op::plain, Op::transposed})
      for (const Op b : {Op::plain, Op::transposed})
        for (const double beta : {0.0, 1.0, 0.5}) {
          INFO("m ", m, ", n ", n, ", k ", k, ", transposed ", a == Op::transposed, b == Op::transposed, ", beta ",
               beta);
          const auto shaped = [](Op op, Index rows, Index cols, double seed) {
            return op == Op::plain ? values(rows, cols, seed) : Eigen::MatrixXd(values(cols, rows, seed));
          };
          const Eigen::MatrixXd A = shaped(a, m, k, 0.3), X = shaped(b, k, n, 0.7);
          auto C = on<B>(values(m + 2, n, 0.9));
          auto host_C = on<H>(values(m + 2, n, 0.9));
          B::gemm(a, b, 1.5, on<B>(A).view(), on<B>(X).view(), beta, C.view().row_range(1, m));
          H::gemm(a, b, 1.5, on<H>(A).view(), on<H>(X).view(), beta, host_C.view().row_range(1, m));
          const double size = k == 0 ? 1 : (values_of(a, A).cwiseAbs() * values_of(b, X).cwiseAbs()).maxCoeff();
          CHECK(farthest(B::download(C), H::download(host_C)) <= 1.5 * rounding<Real> * double(k + 4) * size);
        }
}

/// Few entries with long inner dimensions: what a piece sums rounds as often as the piece is long, and pieces are added in double.
template <class Real>
void check_long_sums() {
  using B = moe::Cuda<Real>;
  const Index sizes[][3] = {{20, 16, 5003}, {3, 70, 4100}, {130, 9, 2048}};
  for (const auto& [m, n, k] : sizes)
    for (const Op a : {Op::plain, Op::transposed})
      for (const Op b : {Op::plain, Op::transposed})
        for (const double beta : {0.0, 0.5}) {
          INFO("m ", m, ", n ", n, ", k ", k, ", transposed ", a == Op::transposed, b == Op::transposed, ", beta ",
               beta);
          const moe::kernels::Pieces pieces = moe::kernels::pieces_of(m, n, k);
          REQUIRE(pieces.count > 1);
          const Eigen::MatrixXd A = a == Op::plain ? values(m, k, 0.3) : values(k, m, 0.3),
                                X = b == Op::plain ? values(k, n, 0.7) : values(n, k, 0.7);
          Eigen::MatrixXd before = values(m + 2, n, 0.9), after = before;
          after.middleRows(1, m) = 1.5 * values_of(a, A) * values_of(b, X) + beta * before.middleRows(1, m);
          if (beta == 0) before.middleRows(1, m).setConstant(std::nan(""));
          auto C = on<B>(before);
          B::gemm(a, b, 1.5, on<B>(A).view(), on<B>(X).view(), beta, C.view().row_range(1, m));
          const double size = (values_of(a, A).cwiseAbs() * values_of(b, X).cwiseAbs()).maxCoeff();
          CHECK(farthest(B::download(C), after) <= 1.5 * rounding<Real> * double(pieces.length + 4) * size);
        }
}

inline void check_pieces() {
  for (const Index m : {1, 16, 64, 65, 200, 5000})
    for (const Index n : {1, 16, 64, 700})
      for (const Index k : {1, 1023, 2047, 2048, 200000, 1000000, 1048576}) {
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(k);
        const auto [count, length] = moe::kernels::pieces_of(m, n, k);
        const Index left = k - count * length;
        CHECK(left >= 0);
        if (count == 1) {
          CHECK(left == 0);
          continue;
        }
        CHECK(length >= 1024);
        CHECK(length % 8 == 0);
        CHECK(left < length);
        CHECK(double(count) * double(m * n) * 8 <= 16 * 1048576.0);  // of what gpu::library_bytes counts
      }
  CHECK(moe::kernels::pieces_of(200, 16, 200000).count * moe::kernels::pieces_of(200, 16, 200000).length == 200000);
  CHECK(moe::kernels::pieces_of(4096, 4096, 4096).count == 1);
}

template <class Real>
void check_normals() {
  using B = moe::Cuda<Real>;
  using H = moe::Cpu<Real>;
  for (const auto& [rows, cols] : shapes) {
    INFO("shape ", rows, " x ", cols);
    const moe::StreamKey key{17, 3, 5, 2};
    auto a = B::Matrix::uninitialized(rows, cols);
    auto h = H::Matrix::uninitialized(rows, cols);
    B::normal(a, key);
    H::normal(h, key);
    // Functions within 4 units in the last place; a normal below 8.5.
    CHECK(farthest(B::download(a), H::download(h)) <= 16 * 8.5 * rounding<Real>);
  }
}

template <class Real>
void check_selection() {
  using B = moe::Cuda<Real>;
  using H = moe::Cpu<Real>;
  for (const Index rows : {1, 5, 255, 256, 257, 700}) {
    // Column 0: all different; 1: a few values, many ties; 2: all equal; 3: zeros of both signs; 4: extremes.
    Eigen::MatrixXd m = values(rows, 5);
    for (Index i = 0; i < rows; ++i) {
      m(i, 1) = double((i * 7) % 4) - 1.5;
      m(i, 2) = -0.25;
      m(i, 3) = i % 2 == 0 ? 0.0 : -0.0;
      const double most = std::numeric_limits<Real>::max();
      m(i, 4) = i % 5 == 0   ? most
                : i % 5 == 1 ? -most
                : i % 5 == 2 ? std::numeric_limits<Real>::denorm_min()
                             : -m(i, 0);
    }
    for (const Index count : {Index{1}, rows / 3, rows / 2, rows - 1, rows}) {
      if (count < 1) continue;
      INFO("rows ", rows, ", count ", count);
      auto mask = B::Matrix::uninitialized(rows, 5);
      auto host_mask = H::Matrix::uninitialized(rows, 5);
      B::select_largest(on<B>(m).view(), count, mask);
      H::select_largest(on<H>(m).view(), count, host_mask);
      CHECK(B::download(mask) == H::download(host_mask));
    }
  }
}

template <class Real>
void check_entrywise() {
  using B = moe::Cuda<Real>;
  using Tile = moe::kernels::GpuTile<Real>;
  const Index sizes[][3] = {{1, 1, 1},
                            {Tile::rows, Tile::cols, Tile::depth},
                            {Tile::rows + 1, Tile::cols - 1, Tile::depth + 1},
                            {2 * Tile::rows - 5, Tile::cols + 9, 3},
                            {2 * Tile::rows - 4, Tile::cols + 5, 6},
                            {9, 3 * Tile::cols + 1, 40}};
  for (const auto& [rows, cols, P] : sizes) {
    INFO("rows ", rows, ", cols ", cols, ", P ", P);
    const Eigen::MatrixXd z = values(rows, P, 0.2).template cast<Real>().template cast<double>(),
                          x = values(cols, P, 0.4).template cast<Real>().template cast<double>();
    typename B::Matrix total(rows, cols), count(rows, cols);
    B::entrywise_update(on<B>(z).view(), on<B>(x).view(), {total.view(), count.view()}, CountAndAdd<Real>());
    CHECK(B::download(count) == Eigen::MatrixXd::Ones(rows, cols));
    CHECK(farthest(B::download(total), z * x.transpose()) <= double(P * P) * rounding<Real>);
  }
}

}  // namespace MOE_DEVICE_SPACE
}  // namespace gpu_operations

TEST_CASE(MOE_DEVICE_NAME ": arrays keep what is put in, grow, and are copied in windows [float32]") {
  on_device([] { gpu_operations::check_arrays<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": arrays keep what is put in, grow, and are copied in windows [float64]") {
  on_device([] { gpu_operations::check_arrays<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": maps, sums, maxima and averages are the CPU's [float32]") {
  on_device([] { gpu_operations::check_maps_and_sums<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": maps, sums, maxima and averages are the CPU's [float64]") {
  on_device([] { gpu_operations::check_maps_and_sums<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": products are the CPU's, transposed or not, onto what was there [float32]") {
  on_device([] { gpu_operations::check_products<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": products are the CPU's, transposed or not, onto what was there [float64]") {
  on_device([] { gpu_operations::check_products<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": long sums for few entries are made of pieces, added in double [float32]") {
  on_device([] { gpu_operations::check_long_sums<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": long sums for few entries are made of pieces, added in double [float64]") {
  on_device([] { gpu_operations::check_long_sums<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": pieces of a sum are long, many where entries are few, and leave nothing out") {
  on_device(gpu_operations::check_pieces);
}
TEST_CASE(MOE_DEVICE_NAME ": random numbers are the CPU's up to the rounding of functions [float32]") {
  on_device([] { gpu_operations::check_normals<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": random numbers are the CPU's up to the rounding of functions [float64]") {
  on_device([] { gpu_operations::check_normals<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": the largest of a column, ties by index, are the CPU's [float32]") {
  on_device([] { gpu_operations::check_selection<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": the largest of a column, ties by index, are the CPU's [float64]") {
  on_device([] { gpu_operations::check_selection<double>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": entrywise updates meet every entry of the outer product once [float32]") {
  on_device([] { gpu_operations::check_entrywise<float>(); });
}
TEST_CASE(MOE_DEVICE_NAME ": entrywise updates meet every entry of the outer product once [float64]") {
  on_device([] { gpu_operations::check_entrywise<double>(); });
}
