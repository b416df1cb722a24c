#include "dmft/site_batch_template.hpp"

namespace moe {

template struct SiteKernels<Cpu<double>>;
template class NeuronBatch<Cpu<double>>;
template class ExpertBatch<Cpu<double>>;
template BatchMeans sample_batch<Cpu<double>>(const SiteProblem&, std::vector<SiteKernels<Cpu<double>>>&,
                                              const BatchCounts&, StreamNumbers&, const std::atomic<bool>*);
template SiteBackend site_backend<Cpu<double>>();

}  // namespace moe
