/// The image sets that users download: small files of the right form are read exactly, damaged ones refused with a sentence.
#include <doctest/doctest.h>
#include <zlib.h>

#include <map>
#include <random>

#include "data/dataset.hpp"
#include "data/jpeg_image.hpp"
#include "data/source.hpp"
#include "tests/folders.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;

namespace {

std::string big_endian(std::uint32_t n) {
  return {static_cast<char>(n >> 24), static_cast<char>(n >> 16), static_cast<char>(n >> 8), static_cast<char>(n)};
}

/// Image `n` has pixel (n + d) mod 256 at place d.
std::string pixels(std::size_t images, std::size_t each) {
  std::string bytes;
  for (std::size_t n = 0; n < images; ++n)
    for (std::size_t d = 0; d < each; ++d) bytes += static_cast<char>((n + d) % 256);
  return bytes;
}

using Files = std::map<std::string, std::string>;

Files idx_files() {
  Files files;
  for (const auto& [prefix, n] : std::map<std::string, std::uint32_t>{{"train", 12}, {"t10k", 5}}) {
    files[prefix + "-images-idx3-ubyte"] =
        big_endian(0x803) + big_endian(n) + big_endian(28) + big_endian(28) + pixels(n, 784);
    std::string labels;
    for (std::uint32_t i = 0; i < n; ++i) labels += static_cast<char>(i % 10);
    files[prefix + "-labels-idx1-ubyte"] = big_endian(0x801) + big_endian(n) + labels;
  }
  return files;
}

Files cifar_files() {
  Files files;
  for (const char* name : {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin",
                           "data_batch_5.bin", "test_batch.bin"})
    for (const char label : {'\3', '\7'}) files[name] += label + pixels(1, 3072);
  return files;
}

void write_files(const TemporaryFolder& folder, const Files& files) {
  for (const auto& [name, bytes] : files) write_bytes(folder / name, bytes);
}

const std::string images = source_folder() + "/tests/data/images/";

Files tiny_files() {
  Files files;
  const std::string jpeg = read_bytes(images + "halves.JPEG"), grey = read_bytes(images + "grey.JPEG");
  files["wnids.txt"] = "n02\nn01\n";  // not sorted: the file decides
  files["train/n01/images/n01_0.JPEG"] = jpeg;
  files["train/n01/n01_boxes.txt"] = "";
  files["train/n02/images/n02_0.JPEG"] = grey;
  files["train/n02/images/n02_1.JPEG"] = jpeg;
  files["val/images/val_0.JPEG"] = grey;
  files["val/val_annotations.txt"] = "val_0.JPEG\tn01\t0\t32\t44\t62\n";
  return files;
}

/// Loads and decodes everything; the message if that is refused.
template <class Load>
std::string refusal(Load&& load) {
  return message_of<IoError>([&] {
    const LabelledSource source = load();
    std::vector<double> x(static_cast<std::size_t>(source.dimension));
    for (const LabelledPool* pool : {&source.pool, &*source.test})
      for (std::size_t row = 0; row < pool->labels.size(); ++row) {
        CHECK(pool->labels[row] < source.classes);
        pool->read(row, x.data());
      }
  });
}

/// Cuts every file at several places and changes its bytes at random: refused or read, never fatal.
template <class Load>
void damage(const Files& files, std::size_t header, Load&& load) {
  std::mt19937 random(5);
  int refused = 0, cut_read = 0;
  for (const auto& [name, bytes] : files) {
    const TemporaryFolder folder;
    write_files(folder, files);
    REQUIRE(refusal([&] { return load(folder.path().string()); }).empty());
    for (const std::size_t size : {std::size_t{0}, std::size_t{3}, bytes.size() / 2 + 1, bytes.size() - 1}) {
      write_bytes(folder / name, bytes.substr(0, size));
      cut_read += refusal([&] { return load(folder.path().string()); }).empty();
    }
    for (int i = 0; i < 20; ++i) {
      std::string changed = bytes;
      changed[random() % std::min(header, changed.size())] = static_cast<char>(random());
      write_bytes(folder / name, changed);
      refused += !refusal([&] { return load(folder.path().string()); }).empty();
    }
  }
  CHECK(cut_read == 0);
  CHECK(refused > 0);
}

}  // namespace

TEST_CASE("fashion-mnist is read from IDX files, plain or gzip") {
  const TemporaryFolder folder;
  Files files = idx_files();
  const std::string zipped = files["train-images-idx3-ubyte"];
  files.erase("train-images-idx3-ubyte");
  write_files(folder, files);
  const gzFile gz = gzopen((folder / "train-images-idx3-ubyte.gz").c_str(), "wb");
  REQUIRE(gzwrite(gz, zipped.data(), static_cast<unsigned>(zipped.size())) == static_cast<int>(zipped.size()));
  REQUIRE(gzclose(gz) == Z_OK);

  const LabelledSource source = fashion_mnist_source(folder.path().string());
  CHECK(source.dimension == 784);
  CHECK(source.classes == 10);
  REQUIRE(source.pool.labels.size() == 12);
  CHECK(source.pool.labels[11] == 1);
  REQUIRE(source.test->labels.size() == 5);
  std::vector<double> x(784);
  source.pool.read(11, x.data());
  CHECK(x[0] == 11);
  CHECK(x[783] == (11 + 783) % 256);

  RunSpec spec;
  spec.data.source = "fashion-mnist";
  spec.data.path = folder.path().string();
  spec.data.train = 12;
  spec.data.test = 5;  // its own test part: training leaves nothing behind
  const Dataset data = load_dataset(spec);
  CHECK(data.x.cols() == 12);
  CHECK(data.y_test.leftCols(5).rowwise().sum().head(5) == Eigen::VectorXd::Ones(5));  // labels 0..4 once each
  spec.data.test = 6;
  CHECK(contains(message_of<ConfigError>([&] { load_dataset(spec); }), "5 test samples of fashion-mnist"));
}

TEST_CASE("fashion-mnist without files names Debian's package and the command") {
  const TemporaryFolder folder;
  const std::string message = message_of<IoError>([&] { fashion_mnist_source(folder.path().string()); });
  CHECK(contains(message, "./run install dataset-fashion-mnist"));
  CHECK(contains(message, "data.path"));
}

TEST_CASE("damaged IDX files are refused [magic, counts, sizes, labels, cuts, trailing bytes, random bytes]") {
  const auto load = [](const std::string& folder) { return fashion_mnist_source(folder); };
  const auto with = [&](const std::string& name, const std::string& bytes) {
    const TemporaryFolder folder;
    Files files = idx_files();
    files[name] = bytes;
    write_files(folder, files);
    return refusal([&] { return load(folder.path().string()); });
  };
  const std::string labels = "train-labels-idx1-ubyte", pictures = "t10k-images-idx3-ubyte";
  CHECK(contains(with(labels, idx_files()[pictures]), "magic number is 2051, expected 2049"));
  CHECK(contains(with(labels, big_endian(0x801) + big_endian(0xFFFFFFFF)), "number of samples is 4294967295"));
  CHECK(contains(with(labels, big_endian(0x801) + big_endian(9'000'000) + "ab"), "ends within its labels"));
  CHECK(contains(with(labels, idx_files()[labels] + "x"), "bytes follow"));
  std::string wrong_label = idx_files()[labels];
  wrong_label[8 + 4] = 10;
  CHECK(contains(with(labels, wrong_label), "label 10 of sample 4"));
  CHECK(contains(with(pictures, big_endian(0x803) + big_endian(6) + big_endian(28) + big_endian(28) + pixels(6, 784)),
                 "number of samples is 6, expected 5"));
  CHECK(contains(with(pictures, big_endian(0x803) + big_endian(5) + big_endian(32) + big_endian(28) + pixels(5, 784)),
                 "number of rows is 32, expected 28"));
  damage(idx_files(), 16, load);
}

TEST_CASE("cifar10 is read from its binary batches; damaged ones are refused") {
  const TemporaryFolder folder;
  write_files(folder, cifar_files());
  const LabelledSource source = cifar10_source(folder.path().string());
  CHECK(source.dimension == 3072);
  CHECK(source.pool.labels == std::vector<int>{3, 7, 3, 7, 3, 7, 3, 7, 3, 7});
  CHECK(source.test->labels == std::vector<int>{3, 7});
  std::vector<double> x(3072);
  source.pool.read(9, x.data());
  CHECK(x[1] == 1);
  CHECK(x[3071] == 255);

  CHECK(contains(message_of<IoError>([] { cifar10_source(""); }), "data.path"));
  CHECK(contains(message_of<IoError>([] { cifar10_source("/nonexistent"); }), "data_batch_1.bin"));
  damage(cifar_files(), 1, [](const std::string& path) { return cifar10_source(path); });
}

TEST_CASE("JPEG images come as three planes within the error of their compression") {
  const std::vector<std::uint8_t> halves = read_jpeg(images + "halves.JPEG", 64);
  REQUIRE(halves.size() == 3 * 64 * 64);
  const int left[3] = {250, 10, 20}, right[3] = {30, 40, 240};
  for (std::size_t channel = 0; channel < 3; ++channel)
    for (std::size_t row = 0; row < 64; ++row)
      for (std::size_t column = 0; column < 64; ++column) {
        const int expected = column < 32 ? left[channel] : right[channel];
        REQUIRE(std::abs(halves[(channel * 64 + row) * 64 + column] - expected) <= 3);
      }
  for (const std::uint8_t pixel : read_jpeg(images + "grey.JPEG", 64)) REQUIRE(std::abs(pixel - 100) <= 1);
  CHECK(contains(message_of<IoError>([] { read_jpeg(images + "narrow.JPEG", 64); }), "it has 32 x 64 pixels"));
  CHECK_FALSE(message_of<IoError>([] { read_jpeg(images + "cmyk.JPEG", 64); }).empty());
  CHECK(contains(message_of<IoError>([] { read_jpeg(images + "none.JPEG", 64); }), "cannot open"));
}

TEST_CASE("tinyimagenet is read from its folders; damaged ones are refused") {
  const TemporaryFolder folder;
  write_files(folder, tiny_files());
  const LabelledSource source = tinyimagenet_source(folder.path().string());
  CHECK(source.dimension == 3 * 64 * 64);
  CHECK(source.classes == 2);
  CHECK(source.pool.labels == std::vector<int>{0, 0, 1});
  CHECK(source.test->labels == std::vector<int>{1});
  std::vector<double> x(3 * 64 * 64);
  source.pool.read(2, x.data());
  CHECK(x[0] == doctest::Approx(250).epsilon(0.02));

  CHECK(contains(message_of<IoError>([] { tinyimagenet_source(""); }), "data.path"));
  Files files = tiny_files();
  files["val/val_annotations.txt"] = "../../../etc/passwd\tn01\n";
  write_files(folder, files);
  CHECK(contains(message_of<IoError>([&] { tinyimagenet_source(folder.path().string()); }), "line 1 of"));
  files["val/val_annotations.txt"] = "val_0.JPEG\tn03\n";
  write_files(folder, files);
  CHECK(contains(message_of<IoError>([&] { tinyimagenet_source(folder.path().string()); }), "line 1 of"));
}

TEST_CASE("JPEG files cut short or changed are refused or read, never fatal [all cuts, 500 mutations]") {
  const TemporaryFolder folder;
  const std::string bytes = read_bytes(images + "halves.JPEG");
  for (std::size_t size = 0; size + 2 < bytes.size(); ++size) {
    CAPTURE(size);
    write_bytes(folder / "cut.JPEG", bytes.substr(0, size));
    CHECK_FALSE(message_of<IoError>([&] { read_jpeg(folder / "cut.JPEG", 64); }).empty());
  }
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 500; ++i) {
    std::string changed = bytes;
    for (unsigned n = 1 + random() % 4; n > 0; --n) changed[random() % changed.size()] = static_cast<char>(random());
    write_bytes(folder / "changed.JPEG", changed);
    refused += !message_of<IoError>([&] { read_jpeg(folder / "changed.JPEG", 64); }).empty();
  }
  CHECK(refused > 50);
}
