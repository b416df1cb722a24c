/// Forward pass and backpropagation of one finite network, (T1)-(T5) and stacks of blocks (T28), with explicit matrices. All arrays
/// are (units, P).
#pragma once

#include <Eigen/Core>
#include <vector>

#include "support/run_spec.hpp"
#include "validation/network.hpp"
#include "validation/network_loss.hpp"
#include "validation/reference_points.hpp"

namespace moe::reference {

/// The function that weights are inserted into: everything but the weights.
struct Model {
  ModelSpec spec;
  Loss loss = Loss::mse;
  NetworkShape shape;
  double aggregation = 1;  ///< prefactor c of sum_i G_i B_i v_i, normally 1/K
};

/// z_mu = x_mu / q_mu, q_mu the root mean square over units; without norm z = x.
struct Normed {
  MatrixXd z;
  Eigen::RowVectorXd q;
};
Normed normalise(Norm kind, const MatrixXd& x);
/// dL/dx from dL/dz.
MatrixXd normalise_backward(Norm kind, const Normed& a, const MatrixXd& dL_dz);

/// Fields of one block. u, v, Gv have the rows (i, a) expert-major.
struct BlockForward {
  Normed in;          ///< (N, P) what it reads; phi in the first block without norm
  MatrixXd r;         ///< (M, P) (T2)
  Gates gates;        ///< (M, P) (T2)
  MatrixXd u, v, Gv;  ///< (M N_e, P) (T3)
  MatrixXd y;         ///< (N, P) (T4), before psi
};

/// Fields of one forward pass.
struct Forward {
  MatrixXd x;                        ///< (D, P) inputs
  MatrixXd h, phi;                   ///< (N, P) (T1)
  std::vector<BlockForward> blocks;  ///< L of them (T28)
  Normed s;                          ///< (N, P) what the readout reads (T5)
  MatrixXd f;                        ///< (C, P) (T5)
};

/// Derivatives of the loss with respect to fields (dL/dy and so on) and weights: plain ones, no normalisation.
struct BlockBackward {
  MatrixXd out, y;  ///< dL/dx^l, dL/dy
  MatrixXd Gv, u;   ///< dL/d(G v), dL/du (M N_e, P)
  MatrixXd r;       ///< dL/dr (M, P)
};
struct Backward {
  MatrixXd f;                         ///< dL/df
  std::vector<BlockBackward> blocks;  ///< as in Forward
  MatrixXd phi, h;                    ///< dL/dphi, residual part included, and dL/dh
  NetworkWeights weights;             ///< gradient of the loss
};

/// Throws NumericsError naming `step` and the first field that is not finite. bias (M, L): of the selection, or empty.
Forward forward(const Model& model, const NetworkWeights& w, const MatrixXd& x, int step, const MatrixXd& bias = {});

/// Backpropagation of model.loss with targets y (C, P), and of every block's balancing loss with its load held. With `with_weights` false, Backward::weights stays empty.
Backward backward(const Model& model, const NetworkWeights& w, const Forward& a, const MatrixXd& y, int step,
                  bool with_weights = true);

/// Rows (i, a) times the gate of expert i: (G v)_ia from v (M N_e, P) and G (M, P).
MatrixXd times_gate(const MatrixXd& G, const MatrixXd& v);
/// sum_a of a product of fields over (i, a): (M, P).
MatrixXd sum_over_units(const MatrixXd& product, Eigen::Index M);

/// Throws NumericsError when an entry is NaN or infinite.
void require_finite(const MatrixXd& values, int step, const char* field);

}  // namespace moe::reference
