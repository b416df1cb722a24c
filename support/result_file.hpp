/// What every result file has in common: root attributes and the data that was trained on.
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <string>
#include <vector>

#include "support/hdf5.hpp"
#include "support/run_spec.hpp"

namespace moe {

inline constexpr int result_format_version = 1;

/// Above this size outputs and data are left out of result files.
inline constexpr std::size_t optional_dataset_bytes = std::size_t{64} << 20;

/// Root attributes format, format_version, kind ("limit", "network", "validation"), config (TOML text), program,
/// version, created (UTC, ISO 8601).
void write_root_attributes(H5Writer& file, const std::string& kind, const std::string& program, const RunSpec& spec);

/// /data/x (P, D) and /data/y (P, C) from x (D, P) and y (C, P); nothing above optional_dataset_bytes.
void write_data(H5Writer& file, const Eigen::MatrixXd& x, const Eigen::MatrixXd& y);

/// 1-D dataset of step numbers, e.g. eval_steps.
void write_steps(H5Writer& file, const std::string& name, const std::vector<int>& steps,
                 const std::string& description);

/// What all distributions in a group share: `edges` of the bins of support/distribution.hpp, and `steps`.
void write_distribution_axes(H5Writer& file, const std::string& group, const std::vector<int>& steps);

/// Times (T+1) of the recorded states of a gradient flow, in steps of gradient descent with the same lr.
void write_flow_times(H5Writer& file, const std::string& name, const RunSpec& spec);

/// A file that cannot be written is a fault before the run, not after it. Of several ranks the first looks.
void check_writable(const std::string& path, Faults& faults, const std::string& flag = "--out FILE");

/// "0.1.0": what stands in the attribute `version`.
std::string program_version();

}  // namespace moe
