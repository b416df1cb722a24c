/// const * N^a M^b N_e^c K^d D^e L^f: what a parameterization gives every tensor (theory section 2).
#pragma once

#include <map>
#include <string>

namespace moe {

/// Sizes of one network. Doubles, because limits use ratios of them.
struct Sizes {
  double N = 1, M = 1, Ne = 1, K = 1, D = 1, L = 1;
};

struct PowerLaw {
  double constant = 1;
  Sizes exponents{0, 0, 0, 0, 0, 0};

  /// Value at given sizes.
  double at(const Sizes& s) const;
  /// Exponent in N along a path on which each size grows like N^growth.
  double exponent_along(const Sizes& growth) const;
  PowerLaw pow(double p) const;
  friend PowerLaw operator*(const PowerLaw& a, const PowerLaw& b);
  friend PowerLaw operator*(double c, PowerLaw a) {
    a.constant *= c;
    return a;
  }
  /// "0.5 N^-1 M^0.5": for messages.
  std::string text() const;
};

/// From the keys const, N, M, Ne, K, D, L. Throws std::invalid_argument naming an unknown key.
PowerLaw power_law(const std::map<std::string, double>& keys);

}  // namespace moe
