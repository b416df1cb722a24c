/// What the HDF5 writer and reader share: one lock, owned identifiers, the library's own reason. Private to support/.
#pragma once

#include <fmt/format.h>
#include <hdf5.h>

#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

namespace moe::h5 {

/// Takes the one lock around the C library, which Debian builds without thread safety, and silences the library's own
/// printing of its error stack. The library's cleanup at exit is switched off: after a full disk it crashes there, and
/// there is nothing for it to do, since identifiers have owners.
struct Library {
  Library() : guard(mutex()) {
    static const herr_t no_cleanup_at_exit = H5dont_atexit();
    (void)no_cleanup_at_exit;
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  static std::mutex& mutex() {
    static std::mutex lock;
    return lock;
  }
  std::lock_guard<std::mutex> guard;
};

/// Owns one identifier. `close` is the matching H5?close.
class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// The innermost sentence of the library's error stack, which names the cause; of a failed system call only the
/// system's message. Clears the stack.
inline std::string library_reason() {
  std::string reason;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* e, void* out) -> herr_t {
        if (n == 0 && e->desc) *static_cast<std::string*>(out) = e->desc;
        return 0;
      },
      &reason);
  H5Eclear2(H5E_DEFAULT);
  const std::string mark = "error message = '";
  if (const std::size_t at = reason.find(mark); at != std::string::npos) {
    const std::size_t from = at + mark.size();
    return reason.substr(from, reason.find('\'', from) - from);
  }
  return reason.empty() ? "no reason given by the HDF5 library" : reason;
}

/// Appends to a closed file the line "moe-dmft crc32 XXXXXXXX", the CRC-32 of all bytes before it: HDF5 does not look beyond the end
/// that it has noted itself. Returns 0 or errno.
int append_checksum(const std::string& path);
/// "" where the file ends with the checksum of all that comes before, else what is wrong.
std::string checksum_problem(const std::string& path);

inline std::string shape_text(const std::vector<std::size_t>& shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

}  // namespace moe::h5
