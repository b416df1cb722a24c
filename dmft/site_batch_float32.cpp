#include "dmft/site_batch_template.hpp"

namespace moe {

template struct SiteKernels<Cpu<float>>;
template class NeuronBatch<Cpu<float>>;
template class ExpertBatch<Cpu<float>>;
template BatchMeans sample_batch<Cpu<float>>(const SiteProblem&, std::vector<SiteKernels<Cpu<float>>>&,
                                             const BatchCounts&, StreamNumbers&, const std::atomic<bool>*);
template SiteBackend site_backend<Cpu<float>>();

}  // namespace moe
