/// The limit's result file (README.md, "Result files").
#pragma once

#include <string>

#include "data/dataset.hpp"
#include "dmft/solve.hpp"
#include "support/hdf5.hpp"

namespace moe {

/// Writes /limit: curves, outputs, observables, kernels, diagnostics.
void write_limit_group(H5Writer& file, const RunSpec& spec, const LimitResult& result);

/// Writes a file of kind "limit": curves, outputs, observables, kernels, diagnostics. Throws IoError.
void write_limit_file(const std::string& path, const std::string& program, const RunSpec& spec, const Dataset& data,
                      const LimitResult& result);

}  // namespace moe
