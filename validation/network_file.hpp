/// Result file of finite networks: kind = "network", one group /network/N{width} per width, one row per seed.
#pragma once

#include <string>
#include <vector>

#include "support/hdf5.hpp"
#include "validation/network.hpp"

namespace moe {

/// True when the outputs of all seeds and evaluations of one width stay within the size that files keep.
bool outputs_fit(const RunSpec& spec, const Dataset& data);

/// Bytes of the result file of all networks, about; counted in double arithmetic: no configuration overflows it.
double network_file_bytes(const RunSpec& spec, const Dataset& data);

/// Writes the runs of one width below /network/N{width}: loss, accuracy, test_loss, test_accuracy, batch_loss (seeds,
/// steps), f (seeds, steps, P, C) if kept, observables/NAME, kernels/NAME (seeds, n, P, P), final/NAME with
/// output.weights, seed, failed_step (-1: none); attributes N, M, N_e, K. Rows of runs that failed end in NaN.
void write_network_group(H5Writer& file, const RunSpec& spec, const Dataset& data, const std::vector<NetworkRun>& runs);

/// The whole file of `moe_train`, written atomically. runs[width][seed].
void write_network_file(const std::string& path, const std::string& program, const RunSpec& spec, const Dataset& data,
                        const std::vector<std::vector<NetworkRun>>& runs);

}  // namespace moe
