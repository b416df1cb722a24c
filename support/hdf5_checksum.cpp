#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <stdexcept>

#include "support/hdf5_detail.hpp"

namespace moe::h5 {
namespace {

/// Numbers are summed in pieces of about this size.
constexpr std::size_t piece_bytes = std::size_t{16} << 20;

[[noreturn]] void give_up(const std::string& object) {
  throw std::runtime_error(fmt::format("{}: {}", object, library_reason()));
}

class Sum {
 public:
  void add(const void* bytes, std::size_t n) { value_ = ::crc32_z(value_, static_cast<const Bytef*>(bytes), n); }
  void add(const std::string& text) { add(text.c_str(), text.size() + 1); }
  std::string text() const { return fmt::format("{:08x}", value_); }

 private:
  uLong value_ = ::crc32_z(0, nullptr, 0);
};

void add_attribute(Sum& sum, hid_t object, const std::string& name) {
  const Id attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) give_up("attribute " + name);
  const Id type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  const hssize_t count = H5Sget_simple_extent_npoints(space);
  const std::size_t bytes = H5Tget_size(type);
  if (count < 0 || bytes == 0 || static_cast<std::size_t>(count) > piece_bytes / bytes) give_up("attribute " + name);
  sum.add(name);
  std::vector<char> values(static_cast<std::size_t>(count) * bytes);
  if (count > 0 && H5Aread(attribute, type, values.data()) < 0) give_up("attribute " + name);
  if (H5Tis_variable_str(type) <= 0) return sum.add(values.data(), values.size());
  for (hssize_t k = 0; k < count; ++k) {
    const char* text = reinterpret_cast<char**>(values.data())[k];
    sum.add(std::string(text ? text : ""));
  }
  if (count > 0) H5Dvlen_reclaim(type, space, H5P_DEFAULT, values.data());
}

/// Numbers of a dataset as they are stored, along the first axis in pieces.
void add_dataset(Sum& sum, hid_t dataset, const std::string& name) {
  const Id type(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space);
  const std::size_t element = H5Tget_size(type);
  if (rank < 0 || element == 0 || H5Tdetect_class(type, H5T_VLEN) > 0 || H5Tis_variable_str(type) > 0) give_up(name);
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space, extent.data(), nullptr);
  sum.add(fmt::format("({})", fmt::join(extent, ", ")));
  const std::size_t rows = rank == 0 ? 1 : extent[0];
  std::size_t row_bytes = element;
  for (int axis = 1; axis < rank; ++axis) {
    if (extent[static_cast<std::size_t>(axis)] > (std::size_t{1} << 40) / std::max<std::size_t>(row_bytes, 1))
      give_up(name);
    row_bytes *= extent[static_cast<std::size_t>(axis)];
  }
  if (rows == 0 || row_bytes == 0) return;
  const std::size_t step = std::max<std::size_t>(1, piece_bytes / row_bytes);
  std::vector<char> values(std::min(step, rows) * row_bytes);
  for (std::size_t first = 0; first < rows; first += step) {
    const std::size_t count = std::min(step, rows - first);
    std::vector<hsize_t> start(extent.size(), 0), block = extent;
    if (rank > 0) {
      start[0] = first;
      block[0] = count;
      H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, block.data(), nullptr);
    }
    const Id memory(rank == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(rank, block.data(), nullptr), H5Sclose);
    if (H5Dread(dataset, type, memory, space, H5P_DEFAULT, values.data()) < 0) give_up(name);
    sum.add(values.data(), count * row_bytes);
  }
}

}  // namespace

std::string content_checksum(hid_t file) {
  std::vector<std::string> objects;
  const auto collect = [](hid_t, const char* name, const H5O_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  if (H5Ovisit(file, H5_INDEX_NAME, H5_ITER_INC, collect, &objects) < 0) give_up("the list of objects");
  std::sort(objects.begin(), objects.end());
  Sum sum;
  for (const std::string& name : objects) {
    const Id object(H5Oopen(file, name.c_str(), H5P_DEFAULT), H5Oclose);
    if (!object.valid()) give_up(name);
    sum.add(name);
    if (H5Iget_type(object) == H5I_DATASET) add_dataset(sum, object, name);
    std::vector<std::string> attributes;
    const auto collect_attribute = [](hid_t, const char* attribute, const H5A_info_t*, void* out) -> herr_t {
      static_cast<std::vector<std::string>*>(out)->emplace_back(attribute);
      return 0;
    };
    if (H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect_attribute, &attributes) < 0) give_up(name);
    std::sort(attributes.begin(), attributes.end());
    for (const std::string& attribute : attributes)
      if (name != "." || attribute != checksum_attribute) add_attribute(sum, object, attribute);
  }
  return sum.text();
}

}  // namespace moe::h5
