/// A or B of all experts: which Gaussian operators they are made of, and how experts are averaged.
#pragma once

#include <memory>
#include <vector>

#include "dmft/operator.hpp"

namespace moe {

/// How the experts' initial matrices stand: one operator over all product sites, one per expert (experts are few and explicit), or one
/// that all experts start from beside a learned part of each expert's own.
enum class Structure { stacked, per_expert, shared };

/// Sites (i, a) are flattened expert-major: row i * Sa + a.
struct SiteShape {
  Index experts = 0, hidden = 0;  ///< SE (M in regime I), Sa (N_e in regime II)
  double kappa = 1;               ///< K_S / SE
  Index sites() const { return experts * hidden; }
};

namespace detail {
/// out_a = factor * sum_i z_ia, sites expert-major.
template <class B>
void sum_over_experts(typename B::View z, Index experts, typename B::Real factor, typename B::View out) {
  using Real = typename B::Real;
  const Index hidden = out.rows;
  B::each(hidden, z.cols, [=] MOE_HD(Index a, Index p) {
    double s = 0;
    for (Index i = 0; i < experts; ++i) s += static_cast<double>(z(i * hidden + a, p));
    out(a, p) = factor * static_cast<Real>(s);
  });
}
}  // namespace detail

/// The matrices between neurons and product sites. A is used as it stands (A = "to experts"); B by its transpose, so that both have
/// neurons on side Y and sites on side X. Constants are those of that orientation: chi2 for images on sites, beta2 on neurons.
template <class B>
class ExpertMatrix {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// Populations of the expert side that a block owns: all product sites, or the hidden units of each expert / shared by all.
  struct Populations {
    Population<B>* neurons;
    Population<B>* sites;                                 ///< stacked
    std::vector<std::unique_ptr<Population<B>>>* hidden;  ///< per expert: SE of them; shared: one
  };

  ExpertMatrix(Structure structure, const SiteShape& shape, const Populations& on, QueryBasis<B>& neuron_basis,
               const GaussianConstants& constants, const UpdateRule& rule, double tolerance, StreamNumbers& streams)
      : structure_(structure), shape_(shape), neurons_(on.neurons->sites()) {
    const auto add = [&](Population<B>& population, const GaussianConstants& c, const UpdateRule& r, Index experts) {
      bases_.push_back(std::make_unique<QueryBasis<B>>(population.sites(), tolerance));
      operators_.push_back(std::make_unique<Operator<B>>(population, *bases_.back(), *on.neurons, neuron_basis, c, r,
                                                         streams.next(), experts));
    };
    switch (structure) {
      case Structure::stacked: add(*on.sites, constants, rule, shape.experts); break;
      case Structure::per_expert:
        for (auto& hidden : *on.hidden) add(*hidden, constants, rule, 1);
        break;
      case Structure::shared: {
        UpdateRule frozen = rule;  // the common initial matrix never learns; every expert does, from zero
        frozen.lr = 0;
        add(*on.hidden->front(), constants, frozen, 1);
        add(*on.sites, GaussianConstants{}, rule, shape.experts);
        break;
      }
    }
  }

  /// Neurons -> sites: A phi, or B^T D. The neuron basis has been asked.
  void to_experts(View x, Answer<B>& out) { broadcast(x, out, false); }
  /// Sites -> neurons, averaged over experts: (1/K) sum_i B_i (G v)_i, or (N/(K N_e)) sum_i A_i^T ghat_i. Stores z as a query.
  void from_experts(View z, Answer<B>& out) { aggregate(z, out, false); }
  /// The same for evaluation-only queries.
  void evaluate_to_experts(View x, Answer<B>& out) { broadcast(x, out, true); }
  void evaluate_from_experts(View z, Answer<B>& out) { aggregate(z, out, true); }

  /// The initial matrices alone on an evaluation-only query, sites -> neurons: init (neurons, P).
  void evaluate_initial_from_experts(View z, Matrix& init) {
    if (structure_ == Structure::per_expert) {
      auto one = Matrix::uninitialized(neurons_, z.cols);
      init.fill(0);
      for (Index i = 0; i < shape_.experts; ++i) {
        op(i).evaluate_initial_backward(expert(z, i), one);
        accumulate(one, static_cast<Real>(1 / (shape_.kappa * static_cast<double>(shape_.experts))), init);
      }
    } else if (structure_ == Structure::shared) {
      auto mean = Matrix::uninitialized(shape_.hidden, z.cols);
      mean_over_experts(z, mean);
      op(0).evaluate_initial_backward(mean, init);
    } else {
      op(0).evaluate_initial_backward(z, init);
      scale(init, static_cast<Real>(1 / shape_.kappa));
    }
  }

  /// use(operator, z, x) for every operator and the gradient sum_mu z_mu x_mu^T that is its own; z (sites, P) and x (neurons, P) are
  /// the step's stored queries.
  template <class Use>
  void for_each_gradient(View z, View x, Use&& use) {
    if (structure_ == Structure::per_expert) {
      for (Index i = 0; i < shape_.experts; ++i) use(op(i), expert(z, i), x);
      return;
    }
    if (structure_ == Structure::shared) use(op(0), hidden_query_, x);
    use(*operators_.back(), z, x);
  }

  void transfer(Archive& a) {
    a("basis", bases_);
    a("operator", operators_);
  }

  template <class F>
  void for_each_operator(F&& f) {
    for (auto& o : operators_) f(*o);
  }
  template <class F>
  void for_each_basis(F&& f) {
    for (auto& b : bases_) f(*b);
  }

 private:
  Operator<B>& op(Index i) { return *operators_[static_cast<std::size_t>(i)]; }
  QueryBasis<B>& basis(Index i) { return *bases_[static_cast<std::size_t>(i)]; }
  View expert(View sites, Index i) const { return sites.row_range(i * shape_.hidden, shape_.hidden); }

  void broadcast(View x, Answer<B>& out, bool evaluation_only) {
    const auto ask = [&](Operator<B>& o, Answer<B>& answer) {
      evaluation_only ? o.evaluate_forward(x, answer) : o.forward(x, answer);
    };
    switch (structure_) {
      case Structure::stacked: ask(op(0), out); return;
      case Structure::per_expert: {
        Answer<B> one(shape_.hidden, x.cols);
        for (Index i = 0; i < shape_.experts; ++i) {
          ask(op(i), one);
          B::copy(one.init, expert(out.init, i));
          B::copy(one.learned, expert(out.learned, i));
        }
        return;
      }
      case Structure::shared: {
        Answer<B> common(shape_.hidden, x.cols);
        ask(op(0), common);
        ask(op(1), out);
        for (Index i = 0; i < shape_.experts; ++i) {
          B::copy(common.init, expert(out.init, i));
          if (op(0).decayed()) accumulate(common.learned, Real(1), expert(out.learned, i));
        }
        return;
      }
    }
  }

  void aggregate(View z, Answer<B>& out, bool evaluation_only) {
    const auto ask = [&](Index which, View query, Answer<B>& answer) {
      if (evaluation_only) {
        op(which).evaluate_backward(query, answer);
      } else {
        basis(which).ask(query);
        op(which).backward(query, answer);
      }
    };
    const Real over_kappa = static_cast<Real>(1 / shape_.kappa);
    switch (structure_) {
      case Structure::stacked:
        ask(0, z, out);
        scale(out.init, over_kappa);
        scale(out.learned, over_kappa);
        return;
      case Structure::per_expert: {
        const Real over_K = static_cast<Real>(1 / (shape_.kappa * static_cast<double>(shape_.experts)));
        Answer<B> one(neurons_, z.cols);
        out.init.fill(0);
        out.learned.fill(0);
        for (Index i = 0; i < shape_.experts; ++i) {
          ask(i, expert(z, i), one);
          accumulate(one.init, over_K, out.init);
          accumulate(one.learned, over_K, out.learned);
        }
        return;
      }
      case Structure::shared: {
        // <.>_i / kappa of the query, asked of the common matrix
        auto mean = Matrix::uninitialized(shape_.hidden, z.cols);
        mean_over_experts(z, mean);
        ask(0, mean, out);
        Answer<B> own(neurons_, z.cols);
        ask(1, z, own);
        accumulate(own.learned, over_kappa, out.learned);
        if (!evaluation_only) std::swap(hidden_query_, mean);
        return;
      }
    }
  }

  void mean_over_experts(View z, View mean) const {
    const auto weight = static_cast<Real>(1 / (shape_.kappa * static_cast<double>(shape_.experts)));
    detail::sum_over_experts<B>(z, shape_.experts, weight, mean);
  }
  static void scale(View a, Real factor) {
    if (factor != Real(1)) moe::scale<B>(a, factor);
  }
  static void accumulate(View from, Real factor, View to) { moe::accumulate<B>(from, factor, to); }

  Structure structure_;
  SiteShape shape_;
  Index neurons_;
  std::vector<std::unique_ptr<QueryBasis<B>>> bases_;  ///< of the queries over sites, one per operator
  std::vector<std::unique_ptr<Operator<B>>> operators_;
  Matrix hidden_query_;  ///< (Sa, P) shared: the step's averaged query
};

}  // namespace moe
