/// Closed forms that limits are tested against: docs/known_solutions.md derives them. Nothing here shares a line with the solvers.
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "support/run_spec.hpp"

namespace known {

using Eigen::MatrixXd;

/// Nodes and weights of <F(x)>, x ~ N(0, 1): eigenvectors of the Jacobi matrix of Hermite polynomials.
struct GaussHermite {
  Eigen::VectorXd x, w;
  explicit GaussHermite(int n) {
    MatrixXd jacobi = MatrixXd::Zero(n, n);
    for (int k = 1; k < n; ++k) jacobi(k, k - 1) = jacobi(k - 1, k) = std::sqrt(static_cast<double>(k));
    const Eigen::SelfAdjointEigenSolver<MatrixXd> eigen(jacobi);
    x = eigen.eigenvalues();
    w = eigen.eigenvectors().row(0).transpose().cwiseAbs2();
  }
};

/// A pointwise function of a Gaussian field, and how its pair averages are found.
enum class Closed { no, arc_cosine, step, erf };  ///< relu, its slope, exact gelu; no: quadrature
struct Pointwise {
  std::function<double(double)> f;
  Closed closed = Closed::no;
};

/// <f(x) f(y)> of Gaussians with variances p, q and covariance c.
inline double pair_average(double p, double q, double c, const Pointwise& g) {
  const double cosine = std::clamp(c / std::sqrt(p * q), -1.0, 1.0), theta = std::acos(cosine), pi = std::numbers::pi;
  if (g.closed == Closed::arc_cosine) return std::sqrt(p * q) / (2 * pi) * (std::sin(theta) + (pi - theta) * cosine);
  if (g.closed == Closed::step) return (pi - theta) / (2 * pi);
  if (g.closed == Closed::erf) {  // x Phi(x), by parts
    const double size = (1 + p) * (1 + q), density = 1 / (2 * pi * std::sqrt(size - c * c));
    return c * (0.25 + std::asin(c / std::sqrt(size)) / (2 * pi)) +
           density * (p * q - c * c + c * c / (1 + p) + c * c / (1 + q));
  }
  static const GaussHermite rule(40);
  const double s = std::sqrt(p), along = c / s, across = std::sqrt(std::max(0.0, q - along * along));
  double sum = 0;
  for (Eigen::Index i = 0; i < rule.x.size(); ++i) {
    double inner = 0;
    for (Eigen::Index j = 0; j < rule.x.size(); ++j) inner += rule.w[j] * g.f(along * rule.x[i] + across * rule.x[j]);
    sum += rule.w[i] * g.f(s * rule.x[i]) * inner;
  }
  return sum;
}

/// What a mean of products over samples should be, with the variance of one product, and the error that reaches it from what it is
/// made of: one standard deviation.
struct Products {
  MatrixXd value, variance, inherited;

  MatrixXd error(double samples) const { return (variance / samples).cwiseSqrt() + inherited; }
};

/// <f(x_a) f(x_b)>, x Gaussian with covariance C, which is known up to C_error.
inline Products pair_products(const MatrixXd& C, const MatrixXd& C_error, const Pointwise& g) {
  const auto square = [&](double x) { return g.f(x) * g.f(x); };
  Products out{MatrixXd(C.rows(), C.cols()), MatrixXd(C.rows(), C.cols()), MatrixXd(C.rows(), C.cols())};
  for (Eigen::Index a = 0; a < C.rows(); ++a)
    for (Eigen::Index b = 0; b < C.cols(); ++b) {
      const double p = C(a, a), q = C(b, b), c = C(a, b), value = pair_average(p, q, c, g);
      const auto moved = [&](double dp, double dq, double dc) {
        return std::abs(pair_average(p + dp, q + dq, c + dc, g) - value);
      };
      out.value(a, b) = value;
      out.variance(a, b) = pair_average(p, q, c, {square}) - value * value;
      out.inherited(a, b) = a == b
                                ? moved(C_error(a, a), C_error(a, a), C_error(a, a))
                                : moved(C_error(a, a), 0, 0) + moved(0, C_error(b, b), 0) + moved(0, 0, -C_error(a, b));
    }
  return out;
}

/// phi of an activation, and its slope.
inline std::pair<Pointwise, Pointwise> phi_and_slope(moe::Activation activation) {
  switch (activation) {
    case moe::Activation::identity: return {{[](double x) { return x; }}, {[](double) { return 1.0; }}};
    case moe::Activation::relu:
      return {{[](double x) { return std::max(0.0, x); }, Closed::arc_cosine},
              {[](double x) { return x > 0 ? 1.0 : 0.0; }, Closed::step}};
    case moe::Activation::gelu: {
      const auto below = [](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); };
      return {{[=](double x) { return x * below(x); }, Closed::erf},
              {[=](double x) { return below(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }}};
    }
    case moe::Activation::tanh: break;
  }
  return {{[](double x) { return std::tanh(x); }}, {[](double x) { return 1 - std::tanh(x) * std::tanh(x); }}};
}
inline double logistic(double x) { return 1 / (1 + std::exp(-x)); }
inline double logistic_slope(double x) { return logistic(x) * (1 - logistic(x)); }

/// The two variances of A and of B in the limit (theory section 4) as they enter a neuron: in regime I, where neurons see the mean of M
/// independent matrices, s_beta^2(A) and s_chi^2(B) are over M.
struct Constants {
  double a_chi, a_beta, b_chi, b_beta;
};
struct Case {
  const char* regime;
  const char* param;
  Constants c;
};
/// M, N_e, M/N and N_e/N of limit_fixture::spec.
inline constexpr double M = 2, Ne = 4, rho_M = 0.5, rho_e = 0.5;
inline const Case cases[] = {
    {"I", "mup", {1, 1 / rho_e / M, 1 / M, rho_e}},
    {"I", "mssp", {1, 1 / rho_e / M, 1 / M, rho_e}},
    {"II", "mup", {1, 1 / (rho_M * Ne), 0, 0}},
    {"II", "mssp", {1, 1 / (rho_M * Ne), 1, rho_M* Ne}},
    {"III", "mup", {1, 0, 0, rho_e}},
    {"III", "mssp", {1, 1 / rho_e, 1, rho_e}},
};

/// With f(0) = 0, target Y and only one tensor learning, f(t+1) = f(t) + eta rate (Y - f(t)): the rate is that tensor's tangent
/// kernel. rho_e = N_e/N, rho_M = M/N; M experts in regime I. Derivation for regime I: u_i = chi_i of variance 1, y_0 of variance
/// 1/M; zeta_i = Y b_i with b_i = B_i^T wbar of variance rho_e; a = (1/M) sum_i A_i^T b_i of variance 1/M. Readout learns with <y_0^2> =
/// 1/M, B with <u_i^2> <wbar^2> = 1, A with <b_i^2> <h^2> = rho_e, W_in with <a^2> = 1/M. The other rows follow with the constants of
/// theory section 4.
struct Rates {
  const char* regime;
  const char* param;
  double input, expert_in, expert_out, readout;
};
inline const Rates rates[] = {
    {"I", "mup", 1 / M, rho_e, 1, 1 / M}, {"I", "mssp", 1 / M, rho_e, 1, 1 / M},
    {"II", "mssp", 1, rho_M* Ne, 1, 1},   {"II", "mup", 0, 0, 1, 0},
    {"III", "mssp", 1, rho_e, 1, 1},      {"III", "mup", 0, rho_e, 1, 0},
};

/// A kernel of t = 0 and one standard deviation of its estimate from samples.
struct Estimate {
  MatrixXd value, error;
};
inline Estimate times(const Estimate& a, const Estimate& b) {
  return {a.value.cwiseProduct(b.value), a.error.cwiseProduct(b.value.cwiseAbs()) +
                                             b.error.cwiseProduct(a.value.cwiseAbs()) + a.error.cwiseProduct(b.error)};
}

/// Kernels at initialisation as Gaussian integrals, one output, mse, sigmoid gates, no residual. Errors are those of means over `neurons`,
/// `experts` and `hidden` of each of `replicas` samples, drawn plainly.
struct InitialKernels {
  Estimate Phi, Gv, D, ghat, rho;  ///< rho: regime II; it is zero in the others, where <v zeta>_a averages to zero

  InitialKernels(const Case& one, moe::Activation activation, const MatrixXd& x, const MatrixXd& y, double neurons,
                 double experts, double hidden, double replicas) {
    const std::string regime = one.regime;
    const Constants& c = one.c;
    const bool shared = regime == "III" && std::string(one.param) == "mssp";
    const auto P = static_cast<double>(x.cols());
    const MatrixXd x_gram = x.transpose() * x / static_cast<double>(x.rows()),
                   zero = MatrixXd::Zero(x.cols(), x.cols());
    const auto functions = phi_and_slope(activation);
    const Pointwise &phi = functions.first, &slope = functions.second;
    const auto mean = [&](const Products& p, double samples) -> Estimate {
      return {p.value, p.error(samples * replicas)};
    };
    Phi = mean(pair_products(x_gram, zero, phi), neurons);
    const double sites = (shared ? 1 : experts) * hidden;
    const Products v = pair_products(Phi.value, Phi.error, phi), slopes = pair_products(Phi.value, Phi.error, slope);
    // In regime I, r = <qbar phi> vanishes as neurons^-1/2 (by 0 under MSSP).
    Estimate gates;
    if (regime == "I") {
      const double r = std::string(one.param) == "mup" ? std::sqrt(Phi.value.maxCoeff() / neurons) : 0;
      gates = {MatrixXd::Constant(x.cols(), x.cols(), 0.25),
               MatrixXd::Constant(x.cols(), x.cols(), r / 4 / std::sqrt(experts * replicas) + r * r / 16)};
    } else {
      gates = mean(pair_products(Phi.value, Phi.error, {logistic}), experts);
    }
    Gv = times(gates, mean(v, sites));
    // D = wbar Delta: fluctuations of <wbar wbar> = 1 and of f = <wbar y>, which is zero.
    const MatrixXd delta = y / P;
    const Eigen::VectorXd f = (c.b_chi * Gv.value.diagonal() / neurons).cwiseSqrt() / P;
    const MatrixXd cross = f * delta.cwiseAbs();
    D.value = delta.transpose() * delta;
    D.error = (2 * D.value.cwiseAbs2() / (neurons * replicas)).cwiseSqrt() +
              (cross + cross.transpose()) / std::sqrt(replicas) + f * f.transpose();
    const Estimate zeta{c.b_beta * D.value, c.b_beta * D.error};
    const Eigen::VectorXd own = zeta.value.diagonal();
    const MatrixXd pairs = own * own.transpose() + 2 * zeta.value.cwiseAbs2();  // <zeta_a^2 zeta_b^2>
    const auto with_zeta = [&](const Products& p, const MatrixXd& fourth) -> Products {
      const MatrixXd value = p.value.cwiseProduct(zeta.value);
      return {value, (p.variance + p.value.cwiseAbs2()).cwiseProduct(fourth) - value.cwiseAbs2(),
              p.inherited.cwiseProduct(zeta.value.cwiseAbs()) + p.value.cwiseAbs().cwiseProduct(zeta.error)};
    };
    ghat = times(gates, mean(with_zeta(slopes, pairs), sites));
    if (regime == "II") {
      // s = <v zeta>_a over N_e units: <s^4> = (<v^4 zeta^4> + 3 (N_e - 1) <v^2 zeta^2>^2)/N_e^3, and <s_a^2 s_b^2> is at most that.
      const Products term = with_zeta(v, pairs);
      const Eigen::VectorXd second = term.value.diagonal(), fourth = term.variance.diagonal() + second.cwiseAbs2();
      const Eigen::VectorXd of_s = ((fourth + 3 * (hidden - 1) * second.cwiseAbs2()) / std::pow(hidden, 3)).cwiseSqrt();
      const Products s{term.value / hidden, of_s * of_s.transpose() - (term.value / hidden).cwiseAbs2(),
                       term.inherited / hidden};
      rho = times(mean(pair_products(Phi.value, Phi.error, {logistic_slope}), experts), mean(s, experts));
    }
  }
};

/// One sample, mse, sigmoid gates, SGD with eta for every tensor, q = eta Y, f(0) = 0: <phi phi> and <wbar wbar> after the first step.
struct FirstStep {
  double phi_before, phi, w_bar;

  FirstStep(const Case& one, moe::Activation activation, double q) {
    const std::string regime = one.regime;
    const Constants& c = one.c;
    const bool averaged = regime == "I" || (regime == "III" && std::string(one.param) == "mssp");
    phi_before = phi = w_bar = 0;
    const auto functions = phi_and_slope(activation);
    const Pointwise &act = functions.first, &slope = functions.second;
    const auto square = [&](double variance, const Pointwise& g) {
      return pair_average(variance, variance, variance, g);
    };
    phi_before = square(1, act);
    const double Phi = phi_before, v2 = square(Phi, act), slope2 = square(Phi, slope);
    // What neurons see of the gates: r = 0 in I; shared matrices average over experts; elsewhere each expert has its own.
    const double gate2 = averaged ? 0.25 : square(Phi, {logistic});
    w_bar = 1 + q * q * c.b_chi * gate2 * v2;
    double z2 = c.a_beta * gate2 * slope2 * c.b_beta;
    if (regime == "II") z2 += (1 / rho_M) * square(Phi, {logistic_slope}) * v2 * c.b_beta / Ne;  // s_beta^2(Q) <rho^2>
    static const GaussHermite rule(60);
    for (Eigen::Index i = 0; i < rule.x.size(); ++i)
      for (Eigen::Index j = 0; j < rule.x.size(); ++j)
        phi +=
            rule.w[i] * rule.w[j] * std::pow(act.f(rule.x[i] + q * slope.f(rule.x[i]) * std::sqrt(z2) * rule.x[j]), 2);
  }
};

/// Identity activation and constant gates: every field is a sum of Gaussian fields, h_0, wbar_0 and the Gaussian parts of (T12), (T13),
/// with numbers as coefficients. So a field is a vector, an average the product with a Gram matrix, a response (T14) a coefficient, and
/// the limit at any P, C and T is a finite computation. Full batches of SGD, mse, eta for every tensor.
struct LinearLimit {
  std::vector<MatrixXd> f;                       ///< [t] (C, P)
  std::vector<MatrixXd> phi, D, u, y, zeta, xi;  ///< [t] (P, P) averages of products at one time
  std::vector<std::pair<const char*, const std::vector<MatrixXd>*>> fields() const {
    return {{"rms_phi", &phi}, {"rms_u", &u}, {"rms_y", &y}, {"rms_D", &D}, {"rms_zeta", &zeta}, {"rms_xi", &xi}};
  }
  double loss(std::size_t t, const MatrixXd& target) const {
    return (f[t] - target).squaredNorm() / 2 / static_cast<double>(target.cols());
  }

  LinearLimit(const Constants& c, double eta, const MatrixXd& x, const MatrixXd& target, int steps,
              bool residual = false) {
    using Index = Eigen::Index;
    const Index P = x.cols(), C = target.rows(), n = (steps + Index{1}) * P;
    const MatrixXd x_gram = x.transpose() * x / static_cast<double>(x.rows());
    // Coordinates of neurons: h_0 (P), wbar_0 (C), backward field of A (n), forward field of B (n); of sites: forward field of A (n),
    // backward field of B (n).
    const Index of_A = P + C, of_B = P + C + n;
    MatrixXd on_neurons = MatrixXd::Zero(P + C + 2 * n, P + C + 2 * n), on_sites = MatrixXd::Zero(2 * n, 2 * n);
    on_neurons.topLeftCorner(P, P) = x_gram;
    on_neurons.block(P, P, C, C).setIdentity();
    MatrixXd H = MatrixXd::Zero(on_neurons.rows(), P), W = MatrixXd::Zero(on_neurons.rows(), C);
    H.topRows(P).setIdentity();
    W.middleRows(P, C).setIdentity();
    MatrixXd Phi = MatrixXd::Zero(H.rows(), n), Ds = Phi, U = MatrixXd::Zero(2 * n, n), Z = U;
    const auto neurons = [&](const MatrixXd& l, const MatrixXd& r) -> MatrixXd {
      return l.transpose() * on_neurons * r;
    };
    const auto sites = [&](const MatrixXd& l, const MatrixXd& r) -> MatrixXd { return l.transpose() * on_sites * r; };
    // Correlations of all queries so far with those of time t become the Gram matrix of the fields that answer them.
    const auto answer = [&](MatrixXd& gram, Index at, double variance, const MatrixXd& products, Index t) {
      const Index now = at + t * P, known = products.rows();
      gram.block(at, now, known, P) = variance * products;
      gram.block(now, at, P, known) = variance * products.transpose();
    };
    for (Index t = 0; t <= steps; ++t) {
      const Index before = t * P, through = before + P;
      Phi.middleCols(before, P) = H;
      const MatrixXd phi_phi = neurons(Phi.leftCols(through), H);
      answer(on_sites, 0, c.a_chi, phi_phi, t);
      MatrixXd u_now = MatrixXd::Zero(2 * n, P);
      u_now.middleRows(before, P).setIdentity();
      u_now += Z.leftCols(before) * (c.a_beta * H.middleRows(of_A, before) + eta * phi_phi.topRows(before));
      U.middleCols(before, P) = u_now;
      const MatrixXd u_u = sites(U.leftCols(through), u_now);
      answer(on_neurons, of_B, c.b_chi, u_u, t);
      MatrixXd y_now = MatrixXd::Zero(H.rows(), P);
      y_now.middleRows(of_B + before, P).setIdentity();
      y_now += Ds.leftCols(before) * (c.b_beta * u_now.middleRows(n, before) + eta * u_u.topRows(before));
      const MatrixXd s = residual ? MatrixXd(y_now + H) : y_now;
      f.push_back(neurons(W, s));
      const MatrixXd delta = (target - f.back()) / static_cast<double>(P), D_now = W * delta;
      Ds.middleCols(before, P) = D_now;
      const MatrixXd D_D = neurons(Ds.leftCols(through), D_now);
      answer(on_sites, n, c.b_beta, D_D, t);
      MatrixXd zeta_now = MatrixXd::Zero(2 * n, P);
      zeta_now.middleRows(n + before, P).setIdentity();
      zeta_now += c.b_chi * U.leftCols(through) * D_now.middleRows(of_B, through);
      zeta_now += eta * U.leftCols(before) * D_D.topRows(before);
      Z.middleCols(before, P) = zeta_now;
      const MatrixXd z_z = sites(Z.leftCols(through), zeta_now);
      answer(on_neurons, of_A, c.a_beta, z_z, t);
      MatrixXd xi_now = MatrixXd::Zero(H.rows(), P);
      xi_now.middleRows(of_A + before, P).setIdentity();
      xi_now += c.a_chi * Phi.leftCols(through) * zeta_now.topRows(through);
      xi_now += eta * Phi.leftCols(before) * z_z.topRows(before);
      if (residual) xi_now += D_now;
      phi.push_back(phi_phi.bottomRows(P));
      D.push_back(D_D.bottomRows(P));
      u.push_back(u_u.bottomRows(P));
      y.push_back(neurons(y_now, y_now));
      zeta.push_back(z_z.bottomRows(P));
      xi.push_back(neurons(xi_now, xi_now));
      W += eta * s * delta.transpose();
      H += eta * xi_now * x_gram;
    }
  }
};

}  // namespace known
