// Updates entry by entry on outer products that are never stored: every entry once, with its product, at sizes that no tile fits.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/cpu.hpp"

namespace {

template <class Real>
void check_sizes() {
  using B = moe::Cpu<Real>;
  using Tile = moe::OuterTile<Real>;
  const moe::Index sizes[][3] = {{1, 1, 1},
                                 {Tile::rows, Tile::cols, 4},
                                 {Tile::rows + 1, Tile::cols + 1, 3},
                                 {Tile::rows - 1, 3 * Tile::cols - 1, 65},
                                 {23 * Tile::rows + 5, 33 * Tile::cols + 2, 7}};
  for (const auto& [rows, cols, P] : sizes) {
    INFO("rows ", rows, ", cols ", cols, ", P ", P);
    moe::HostMatrix<Real> z(rows, P), x(cols, P), value(rows, cols), count(rows, cols);
    for (moe::Index p = 0; p < P; ++p) {
      for (moe::Index i = 0; i < rows; ++i) z(i, p) = static_cast<Real>(std::sin(1.0 + double(i) + 0.7 * double(p)));
      for (moe::Index j = 0; j < cols; ++j)
        x(j, p) = static_cast<Real>(std::cos(2.0 + 1.3 * double(j) - 0.4 * double(p)));
    }
    moe::HostView<Real> v = value.view(), c = count.view();
    B::entrywise_update(z.view(), x.view(), {v, c}, [](Real g, Real& sum, Real& times) {
      sum += g;
      times += 1;
    });
    double farthest = 0;
    bool once = true;
    for (moe::Index j = 0; j < cols; ++j)
      for (moe::Index i = 0; i < rows; ++i) {
        double product = 0;
        for (moe::Index p = 0; p < P; ++p) product += static_cast<double>(z(i, p)) * static_cast<double>(x(j, p));
        farthest = std::max(farthest, std::abs(product - static_cast<double>(value(i, j))));
        once = once && count(i, j) == Real(1);
      }
    CHECK(once);
    // Sums of P terms below one.
    CHECK(farthest <= static_cast<double>(P * P) * std::numeric_limits<Real>::epsilon());
  }
}

}  // namespace

TEST_CASE(
    "entrywise update: every entry of the outer product once, whatever is left over by tiles and pieces [float32]") {
  check_sizes<float>();
}
TEST_CASE(
    "entrywise update: every entry of the outer product once, whatever is left over by tiles and pieces [float64]") {
  check_sizes<double>();
}
