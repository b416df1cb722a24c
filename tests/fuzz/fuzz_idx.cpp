/// Fashion-MNIST's IDX files, plain or gzip: one of the four is the fuzzer's, the others are sound.
#include <vector>

#include "data/source.hpp"
#include "tests/fuzz/fuzz_input.hpp"

namespace {

using namespace moe;

std::string labels() { return {0, 0, 8, 1, 0, 0, 0, 2, 3, 9}; }
std::string images() {
  return std::string{0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28} + std::string(2 * 784, 'x');
}

const fuzz::FileSet<4> files{
    {"train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"},
    {images(), labels(), images(), labels()}};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Folder folder;
  static const bool ready = (files.restore_all(folder), true);
  (void)ready;
  const std::size_t which = files.replace_one(folder, data, size);
  fuzz::read_or_refuse([&] {
    const LabelledSource source = fashion_mnist_source(folder.path());
    std::vector<double> x(static_cast<std::size_t>(source.dimension));
    for (const LabelledPool* pool : {&source.pool, &*source.test})
      for (std::size_t row = 0; row < pool->labels.size(); ++row) pool->read(row, x.data());
  });
  files.restore(folder, which);
  return 0;
}
