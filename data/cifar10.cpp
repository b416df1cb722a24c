#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>

#include "data/source.hpp"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t num_pixels = std::size_t{3} * 32 * 32,
                      record_bytes = 1 + num_pixels;  // label, then red, green, blue planes
constexpr std::uintmax_t max_records = 10'000;        // of one file
constexpr int num_classes = 10;

/// Appends the records of one batch file.
void append_records(const fs::path& path, std::vector<std::uint8_t>& records) {
  std::error_code ec;
  const std::uintmax_t bytes = fs::file_size(path, ec);
  if (ec || bytes == 0 || bytes % record_bytes != 0 || bytes > max_records * record_bytes)
    throw IoError(
        fmt::format("io: {} has {} bytes, expected 1 to {} records of {} bytes. Fetch CIFAR-10's binary version again.",
                    path.string(), ec ? "unknown" : std::to_string(bytes), max_records, record_bytes));
  const std::size_t first = records.size();
  records.resize(first + static_cast<std::size_t>(bytes));
  std::ifstream in(path, std::ios::binary);
  if (!in.read(reinterpret_cast<char*>(records.data() + first), static_cast<std::streamsize>(bytes)))
    throw IoError(fmt::format("io: {} cannot be read to its end of {} bytes. Fetch it again.", path.string(), bytes));
  for (std::size_t at = first; at < records.size(); at += record_bytes)
    if (records[at] >= num_classes)
      throw IoError(
          fmt::format("io: {}: record {} has label {}, expected 0 to {}. Fetch CIFAR-10's binary version again.",
                      path.string(), (at - first) / record_bytes, records[at], num_classes - 1));
}

LabelledPool pool_of(std::vector<std::uint8_t> bytes) {
  auto records = std::make_shared<const std::vector<std::uint8_t>>(std::move(bytes));
  LabelledPool pool;
  for (std::size_t at = 0; at < records->size(); at += record_bytes) pool.labels.push_back((*records)[at]);
  pool.read = [records](std::size_t row, double* x) {
    for (std::size_t d = 0; d < num_pixels; ++d) x[d] = (*records)[row * record_bytes + 1 + d];
  };
  return pool;
}

}  // namespace

LabelledSource cifar10_source(const std::string& path) {
  std::error_code ec;
  fs::path folder = path;
  if (fs::is_directory(folder / "cifar-10-batches-bin", ec)) folder /= "cifar-10-batches-bin";
  const std::vector<std::string> names = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                          "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
  for (const std::string& name : names)
    if (path.empty() || !fs::is_regular_file(folder / name, ec))
      throw IoError(
          fmt::format("io: cifar10 needs {} in data.path = \"{}\", and it is not there. Download the binary version "
                      "(cifar-10-binary.tar.gz) from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and set "
                      "data.path to its folder.",
                      name, path));
  std::vector<std::uint8_t> train, test;
  for (const std::string& name : names) append_records(folder / name, name == "test_batch.bin" ? test : train);
  LabelledSource source;
  source.dimension = num_pixels;
  source.classes = num_classes;
  source.pool = pool_of(std::move(train));
  source.test = pool_of(std::move(test));
  return source;
}

}  // namespace moe
