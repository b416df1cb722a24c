#include "parameterizations/power_law.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <stdexcept>

namespace moe {

namespace {

struct SizeName {
  const char* key;
  double Sizes::*member;
};
constexpr std::array<SizeName, 6> size_names = {
    {{"N", &Sizes::N}, {"M", &Sizes::M}, {"Ne", &Sizes::Ne}, {"K", &Sizes::K}, {"D", &Sizes::D}, {"L", &Sizes::L}}};

}  // namespace

double PowerLaw::at(const Sizes& s) const {
  if (constant == 0) return 0;
  double value = constant;
  for (const auto& size : size_names) {
    const double exponent = exponents.*size.member;
    if (exponent != 0) value *= std::pow(s.*size.member, exponent);
  }
  return value;
}

double PowerLaw::exponent_along(const Sizes& growth) const {
  double sum = 0;
  for (const auto& size : size_names) sum += exponents.*size.member * growth.*size.member;
  return sum;
}

PowerLaw PowerLaw::pow(double p) const {
  PowerLaw result;
  result.constant = std::pow(constant, p);
  for (const auto& size : size_names) result.exponents.*size.member = exponents.*size.member * p;
  return result;
}

PowerLaw operator*(const PowerLaw& a, const PowerLaw& b) {
  PowerLaw result;
  result.constant = a.constant * b.constant;
  for (const auto& size : size_names)
    result.exponents.*size.member = a.exponents.*size.member + b.exponents.*size.member;
  return result;
}

std::string PowerLaw::text() const {
  std::string factors;
  for (const auto& size : size_names) {
    const double exponent = exponents.*size.member;
    if (exponent == 0) continue;
    factors += factors.empty() ? "" : " ";
    factors += exponent == 1 ? size.key : fmt::format("{}^{}", size.key, exponent);
  }
  if (factors.empty() || constant == 0) return fmt::format("{}", constant);
  return constant == 1 ? factors : fmt::format("{} {}", constant, factors);
}

PowerLaw power_law(const std::map<std::string, double>& keys) {
  PowerLaw law;
  for (const auto& [key, value] : keys) {
    bool known = key == "const";
    if (known) law.constant = value == 0 ? 0 : value;  // of -0 too
    for (const auto& size : size_names) {
      if (key != size.key) continue;
      law.exponents.*size.member = value;
      known = true;
    }
    if (!known)
      throw std::invalid_argument(fmt::format("unknown size '{}' in a power law: use const, N, M, Ne, K, D or L", key));
  }
  return law;
}

}  // namespace moe
