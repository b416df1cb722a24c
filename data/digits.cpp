#include <cstdint>
#include <memory>
#include <stdexcept>

#include "data/source.hpp"

namespace moe {
namespace detail {
/// Lines of 64 pixels 0..16 and the digit, separated by commas; from data/digits.csv.
extern const char digits_csv[];
}  // namespace detail

namespace {
constexpr int num_pixels = 64;
}

LabelledSource digits_source() {
  auto pixels = std::make_shared<std::vector<std::uint8_t>>();
  LabelledSource source;
  source.dimension = num_pixels;
  source.classes = 10;
  int number = 0;
  for (const char* c = detail::digits_csv; *c != '\0'; ++c) {
    if (*c >= '0' && *c <= '9') {
      number = 10 * number + (*c - '0');
    } else {
      if (*c == ',')
        pixels->push_back(static_cast<std::uint8_t>(number));
      else
        source.pool.labels.push_back(number);
      number = 0;
    }
  }
  if (pixels->size() != source.pool.labels.size() * num_pixels)
    throw std::logic_error("data/digits.csv was compiled in with lines that are not 64 pixels and a digit");
  source.pool.read = [pixels](std::size_t row, double* x) {
    for (std::size_t d = 0; d < num_pixels; ++d) x[d] = (*pixels)[row * num_pixels + d];
  };
  return source;
}

}  // namespace moe
