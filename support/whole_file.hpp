/// A file that is whole or not there.
#pragma once

#include <string>

namespace moe {

/// Is written under PATH.tmp-PID and renamed: a killed run leaves the old file or a complete new one. What killed runs have left under such
/// names is removed. Throws IoError with the path and the reason.
class WholeFile {
 public:
  /// `flag`: with which a user chooses another name, for messages.
  WholeFile(std::string path, std::string flag);

  const std::string& temporary() const { return temporary_; }
  /// The temporary file, there and open for writing: its descriptor.
  int open() const;
  /// Makes what was written durable, and renames.
  void put_in_place() const;
  [[noreturn]] void fail(const std::string& what, const std::string& reason) const;

 private:
  /// The file that is really meant: a symbolic link is followed, so that the rename does not replace the link.
  std::string resolve_target() const;

  std::string path_, flag_;  ///< as the user gave it
  std::string target_, temporary_;
};

void write_whole_file(const std::string& path, const std::string& flag, const std::string& text);

}  // namespace moe
