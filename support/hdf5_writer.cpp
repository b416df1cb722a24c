#include "support/hdf5.hpp"

#include <hdf5_hl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "support/hdf5_detail.hpp"
#include "support/whole_file.hpp"

namespace moe {

using h5::Id, h5::Library, h5::library_reason, h5::shape_text;

struct H5Writer::Impl {
  WholeFile out;
  hid_t file = -1;

  /// Closes without keeping anything. After a failed write the library would retry its pending metadata for ever and
  /// leave the descriptor open, so the descriptor is first pointed at an unlinked file in memory.
  void discard() {
    if (file >= 0) {
      void* handle = nullptr;
      if (H5Fget_vfd_handle(file, H5P_DEFAULT, &handle) >= 0 && handle) {
        const int scratch = ::memfd_create("moe-discarded", MFD_CLOEXEC);
        if (scratch >= 0) {
          ::dup2(scratch, *static_cast<int*>(handle));
          ::close(scratch);
        }
      }
      H5Fclose(file);
      H5Eclear2(H5E_DEFAULT);
      file = -1;
    }
    ::unlink(out.temporary().c_str());
  }

  /// Processes forked meanwhile (H5Reader's) hold the library's lock as well, until they end: a reader of this file would be refused.
  void unlock() const {
    void* descriptor = nullptr;
    if (H5Fget_vfd_handle(file, H5P_DEFAULT, &descriptor) < 0) out.fail("unlock", library_reason());
    ::flock(*static_cast<int*>(descriptor), LOCK_UN);
  }

  void must_be_open(const std::string& what) const {
    if (file < 0) out.fail(what, "the file was already committed, or an earlier write to it failed");
  }

  /// Groups on the way to `name`; they remember the order in which their members were made.
  void make_groups(const std::string& name, const std::string& what) {
    const Id creation(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
    H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED);
    H5Pset_obj_track_times(creation, false);
    for (std::size_t slash = name.find('/', 1); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      const std::string group = name.substr(0, slash);
      const htri_t exists = H5Lexists(file, group.c_str(), H5P_DEFAULT);
      if (exists > 0) continue;
      const Id made(exists < 0 ? -1 : H5Gcreate2(file, group.c_str(), H5P_DEFAULT, creation, H5P_DEFAULT), H5Gclose);
      if (!made.valid()) out.fail(what, library_reason());
    }
  }

  void write(const std::string& name, const std::vector<std::size_t>& shape, hid_t stored, hid_t memory,
             const void* values, const std::string& description, const std::vector<std::string>& dimensions) {
    const std::string what = fmt::format("dataset {} of shape {}", name, shape_text(shape));
    must_be_open(what);
    if (dimensions.size() != shape.size())
      out.fail(what, fmt::format("{} dimension names given for {} axes", dimensions.size(), shape.size()));
    const std::vector<hsize_t> extent(shape.begin(), shape.end());
    const Id space(shape.empty() ? H5Screate(H5S_SCALAR)
                                 : H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr),
                   H5Sclose);
    if (!space.valid()) out.fail(what, library_reason());
    make_groups(name, what);
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_obj_track_times(creation, false);  // equal runs give equal files
    const Id dataset(H5Dcreate2(file, name.c_str(), stored, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose);
    if (!dataset.valid()) out.fail(what, library_reason());
    const hssize_t count = H5Sget_simple_extent_npoints(space);
    if (count < 0 || (count > 0 && (!values || H5Dwrite(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0)))
      out.fail(what, library_reason());
    for (std::size_t axis = 0; axis < dimensions.size(); ++axis)
      if (H5DSset_label(dataset, static_cast<unsigned>(axis), dimensions[axis].c_str()) < 0)
        out.fail(what, library_reason());
    write_text(dataset, name, "description", description);
  }

  /// Variable-length UTF-8: read as str by h5py, and free of the 64 KiB limit of attributes stored in the object
  /// header.
  void write_text(hid_t object, const std::string& name, const std::string& key, const std::string& value) {
    const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(type, H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    const char* text = value.c_str();
    write_attribute(object, name, key, type, type, &text);
  }

  void write_attribute(hid_t object, const std::string& name, const std::string& key, hid_t stored, hid_t memory,
                       const void* value) {
    const std::string what = fmt::format("attribute {} of {}", key, name);
    const Id space(H5Screate(H5S_SCALAR), H5Sclose);
    const Id attribute(H5Acreate2(object, key.c_str(), stored, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    if (!attribute.valid() || H5Awrite(attribute, memory, value) < 0) out.fail(what, library_reason());
  }

  template <class Write>
  void with_object(const std::string& name, const std::string& key, Write&& write_value) {
    must_be_open(fmt::format("attribute {} of {}", key, name));
    const Id object(H5Oopen(file, name.c_str(), H5P_DEFAULT), H5Oclose);
    if (!object.valid()) out.fail(fmt::format("attribute {} of {}", key, name), library_reason());
    write_value(static_cast<hid_t>(object));
  }
};

H5Writer::H5Writer(std::string path, std::string flag) : impl_(new Impl{WholeFile(std::move(path), std::move(flag))}) {
  const std::string& name = impl_->out.temporary();
  // Plain open first: its errno is the clearest reason there is.
  const bool existed = ::access(name.c_str(), F_OK) == 0;
  ::close(impl_->out.open());
  const Library library;
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose), creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  H5Pset_file_locking(access, true, true);
  H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED);
  H5Pset_obj_track_times(creation, false);
  impl_->file = H5Fcreate(name.c_str(), H5F_ACC_TRUNC, creation, access);
  if (impl_->file < 0) {
    const std::string reason = library_reason();
    if (!existed) ::unlink(name.c_str());
    impl_->out.fail("temporary file " + name, reason);
  }
}

H5Writer::~H5Writer() {
  if (impl_->file < 0) return;
  const Library library;
  impl_->discard();
}

namespace {
/// Runs a write under the lock. A writer whose write failed is finished: its temporary file goes at once.
template <class Impl, class Write>
void guarded(Impl& impl, Write&& write) {
  const Library library;
  try {
    write();
  } catch (...) {
    impl.discard();
    throw;
  }
}
}  // namespace

void H5Writer::dataset(const std::string& name, const std::vector<std::size_t>& shape, const double* values,
                       const std::string& description, const std::vector<std::string>& dimensions) {
  guarded(*impl_,
          [&] { impl_->write(name, shape, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, values, description, dimensions); });
}

void H5Writer::dataset(const std::string& name, const std::vector<std::size_t>& shape, const float* values,
                       const std::string& description, const std::vector<std::string>& dimensions) {
  guarded(*impl_,
          [&] { impl_->write(name, shape, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, values, description, dimensions); });
}

void H5Writer::dataset(const std::string& name, const std::vector<std::size_t>& shape, const std::int64_t* values,
                       const std::string& description, const std::vector<std::string>& dimensions) {
  guarded(*impl_, [&] { impl_->write(name, shape, H5T_STD_I64LE, H5T_NATIVE_INT64, values, description, dimensions); });
}

void H5Writer::attribute(const std::string& object, const std::string& name, const std::string& value) {
  guarded(*impl_,
          [&] { impl_->with_object(object, name, [&](hid_t id) { impl_->write_text(id, object, name, value); }); });
}

void H5Writer::attribute(const std::string& object, const std::string& name, double value) {
  guarded(*impl_, [&] {
    impl_->with_object(object, name, [&](hid_t id) {
      impl_->write_attribute(id, object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
    });
  });
}

void H5Writer::attribute(const std::string& object, const std::string& name, std::int64_t value) {
  guarded(*impl_, [&] {
    impl_->with_object(object, name, [&](hid_t id) {
      impl_->write_attribute(id, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
    });
  });
}

void H5Writer::copy(const std::string& other_file, const std::string& group) {
  guarded(*impl_, [&] {
    const std::string what = fmt::format("copy of {} from {}", group, other_file);
    impl_->must_be_open(what);
    impl_->make_groups(group, what);
    const Id other(H5Fopen(other_file.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    if (!other.valid() || H5Ocopy(other, group.c_str(), impl_->file, group.c_str(), H5P_DEFAULT, H5P_DEFAULT) < 0)
      impl_->out.fail(what, library_reason());
  });
}

void H5Writer::commit() {
  guarded(*impl_, [&] {
    impl_->must_be_open("commit");
    if (H5Fflush(impl_->file, H5F_SCOPE_GLOBAL) < 0) impl_->out.fail("flush", library_reason());
    impl_->unlock();
    if (H5Fclose(impl_->file) < 0) impl_->out.fail("close", library_reason());
    impl_->file = -1;
    if (const int e = h5::append_checksum(impl_->out.temporary())) impl_->out.fail("checksum", std::strerror(e));
    impl_->out.put_in_place();
  });
}

}  // namespace moe
