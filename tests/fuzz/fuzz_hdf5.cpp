/// HDF5 data files, read as the programs read them: by a process of its own, because the C library crashes on mutated
/// files. That process shares the coverage counters with the fuzzer, so that its path through our reader guides the
/// search. A crash inside the library is an expected answer; one in our code, or one that the parent does not survive, is
/// a finding.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "data/dataset.hpp"
#include "data/source.hpp"
#include "support/hdf5.hpp"
#include "tests/fuzz/fuzz_input.hpp"

extern "C" {
extern std::uint8_t __start___sancov_cntrs, __stop___sancov_cntrs;
void __ubsan_on_report();
}

namespace {

using namespace moe;

constexpr std::size_t report_bytes = 1 << 14;
char* shared_report = nullptr;  ///< what a sanitizer said of our code in either process

void keep(const char* report) { std::strncpy(shared_report, report, report_bytes - 1); }

/// Of an address sanitizer's report: does the faulty access, or the array that it misses, belong to our code?
bool is_ours(const std::string& report) {
  const auto first_is_ours = [&](std::size_t from) {
    const std::size_t end = std::min(report.find("\n\n", from), report.size());
    const std::size_t library = report.find("libhdf5", from), our = report.find(" in moe::", from);
    return our < end && our < library;
  };
  if (first_is_ours(0)) return true;
  const std::size_t allocation = report.find("allocated by thread");
  return allocation != std::string::npos && first_is_ours(allocation);
}

void on_report(const char* report) {
  if (is_ours(report)) keep(report);
}

/// Whole pages of the counters become memory that children share. What lies in pages with other data stays private.
void share_counters() {
  constexpr std::uintptr_t page = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(&__start___sancov_cntrs) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(&__stop___sancov_cntrs) / page * page;
  if (begin >= end) fuzz::fail("no whole page of coverage counters", "");
  const std::string before(reinterpret_cast<const char*>(begin), end - begin);
  void* mapped = ::mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (mapped == MAP_FAILED) fuzz::fail("cannot share the coverage counters", std::strerror(errno));
  std::memcpy(mapped, before.data(), before.size());
}

}  // namespace

void __ubsan_on_report() { keep("undefined behaviour in our code; run the input with the child's stderr kept"); }

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  shared_report =
      static_cast<char*>(::mmap(nullptr, report_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  __asan_set_error_report_callback(on_report);
  share_counters();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Folder folder;
  static const std::string path = folder / "data.h5";
  fuzz::write(path, data, size);
  RunSpec spec;
  spec.data.source = path;
  spec.data.train = 2;
  fuzz::read_or_refuse([&] {
    Faults faults;
    hdf5_dataset(spec, faults);
    faults.throw_if_any();
  });
  fuzz::read_or_refuse([&] {
    const H5Reader file(path);
    fuzz::read_or_refuse([&] { file.members("/"); });
    fuzz::read_or_refuse([&] { file.attribute_text("/", "config"); });
    fuzz::read_or_refuse([&] { file.attribute_number("/", "format_version"); });
  });
  if (shared_report[0] != 0) fuzz::fail("a sanitizer's report from the reading process", shared_report);
  return 0;
}
