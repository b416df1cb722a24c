/// HDF5 files by RAII over the C library; hdf5.h stays out of headers. Row-major shapes as h5py shows them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "support/error.hpp"

namespace moe {

/// Writes to PATH.tmp-PID and renames on commit(): a killed run leaves the old file or a complete new one. What killed runs have
/// left under such names is removed. The last line of the file is a checksum over all bytes before (H5Reader::verify).
class H5Writer {
 public:
  /// `flag`: with which a user chooses another name, for messages.
  explicit H5Writer(std::string path, std::string flag = "--out FILE");
  ~H5Writer();
  H5Writer(const H5Writer&) = delete;
  H5Writer& operator=(const H5Writer&) = delete;

  /// Dataset at /a/b/c (groups are made), shape row-major, one dimension name per axis, a description attribute.
  void dataset(const std::string& name, const std::vector<std::size_t>& shape, const double* values,
               const std::string& description, const std::vector<std::string>& dimensions);
  void dataset(const std::string& name, const std::vector<std::size_t>& shape, const float* values,
               const std::string& description, const std::vector<std::string>& dimensions);
  void dataset(const std::string& name, const std::vector<std::size_t>& shape, const std::int64_t* values,
               const std::string& description, const std::vector<std::string>& dimensions);
  /// Attribute of an existing object ("/" for the root).
  void attribute(const std::string& object, const std::string& name, const std::string& value);
  void attribute(const std::string& object, const std::string& name, double value);
  void attribute(const std::string& object, const std::string& name, std::int64_t value);
  /// Copies a group of another file with all it holds, to the same name.
  void copy(const std::string& other_file, const std::string& group);
  /// Flushes, closes and renames. Throws IoError with the path and the reason.
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Row-major array of a file, converted to double.
struct H5Array {
  std::vector<std::size_t> shape;
  std::vector<double> values;
};

class H5Reader {
 public:
  /// Throws IoError when the file is missing, not HDF5, or cut short.
  explicit H5Reader(const std::string& path);
  ~H5Reader();
  H5Reader(const H5Reader&) = delete;
  H5Reader& operator=(const H5Reader&) = delete;

  /// Throws IoError unless every byte is as H5Writer wrote it: for files of our own, which a cut or an alteration by hand must not
  /// pass through. Reads the whole file.
  void verify() const;

  bool has(const std::string& name) const;
  /// Names of the members of a group, in file order.
  std::vector<std::string> members(const std::string& group) const;
  /// Throws IoError naming the dataset if it is missing, not numeric or unreasonably large.
  H5Array read(const std::string& name) const;
  std::string attribute_text(const std::string& object, const std::string& name) const;
  double attribute_number(const std::string& object, const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
