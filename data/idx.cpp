#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>

#include "data/source.hpp"

namespace moe {
namespace {

constexpr std::uint32_t labels_magic = 0x00000801, images_magic = 0x00000803;  // unsigned bytes, 1 and 3 axes
constexpr std::uint32_t max_samples = 10'000'000;
constexpr std::uint32_t side = 28, num_pixels = side * side;
constexpr int num_classes = 10;
constexpr const char* remedy = "Fetch the file again: `sudo apt-get install --reinstall dataset-fashion-mnist`.";

/// An IDX file, plain or gzip (gzread passes plain bytes through).
class IdxFile {
 public:
  explicit IdxFile(std::string path) : path_(std::move(path)), file_(gzopen(path_.c_str(), "rb"), gzclose) {
    if (!file_) throw IoError(fmt::format("io: cannot open {}. Check its permissions.", path_));
    gzbuffer(file_.get(), 1 << 16);
  }

  std::uint32_t number(const char* what) {
    std::uint8_t b[4];
    bytes(b, 4, what);
    return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 | b[3];
  }

  void expect(const char* what, std::uint32_t expected) {
    const std::uint32_t found = number(what);
    if (found != expected) fail(fmt::format("{} is {}, expected {}", what, found, expected));
  }

  std::uint32_t sample_count() {
    const std::uint32_t n = number("number of samples");
    if (n == 0 || n > max_samples) fail(fmt::format("number of samples is {}, expected 1 to {}", n, max_samples));
    return n;
  }

  /// Everything that follows: exactly `n` bytes. Read in pieces, so that memory is used only for bytes that exist.
  std::vector<std::uint8_t> rest(std::size_t n, const char* what) {
    constexpr std::size_t piece = std::size_t{1} << 20;
    std::vector<std::uint8_t> all;
    while (all.size() < n) {
      const std::size_t from = all.size(), take = std::min(piece, n - from);
      all.resize(from + take);
      bytes(all.data() + from, take, what);
    }
    std::uint8_t extra = 0;
    if (gzread(file_.get(), &extra, 1) != 0) fail(fmt::format("bytes follow after the {} bytes of its {}", n, what));
    return all;
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw IoError(fmt::format("io: {}: {}. {}", path_, problem, remedy));
  }

 private:
  void bytes(std::uint8_t* out, std::size_t n, const char* what) {
    const int got = gzread(file_.get(), out, static_cast<unsigned>(n));
    if (got == static_cast<int>(n)) return;
    int code = 0;
    const char* reason = gzerror(file_.get(), &code);
    if (got < 0) fail(fmt::format("cannot read its {}: {}", what, reason));
    fail(fmt::format("it ends within its {}", what));
  }

  std::string path_;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> file_;
};

std::string find_file(const std::string& folder, const std::string& name) {
  namespace fs = std::filesystem;
  std::error_code ec;
  for (const char* suffix : {".gz", ""}) {
    const fs::path candidate = fs::path(folder) / (name + suffix);
    if (fs::is_regular_file(candidate, ec)) return candidate.string();
  }
  throw IoError(fmt::format(
      "io: fashion-mnist needs {}.gz in {}, and it is not there. Type `./run install dataset-fashion-mnist` (Debian's "
      "package, 30 MB), or set data.path to a folder with the four IDX files.",
      name, folder));
}

LabelledPool read_part(const std::string& images_path, const std::string& labels_path) {
  IdxFile labels_file(labels_path);
  labels_file.expect("magic number", labels_magic);
  const std::uint32_t n = labels_file.sample_count();
  const std::vector<std::uint8_t> labels = labels_file.rest(n, "labels");

  IdxFile images_file(images_path);
  images_file.expect("magic number", images_magic);
  images_file.expect("number of samples", n);
  images_file.expect("number of rows", side);
  images_file.expect("number of columns", side);
  auto pixels =
      std::make_shared<const std::vector<std::uint8_t>>(images_file.rest(std::size_t{n} * num_pixels, "pixels"));

  LabelledPool pool;
  pool.labels.assign(labels.begin(), labels.end());
  for (std::size_t row = 0; row < pool.labels.size(); ++row)
    if (pool.labels[row] >= num_classes)
      labels_file.fail(fmt::format("label {} of sample {} is not below {}", pool.labels[row], row, num_classes));
  pool.read = [pixels](std::size_t row, double* x) {
    for (std::size_t d = 0; d < num_pixels; ++d) x[d] = (*pixels)[row * num_pixels + d];
  };
  return pool;
}

}  // namespace

LabelledSource fashion_mnist_source(const std::string& path) {
  const std::string folder = path.empty() ? fashion_mnist_folder : path;
  // All four names first, so that a missing one is told before megabytes are unpacked.
  const std::string images = find_file(folder, "train-images-idx3-ubyte"),
                    labels = find_file(folder, "train-labels-idx1-ubyte");
  const std::string test_images = find_file(folder, "t10k-images-idx3-ubyte"),
                    test_labels = find_file(folder, "t10k-labels-idx1-ubyte");
  LabelledSource source;
  source.dimension = num_pixels;
  source.classes = num_classes;
  source.pool = read_part(images, labels);
  source.test = read_part(test_images, test_labels);
  return source;
}

}  // namespace moe
