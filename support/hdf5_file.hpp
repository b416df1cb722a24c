/// Reads HDF5 files in this process, every claim of the file checked. The C library itself can still crash on hostile
/// files, which is why H5Reader runs this class in a process of its own. Private to support/; callers hold h5::Library.
#pragma once

#include <string>
#include <vector>

#include "support/hdf5.hpp"
#include "support/hdf5_detail.hpp"

namespace moe::h5 {

/// Members of H5Reader, which documents them.
class File {
 public:
  File(std::string path, std::size_t file_bytes);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  bool has(const std::string& name) const;
  std::vector<std::string> members(const std::string& group) const;
  H5Array read(const std::string& name) const;
  std::string attribute_text(const std::string& object, const std::string& name) const;
  double attribute_number(const std::string& object, const std::string& name) const;

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& problem, const std::string& remedy) const;
  [[noreturn]] void fail_damaged(const std::string& what, const std::string& problem) const;
  std::size_t checked_count(const std::string& what, const std::vector<std::size_t>& shape) const;
  void check_storage(const std::string& what, hid_t dataset, hid_t creation, std::size_t bytes) const;
  template <class Use>
  auto with_attribute(const std::string& object, const std::string& name, Use&& use) const;

  std::string path_;
  std::size_t file_bytes_;
  hid_t file_ = -1;
};

}  // namespace moe::h5
