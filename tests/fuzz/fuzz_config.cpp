/// Configuration text: read, checked, and what was accepted survives printing and reading again.
#include "support/config.hpp"
#include "tests/fuzz/fuzz_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moe;
  const std::string text(reinterpret_cast<const char*>(data), size);
  fuzz::read_or_refuse([&] {
    const RunSpec spec = read_config_text(text, "fuzz.toml");
    const std::string printed = print_config(spec);
    RunSpec again;
    try {
      again = read_config_text(printed, "printed.toml");
    } catch (const ConfigError& error) {
      fuzz::fail("a printed configuration is refused", error.what());
    }
    // output.observe_every is left out while it has its default and nobody set it; reading marks every printed key as set.
    if (const std::string twice = print_config(again); twice != printed) fuzz::fail("printing is not stable", twice);
  });
  return 0;
}
