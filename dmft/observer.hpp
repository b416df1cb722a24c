/// Observables of theory section 7 on a replica's samples, and the kernels. Names: support/observable.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dmft/expert_measures.hpp"
#include "dmft/replica.hpp"
#include "support/distribution.hpp"
#include "support/observable.hpp"

namespace moe {

/// Load of every expert (share of the tokens that choose it, divided by kappa) out of a 0/1 mask (experts, tokens): its 99 % quantile,
/// linearly interpolated between order statistics, and its maximum.
struct Loads {
  double q99 = 0, max = 0;
};
Loads expert_loads(const Eigen::MatrixXd& mask, double kappa);

/// Measures after forward() and backward() of a step, on the samples of that step; the first time at t = 0. With a fixed batch the
/// fields at t = 0 are kept for what compares with them. Under mini-batches the samples differ from step to step: change_* are not
/// defined (and throw), and v(0) is that of the present samples at the initial weights, an evaluation-only query.
template <class B>
class Observer {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  Observer(std::vector<Recorded> wanted, bool fixed_batch) : wanted_(std::move(wanted)), fixed_batch_(fixed_batch) {}

  /// Values in the order of `wanted`.
  std::vector<double> measure(Replica<B>& r) {
    if (wanted_.empty()) return {};
    r_ = &r;
    cache_.clear();
    v0_.clear();
    if (fixed_batch_ && initial_.empty()) keep_initial();
    std::vector<double> values;
    for (const Recorded& one : wanted_) {
      layer_ = r.layers()[static_cast<std::size_t>(one.block)].get();
      values.push_back(value(one));
    }
    first_measurement_ = false;
    return values;
  }
  void transfer(Archive& a) {
    a("first_measurement", first_measurement_);
    a("initial", initial_);
    a("initial_f", initial_f_);
  }

  /// (P, P) population averages by name of kernel_table.
  static Eigen::MatrixXd kernel(Replica<B>& r, const Recorded& one) {
    Layer<B>& layer = *r.layers()[static_cast<std::size_t>(one.block)];
    BlockFields<B>& f = layer.block().fields();
    if (one.name == "Phi") return B::gram(layer.z());
    if (one.name == "GvGv") return B::gram(f.Gv);
    if (one.name == "DD") return B::gram(layer.D());
    return B::gram(f.ghat);
  }

  /// Shares of the bins of support/distribution.hpp, by name of distribution_table.
  static std::vector<double> distribution(Replica<B>& r, const Recorded& one) {
    if (one.name == "h") return moe::distribution(B::download(r.h()));
    BlockFields<B>& f = r.layers()[static_cast<std::size_t>(one.block)]->block().fields();
    return moe::distribution(B::download(one.name == "u" ? f.u : f.r));
  }

 private:
  static double rms(View a) { return std::sqrt(sum_of_squares<B>(a) / static_cast<double>(a.size())); }
  static double rms_difference(View a, View b) {
    return std::sqrt(sum_of_squared_differences<B>(a, b) / static_cast<double>(a.size()));
  }
  double rms_active(View w) const { return std::sqrt(mean_square_of_active<B>(w, fields().mask)); }
  double effective_sample_size(View w) const { return effective_experts<B>(w, block().shape().hidden); }

  Block<B>& block() const { return layer_->block(); }
  BlockFields<B>& fields() const { return block().fields(); }

  /// Root mean squares of the parts of r, u, y, zeta, xi_A or xi_Q, as rms_<field>_init and rms_<field>_effective.
  void measure_parts(const std::string& field, int l) {
    using Split = typename Block<B>::Split;
    static const std::map<std::string, Split> splits = {{"r", Split::r},       {"u", Split::u},
                                                        {"y", Split::y},       {"zeta", Split::zeta},
                                                        {"xi_A", Split::xi_A}, {"xi_Q", Split::xi_Q}};
    const std::string of_block = "." + std::to_string(l + 1), rms_of = "rms_" + field;
    AnswerParts<B> parts = block().parts(splits.at(field), layer_->y());
    cache_[rms_of + "_effective" + of_block] = rms(parts.learned);
    if (field != "y")
      cache_[rms_of + "_init" + of_block] = rms(parts.init);
    else if (wants("rms_y_init", l) || wants("rms_y_propagating", l))
      aggregation_terms(parts.init, l);
  }
  bool wants(const std::string& name, int l) const {
    return std::any_of(wanted_.begin(), wanted_.end(),
                       [&](const Recorded& w) { return w.name == name && w.block == l; });
  }
  /// (T26): y_init by an evaluation-only query of B(0) with the gates of this step; y_propagating is the rest of the initial part.
  void aggregation_terms(View initial_part, int l) {
    const std::string of_block = "." + std::to_string(l + 1);
    auto y_init = Matrix::uninitialized(layer_->y().rows, layer_->y().cols);
    if (first_measurement_) {  // v(t) = v(0): the stored answer
      B::copy(initial_part, y_init);
    } else if (fixed_batch_) {
      block().initial_aggregate(initial_.at("v" + of_block), y_init);
    } else {
      if (v0_.empty()) v0_ = r_->initial_features();
      block().initial_aggregate(v0_[static_cast<std::size_t>(l)], y_init);
    }
    cache_["rms_y_init" + of_block] = rms(y_init);
    cache_["rms_y_propagating" + of_block] = rms_difference(initial_part, y_init);
  }
  double value(const Recorded& one) {
    const std::string &name = one.name, of_block = "." + std::to_string(one.block + 1);
    BlockFields<B>& f = fields();
    for (const char* part : {"_init", "_effective", "_propagating"})
      if (name.ends_with(part)) {
        if (!cache_.contains(name + of_block))
          measure_parts(name.substr(4, name.size() - 4 - std::strlen(part)), one.block);  // rms_<field><part>
        return cache_.at(name + of_block);
      }
    if (name == "load_q99" || name == "load_max") {
      if (!cache_.contains(name + of_block)) {
        const Loads l = expert_loads(B::download(f.mask), block().shape().kappa);
        cache_["load_q99" + of_block] = l.q99;
        cache_["load_max" + of_block] = l.max;
      }
      return cache_.at(name + of_block);
    }
    if (name == "rms_h") return rms(r_->h());
    if (name == "rms_phi") return rms(r_->phi());
    if (name == "rms_r") return rms(f.r);
    if (name == "rms_u") return rms_active(f.u);
    if (name == "rms_u_all") return rms(f.u);
    if (name == "rms_v") return rms_active(f.v);
    if (name == "rms_v_all") return rms(f.v);
    if (name == "rms_y") return rms(layer_->y());
    if (name == "rms_f") return std::sqrt(r_->outputs().array().square().mean());
    if (name == "rms_D") return rms(layer_->D());
    if (name == "rms_zeta") return rms(f.zeta);
    if (name == "rms_rho") return rms(f.rho);
    if (name == "rms_xi") return rms(r_->xi());
    if (name == "router_entropy")
      return router_entropy<B>(fields().G, block().shape().kappa * static_cast<double>(block().shape().experts));
    if (name == "ess_forward") return effective_sample_size(f.Gv);
    if (name == "ess_backward") return effective_sample_size(f.ghat);
    if (name.starts_with("change_")) {
      const std::string field = name.substr(7);
      if (!fixed_batch_) throw Error("observable " + name + " is not defined under mini-batches");
      if (field == "f") return std::sqrt((r_->outputs() - initial_f_).array().square().mean());
      return rms_difference(now(field), initial_.at(kept_as(field, one.block)));
    }
    throw Error("observable " + name + " has no definition in the limit");
  }

  View now(const std::string& field) {
    BlockFields<B>& f = fields();
    if (field == "h") return r_->h();
    if (field == "phi") return r_->phi();
    if (field == "r") return f.r;
    if (field == "u") return f.u;
    if (field == "v") return f.v;
    if (field == "y") return layer_->y();
    if (field == "D") return layer_->D();
    if (field == "zeta") return f.zeta;
    if (field == "rho") return f.rho;
    return r_->xi();
  }
  static std::string kept_as(const std::string& field, int block) {
    return is_of_block(field) ? field + "." + std::to_string(block + 1) : field;
  }
  void keep(const std::string& field, int block) {
    layer_ = r_->layers()[static_cast<std::size_t>(block)].get();
    const View from = now(field);
    auto kept = Matrix::uninitialized(from.rows, from.cols);
    B::copy(from, kept);
    initial_[kept_as(field, block)] = std::move(kept);
  }
  void keep_initial() {
    initial_f_ = r_->outputs();
    for (int l = 0; l < static_cast<int>(r_->layers().size()); ++l) keep("v", l);  // for (T26)
    for (const Recorded& one : wanted_)
      if (one.name.starts_with("change_") && one.name != "change_f" && one.name != "change_v")
        keep(one.name.substr(7), one.block);
  }

  std::vector<Recorded> wanted_;
  bool fixed_batch_;
  bool first_measurement_ = true;
  Replica<B>* r_ = nullptr;
  Layer<B>* layer_ = nullptr;              ///< of the value in hand
  std::map<std::string, Matrix> initial_;  ///< fields at t = 0
  Eigen::MatrixXd initial_f_;
  std::map<std::string, double> cache_;  ///< values that come together, of this step
  std::vector<Matrix> v0_;               ///< of every block, mini-batches only
};

}  // namespace moe
