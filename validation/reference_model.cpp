#include "validation/reference_model.hpp"

#include <fmt/format.h>

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

Forward forward(const Model& model, const NetworkWeights& w, const MatrixXd& x, int step) {
  const ModelSpec& spec = model.spec;
  Forward a;
  a.x = x;
  a.h = w.w_in * x;
  require_finite(a.h, step, "h");
  a.phi = activate(spec.activation, spec.activation_scale, a.h);
  a.r = w.router * a.phi;
  require_finite(a.r, step, "r");
  a.gates = gates(spec, model.shape.K, a.r);
  a.u = w.expert_in * a.phi;
  require_finite(a.u, step, "u");
  a.v = activate(spec.activation, spec.activation_scale, a.u);
  a.Gv = times_gate(a.gates.G, a.v);
  a.y = model.aggregation * (w.expert_out * a.Gv);
  require_finite(a.y, step, "y");
  a.s = activate(spec.post_activation, spec.activation_scale, a.y);
  if (spec.residual) a.s += a.phi;
  a.f = spec.output_scale * (w.readout * a.s);
  require_finite(a.f, step, "f");
  return a;
}

Backward backward(const Model& model, const NetworkWeights& w, const Forward& a, const MatrixXd& y, int step,
                  bool with_weights) {
  const ModelSpec& spec = model.spec;
  const double b = spec.activation_scale;
  Backward g;
  g.f = network::loss_gradient(model.loss, a.f, y);
  g.s = spec.output_scale * (w.readout.transpose() * g.f);
  g.y = g.s.cwiseProduct(activate_derivative(spec.post_activation, b, a.y));
  require_finite(g.y, step, "dL/dy");
  g.Gv = model.aggregation * (w.expert_out.transpose() * g.y);
  const MatrixXd dL_dG = sum_over_units(g.Gv.cwiseProduct(a.v), model.shape.M);
  g.r = gate_backward(spec, model.shape.K, a.gates, dL_dG);
  require_finite(g.r, step, "dL/dr");
  g.u = times_gate(a.gates.G, g.Gv).cwiseProduct(activate_derivative(spec.activation, b, a.u));
  g.phi = w.expert_in.transpose() * g.u + w.router.transpose() * g.r;
  if (spec.residual) g.phi += g.s;
  g.h = g.phi.cwiseProduct(activate_derivative(spec.activation, b, a.h));
  require_finite(g.h, step, "dL/dh");
  if (!with_weights) return g;

  g.weights.w_in = g.h * a.x.transpose();
  g.weights.router = g.r * a.phi.transpose();
  g.weights.expert_in = g.u * a.phi.transpose();
  g.weights.expert_out = model.aggregation * (g.y * a.Gv.transpose());
  g.weights.readout = spec.output_scale * (g.f * a.s.transpose());
  return g;
}

}  // namespace moe::reference
