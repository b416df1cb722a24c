/// What a comparison is made of: curves of networks, seed by seed, and of their limit, computed here or read from files.
#pragma once

#include <Eigen/Core>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dmft/solve.hpp"
#include "validation/network.hpp"

namespace moe {

/// Curves of all seeds of one width: (seeds, steps) by name - "loss", "batch_loss", "test_loss", "accuracy", "test_accuracy" and the
/// observables. Seeds that diverged are left out and counted.
struct NetworkSamples {
  NetworkShape shape;
  std::map<std::string, Eigen::MatrixXd> curves;
  int diverged = 0;
  Eigen::Index seeds() const { return curves.empty() ? 0 : curves.begin()->second.rows(); }
};

/// Means over replicas by the same names.
struct LimitSamples {
  std::map<std::string, Curve> curves;
  int replicas = 0, neurons = 0;
  bool matching = true, lists_hold = true, random_limit = false;  ///< as in LimitResult
  std::string status = "complete";
};

/// Everything a comparison is made of. `second` is a solve with fewer samples, which measures the limit's bias.
struct Evidence {
  RunSpec spec;
  std::map<std::string, std::vector<int>> steps;  ///< of every curve, by name
  std::vector<NetworkSamples> networks;           ///< at least two widths, ascending
  LimitSamples limit;
  std::optional<LimitSamples> second;
  std::vector<std::string> notes;  ///< what the reader of the report has to know, one sentence each
  /// Entrywise rules: the largest gradient at t = 0 in units of its eps, of the tensors where that quotient falls with size, measured
  /// at the smallest width and taken to the largest by its power of N (docs/validation.md). 0: there is none.
  double over_eps_at_smallest = 0, over_eps_at_largest = 0;
};

/// Sets Evidence::over_eps_*, with a note that says what it means. Without data they are not known, and an eps below 0.02 counts as
/// infinitely small.
void note_small_eps(Evidence& evidence, const Dataset* data);

/// Evidence out of what was computed in this process.
NetworkSamples network_samples(const std::vector<NetworkRun>& runs);
LimitSamples limit_samples(const LimitResult& result);
Evidence evidence_of(const RunSpec& spec, const Dataset& data, const std::vector<std::vector<NetworkRun>>& runs,
                     const LimitResult& limit, const LimitResult* second);

}  // namespace moe
