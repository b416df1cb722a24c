#include "dmft/site_batch_gpu.hpp"
#include "support/gpu.hpp"

namespace moe {

SiteBackend sites_on_gpu(Precision) { throw BackendError("--device cuda: " + gpu::device().why_not); }

}  // namespace moe
