#pragma once

namespace moe {

/// How a factor enters a product.
enum class Op { plain, transposed };

}  // namespace moe
