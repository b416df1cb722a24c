#include "dmft/site_batch_gpu.hpp"
#include "dmft/site_batch_template.hpp"
#include "support/cuda.hpp"

namespace moe {

namespace {

/// A replica's kernels are made by one thread, on its stream, and used by others on theirs.
template <class Real>
std::unique_ptr<ReplicaSampler> finished_sampler(const SiteProblem& problem, const KernelSet& kernels,
                                                 const SitePaths& paths) {
  auto sampler = detail::make_sampler<Cuda<Real>>(problem, kernels, paths);
  gpu::synchronise();
  return sampler;
}

}  // namespace

SiteBackend sites_on_gpu(Precision precision) {
  if (precision == Precision::float32) return {finished_sampler<float>, causal_pass<Cuda<float>>};
  return {finished_sampler<double>, causal_pass<Cuda<double>>};
}

}  // namespace moe
