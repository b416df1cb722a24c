/// What is measured on a finite network (theory section 7), by the names of support/observable.hpp and in the units of
/// the normalised fields of theory section 3.
#pragma once

#include <string>
#include <vector>

#include "support/observable.hpp"
#include "validation/network_statistics.hpp"
#include "validation/reference_model.hpp"

namespace moe::reference {

/// Normalised backward fields: D = -N dL/dy (T6), zeta = -K N_e dL/d(G v) (T7), ghat = -K N_e dL/du (T8), rho = -K
/// dL/dr (T9), xi = -N dL/dphi with the residual part (T10). With another aggregation prefactor c than 1/K they are
/// those of the network that has K c B in the place of B (theory section 1), so that ghat = G phi'(u) zeta always.
struct BlockFields {
  MatrixXd D;           ///< (N, P)
  MatrixXd zeta, ghat;  ///< (M N_e, P)
  MatrixXd rho;         ///< (M, P)
};
struct NormalisedFields {
  std::vector<BlockFields> blocks;
  MatrixXd xi;  ///< (N, P)
};
NormalisedFields normalised(const NetworkShape& shape, const Backward& g);

/// View of one state of a network on a fixed set of samples.
struct Snapshot {
  const NetworkWeights& weights;
  const Forward& forward;
  const NormalisedFields& fields;
};

/// Parts of y, r, u, zeta, xi of one block that stem from the initial weights and from what was learned, all acting on the queries
/// and gates of the present (T26).
struct Decomposition {
  MatrixXd y_init, y_propagating, y_effective;                    ///< (N, P)
  MatrixXd r_init, r_effective;                                   ///< (M, P)
  MatrixXd u_init, u_effective;                                   ///< (M N_e, P)
  MatrixXd zeta_init, zeta_effective;                             ///< (M N_e, P)
  MatrixXd xi_A_init, xi_A_effective, xi_Q_init, xi_Q_effective;  ///< (N, P)
};
Decomposition decompose(const Model& model, const Snapshot& initial, const Snapshot& now, std::size_t block = 0);

/// Values of the quantities asked for, in their order. `initial` is the snapshot at t = 0 on the same samples.
std::vector<double> observe(const std::vector<Recorded>& wanted, const Model& model, const Snapshot& initial,
                            const Snapshot& now);

/// One of kernel_table: (P, P), the average over all units (inactive experts count as zero).
MatrixXd kernel(const Recorded& wanted, const Snapshot& now);

/// Root of the mean square over all entries.
double rms(const MatrixXd& x);
/// Root of the mean over active (expert, token) pairs of the mean square over the expert's units. x (M N_e, P), active
/// (M, P).
double rms_active(const MatrixXd& x, const MatrixXd& active);
/// network::effective_experts of c_i = sum_a x_ia^2. x (M N_e, P).
double effective_experts(const MatrixXd& x, Eigen::Index M);

}  // namespace moe::reference
