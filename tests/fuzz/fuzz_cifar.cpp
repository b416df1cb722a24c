/// CIFAR-10's binary batches: one of the six is the fuzzer's, the others are sound.
#include <vector>

#include "data/source.hpp"
#include "tests/fuzz/fuzz_input.hpp"

namespace {

using namespace moe;

std::string record() { return std::string(1, 7) + std::string(3072, 'x'); }

const fuzz::FileSet<6> files{{"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
                              "data_batch_5.bin", "test_batch.bin"},
                             {record(), record(), record(), record(), record(), record()}};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Folder folder;
  static const bool ready = (files.restore_all(folder), true);
  (void)ready;
  const std::size_t which = files.replace_one(folder, data, size);
  fuzz::read_or_refuse([&] {
    const LabelledSource source = cifar10_source(folder.path());
    std::vector<double> x(static_cast<std::size_t>(source.dimension));
    for (const LabelledPool* pool : {&source.pool, &*source.test})
      for (std::size_t row = 0; row < pool->labels.size(); ++row) pool->read(row, x.data());
  });
  files.restore(folder, which);
  return 0;
}
