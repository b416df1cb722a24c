#include "validation/reference_model.hpp"

#include <fmt/format.h>

#include <cmath>

namespace moe::reference {

void require_finite(const MatrixXd& values, int step, const char* field) {
  if (values.allFinite()) return;
  throw NumericsError(step, field,
                      fmt::format("{} of {} entries are NaN or infinite; a smaller optimizer.lr usually helps",
                                  values.size() - (values.array() - values.array() == 0.0).count(), values.size()));
}

MatrixXd times_gate(const MatrixXd& G, const MatrixXd& v) {
  const Eigen::Index M = G.rows(), Ne = v.rows() / M;
  MatrixXd Gv(v.rows(), v.cols());
  for (Eigen::Index i = 0; i < M; ++i)
    Gv.middleRows(i * Ne, Ne) = v.middleRows(i * Ne, Ne).array().rowwise() * G.row(i).array();
  return Gv;
}

MatrixXd sum_over_units(const MatrixXd& product, Eigen::Index M) {
  const Eigen::Index Ne = product.rows() / M;
  MatrixXd sum(M, product.cols());
  for (Eigen::Index i = 0; i < M; ++i) sum.row(i) = product.middleRows(i * Ne, Ne).colwise().sum();
  return sum;
}

Normed normalise(Norm kind, const MatrixXd& x) {
  Normed a{x, {}};
  if (kind == Norm::none) return a;
  a.q = (x.colwise().squaredNorm() / static_cast<double>(x.rows())).cwiseSqrt();
  a.z = x.array().rowwise() / a.q.array();
  return a;
}

MatrixXd normalise_backward(Norm kind, const Normed& a, const MatrixXd& dL_dz) {
  if (kind == Norm::none) return dL_dz;
  const Eigen::RowVectorXd overlap = a.z.cwiseProduct(dL_dz).colwise().sum() / static_cast<double>(a.z.rows());
  const MatrixXd along = a.z.array().rowwise() * overlap.array();
  return (dL_dz - along).array().rowwise() / a.q.array();
}

namespace {

/// Rows or columns of block l in the tensors that hold all blocks.
struct Place {
  Eigen::Index expert, experts, unit, units;
};
Place place(const NetworkShape& s, std::size_t l) {
  const auto at = static_cast<Eigen::Index>(l);
  return {at * s.M, s.M, at * s.M * s.Ne, Eigen::Index{s.M} * s.Ne};
}
double branch(const Model& model) { return std::pow(model.shape.L, -model.spec.branch_exponent); }

}  // namespace

Forward forward(const Model& model, const NetworkWeights& w, const MatrixXd& x, int step, const MatrixXd& bias) {
  const ModelSpec& spec = model.spec;
  Forward a;
  a.x = x;
  a.h = w.w_in * x;
  require_finite(a.h, step, "h");
  a.phi = activate(spec.activation, spec.activation_scale, a.h);
  MatrixXd stream = a.phi;
  for (std::size_t l = 0; l < static_cast<std::size_t>(model.shape.L); ++l) {
    const Place at = place(model.shape, l);
    BlockForward b;
    b.in = normalise(spec.norm, stream);
    b.r = w.router.middleRows(at.expert, at.experts) * b.in.z;
    require_finite(b.r, step, "r");
    b.gates = gates(spec, model.shape.K, b.r,
                    bias.size() == 0 ? Eigen::VectorXd() : Eigen::VectorXd(bias.col(static_cast<Eigen::Index>(l))));
    b.u = w.expert_in.middleRows(at.unit, at.units) * b.in.z;
    require_finite(b.u, step, "u");
    b.v = activate(spec.activation, spec.activation_scale, b.u);
    b.Gv = times_gate(b.gates.G, b.v);
    b.y = model.aggregation * (w.expert_out.middleCols(at.unit, at.units) * b.Gv);
    require_finite(b.y, step, "y");
    const MatrixXd added = branch(model) * activate(spec.post_activation, spec.activation_scale, b.y);
    stream = spec.residual ? MatrixXd(stream + added) : added;
    a.blocks.push_back(std::move(b));
  }
  a.s = normalise(spec.norm, stream);
  a.f = spec.output_scale * (w.readout * a.s.z);
  require_finite(a.f, step, "f");
  return a;
}

namespace {
/// dL/df (C, P), with its 1/P. Targets that do not sum to one are weighted as they stand.
MatrixXd loss_gradient(Loss kind, const MatrixXd& f, const MatrixXd& y) {
  const auto P = static_cast<double>(f.cols());
  if (kind == Loss::mse) return (f - y) / P;
  const MatrixXd e = (f.rowwise() - f.colwise().maxCoeff()).array().exp();
  const Eigen::RowVectorXd weights = y.colwise().sum().cwiseQuotient(e.colwise().sum());
  return (e * weights.asDiagonal() - y) / P;
}
}  // namespace

Backward backward(const Model& model, const NetworkWeights& w, const Forward& a, const MatrixXd& y, int step,
                  bool with_weights) {
  const ModelSpec& spec = model.spec;
  const double scale = spec.activation_scale;
  Backward g;
  g.f = loss_gradient(model.loss, a.f, y);
  if (with_weights)
    for (auto tensor : {&NetworkWeights::w_in, &NetworkWeights::router, &NetworkWeights::expert_in,
                        &NetworkWeights::expert_out, &NetworkWeights::readout})
      g.weights.*tensor = MatrixXd::Zero((w.*tensor).rows(), (w.*tensor).cols());
  MatrixXd stream = normalise_backward(spec.norm, a.s, spec.output_scale * (w.readout.transpose() * g.f));
  g.blocks.resize(a.blocks.size());
  for (std::size_t l = a.blocks.size(); l-- > 0;) {
    const Place at = place(model.shape, l);
    const auto Q = w.router.middleRows(at.expert, at.experts), A = w.expert_in.middleRows(at.unit, at.units);
    const auto B = w.expert_out.middleCols(at.unit, at.units);
    const BlockForward& b = a.blocks[l];
    BlockBackward& d = g.blocks[l];
    d.out = stream;
    d.y = branch(model) * stream.cwiseProduct(activate_derivative(spec.post_activation, scale, b.y));
    require_finite(d.y, step, "dL/dy");
    d.Gv = model.aggregation * (B.transpose() * d.y);
    const MatrixXd dL_dG = sum_over_units(d.Gv.cwiseProduct(b.v), model.shape.M);
    d.r = gate_backward(spec, model.shape.K, b.gates, dL_dG);
    if (spec.balance_loss != 0 && spec.routing == Routing::topk)
      d.r += balance_backward(spec.balance_loss, loads(model.shape.K, b.gates.active), b.r);
    require_finite(d.r, step, "dL/dr");
    d.u = times_gate(b.gates.G, d.Gv).cwiseProduct(activate_derivative(spec.activation, scale, b.u));
    const MatrixXd below = normalise_backward(spec.norm, b.in, A.transpose() * d.u + Q.transpose() * d.r);
    stream = spec.residual ? MatrixXd(below + stream) : below;
    if (!with_weights) continue;
    g.weights.router.middleRows(at.expert, at.experts) = d.r * b.in.z.transpose();
    g.weights.expert_in.middleRows(at.unit, at.units) = d.u * b.in.z.transpose();
    g.weights.expert_out.middleCols(at.unit, at.units) = model.aggregation * (d.y * b.Gv.transpose());
  }
  g.phi = stream;
  g.h = g.phi.cwiseProduct(activate_derivative(spec.activation, scale, a.h));
  require_finite(g.h, step, "dL/dh");
  if (!with_weights) return g;
  g.weights.w_in = g.h * a.x.transpose();
  g.weights.readout = spec.output_scale * (g.f * a.s.z.transpose());
  return g;
}

}  // namespace moe::reference
