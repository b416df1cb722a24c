/// The one main of all tests. Cases of the suite "long" run only when MOE_LONG_TESTS=1; the last line printed is the count,
/// "N passed, N failed", which `./run test` adds up over its processes (docs/testing.md).
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/folders.hpp"

namespace {

/// Counts of the finished run; doctest's context keeps them to itself.
struct Totals {
  unsigned run = 0, failed = 0;
};
Totals totals;

struct TotalsListener final : doctest::IReporter {
  explicit TotalsListener(const doctest::ContextOptions& /*options*/) {}
  void report_query(const doctest::QueryData& /*query*/) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& stats) override {
    totals = {stats.numTestCasesPassingFilters, stats.numTestCasesFailed};
  }
  void test_case_start(const doctest::TestCaseData& /*data*/) override {}
  void test_case_reenter(const doctest::TestCaseData& /*data*/) override {}
  void test_case_end(const doctest::CurrentTestCaseStats& /*stats*/) override {}
  void test_case_exception(const doctest::TestCaseException& /*exception*/) override {}
  void subcase_start(const doctest::SubcaseSignature& /*signature*/) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData& /*data*/) override {}
  void log_message(const doctest::MessageData& /*data*/) override {}
  void test_case_skipped(const doctest::TestCaseData& /*data*/) override {}
};
REGISTER_LISTENER("totals", 1, TotalsListener);

bool long_tests_wanted() {
  const char* value = std::getenv("MOE_LONG_TESTS");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace

std::string source_folder() {
  const char* const elsewhere = std::getenv("MOE_SOURCE_DIR");
  return elsewhere != nullptr ? elsewhere : MOE_SOURCE_DIR;
}
std::string program_folder() { return MOE_BINARY_DIR; }

int main(int argc, char** argv) {
  doctest::Context context;
  if (!long_tests_wanted()) context.addFilter("test-suite-exclude", "long");
  context.applyCommandLine(argc, argv);
  const int status = context.run();
  if (context.shouldExit()) return status;
  std::printf("%u passed, %u failed\n", totals.run - totals.failed, totals.failed);
  if (totals.run == 0) std::fprintf(stderr, "no test case passes the filters\n");
  return status != 0 || totals.run == 0 ? 1 : 0;
}
