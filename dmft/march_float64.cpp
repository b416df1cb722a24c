#include "dmft/march_template.hpp"

namespace moe {

template void march<Cpu<double>>(const Plan&, int, const SolveOptions&, const std::atomic<bool>&, Record&);

}  // namespace moe
