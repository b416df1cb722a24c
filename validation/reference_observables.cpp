#include "validation/reference_observables.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace moe::reference {

namespace {

struct Context {
  const Model& model;
  const Snapshot& initial;
  const Snapshot& now;
  const Decomposition& parts;  ///< empty unless a selected definition needs it
};

struct Definition {
  const char* name;
  bool needs_parts;
  double (*value)(const Context&);
};

double load_quantile(const Context& c, double q) {
  return network::quantile(network::loads(c.now.forward.gates.active, c.model.shape.K), q);
}

// One line per row of observable_table; a test compares the two lists.
constexpr std::array definitions = {
    Definition{"rms_h", false, [](const Context& c) { return rms(c.now.forward.h); }},
    Definition{"rms_phi", false, [](const Context& c) { return rms(c.now.forward.phi); }},
    Definition{"rms_r", false, [](const Context& c) { return rms(c.now.forward.r); }},
    Definition{"rms_r_init", true, [](const Context& c) { return rms(c.parts.r_init); }},
    Definition{"rms_r_effective", true, [](const Context& c) { return rms(c.parts.r_effective); }},
    Definition{"rms_u", false,
               [](const Context& c) { return rms_active(c.now.forward.u, c.now.forward.gates.active); }},
    Definition{"rms_u_all", false, [](const Context& c) { return rms(c.now.forward.u); }},
    Definition{"rms_u_init", true, [](const Context& c) { return rms(c.parts.u_init); }},
    Definition{"rms_u_effective", true, [](const Context& c) { return rms(c.parts.u_effective); }},
    Definition{"rms_v", false,
               [](const Context& c) { return rms_active(c.now.forward.v, c.now.forward.gates.active); }},
    Definition{"rms_v_all", false, [](const Context& c) { return rms(c.now.forward.v); }},
    Definition{"rms_y", false, [](const Context& c) { return rms(c.now.forward.y); }},
    Definition{"rms_y_init", true, [](const Context& c) { return rms(c.parts.y_init); }},
    Definition{"rms_y_propagating", true, [](const Context& c) { return rms(c.parts.y_propagating); }},
    Definition{"rms_y_effective", true, [](const Context& c) { return rms(c.parts.y_effective); }},
    Definition{"rms_f", false, [](const Context& c) { return rms(c.now.forward.f); }},
    Definition{"rms_D", false, [](const Context& c) { return rms(c.now.fields.D); }},
    Definition{"rms_zeta", false, [](const Context& c) { return rms(c.now.fields.zeta); }},
    Definition{"rms_zeta_init", true, [](const Context& c) { return rms(c.parts.zeta_init); }},
    Definition{"rms_zeta_effective", true, [](const Context& c) { return rms(c.parts.zeta_effective); }},
    Definition{"rms_rho", false, [](const Context& c) { return rms(c.now.fields.rho); }},
    Definition{"rms_xi", false, [](const Context& c) { return rms(c.now.fields.xi); }},
    Definition{"rms_xi_A_init", true, [](const Context& c) { return rms(c.parts.xi_A_init); }},
    Definition{"rms_xi_A_effective", true, [](const Context& c) { return rms(c.parts.xi_A_effective); }},
    Definition{"rms_xi_Q_init", true, [](const Context& c) { return rms(c.parts.xi_Q_init); }},
    Definition{"rms_xi_Q_effective", true, [](const Context& c) { return rms(c.parts.xi_Q_effective); }},
    Definition{"router_entropy", false,
               [](const Context& c) { return network::router_entropy(c.now.forward.gates.G, c.model.shape.K); }},
    Definition{"load_q99", false, [](const Context& c) { return load_quantile(c, 0.99); }},
    Definition{"load_max", false, [](const Context& c) { return load_quantile(c, 1.0); }},
    Definition{"ess_forward", false,
               [](const Context& c) { return effective_experts(c.now.forward.Gv, c.model.shape.M); }},
    Definition{"ess_backward", false,
               [](const Context& c) { return effective_experts(c.now.fields.ghat, c.model.shape.M); }},
    Definition{"change_h", false, [](const Context& c) { return rms(c.now.forward.h - c.initial.forward.h); }},
    Definition{"change_phi", false, [](const Context& c) { return rms(c.now.forward.phi - c.initial.forward.phi); }},
    Definition{"change_r", false, [](const Context& c) { return rms(c.now.forward.r - c.initial.forward.r); }},
    Definition{"change_u", false, [](const Context& c) { return rms(c.now.forward.u - c.initial.forward.u); }},
    Definition{"change_v", false, [](const Context& c) { return rms(c.now.forward.v - c.initial.forward.v); }},
    Definition{"change_y", false, [](const Context& c) { return rms(c.now.forward.y - c.initial.forward.y); }},
    Definition{"change_f", false, [](const Context& c) { return rms(c.now.forward.f - c.initial.forward.f); }},
    Definition{"change_D", false, [](const Context& c) { return rms(c.now.fields.D - c.initial.fields.D); }},
    Definition{"change_zeta", false, [](const Context& c) { return rms(c.now.fields.zeta - c.initial.fields.zeta); }},
    Definition{"change_rho", false, [](const Context& c) { return rms(c.now.fields.rho - c.initial.fields.rho); }},
    Definition{"change_xi", false, [](const Context& c) { return rms(c.now.fields.xi - c.initial.fields.xi); }},
};

const Definition& definition(const std::string& name) {
  for (const auto& d : definitions)
    if (name == d.name) return d;
  throw std::out_of_range("observable " + name + " is not defined for finite networks");
}

}  // namespace

NormalisedFields normalised(const NetworkShape& shape, const Backward& g) {
  const double N = shape.N, K = shape.K, Ne = shape.Ne;
  return {.D = -N * g.y, .xi = -N * g.phi, .zeta = -K * Ne * g.Gv, .ghat = -K * Ne * g.u, .rho = -K * g.r};
}

Decomposition decompose(const Model& model, const Snapshot& initial, const Snapshot& now) {
  const NetworkWeights &w0 = initial.weights, &w = now.weights;
  const Forward& a = now.forward;
  const NormalisedFields& b = now.fields;
  const double N = model.shape.N, K = model.shape.K, Ne = model.shape.Ne, c = model.aggregation;
  const MatrixXd &A0 = w0.expert_in, &B0 = w0.expert_out, &Q0 = w0.router;
  const MatrixXd dA = w.expert_in - A0, dB = w.expert_out - B0, dQ = w.router - Q0;

  Decomposition parts;
  parts.y_init = c * (B0 * times_gate(a.gates.G, initial.forward.v));
  parts.y_propagating = c * (B0 * times_gate(a.gates.G, a.v - initial.forward.v));
  parts.y_effective = c * (dB * a.Gv);
  parts.r_init = Q0 * a.phi;
  parts.r_effective = dQ * a.phi;
  parts.u_init = A0 * a.phi;
  parts.u_effective = dA * a.phi;
  parts.zeta_init = K * c * Ne / N * (B0.transpose() * b.D);  // (T7)
  parts.zeta_effective = K * c * Ne / N * (dB.transpose() * b.D);
  parts.xi_A_init = N / (K * Ne) * (A0.transpose() * b.ghat);  // (T10)
  parts.xi_A_effective = N / (K * Ne) * (dA.transpose() * b.ghat);
  parts.xi_Q_init = N / K * (Q0.transpose() * b.rho);
  parts.xi_Q_effective = N / K * (dQ.transpose() * b.rho);
  return parts;
}

std::vector<double> observe(const std::vector<std::string>& names, const Model& model, const Snapshot& initial,
                            const Snapshot& now) {
  bool needs_parts = false;
  for (const auto& name : names) needs_parts = needs_parts || definition(name).needs_parts;
  const Decomposition parts = needs_parts ? decompose(model, initial, now) : Decomposition{};
  const Context context{model, initial, now, parts};
  std::vector<double> values;
  values.reserve(names.size());
  for (const auto& name : names) values.push_back(definition(name).value(context));
  return values;
}

MatrixXd kernel(const std::string& name, const Snapshot& now) {
  const auto average = [](const MatrixXd& x) { return MatrixXd(x.transpose() * x / static_cast<double>(x.rows())); };
  if (name == "Phi") return average(now.forward.phi);
  if (name == "GvGv") return average(now.forward.Gv);
  if (name == "DD") return average(now.fields.D);
  if (name == "ghatghat") return average(now.fields.ghat);
  throw std::out_of_range("kernel " + name + " is not defined for finite networks");
}

double rms(const MatrixXd& x) { return std::sqrt(x.squaredNorm() / static_cast<double>(x.size())); }

double rms_active(const MatrixXd& x, const MatrixXd& active) {
  const double units = static_cast<double>(x.rows()) / static_cast<double>(active.rows());
  const MatrixXd mean_square = sum_over_units(x.cwiseAbs2(), active.rows()) / units;
  return std::sqrt(mean_square.cwiseProduct(active).sum() / active.sum());
}

double effective_experts(const MatrixXd& x, Eigen::Index M) {
  return network::effective_experts(sum_over_units(x.cwiseAbs2(), M));
}

}  // namespace moe::reference
