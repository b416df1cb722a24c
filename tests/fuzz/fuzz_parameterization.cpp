/// Parameterization files, and the constants of the limit and of a network that follow from a file that is accepted. The
/// first byte chooses regime and optimizer.
#include "parameterizations/parameterization.hpp"
#include "regimes/regime.hpp"
#include "tests/fuzz/fuzz_input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace moe;
  static const fuzz::Folder folder;
  static const std::string path = folder / "table.toml";
  static constexpr const char* regimes[] = {"I", "II", "III"};
  static constexpr OptimizerKind optimizers[] = {OptimizerKind::sgd, OptimizerKind::adam, OptimizerKind::signsgd};
  if (size == 0) return 0;
  RunSpec spec;
  spec.model.regime = regimes[data[0] % 3];
  spec.optimizer.name = optimizers[data[0] / 3 % 3];
  spec.model.param = path;
  fuzz::write(path, data + 1, size - 1);
  fuzz::read_or_refuse([&] {
    Faults faults;
    const Parameterization param = load_parameterization(spec, faults);
    if (faults.empty()) limit_constants(spec, param, regime_named(spec.model.regime), 64, faults);
    faults.throw_if_any();
  });
  return 0;
}
