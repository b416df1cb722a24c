/// Order parameters of kernel iteration (theory section 6): correlations and responses over all pairs of queries.
#pragma once

#include <fmt/format.h>

#include <Eigen/Core>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dmft/causal_matrix.hpp"
#include "dmft/limit_spec.hpp"

namespace moe {

/// Correlations <x x> of the queries and responses (T14). Forward queries are phi (of Q, A) and G v (of B), backward ones rho, ghat, D.
/// With shared matrices the queries are averages over experts, <G v>_i/kappa and <ghat>_i/kappa, with correlations of their own.
enum class Kernel {
  phi,          ///< <phi phi>_n
  D,            ///< <D D>_n
  rho,          ///< <rho rho>_i
  ghat,         ///< <ghat ghat>_(i,a)
  Gv,           ///< <G v G v>_(i,a)
  shared_ghat,  ///< of <ghat>_i/kappa, over a
  shared_Gv,    ///< of <G v>_i/kappa, over a
  router_x,     ///< <d phi/d beta> of Q
  router_z,     ///< <d rho/d chi> of Q
  A_x,          ///< <d phi/d beta> of A
  A_z,          ///< <d ghat/d chi> of A
  B_x,          ///< <d (G v)/d beta> of B
  B_z,          ///< <d D/d chi> of B
  count
};
inline constexpr std::size_t num_kernels = static_cast<std::size_t>(Kernel::count);
inline constexpr std::array<const char*, num_kernels> kernel_names = {
    "phi phi",     "D D",           "rho rho",     "ghat ghat",      "Gv Gv",      "shared ghat ghat", "shared Gv Gv",
    "d phi/d b_Q", "d rho/d chi_Q", "d phi/d b_A", "d ghat/d chi_A", "d Gv/d b_B", "d D/d chi_B"};

/// Over queries (step, sample) of every block, sample fastest. In the place of a response, products <Z x> of white numbers, as rows, with what
/// is asked, the columns (detail::response_by_parts). What a regime lacks is empty.
class KernelSet {
 public:
  using Matrices = std::vector<CausalMatrix>;

  KernelSet() : KernelSet(1) {}
  /// Empty kernels, which will be in memory where there is no file.
  explicit KernelSet(int blocks, std::shared_ptr<ScratchFile> file = nullptr)
      : kernels_(num_kernels * static_cast<std::size_t>(blocks), CausalMatrix(std::move(file))) {}
  /// Of the first block, or of block l.
  CausalMatrix& operator[](Kernel k) { return of(0, k); }
  const CausalMatrix& operator[](Kernel k) const { return of(0, k); }
  CausalMatrix& of(int l, Kernel k) { return kernels_[place(l, k)]; }
  const CausalMatrix& of(int l, Kernel k) const { return kernels_[place(l, k)]; }
  /// Block after block, in the order of Kernel.
  Matrices& all() { return kernels_; }
  const Matrices& all() const { return kernels_; }
  std::size_t size() const { return kernels_.size(); }
  const std::shared_ptr<ScratchFile>& file() const { return kernels_[0].file(); }
  /// Of all()[k].
  std::string name(std::size_t k) const {
    const std::string kernel = kernel_names[k % num_kernels];
    return size() == num_kernels ? kernel : kernel + fmt::format(" of block {}", k / num_kernels + 1);
  }

  KernelSet& operator+=(const KernelSet& other) {
    for (std::size_t k = 0; k < size(); ++k) add(k, other.kernels_[k]);
    return *this;
  }
  /// all()[k] += kernel, nothing being zero.
  void add(std::size_t k, const CausalMatrix& kernel) {
    if (kernel.empty()) return;
    if (kernels_[k].empty())
      kernels_[k] = kernel;
    else
      kernels_[k] += kernel;
  }
  KernelSet& operator*=(double factor) {
    for (CausalMatrix& kernel : kernels_) kernel *= factor;
    return *this;
  }
  void clear() {
    for (CausalMatrix& kernel : kernels_) kernel.clear();
  }

  void transfer(Archive& a) {
    for (std::size_t k = 0; k < size(); ++k) a(fmt::format("kernel{}", k), kernels_[k]);
  }

 private:
  static std::size_t place(int l, Kernel k) {
    return num_kernels * static_cast<std::size_t>(l) + static_cast<std::size_t>(k);
  }
  Matrices kernels_;
};

/// Zeros for everything that this limit has.
KernelSet zero_kernels(const LimitSpec& limit, const CausalShape& shape, std::shared_ptr<ScratchFile> file = nullptr);

/// Of a query's mean square, what it has to add to those before it: less is left out of a root. Noise of products <Z x> is divided by
/// the root of this (docs/theory.md, 6.2).
inline constexpr double root_cutoff = 1e-3;
/// The same of its root mean square, for what sites have sent.
inline const double basis_tolerance = std::sqrt(root_cutoff);

}  // namespace moe
