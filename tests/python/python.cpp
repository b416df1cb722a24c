/// The Python tests of tests/python, a case for each file, so that they count and are selected like all others.
#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "tests/folders.hpp"
#include "tests/temporary_folder.hpp"

namespace {

void run_python_tests(const std::string& file) {
  const TemporaryFolder folder;
  const std::string log = folder / "log", source = source_folder();
  const std::string command = "MOE_DMFT_BIN='" + program_folder() + "' MOE_SOURCE='" + source + "' '" + source +
                              "/validation/python/python' '" + source + "/tests/python/" + file + "' >'" + log +
                              "' 2>&1";
  const int status = std::system(command.c_str());
  CAPTURE(command);
  INFO(read_bytes(log));
  CHECK(status == 0);
}

}  // namespace

TEST_CASE(
    "moe_dmft reads result files with named dimensions and refuses others by name [tests/python/test_results.py]") {
  run_python_tests("test_results.py");
}

TEST_CASE("moe_dmft draws what is in the files, and writes the same numbers as CSV [tests/python/test_figures.py]") {
  run_python_tests("test_figures.py");
}

TEST_CASE("dmft_plot and the programs from Python: what they write, how they fail [tests/python/test_programs.py]") {
  run_python_tests("test_programs.py");
}
