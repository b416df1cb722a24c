#include "dmft/march_template.hpp"

namespace moe {

template void march<Cpu<float>>(const Plan&, int, const SolveOptions&, const std::atomic<bool>&, Record&);
template std::vector<std::string> noisy_gradients<Cpu<float>>(const RunSpec&, const Dataset&, LimitSpec);

}  // namespace moe
