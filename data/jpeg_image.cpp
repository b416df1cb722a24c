#include "data/jpeg_image.hpp"

#include <fmt/format.h>

#include <csetjmp>
#include <cstdio>
#include <fstream>

#include <jerror.h>
#include <jpeglib.h>

#include "support/error.hpp"

namespace moe {
namespace {

constexpr std::size_t max_file_bytes = std::size_t{1} << 22;

/// libjpeg ends a failed call through this; the message is formatted before jumping.
struct ErrorHandler {
  jpeg_error_mgr base;
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
};

[[noreturn]] void leave(j_common_ptr info) {
  auto* handler = reinterpret_cast<ErrorHandler*>(info->err);
  handler->base.format_message(info, handler->message);
  std::longjmp(handler->jump, 1);
}

/// Truncated or corrupt data is only a warning to libjpeg, which then invents grey pixels. Here it ends the decoding.
void on_message(j_common_ptr info, int level) {
  const int code = info->err->msg_code;
  if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE)) leave(info);
}

std::vector<std::uint8_t> read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw IoError(fmt::format("io: cannot open {}. Check the path and its permissions.", path));
  std::vector<std::uint8_t> bytes(max_file_bytes);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<std::size_t>(in.gcount()));
  if (bytes.size() == max_file_bytes)
    throw IoError(fmt::format("io: {} has more than {} bytes, too many for a small image. Check that it is one.", path,
                              max_file_bytes));
  return bytes;
}

/// Decodes interleaved RGB rows into `rgb`. Returns "" or what is wrong. Holds no object with a destructor: longjmp
/// skips those.
bool decode(const std::uint8_t* bytes, std::size_t size, unsigned side, std::uint8_t* rgb, ErrorHandler& handler) {
  jpeg_decompress_struct info;
  info.err = jpeg_std_error(&handler.base);
  handler.base.error_exit = leave;
  handler.base.emit_message = on_message;
  if (setjmp(handler.jump)) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, bytes, static_cast<unsigned long>(size));
  jpeg_read_header(&info, TRUE);
  if (info.image_width != side || info.image_height != side) {
    std::snprintf(handler.message, sizeof handler.message, "it has %u x %u pixels, expected %u x %u", info.image_width,
                  info.image_height, side, side);
    std::longjmp(handler.jump, 1);
  }
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  while (info.output_scanline < side) {
    JSAMPROW row = rgb + std::size_t{info.output_scanline} * side * 3;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return true;
}

}  // namespace

std::vector<std::uint8_t> read_jpeg(const std::string& path, unsigned side) {
  const std::vector<std::uint8_t> bytes = read_bytes(path);
  const std::size_t plane = std::size_t{side} * side;
  std::vector<std::uint8_t> rgb(3 * plane), planes(3 * plane);
  ErrorHandler handler;
  if (!decode(bytes.data(), bytes.size(), side, rgb.data(), handler))
    throw IoError(fmt::format("io: {} is not a complete JPEG image of {} x {} pixels: {}. Fetch the data set again.",
                              path, side, side, handler.message));
  for (std::size_t pixel = 0; pixel < plane; ++pixel)
    for (std::size_t channel = 0; channel < 3; ++channel) planes[channel * plane + pixel] = rgb[3 * pixel + channel];
  return planes;
}

}  // namespace moe
