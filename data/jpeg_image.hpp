/// Decodes one small JPEG file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe {

/// Pixels 0..255 of a `side` x `side` image as three planes (red, green, blue), row by row: 3*side*side bytes. Grey
/// images get three equal planes. Throws IoError when the file is missing, not such an image, or cut short.
std::vector<std::uint8_t> read_jpeg(const std::string& path, unsigned side);

}  // namespace moe
