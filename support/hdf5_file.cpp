#include "support/hdf5_file.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace moe::h5 {
namespace {

/// No file of this project comes near; what claims more is damaged or hostile.
constexpr std::size_t max_elements = std::size_t{1} << 31;
constexpr std::size_t max_text_bytes = std::size_t{1} << 26;
constexpr int max_rank = 8;
/// Deflate reaches 1032:1 at best, so a dataset cannot hold more than this many bytes per stored byte.
constexpr std::size_t max_compression = 1100;

const char* class_text(H5T_class_t c) {
  switch (c) {
    case H5T_INTEGER: return "integer";
    case H5T_FLOAT: return "float";
    case H5T_STRING: return "string";
    case H5T_BITFIELD: return "bit field";
    case H5T_OPAQUE: return "opaque bytes";
    case H5T_COMPOUND: return "compound";
    case H5T_REFERENCE: return "reference";
    case H5T_ENUM: return "enumeration";
    case H5T_VLEN: return "variable-length list";
    case H5T_ARRAY: return "array";
    default: return "unknown type";
  }
}

}  // namespace

File::File(std::string path, std::size_t file_bytes) : path_(std::move(path)), file_bytes_(file_bytes) {
  const auto refuse = [&](const std::string& problem, const std::string& remedy) {
    throw IoError(fmt::format("io: cannot read {}: {}. {}", path_, problem, remedy));
  };
  const htri_t is_hdf5 = H5Fis_hdf5(path_.c_str());
  H5Eclear2(H5E_DEFAULT);
  if (is_hdf5 <= 0)
    refuse(fmt::format("its {} bytes are not an HDF5 file (no signature)", file_bytes_),
           "Check that the path is right and that the file was copied completely.");
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  H5Pset_file_locking(access, true, true);
  file_ = H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access);
  if (file_ < 0) refuse(library_reason(), "The file is cut short, damaged or being written; write or fetch it again.");
}

File::~File() {
  if (file_ >= 0) H5Fclose(file_);
}

void File::fail(const std::string& what, const std::string& problem, const std::string& remedy) const {
  throw IoError(fmt::format("io: {} in {}: {}. {}", what, path_, problem, remedy));
}

void File::fail_damaged(const std::string& what, const std::string& problem) const {
  fail(what, problem, "The file is damaged or not one of ours; write or fetch it again.");
}

/// True when every step of the name is a link inside this file that leads to an object. External links are not
/// followed: a file must not make us open others.
bool File::has(const std::string& name) const {
  if (name.empty()) return false;
  if (name == "/") return true;
  for (std::size_t from = 1; from != std::string::npos;) {
    const std::size_t slash = name.find('/', from);
    const std::string prefix = name.substr(0, slash);
    H5L_info_t info;
    if (H5Lexists(file_, prefix.c_str(), H5P_DEFAULT) <= 0 ||
        H5Lget_info(file_, prefix.c_str(), &info, H5P_DEFAULT) < 0 ||
        (info.type != H5L_TYPE_HARD && info.type != H5L_TYPE_SOFT) ||
        H5Oexists_by_name(file_, prefix.c_str(), H5P_DEFAULT) <= 0)
      return false;
    from = slash == std::string::npos ? slash : slash + 1;
  }
  return true;
}

/// Number of elements of `shape`, or a fault when it exceeds `max_elements`.
std::size_t File::checked_count(const std::string& what, const std::vector<std::size_t>& shape) const {
  std::size_t count = 1;
  for (const std::size_t n : shape)
    if (n == 0) return 0;
  for (const std::size_t n : shape) {
    if (n > max_elements / count)
      fail_damaged(what, fmt::format("shape {} has more than {} elements, the most that is read", shape_text(shape),
                                     max_elements));
    count *= n;
  }
  return count;
}

/// The claimed `bytes` must be backed by bytes of this very file.
void File::check_storage(const std::string& what, hid_t dataset, hid_t creation, std::size_t bytes) const {
  const H5D_layout_t layout = H5Pget_layout(creation);
  if (layout != H5D_CONTIGUOUS && layout != H5D_COMPACT && layout != H5D_CHUNKED)
    fail(what, "it is a virtual dataset made of other files", "Store the numbers themselves.");
  if (H5Pget_external_count(creation) != 0)
    fail(what, "its numbers lie in another file", "Store the numbers themselves.");
  const std::size_t stored = H5Dget_storage_size(dataset);
  if (stored > file_bytes_) fail_damaged(what, fmt::format("it claims {} bytes, the file has {}", stored, file_bytes_));
  const bool enough = layout == H5D_CHUNKED ? stored > 0 && bytes / stored <= max_compression : stored >= bytes;
  if (!enough) fail_damaged(what, fmt::format("expected {} bytes of numbers, found {} stored", bytes, stored));
}

H5Array File::read(const std::string& name) const {
  const std::string what = "dataset " + name;
  if (!has(name)) fail(what, "there is no such dataset", "Check the name with `h5ls -r`.");
  const Id dataset(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!dataset.valid()) fail(what, library_reason(), "Expected a dataset; check the name with `h5ls -r`.");
  const Id type(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose),
      creation(H5Dget_create_plist(dataset), H5Pclose);
  if (!type.valid() || !space.valid() || !creation.valid()) fail_damaged(what, library_reason());
  const H5T_class_t kind = H5Tget_class(type);
  if (kind != H5T_INTEGER && kind != H5T_FLOAT)
    fail(what, fmt::format("expected integers or floats, found {}", class_text(kind)), "Store plain numbers.");
  const std::size_t element_bytes = H5Tget_size(type);
  if (element_bytes == 0 || element_bytes > 16)
    fail_damaged(what, fmt::format("its numbers have {} bytes each", element_bytes));

  H5Array array;
  const int rank = H5Sget_simple_extent_ndims(space);
  if (H5Sget_simple_extent_type(space) == H5S_NULL) fail(what, "it holds no values at all", "Store a plain array.");
  if (rank < 0 || rank > max_rank)
    fail(what, fmt::format("expected 0 to {} axes, found {}", max_rank, rank < 0 ? "none" : std::to_string(rank)),
         "Store a plain array.");
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  if (rank > 0 && H5Sget_simple_extent_dims(space, extent.data(), nullptr) < 0) fail_damaged(what, library_reason());
  array.shape.assign(extent.begin(), extent.end());
  const std::size_t count = checked_count(what, array.shape);
  if (count == 0) return array;
  check_storage(what, dataset, creation, count * element_bytes);
  try {
    array.values.resize(count);
  } catch (const std::bad_alloc&) {
    fail(what, fmt::format("{} numbers do not fit into memory", count),
         "Use a machine with more memory or a smaller file.");
  }
  if (H5Dread(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, array.values.data()) < 0)
    fail_damaged(what, library_reason());
  return array;
}

template <class Use>
auto File::with_attribute(const std::string& object, const std::string& name, Use&& use) const {
  const std::string what = fmt::format("attribute {} of {}", name, object);
  if (!has(object)) fail(what, fmt::format("there is no object {}", object), "Check the names with `h5dump -A`.");
  if (H5Aexists_by_name(file_, object.c_str(), name.c_str(), H5P_DEFAULT) <= 0)
    fail(what, "there is no such attribute", "Check the names with `h5dump -A`.");
  const Id attribute(H5Aopen_by_name(file_, object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) fail_damaged(what, library_reason());
  const Id type(H5Aget_type(attribute), H5Tclose), space(H5Aget_space(attribute), H5Sclose);
  if (!type.valid() || !space.valid()) fail_damaged(what, library_reason());
  if (H5Sget_simple_extent_npoints(space) != 1)
    fail(what, fmt::format("expected one value, found {}", H5Sget_simple_extent_npoints(space)),
         "Store a single value.");
  return use(what, attribute, type, space);
}

std::string File::attribute_text(const std::string& object, const std::string& name) const {
  return with_attribute(
      object, name, [&](const std::string& what, hid_t attribute, hid_t type, hid_t space) -> std::string {
        if (H5Tget_class(type) != H5T_STRING)
          fail(what, fmt::format("expected text, found {}", class_text(H5Tget_class(type))), "Store a string.");
        const Id memory(H5Tcopy(H5T_C_S1), H5Tclose);
        H5Tset_cset(memory, H5Tget_cset(type) == H5T_CSET_UTF8 ? H5T_CSET_UTF8 : H5T_CSET_ASCII);
        if (H5Tis_variable_str(type) > 0) {
          H5Tset_size(memory, H5T_VARIABLE);
          char* pointer = nullptr;
          if (H5Aread(attribute, memory, static_cast<void*>(&pointer)) < 0) fail_damaged(what, library_reason());
          std::string value = pointer ? pointer : "";
          H5Dvlen_reclaim(memory, space, H5P_DEFAULT, static_cast<void*>(&pointer));
          return value;
        }
        const std::size_t bytes = H5Tget_size(type);
        if (bytes == 0 || bytes > std::min(max_text_bytes, file_bytes_))
          fail_damaged(what, fmt::format("it claims {} characters, the file has {} bytes", bytes, file_bytes_));
        std::string value(bytes + 1, '\0');
        H5Tset_size(memory, bytes + 1);
        if (H5Aread(attribute, memory, value.data()) < 0) fail_damaged(what, library_reason());
        value.resize(::strnlen(value.data(), bytes));
        return value;
      });
}

double File::attribute_number(const std::string& object, const std::string& name) const {
  return with_attribute(object, name, [&](const std::string& what, hid_t attribute, hid_t type, hid_t) {
    const H5T_class_t kind = H5Tget_class(type);
    if (kind != H5T_INTEGER && kind != H5T_FLOAT)
      fail(what, fmt::format("expected a number, found {}", class_text(kind)), "Store an integer or a float.");
    double value = 0;
    if (H5Aread(attribute, H5T_NATIVE_DOUBLE, &value) < 0) fail_damaged(what, library_reason());
    return value;
  });
}

std::vector<std::string> File::members(const std::string& group) const {
  const std::string what = "group " + group;
  if (!has(group)) fail(what, "there is no such group", "Check the name with `h5ls -r`.");
  const Id id(H5Gopen2(file_, group.c_str(), H5P_DEFAULT), H5Gclose);
  if (!id.valid()) fail(what, library_reason(), "Expected a group; check the name with `h5ls -r`.");
  // Not every file tracks the order of creation; those that do not are listed by name.
  const Id creation(H5Gget_create_plist(id), H5Pclose);
  unsigned order = 0;
  if (creation.valid()) H5Pget_link_creation_order(creation, &order);
  const bool tracked = (order & H5P_CRT_ORDER_TRACKED) != 0;
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* member, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(member);
    return 0;
  };
  if (H5Literate(id, tracked ? H5_INDEX_CRT_ORDER : H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names) < 0)
    fail_damaged(what, library_reason());
  return names;
}

}  // namespace moe::h5
