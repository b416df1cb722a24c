#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>

#include "data/jpeg_image.hpp"
#include "data/source.hpp"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr unsigned side = 64;
constexpr std::size_t num_pixels = std::size_t{3} * side * side;
constexpr std::size_t max_classes = 1000, max_images = 10'000'000, max_line = 4096;

[[noreturn]] void fail(const std::string& problem) {
  throw IoError(fmt::format(
      "io: {}. Download tiny-imagenet-200.zip from http://cs231n.stanford.edu, unpack it and set data.path to "
      "its folder.",
      problem));
}

std::vector<std::string> sorted_names(const fs::path& folder, bool want_folders) {
  std::vector<std::string> names;
  std::error_code ec, entry_error;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec)) {
    const bool wanted = want_folders ? it->is_directory(entry_error) : it->is_regular_file(entry_error);
    const std::string extension = it->path().extension().string();
    if (wanted && (want_folders || extension == ".JPEG" || extension == ".jpeg" || extension == ".jpg"))
      names.push_back(it->path().filename().string());
    if (names.size() > max_images) fail(fmt::format("{} has more than {} entries", folder.string(), max_images));
  }
  if (ec) fail(fmt::format("cannot list {}: {}", folder.string(), ec.message()));
  std::sort(names.begin(), names.end());
  return names;
}

/// Names in files become parts of paths: they must not lead elsewhere.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

/// Label of each class identifier: its line in wnids.txt; without that file the rank of its folder.
std::map<std::string, int> class_labels(const fs::path& root) {
  std::vector<std::string> names;
  std::ifstream list(root / "wnids.txt");
  if (list) {
    for (std::string line; std::getline(list, line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.empty()) continue;
      if (!is_plain_name(line) || line.size() > max_line || names.size() >= max_classes)
        fail(fmt::format("line {} of {} is not the name of one of at most {} classes", names.size() + 1,
                         (root / "wnids.txt").string(), max_classes));
      names.push_back(line);
    }
  } else {
    names = sorted_names(root / "train", true);
  }
  std::map<std::string, int> labels;
  for (const std::string& name : names)
    if (!labels.emplace(name, static_cast<int>(labels.size())).second)
      fail(fmt::format("{} names class {} twice", (root / "wnids.txt").string(), name));
  if (labels.empty() || labels.size() > max_classes)
    fail(fmt::format("{} has {} classes, expected 1 to {}", root.string(), labels.size(), max_classes));
  return labels;
}

LabelledPool pool_of(std::vector<fs::path> files, std::vector<int> labels) {
  auto paths = std::make_shared<const std::vector<fs::path>>(std::move(files));
  LabelledPool pool;
  pool.labels = std::move(labels);
  pool.read = [paths](std::size_t row, double* x) {
    const std::vector<std::uint8_t> pixels = read_jpeg((*paths)[row].string(), side);
    std::copy(pixels.begin(), pixels.end(), x);
  };
  return pool;
}

LabelledPool training_part(const fs::path& root, const std::map<std::string, int>& labels) {
  // In the order of the labels, so that a row number means the same on every file system.
  std::vector<std::string> names(labels.size());
  for (const auto& [name, label] : labels) names[static_cast<std::size_t>(label)] = name;
  std::vector<fs::path> files;
  std::vector<int> file_labels;
  for (std::size_t label = 0; label < names.size(); ++label) {
    const fs::path folder = root / "train" / names[label] / "images";
    for (const std::string& name : sorted_names(folder, false)) {
      files.push_back(folder / name);
      file_labels.push_back(static_cast<int>(label));
    }
  }
  if (files.empty()) fail(fmt::format("{} has no image", (root / "train").string()));
  return pool_of(std::move(files), std::move(file_labels));
}

/// Lines "val_0.JPEG <tab> n03444034 <tab> box": the validation part is the test set, since the test part has no
/// labels.
LabelledPool validation_part(const fs::path& root, const std::map<std::string, int>& labels) {
  const fs::path list_path = root / "val" / "val_annotations.txt";
  std::ifstream list(list_path);
  if (!list) fail(fmt::format("cannot open {}", list_path.string()));
  std::vector<fs::path> files;
  std::vector<int> file_labels;
  std::size_t number = 0;
  for (std::string line; std::getline(list, line);) {
    ++number;
    if (line.empty()) continue;
    const std::size_t tab = line.find('\t');
    const std::size_t end = tab == std::string::npos ? tab : line.find_first_of("\t\r", tab + 1);
    const std::string name = line.substr(0, tab);
    const auto label = tab == std::string::npos
                           ? labels.end()
                           : labels.find(line.substr(tab + 1, end == std::string::npos ? end : end - tab - 1));
    if (!is_plain_name(name) || line.size() > max_line || label == labels.end() || files.size() >= max_images)
      fail(fmt::format("line {} of {} does not name an image and one of the {} classes", number, list_path.string(),
                       labels.size()));
    files.push_back(root / "val" / "images" / name);
    file_labels.push_back(label->second);
  }
  if (files.empty()) fail(fmt::format("{} names no image", list_path.string()));
  return pool_of(std::move(files), std::move(file_labels));
}

}  // namespace

LabelledSource tinyimagenet_source(const std::string& path) {
  std::error_code ec;
  fs::path root = path;
  if (fs::is_directory(root / "tiny-imagenet-200", ec)) root /= "tiny-imagenet-200";
  if (path.empty() || !fs::is_directory(root / "train", ec))
    fail(fmt::format("tinyimagenet needs folders train and val in data.path = \"{}\", and they are not there", path));
  const std::map<std::string, int> labels = class_labels(root);
  LabelledSource source;
  source.dimension = num_pixels;
  source.classes = static_cast<int>(labels.size());
  source.pool = training_part(root, labels);
  source.test = validation_part(root, labels);
  return source;
}

}  // namespace moe
