/// What a network's training asks of a backend B beyond the array operations of support/cpu.hpp: three templates that every backend
/// specialises. Cpu: trainer_products.hpp, trainer_pairs.hpp. Cuda: trainer_products_gpu.hpp, trainer_pairs_gpu.hpp.
#pragma once

namespace moe::trainer {

/// The products of a network and the updates made of them, all on tensors whose rows are the N neurons.
template <class B>
struct Products;

/// Gates and fields over (expert, token) pairs, between the products. Pairs<B>::Dispatch says which experts a token uses.
template <class B>
struct Pairs;

/// Throws NumericsError naming the step and the first field that holds NaN or infinity: at once, or where it settles. settle(values)
/// brings these to the host as well, without waiting twice.
template <class B>
class Guard;

}  // namespace moe::trainer
