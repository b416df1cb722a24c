/// Comparisons in HDF5 (README.md, "Result files"), and evidence out of result files that exist already.
#pragma once

#include <string>
#include <vector>

#include "support/hdf5.hpp"
#include "validation/comparison.hpp"

namespace moe {

/// Writes a comparison below `group`, "/comparison" or "/coordinate_check/PARAM".
void write_comparison(H5Writer& file, const std::string& group, const Comparison& comparison);

/// Keys in which two runs differ that a comparison of limit and networks rests on: "optimizer.lr = 0.5 and 0.55". What only says how a
/// thing is computed or recorded (sampling, widths, output) does not count.
std::vector<std::string> differing_keys(const RunSpec& limit, const RunSpec& networks);

/// Evidence out of a file with /limit and one with /network (they may be the same file). Throws IoError; ConfigError when the
/// configurations differ, naming the keys, unless `force`: then the report names them.
Evidence read_evidence(const std::string& limit_path, const std::string& networks_path, bool force);

}  // namespace moe
