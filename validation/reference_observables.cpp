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
  const Decomposition& parts;  ///< of the block; empty unless a selected definition needs it
  std::size_t block;
  const BlockForward& a() const { return now.forward.blocks[block]; }
  const BlockForward& a0() const { return initial.forward.blocks[block]; }
  const BlockFields& b() const { return now.fields.blocks[block]; }
  const BlockFields& b0() const { return initial.fields.blocks[block]; }
};

struct Definition {
  const char* name;
  bool needs_parts;
  double (*value)(const Context&);
};

double load_quantile(const Context& c, double q) {
  return network::quantile(network::loads(c.a().gates.active, c.model.shape.K), q);
}

// One line per row of observable_table; a test compares the two lists.
constexpr std::array definitions = {
    Definition{"rms_h", false, [](const Context& c) { return rms(c.now.forward.h); }},
    Definition{"rms_phi", false, [](const Context& c) { return rms(c.now.forward.phi); }},
    Definition{"rms_r", false, [](const Context& c) { return rms(c.a().r); }},
    Definition{"rms_r_init", true, [](const Context& c) { return rms(c.parts.r_init); }},
    Definition{"rms_r_effective", true, [](const Context& c) { return rms(c.parts.r_effective); }},
    Definition{"rms_u", false, [](const Context& c) { return rms_active(c.a().u, c.a().gates.active); }},
    Definition{"rms_u_all", false, [](const Context& c) { return rms(c.a().u); }},
    Definition{"rms_u_init", true, [](const Context& c) { return rms(c.parts.u_init); }},
    Definition{"rms_u_effective", true, [](const Context& c) { return rms(c.parts.u_effective); }},
    Definition{"rms_v", false, [](const Context& c) { return rms_active(c.a().v, c.a().gates.active); }},
    Definition{"rms_v_all", false, [](const Context& c) { return rms(c.a().v); }},
    Definition{"rms_y", false, [](const Context& c) { return rms(c.a().y); }},
    Definition{"rms_y_init", true, [](const Context& c) { return rms(c.parts.y_init); }},
    Definition{"rms_y_propagating", true, [](const Context& c) { return rms(c.parts.y_propagating); }},
    Definition{"rms_y_effective", true, [](const Context& c) { return rms(c.parts.y_effective); }},
    Definition{"rms_f", false, [](const Context& c) { return rms(c.now.forward.f); }},
    Definition{"rms_D", false, [](const Context& c) { return rms(c.b().D); }},
    Definition{"rms_zeta", false, [](const Context& c) { return rms(c.b().zeta); }},
    Definition{"rms_zeta_init", true, [](const Context& c) { return rms(c.parts.zeta_init); }},
    Definition{"rms_zeta_effective", true, [](const Context& c) { return rms(c.parts.zeta_effective); }},
    Definition{"rms_rho", false, [](const Context& c) { return rms(c.b().rho); }},
    Definition{"rms_xi", false, [](const Context& c) { return rms(c.now.fields.xi); }},
    Definition{"rms_xi_A_init", true, [](const Context& c) { return rms(c.parts.xi_A_init); }},
    Definition{"rms_xi_A_effective", true, [](const Context& c) { return rms(c.parts.xi_A_effective); }},
    Definition{"rms_xi_Q_init", true, [](const Context& c) { return rms(c.parts.xi_Q_init); }},
    Definition{"rms_xi_Q_effective", true, [](const Context& c) { return rms(c.parts.xi_Q_effective); }},
    Definition{"router_entropy", false,
               [](const Context& c) { return network::router_entropy(c.a().gates.G, c.model.shape.K); }},
    Definition{"load_q99", false, [](const Context& c) { return load_quantile(c, 0.99); }},
    Definition{"load_max", false, [](const Context& c) { return load_quantile(c, 1.0); }},
    Definition{"ess_forward", false, [](const Context& c) { return effective_experts(c.a().Gv, c.model.shape.M); }},
    Definition{"ess_backward", false, [](const Context& c) { return effective_experts(c.b().ghat, c.model.shape.M); }},
    Definition{"change_h", false, [](const Context& c) { return rms(c.now.forward.h - c.initial.forward.h); }},
    Definition{"change_phi", false, [](const Context& c) { return rms(c.now.forward.phi - c.initial.forward.phi); }},
    Definition{"change_r", false, [](const Context& c) { return rms(c.a().r - c.a0().r); }},
    Definition{"change_u", false, [](const Context& c) { return rms(c.a().u - c.a0().u); }},
    Definition{"change_v", false, [](const Context& c) { return rms(c.a().v - c.a0().v); }},
    Definition{"change_y", false, [](const Context& c) { return rms(c.a().y - c.a0().y); }},
    Definition{"change_f", false, [](const Context& c) { return rms(c.now.forward.f - c.initial.forward.f); }},
    Definition{"change_D", false, [](const Context& c) { return rms(c.b().D - c.b0().D); }},
    Definition{"change_zeta", false, [](const Context& c) { return rms(c.b().zeta - c.b0().zeta); }},
    Definition{"change_rho", false, [](const Context& c) { return rms(c.b().rho - c.b0().rho); }},
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
  NormalisedFields fields{{}, -N * g.phi};
  for (const BlockBackward& d : g.blocks)
    fields.blocks.push_back({.D = -N * d.y, .zeta = -K * Ne * d.Gv, .ghat = -K * Ne * d.u, .rho = -K * d.r});
  return fields;
}

Decomposition decompose(const Model& model, const Snapshot& initial, const Snapshot& now, std::size_t block) {
  const NetworkWeights &w0 = initial.weights, &w = now.weights;
  const BlockForward &a = now.forward.blocks[block], &a0 = initial.forward.blocks[block];
  const BlockFields& b = now.fields.blocks[block];
  const double N = model.shape.N, K = model.shape.K, Ne = model.shape.Ne, c = model.aggregation;
  const Eigen::Index M = model.shape.M, experts = static_cast<Eigen::Index>(block) * M, units = M * model.shape.Ne,
                     unit = experts * model.shape.Ne;
  const MatrixXd A0 = w0.expert_in.middleRows(unit, units), B0 = w0.expert_out.middleCols(unit, units),
                 Q0 = w0.router.middleRows(experts, M);
  const MatrixXd dA = w.expert_in.middleRows(unit, units) - A0, dB = w.expert_out.middleCols(unit, units) - B0,
                 dQ = w.router.middleRows(experts, M) - Q0;

  Decomposition parts;
  parts.y_init = c * (B0 * times_gate(a.gates.G, a0.v));
  parts.y_propagating = c * (B0 * times_gate(a.gates.G, a.v - a0.v));
  parts.y_effective = c * (dB * a.Gv);
  parts.r_init = Q0 * a.in.z;
  parts.r_effective = dQ * a.in.z;
  parts.u_init = A0 * a.in.z;
  parts.u_effective = dA * a.in.z;
  parts.zeta_init = K * c * Ne / N * (B0.transpose() * b.D);  // (T7)
  parts.zeta_effective = K * c * Ne / N * (dB.transpose() * b.D);
  parts.xi_A_init = N / (K * Ne) * (A0.transpose() * b.ghat);  // (T10)
  parts.xi_A_effective = N / (K * Ne) * (dA.transpose() * b.ghat);
  parts.xi_Q_init = N / K * (Q0.transpose() * b.rho);
  parts.xi_Q_effective = N / K * (dQ.transpose() * b.rho);
  return parts;
}

std::vector<double> observe(const std::vector<Recorded>& wanted, const Model& model, const Snapshot& initial,
                            const Snapshot& now) {
  bool needs_parts = false;
  for (const auto& one : wanted) needs_parts = needs_parts || definition(one.name).needs_parts;
  std::vector<Decomposition> parts(now.forward.blocks.size());
  for (std::size_t l = 0; l < parts.size() && needs_parts; ++l) parts[l] = decompose(model, initial, now, l);
  std::vector<double> values;
  values.reserve(wanted.size());
  for (const auto& one : wanted) {
    const auto l = static_cast<std::size_t>(one.block);
    values.push_back(definition(one.name).value({model, initial, now, parts[l], l}));
  }
  return values;
}

MatrixXd kernel(const Recorded& wanted, const Snapshot& now) {
  const auto average = [](const MatrixXd& x) { return MatrixXd(x.transpose() * x / static_cast<double>(x.rows())); };
  const auto l = static_cast<std::size_t>(wanted.block);
  const BlockForward& a = now.forward.blocks[l];
  const BlockFields& b = now.fields.blocks[l];
  const std::string& name = wanted.name;
  if (name == "Phi") return average(a.in.z);
  if (name == "GvGv") return average(a.Gv);
  if (name == "DD") return average(b.D);
  if (name == "ghatghat") return average(b.ghat);
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
