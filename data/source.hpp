/// Where samples come from. A source of labelled samples tells its labels at once and its inputs row by row, so that
/// only the chosen rows are ever decoded and converted.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// Samples that a permutation may reorder. labels[row] in 0 .. classes-1; read(row, x) writes D numbers as the source
/// stores them (pixels 0..16 or 0..255), channel by channel, row by row. read may throw IoError.
struct LabelledPool {
  std::vector<int> labels;
  std::function<void(std::size_t row, double* x)> read;
};

struct LabelledSource {
  int dimension = 0;                 ///< D
  int classes = 0;                   ///< labels are 0 .. classes-1
  LabelledPool pool;                 ///< what data.seed permutes; training rows come from here, test rows too unless
  std::optional<LabelledPool> test;  ///< the source has a test part of its own
  bool random_order = false;         ///< rows are independent draws already: taken in order
};

/// The 1797 handwritten digits compiled into the library: 8x8 pixels 0..16 (data/digits.LICENSE.md).
LabelledSource digits_source();

/// x ~ N(0, 1) in data.dimension dimensions. Two classes: label = [w x >= 0]; more: argmax of C linear maps; w ~ N(0,
/// 1). train + test samples exist. Faults: dimension or classes out of range.
LabelledSource gaussian_source(const RunSpec& spec, Faults& faults);

/// Folder of Debian's package dataset-fashion-mnist.
inline constexpr const char* fashion_mnist_folder = "/usr/share/datasets/fashion-mnist";
/// Four IDX files (28x28 pixels), plain or gzip, in `path` or, if that is empty, in Debian's folder. Throws IoError.
LabelledSource fashion_mnist_source(const std::string& path);

/// data_batch_1..5.bin and test_batch.bin (3x32x32 pixels) in `path` or its cifar-10-batches-bin. Throws IoError.
LabelledSource cifar10_source(const std::string& path);

/// train/WNID/images/*.JPEG and val (3x64x64 pixels) in `path` or its tiny-imagenet-200; label = line of wnids.txt, or
/// rank of the folder name without that file. Images are decoded when read. Throws IoError.
LabelledSource tinyimagenet_source(const std::string& path);

/// x, y and optional x_test, y_test of an HDF5 file, float64, in file order: the first data.train rows train; test rows
/// are the first data.test of x_test, or without x_test those after the training rows. A data.test that nobody asked
/// for is lowered to what the file has. Faults: missing datasets, shapes that do not fit, fewer rows than asked. Throws
/// IoError.
Dataset hdf5_dataset(const RunSpec& spec, Faults& faults);

}  // namespace moe
