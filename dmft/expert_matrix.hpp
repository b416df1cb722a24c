/// A or B of all experts: which Gaussian operators they are made of, and how experts are averaged.
#pragma once

#include <memory>
#include <vector>

#include "dmft/expert_measures.hpp"
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
      : structure_(structure), shape_(shape) {
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

  /// Neurons -> sites: A phi, or B^T D, out (sites, P). The neuron basis has been asked.
  void to_experts(View x, View out) {
    broadcast(out, [&](Operator<B>& o, View to, const Into& into) { o.forward(x, to, into); });
  }
  /// Sites -> neurons, averaged over experts: (1/K) sum_i B_i (G v)_i, or (N/(K N_e)) sum_i A_i^T ghat_i. Stores z as a query.
  void from_experts(View z, View out) {
    hidden_query_ = common_query(z);
    aggregate(z, hidden_query_, out, [](Operator<B>& o, QueryBasis<B>& basis, View query, View to, const Into& into) {
      basis.ask(query);
      o.backward(query, to, into);
    });
  }
  /// The same for evaluation-only queries.
  void evaluate_to_experts(View x, View out, Weights weights) {
    broadcast(out, [&](Operator<B>& o, View to, const Into& into) { o.evaluate_forward(x, to, weights, into); });
  }
  void evaluate_from_experts(View z, View out, Weights weights) {
    Matrix common = common_query(z);
    aggregate(z, common, out, [&](Operator<B>& o, QueryBasis<B>&, View query, View to, const Into& into) {
      o.evaluate_backward(query, to, weights, into);
    });
  }

  /// The parts of the answers `whole` that this step's queries have had.
  AnswerParts<B> parts_to_experts(View x, View whole) {
    const Part part = part_at_hand();
    return split<B>(whole, part, [&](View out) {
      broadcast(out, [&](Operator<B>& o, View to, const Into& into) { o.forward_part(part, x, to, into); });
    });
  }
  AnswerParts<B> parts_from_experts(View z, View whole) {
    const Part part = part_at_hand();
    return split<B>(whole, part, [&](View out) {
      aggregate(z, hidden_query_, out, [&](Operator<B>& o, QueryBasis<B>&, View query, View to, const Into& into) {
        o.backward_part(part, query, to, into);
      });
    });
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

  /// ask(operator, out, into) for the rows of out that an operator answers.
  template <class Ask>
  void broadcast(View out, const Ask& ask) {
    switch (structure_) {
      case Structure::stacked: ask(op(0), out, Into{}); return;
      case Structure::per_expert:
        for (Index i = 0; i < shape_.experts; ++i) ask(op(i), expert(out, i), Into{});
        return;
      case Structure::shared: {
        auto common = Matrix::uninitialized(shape_.hidden, out.cols);
        ask(op(0), common, Into{});
        for_all_experts<B>(common, out);
        ask(op(1), out, Into{1, 1});
        return;
      }
    }
  }

  /// out: the sum of what ask(operator, basis, query, out, into) gives; `common` is the common_query(z).
  template <class Ask>
  void aggregate(View z, View common, View out, const Ask& ask) {
    const double over_kappa = 1 / shape_.kappa;
    switch (structure_) {
      case Structure::stacked: ask(op(0), basis(0), z, out, Into{over_kappa, 0}); return;
      case Structure::per_expert:
        for (Index i = 0; i < shape_.experts; ++i)
          ask(op(i), basis(i), expert(z, i), out,
              Into{over_kappa / static_cast<double>(shape_.experts), i == 0 ? 0.0 : 1.0});
        return;
      case Structure::shared:
        ask(op(0), basis(0), common, out, Into{});
        ask(op(1), basis(1), z, out, Into{over_kappa, 1});
        return;
    }
  }

  /// The part that all operators are asked for: the initial one where any has it at hand.
  Part part_at_hand() const {
    for (const auto& o : operators_)
      if (o->part_at_hand() == Part::init) return Part::init;
    return Part::learned;
  }

  /// <z>_i / kappa, which the common matrix of shared experts is asked; nothing where there is none.
  Matrix common_query(View z) const {
    if (structure_ != Structure::shared) return {};
    auto common = Matrix::uninitialized(shape_.hidden, z.cols);
    mean_over_experts<B>(z, shape_.kappa, common);
    return common;
  }

  Structure structure_;
  SiteShape shape_;
  std::vector<std::unique_ptr<QueryBasis<B>>> bases_;  ///< of the queries over sites, one per operator
  std::vector<std::unique_ptr<Operator<B>>> operators_;
  Matrix hidden_query_;  ///< (Sa, P) shared: the step's averaged query
};

}  // namespace moe
