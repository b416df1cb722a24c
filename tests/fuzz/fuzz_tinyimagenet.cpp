/// TinyImageNet's folder: the list of classes, the list of validation images or an image is the fuzzer's.
#include <vector>

#include "data/source.hpp"
#include "tests/fuzz/fuzz_input.hpp"

namespace {

using namespace moe;

const fuzz::FileSet<3> files{{"train/n01/images/a.JPEG", "wnids.txt", "val/val_annotations.txt"},
                             {"", "n01\nn02\n", "a.JPEG\tn01\t0\t0\t1\t1\n"}};

const fuzz::Folder& prepared_folder() {
  static const fuzz::Folder folder;
  static const bool ready = [] {
    for (const char* name : {"train/n01/images", "train/n02/images", "val/images"}) folder.make(name);
    files.restore_all(folder);
    return true;
  }();
  (void)ready;
  return folder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::Folder& folder = prepared_folder();
  const std::size_t which = files.replace_one(folder, data, size);
  fuzz::read_or_refuse([&] {
    const LabelledSource source = tinyimagenet_source(folder.path());
    std::vector<double> x(static_cast<std::size_t>(source.dimension));
    for (const LabelledPool* pool : {&source.pool, &*source.test})
      for (std::size_t row = 0; row < pool->labels.size(); ++row) pool->read(row, x.data());
  });
  files.restore(folder, which);
  return 0;
}
