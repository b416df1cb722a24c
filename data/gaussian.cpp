#include <algorithm>
#include <cstdint>
#include <string>

#include "data/permutation.hpp"
#include "data/source.hpp"

namespace moe {
namespace {

/// Row `row` of an infinite matrix of standard normals with `columns` columns.
void normal_row(const StreamKey& key, std::size_t row, std::size_t columns, double* out) {
  const std::size_t pairs = (columns + 1) / 2;
  double two[2];
  for (std::size_t k = 0; k < pairs; ++k) {
    normal_pair(key, row * pairs + k, two);
    out[2 * k] = two[0];
    if (2 * k + 1 < columns) out[2 * k + 1] = two[1];
  }
}

}  // namespace

LabelledSource gaussian_source(const RunSpec& spec, Faults& faults) {
  constexpr int max_dimension = 1 << 17, max_classes = 1 << 10;
  constexpr std::int64_t max_numbers = std::int64_t{1} << 31, max_samples = 10'000'000;
  const DataSpec& data = spec.data;
  LabelledSource source;
  source.random_order = true;
  source.dimension = data.dimension;
  source.classes = data.classes == 0 ? 2 : data.classes;
  bool possible = true;
  if (data.dimension < 1 || data.dimension > max_dimension) {
    faults.add("data.dimension", std::to_string(data.dimension), spec.place("data.dimension"),
               "is not between 1 and " + std::to_string(max_dimension), "Give the number of entries of x.");
    possible = false;
  }
  if (data.classes < 0 || data.classes == 1 || data.classes > max_classes) {
    faults.add("data.classes", std::to_string(data.classes), spec.place("data.classes"),
               "is neither 0 nor between 2 and " + std::to_string(max_classes),
               "Give the number of the teacher's classes.");
    possible = false;
  }
  // Every label is computed from its input: what cannot be held is refused before hours are spent on it.
  if (const std::int64_t samples = std::int64_t{data.train} + data.test;
      possible && (samples > max_samples || samples > max_numbers / data.dimension)) {
    faults.add("data.train", std::to_string(data.train), spec.place("data.train"),
               "and data.test = " + std::to_string(data.test) + " are more than " +
                   std::to_string(std::min(max_samples, max_numbers / data.dimension)) + " samples together",
               "Lower them.");
    possible = false;
  }
  if (!possible || data.train < 1 || data.test < 0) return source;

  const auto D = static_cast<std::size_t>(data.dimension), C = static_cast<std::size_t>(source.classes);
  const std::size_t maps = C == 2 ? 1 : C,
                    rows = static_cast<std::size_t>(data.train) + static_cast<std::size_t>(data.test);
  const StreamKey inputs = data_key(data.seed, DataStream::inputs), teacher = data_key(data.seed, DataStream::teacher);
  std::vector<double> w(maps * D), x(D), score(maps);
  for (std::size_t c = 0; c < maps; ++c) normal_row(teacher, c, D, &w[c * D]);
  source.pool.labels.resize(rows);
  for (std::size_t p = 0; p < rows; ++p) {
    normal_row(inputs, p, D, x.data());
    for (std::size_t c = 0; c < maps; ++c) {
      score[c] = 0;
      for (std::size_t d = 0; d < D; ++d) score[c] += w[c * D + d] * x[d];
    }
    source.pool.labels[p] = C == 2 ? static_cast<int>(score[0] >= 0)
                                   : static_cast<int>(std::max_element(score.begin(), score.end()) - score.begin());
  }
  source.pool.read = [inputs, D](std::size_t row, double* out) { normal_row(inputs, row, D, out); };
  return source;
}

}  // namespace moe
