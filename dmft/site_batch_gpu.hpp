/// Batches of sites on the GPU: site_batch_gpu.cu where nvcc is, site_batch_no_gpu.cpp elsewhere.
#pragma once

#include "dmft/site_sampling.hpp"

namespace moe {

/// Throws BackendError in a build without CUDA.
SiteBackend sites_on_gpu(Precision precision);

}  // namespace moe
