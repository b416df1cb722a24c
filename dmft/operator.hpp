/// A weight matrix in the limit: its initial Gaussian part, answered by conditioning on past queries (T24), (T25), (T27), and its
/// learned part (T15)-(T19), (T22), (T23). Everything hard about the limit sits here.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "dmft/population.hpp"
#include "dmft/query_basis.hpp"
#include "dmft/update_rule.hpp"
#include "regimes/regime.hpp"
#include "support/error.hpp"

namespace moe {

/// The two parts of an answer, each (sites, P): W(0) and W(t) - W(0) acting on the same query.
template <class B>
struct AnswerParts {
  typename B::Matrix init, learned;
  AnswerParts(Index sites, Index P)
      : init(B::Matrix::uninitialized(sites, P)), learned(B::Matrix::uninitialized(sites, P)) {}
};
enum class Part { init, learned };
/// Both of the answer `whole`: ask(out) makes the one that is at hand, the other is what is left.
template <class B, class Ask>
AnswerParts<B> split(typename B::View whole, Part at_hand, const Ask& ask) {
  AnswerParts<B> parts(whole.rows, whole.cols);
  const bool init = at_hand == Part::init;
  const typename B::View known = init ? parts.init : parts.learned, rest = init ? parts.learned : parts.init;
  ask(known);
  subtract<B>(whole, known, rest);
  return parts;
}

/// What becomes of an answer W q: out = keep * out + factor * W q.
struct Into {
  double factor = 1, keep = 0;
};

/// Of an evaluation-only query: W(t) or W(0).
enum class Weights { now, initial };

/// W: Y -> X. Forward queries x are functions of a Y-site, backward queries z of an X-site:
///     W x   = sum_k chi_k <xt_k, x> + sum_j zt_j <be_j, x> + learned                                        (T24)
///     W^T z = sum_j be_j <zt_j, z> + sum_k xt_k <chi_k, z> + learned                                        (T25)
/// chi lives on X with variance s_chi^2, be on Y with s_beta^2; both are drawn when a basis has grown, orthogonal to the other
/// side's basis. Linear rules keep the learned part as zt Theta xt^T, entrywise rules as an array over pairs of sites. When the bases
/// are no longer small the operator becomes dense (T27): one array that learns, and what it was at first. The two sides play the same
/// part with roles exchanged, so each formula stands here once, for an answer on side `to` to a query on side `from`.
template <class B>
class Operator {
 public:
  using Real = typename B::Real;
  using Matrix = typename B::Matrix;
  using View = typename B::View;

  /// Populations and bases are owned by the block and outlive the operator. `noise` addresses the operator's own random numbers
  /// (evaluation-only answers and the dense form). X holds the rows of `matrices` that learn each by itself (LearnedArray).
  Operator(Population<B>& X, QueryBasis<B>& x_side_basis, Population<B>& Y, QueryBasis<B>& y_side_basis,
           const GaussianConstants& constants, const UpdateRule& rule, const StreamKey& noise, Index matrices = 1)
      : rule_(rule), noise_(noise), responses_(constants.responses) {
    x_ = Side{&X, &x_side_basis, constants.chi2, Matrix(X.sites(), 0)};
    y_ = Side{&Y, &y_side_basis, constants.beta2, Matrix(Y.sites(), 0)};
    for (Side* side : {&x_, &y_}) {
      if (side->variance > 0) side->population->add_user();
      if (keeps_bases()) side->basis->add_user();
    }
    const bool over_pairs = !rule_.linear() && learns();
    pairs_ = LearnedArray<B>(over_pairs ? X.sites() : 0, over_pairs ? Y.sites() : 0, rule_, 1, ArrayMatrices{matrices});
    if (!keeps_bases()) dense_ = true;
  }

  /// A matrix that is an explicit array from the start: W x = W0 x / SY, W^T z = W0^T z / SX (the router in regime I).
  Operator(Matrix W0, const UpdateRule& rule) : rule_(rule), dense_(true), W0_(std::move(W0)) {
    if (!learns()) return;
    pairs_ = LearnedArray<B>(W0_.rows(), W0_.cols(), rule);
    B::copy(W0_, pairs_.value());
  }

  /// Stored queries. The basis of the query's side must have been asked (QueryBasis::ask) in this step.
  void forward(View x, View out, const Into& into = {}) { answer(y_, x_, Op::plain, x, out, into); }
  void backward(View z, View out, const Into& into = {}) { answer(x_, y_, Op::transposed, z, out, into); }

  /// Evaluation-only queries: drawn jointly over the block, nothing stored (theory section 6). Ask the stored ones first.
  void evaluate_forward(View x, View out, Weights weights, const Into& into = {}) {
    evaluate(y_, x_, Op::plain, x, out, weights, into);
  }
  void evaluate_backward(View z, View out, Weights weights, const Into& into = {}) {
    evaluate(x_, y_, Op::transposed, z, out, weights, into);
  }

  /// One part of the answer that a step's stored query has had, before the update.
  void forward_part(Part part, View x, View out, const Into& into = {}) {
    part_of_answer(y_, x_, Op::plain, part, x, out, into);
  }
  void backward_part(Part part, View z, View out, const Into& into = {}) {
    part_of_answer(x_, y_, Op::transposed, part, z, out, into);
  }
  /// Which of the parts is at hand; the other one is what is left of the answer.
  Part part_at_hand() const { return !dense_ && decay_ == 1 && has_initial() ? Part::learned : Part::init; }

  /// One optimizer step with the gradient sum_mu z_mu x_mu^T of the step's stored queries z (SX, P), x (SY, P).
  void update(View z, View x) {
    decay_ *= rule_.decay;
    if (!learns()) return;
    if (!pairs_.empty()) {
      pairs_.update(z, x);
      return;
    }
    // Theta += eta sum_nu <zt, z_nu> <xt, x_nu>^T, with velocity for momentum.
    grow_theta();
    if (!rule_.has_velocity()) {
      add_gradient(rule_.lr, 1, theta_);
      return;
    }
    add_gradient(1, rule_.momentum, velocity_);
    accumulate<B>(velocity_, static_cast<Real>(rule_.lr), theta_);
  }

  /// What SGD learns, for a flow: Theta, which may be smaller than the bases, or once dense W(t) - W(0) over pairs. Empty if frozen.
  void learned(Matrix& out) {
    const View value = pairs_.empty() ? theta_.view() : pairs_.value();
    out = Matrix::uninitialized(value.rows, value.cols);
    B::copy(value, out);
    if (!pairs_.empty() && !W0_.empty()) accumulate<B>(W0_, Real(-1), out);
  }
  void set_learned(View from) {
    if (pairs_.empty() && (theta_.rows() != from.rows || theta_.cols() != from.cols))
      theta_ = Matrix::uninitialized(from.rows, from.cols);
    const View value = pairs_.empty() ? theta_.view() : pairs_.value();
    if (!pairs_.empty() && !W0_.empty())
      add<B>(W0_, from, value);
    else
      B::copy(from, value);
  }
  /// Its derivative eta sum_mu z_mu x_mu^T, of the step's stored queries.
  void derivative(View z, View x, Matrix& out) {
    if (!learns()) {
      out = Matrix();
    } else if (!pairs_.empty()) {
      pairs_.derivative(z, x, out);
    } else {
      out = Matrix::uninitialized(x_.basis->rank(), y_.basis->rank());
      add_gradient(rule_.lr, 0, out);
    }
  }

  /// Populations and bases are their owners' to save.
  void transfer(Archive& a) {
    a("noise_draws", noise_draws_);
    a("x", x_);
    a("y", y_);
    a("decay", decay_);
    a("defect", defect_);
    a("dense", dense_);
    a("theta", theta_);
    a("velocity", velocity_);
    a("pairs", pairs_);
    a("W0", W0_);
  }

  bool dense() const { return dense_; }
  std::size_t bytes() const {
    return x_.images.bytes() + y_.images.bytes() + theta_.bytes() + velocity_.bytes() + pairs_.bytes() + W0_.bytes();
  }

  /// Largest relative error of the variance of a new direction that sample counts out of ratio, or one-sided constants, have
  /// caused so far (theory section 6).
  double sample_ratio_defect() const { return defect_; }

  /// From here on dense is cheaper: r + q > SX SY / (SX + SY).
  bool dense_pays() const {
    if (dense_) return false;
    const auto SX = static_cast<double>(x_.sites()), SY = static_cast<double>(y_.sites());
    return static_cast<double>(x_.basis->rank() + y_.basis->rank()) > SX * SY / (SX + SY);
  }
  /// The completion (T27) has the right law only with counts in ratio, or with one side absent.
  bool can_become_dense() const {
    if (x_.variance == 0 || y_.variance == 0) return true;
    const double ratio =
        x_.variance * static_cast<double>(y_.sites()) / (y_.variance * static_cast<double>(x_.sites()));
    return std::abs(ratio - 1) <= 0.02;
  }

  /// Goes dense between steps: W0 = chi xt^T + zt be^T + (1 - zt zt^T/SX) Gamma (1 - xt xt^T/SY)                   (T27)
  /// From there on the array that learns holds all of W(t), and W0 stands beside it for what is said of W(0).
  void become_dense() {
    if (dense_) return;
    synchronise(y_, x_);
    synchronise(x_, y_);
    const Index SX = x_.sites(), SY = y_.sites();
    const View xt = y_.basis->vectors(), zt = x_.basis->vectors();
    if (x_.variance > 0 || y_.variance > 0) {
      // Entries of Gamma: s_chi^2 SY = s_beta^2 SX; one-sided operators have the present side's variance.
      const double gamma2 =
          x_.variance > 0 ? x_.variance * static_cast<double>(SY) : y_.variance * static_cast<double>(SX);
      W0_ = Matrix::uninitialized(SX, SY);
      B::normal(W0_, noise_of(std::numeric_limits<std::uint32_t>::max()));
      const View W = W0_;
      scale<B>(W, static_cast<Real>(std::sqrt(gamma2)));
      auto along_x = Matrix::uninitialized(SX, xt.cols);
      auto along_z = Matrix::uninitialized(zt.cols, SY);
      B::gemm(Op::plain, Op::plain, 1.0 / static_cast<double>(SY), W, xt, 0, along_x);
      B::gemm(Op::plain, Op::transposed, -1, along_x, xt, 1, W);
      B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(SX), zt, W, 0, along_z);
      B::gemm(Op::plain, Op::plain, -1, zt, along_z, 1, W);
      if (x_.variance > 0) B::gemm(Op::plain, Op::transposed, 1, x_.images, xt, 1, W);
      if (y_.variance > 0) B::gemm(Op::plain, Op::transposed, 1, zt, y_.images, 1, W);
    }
    if (pairs_.empty() && learns()) {
      grow_theta();
      pairs_ = LearnedArray<B>(SX, SY, rule_);
      auto half = Matrix::uninitialized(theta_.rows(), SY);
      B::gemm(Op::plain, Op::transposed, 1, theta_, xt, 0, half);
      B::gemm(Op::plain, Op::plain, 1, zt, half, 0, pairs_.value());
      if (rule_.has_velocity()) {
        B::gemm(Op::plain, Op::transposed, 1, velocity_, xt, 0, half);
        B::gemm(Op::plain, Op::plain, 1, zt, half, 0, pairs_.velocity());
      }
    }
    if (!pairs_.empty() && !W0_.empty()) accumulate<B>(W0_, static_cast<Real>(decay_), pairs_.value());
    dense_ = true;
    theta_ = Matrix();
    velocity_ = Matrix();
    for (Side* side : {&x_, &y_}) {
      side->images = Matrix();
      side->basis->release();
      if (side->variance > 0) side->population->release();
    }
  }

 private:
  struct Side {
    Population<B>* population = nullptr;
    QueryBasis<B>* basis = nullptr;
    double variance = 0;  ///< s_chi^2 on X, s_beta^2 on Y: of the images that live here
    Matrix
        images;  ///< (sites, known): images of the first `known` vectors of the other side's basis; none if variance = 0
    Index known = 0;     ///< how many vectors of the OTHER side's basis this operator has taken in
    Index listed = 0;    ///< how many of the images are of listed draws
    Index answered = 0;  ///< of `known`, those that were there when this side's query was answered last; of the step
    Index sites() const { return population->sites(); }
    void transfer(Archive& a) {
      a("images", images);
      a("known", known);
      a("listed", listed);
    }
  };

  bool has_initial() const { return x_.variance > 0 || y_.variance > 0; }
  bool learns() const { return rule_.lr != 0; }  ///< 0: frozen, or the common initial matrix of shared experts
  bool keeps_bases() const { return (rule_.linear() && learns()) || has_initial(); }

  /// to = keep * to + weight * sum_nu <zt, z_nu> <xt, x_nu>^T
  void add_gradient(double weight, double keep, View to) {
    B::gemm(Op::plain, Op::transposed, weight, x_.basis->coefficients(), y_.basis->coefficients(), keep, to);
  }

  /// Evaluation-only queries count their draws from 0, W(0) has the last: so training does not depend on what else is evaluated.
  StreamKey noise_of(std::uint32_t draw) const {
    StreamKey key = noise_;
    key.draw = draw;
    return key;
  }

  /// Draws images on `to` for the vectors that the basis of `from` has gained, orthogonal to what `to` has been asked itself:
  /// that component is fixed by the answers already given on `from`.
  void synchronise(Side& from, Side& to) {
    const Index fresh = from.basis->rank() - to.known;
    if (fresh == 0) return;
    if (to.variance > 0) {
      to.images.set_columns(to.known + fresh);
      const View images = to.images.columns(to.known, fresh);
      const bool listed = to.population->draw(images);
      scale<B>(images, static_cast<Real>(std::sqrt(to.variance)));
      remove_answered(from, to, images);
      if (to.population->matching()) restore_variance(from, to, fresh, images);
      if (listed) to.listed += fresh;
    }
    // A new direction has variance to.variance (1 - q/S_to) + q from.variance/S_from, q the rank on side `to`.
    if (to.variance > 0 || from.variance > 0) {
      const auto q = static_cast<double>(from.known);
      const double change =
          q * (from.variance / static_cast<double>(from.sites()) - to.variance / static_cast<double>(to.sites()));
      defect_ = std::max(defect_, std::abs(change) / (to.variance > 0 ? to.variance : from.variance));
    }
    to.known += fresh;
  }

  /// images -= zt <zt, images>: that component is fixed by the answers already given on `from`.
  static void remove_answered(Side& from, Side& to, View images) {
    const View fixed = to.basis->vectors().columns(0, from.known);
    auto overlap = Matrix::uninitialized(fixed.cols, images.cols);
    B::gemm(Op::transposed, Op::plain, 1.0 / static_cast<double>(to.sites()), fixed, images, 0, overlap);
    B::gemm(Op::plain, Op::plain, -1, fixed, overlap, 1, images);
  }

  /// Plain draws lose q/S_to of their variance with the component that is taken out, and the sampled averages <be_j, x~> that stand
  /// for it return s_beta^2/S_from for each of the q. Draws that are made orthogonal to listed ones lose less and return less:
  /// <be_j, x~> fluctuates only by what of x~ lies outside the list, if be_j is listed. The new images get the variance that is left
  /// by what is returned, so that answers keep theirs, s_chi^2, on the average.
  void restore_variance(Side& from, Side& to, Index fresh, View images) {
    const Eigen::MatrixXd one = Eigen::MatrixXd::Identity(fresh, fresh);
    const Eigen::MatrixXd wanted = variance_left(from, to, from.basis->vectors().columns(to.known, fresh), one,
                                                 [&](Matrix& overlap) -> Eigen::MatrixXd {
                                                   if (overlap.empty()) return 0 * one;
                                                   return static_cast<double>(overlap.rows()) * B::gram(overlap);
                                                 });
    if (!(wanted.trace() > 0) || from.known + fresh >= to.sites()) return;
    const Eigen::MatrixXd found = B::gram(images);
    auto change = Matrix::uninitialized(fresh, fresh);
    auto raw = Matrix::uninitialized(images.rows, fresh);
    B::upload(whitening(found) * upper_root(wanted), change);
    B::copy(images, raw);
    B::gemm(Op::plain, Op::plain, 1, raw, change, 0, images);
  }

  /// Covariance of the fresh part of answers to queries x whose averages are `gram`, or its trace of the trace of theirs: s_chi^2 gram less
  /// what is returned, s_beta^2/S_from a vector of the basis, for listed ones of what of x is not linear in the list: what lies outside it
  /// and the share m/S_from that m vectors take. squares(overlap): sum over the list of products of components along it, or its trace.
  template <class Average, class Squares>
  static Average variance_left(const Side& from, const Side& to, View x, const Average& gram, const Squares& squares) {
    Average left = (to.variance - returned(from, from.known - from.listed)) * gram;
    if (const double of_listed = returned(from, from.listed); of_listed > 0) {
      Matrix overlap = from.population->list_overlap(x);
      const double share = static_cast<double>(overlap.rows()) / static_cast<double>(from.sites());
      left -= of_listed / (1 - share) * (gram - squares(overlap));
    }
    return left;
  }
  /// Variance that `vectors` sampled averages <be_j, x~> return.
  static double returned(const Side& from, Index vectors) {
    return from.variance / static_cast<double>(from.sites()) * static_cast<double>(vectors);
  }

  /// Theta (rank of zt, rank of xt) keeps its entries when the bases grow.
  void grow_theta() {
    const Index q = x_.basis->rank(), r = y_.basis->rank();
    for (Matrix* m : {&theta_, &velocity_}) {
      if (m == &velocity_ && !rule_.has_velocity()) continue;
      if (m->rows() == q && m->cols() == r) continue;
      Matrix bigger(q, r);
      if (!m->empty()) B::copy(*m, bigger.view().row_range(0, m->rows()).columns(0, m->cols()));
      *m = std::move(bigger);
    }
  }

  /// The answer on side `to` to a query on side `from`; `op` says whether the dense arrays act plainly or transposed.
  void answer(Side& from, Side& to, Op op, View query, View out, const Into& into) {
    if (dense_) return weights_act(op, query, out, into);
    synchronise(from, to);
    from.answered = from.known;
    combine(from, to, op, query, from.basis->coefficients(), {decay_, 1, from.known}, out, into);
  }

  void evaluate(Side& from, Side& to, Op op, View query, View out, Weights weights, const Into& into) {
    const bool now = weights == Weights::now;
    if (dense_) return now ? weights_act(op, query, out, into) : array_acts(W0_, op, query, out, into);
    if (!now && !has_initial()) return array_acts({}, op, query, out, into);
    Matrix own;
    from.basis->project(query, own);
    const Shares shares{now ? decay_ : 1, now ? 1.0 : 0.0, from.known};
    combine(from, to, op, query, own, shares, out, into);
    if (to.variance > 0) add_new_randomness(from, to, query, own, shares.initial * into.factor, out);
  }

  void part_of_answer(Side& from, Side& to, Op op, Part part, View query, View out, const Into& into) {
    const bool init = part == Part::init;
    if (!dense_) {
      const Shares shares{init ? 1 : decay_ - 1, init ? 0.0 : 1.0, from.answered};
      return combine(from, to, op, query, from.basis->coefficients(), shares, out, into);
    }
    if (init) return array_acts(W0_, op, query, out, into);
    weights_act(op, query, out, into);
    array_acts(W0_, op, query, out, {-into.factor, 1});
  }

  /// Once dense: W(t), of which a matrix that does not learn keeps the share c(t) of what it was at first.
  void weights_act(Op op, View query, View out, const Into& into) {
    if (pairs_.empty())
      array_acts(W0_, op, query, out, {decay_ * into.factor, into.keep});
    else
      array_acts(pairs_.value(), op, query, out, into);
  }
  /// An empty array is a matrix of zeros.
  static void array_acts(View W, Op op, View query, View out, const Into& into) {
    if (W.size() == 0) return B::gemm(Op::plain, Op::plain, 0, {}, query.row_range(0, 0), into.keep, out);
    B::gemm(op, Op::plain, into.factor / static_cast<double>(query.rows), W, query, into.keep, out);
  }

  /// What of the matrix answers: initial W(0) + learned (W(t) - c(t) W(0)), the responses being those to `responses` vectors.
  struct Shares {
    double initial, learned;
    Index responses;
  };

  /// The answer by the bases; c: the query's coefficients. Along the basis of `to` there are the responses <be_j, x>, Stein's estimate, and
  /// what a linear rule has learned, zt Theta c or xt Theta^T c: Theta may be smaller than the bases, since what was added after the last
  /// update has no learned part.
  void combine(Side& from, Side& to, Op op, View query, View c, const Shares& shares, View out, const Into& into) {
    const double per_site = 1.0 / static_cast<double>(query.rows);
    double keep = into.keep;
    const auto add_product = [&](Op of, double factor, View a, View b) {
      B::gemm(of, Op::plain, factor * into.factor, a, b, keep, out);
      keep = 1;
    };
    if (to.variance > 0 && shares.initial != 0) add_product(Op::plain, shares.initial, to.images, c);
    const bool plain = op == Op::plain;
    const Index inner = plain ? theta_.cols() : theta_.rows(), outer = plain ? theta_.rows() : theta_.cols();
    const Index responses = responses_ && from.variance > 0 && shares.initial != 0 ? shares.responses : 0,
                learned = shares.learned != 0 && inner > 0 ? outer : 0;
    if (responses > 0 || learned > 0) {
      Matrix along(std::max(responses, learned), query.cols);
      if (responses > 0)
        B::gemm(Op::transposed, Op::plain, shares.initial * per_site, from.images.columns(0, responses), query, 0,
                along.view().row_range(0, responses));
      if (learned > 0)
        B::gemm(op, Op::plain, shares.learned, theta_, c.row_range(0, inner), 1, along.view().row_range(0, learned));
      add_product(Op::plain, 1, to.basis->vectors().columns(0, along.rows()), along);
    }
    if (shares.learned != 0 && !pairs_.empty()) add_product(op, shares.learned * per_site, pairs_.value(), query);
    if (keep != 1) array_acts({}, op, query, out, {0, keep});  // nothing has answered
  }

  /// The part of an evaluation-only query outside the basis, e, gets a fresh Gaussian answer s Z L^T with L L^T = <e e>, orthogonal
  /// to the basis of the side it lives on; out += factor times it.
  void add_new_randomness(Side& from, Side& to, View query, View coefficients, double factor, View out) {
    auto residual = Matrix::uninitialized(query.rows, query.cols);
    B::copy(query, residual);
    from.basis->subtract(coefficients, residual);
    const Eigen::MatrixXd gram = B::gram(residual);
    if (!(gram.trace() > 0)) return;
    auto root = Matrix::uninitialized(query.cols, query.cols);
    auto Z = Matrix::uninitialized(to.sites(), query.cols);
    auto g = Matrix::uninitialized(to.sites(), query.cols);
    B::upload(semidefinite_root(gram), root);
    B::normal(Z, noise_of(noise_draws_++));
    B::gemm(Op::plain, Op::transposed, std::sqrt(to.variance), Z, root, 0, g);
    remove_answered(from, to, g);
    double restore = 1;
    if (to.population->matching()) {
      const double found = 1 - static_cast<double>(from.known) / static_cast<double>(to.sites());
      const double total = gram.trace();
      const double left =
          variance_left(from, to, residual, total, [](Matrix& overlap) { return sum_of_squares<B>(overlap); });
      const double wanted = left / (to.variance * total);
      if (wanted > 0 && found > 0) restore = std::sqrt(wanted / found);
    }
    accumulate<B>(g, static_cast<Real>(restore * factor), out);
  }

  UpdateRule rule_;
  StreamKey noise_;
  bool responses_ = true;
  std::uint32_t noise_draws_ = 0;
  Side x_, y_;
  double decay_ = 1;  ///< c(t) of AdamW: while not dense W(t) = c(t) W(0) + what was learned
  double defect_ = 0;
  bool dense_ = false;
  Matrix theta_, velocity_;  ///< (rank zt, rank xt)
  LearnedArray<B> pairs_;    ///< (SX, SY) W(t) - c(t) W(0) of an entrywise rule; once dense W(t)
  Matrix W0_;                ///< (SX, SY) W(0) once dense
};

}  // namespace moe
