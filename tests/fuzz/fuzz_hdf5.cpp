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

/// The reading process's coverage counters as it leaves, in pages of their own that it shares with the fuzzer.
constexpr std::size_t page = 4096, most_counters = 4 * page;
__attribute__((section("__libfuzzer_extra_counters"), aligned(page))) std::uint8_t child_counters[most_counters];

void* share(void* at, std::size_t bytes, int flags) {
  void* shared = ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);
  if (shared == MAP_FAILED) fuzz::fail("cannot share memory", std::strerror(errno));
  return shared;
}

}  // namespace

void __ubsan_on_report() { keep("undefined behaviour in our code; run the input with the child's stderr kept"); }

/// The linker sends our calls of _exit here (--wrap): the reading process ends with one.
extern "C" {
[[noreturn]] void __real__exit(int status);
[[noreturn]] void __wrap__exit(int status);
}
void __wrap__exit(int status) {
  const auto count = static_cast<std::size_t>(&__stop___sancov_cntrs - &__start___sancov_cntrs);
  std::memcpy(child_counters, &__start___sancov_cntrs, std::min(count, most_counters));
  __real__exit(status);
}

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  shared_report = static_cast<char*>(share(nullptr, report_bytes, 0));
  share(child_counters, most_counters, MAP_FIXED);
  __asan_set_error_report_callback(on_report);
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
