#include "dmft/march_gpu.hpp"

#include "dmft/march_template.hpp"
#include "support/cuda.hpp"

namespace moe {

void march_on_gpu(const Plan& plan, int index, const SolveOptions& options, const std::atomic<bool>& stop,
                  Record& record) {
  if (plan.spec->sampling.precision == Precision::float32)
    march<Cuda<float>>(plan, index, options, stop, record);
  else
    march<Cuda<double>>(plan, index, options, stop, record);
}

}  // namespace moe
