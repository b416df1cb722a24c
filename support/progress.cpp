#include "support/progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double redraw_s = 0.1;  ///< of the bar
constexpr double first_line_s =
    2.0;  ///< after which a plain line appears; runs shorter than this print only the last one
constexpr double line_growth = 1.5;       ///< each plain line waits this much longer than the one before,
constexpr double longest_wait_s = 600.0;  ///< but no longer than this
constexpr int shortest_bar = 8, longest_bar = 40;

std::string duration_text(double seconds) {
  const long s = std::lround(std::max(0.0, seconds));
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

/// Three significant digits; slow work is told in units per minute or per hour.
std::string rate_text(double per_second) {
  if (!(per_second > 0)) return "-/s";
  if (per_second >= 1e4) return fmt::format("{:.1f}k/s", per_second / 1e3);
  if (per_second >= 100) return fmt::format("{:.0f}/s", per_second);
  if (per_second >= 0.1) return fmt::format("{:.3g}/s", per_second);
  if (per_second * 60 >= 0.1) return fmt::format("{:.3g}/min", per_second * 60);
  return fmt::format("{:.3g}/h", per_second * 3600);
}

double fraction(const ProgressState& s) {
  return s.total > 0 ? std::clamp(static_cast<double>(s.done) / static_cast<double>(s.total), 0.0, 1.0) : 1.0;
}
/// Rounded down, so that 100 % is said only of finished work.
int percent(const ProgressState& s) { return static_cast<int>(std::floor(100 * fraction(s))); }
double rate(const ProgressState& s) { return s.elapsed_s > 0 ? static_cast<double>(s.done) / s.elapsed_s : 0; }

std::string time_text(const ProgressState& s) {
  if (s.done >= s.total) return "took " + duration_text(s.elapsed_s);
  if (s.done <= 0 || s.elapsed_s <= 0) return "-:-- left";
  return duration_text(static_cast<double>(s.total - s.done) / rate(s)) + " left";
}

/// A terminal that can return to the start of its line.
bool draws_bars(int fd) {
  const char* term = std::getenv("TERM");
  return ::isatty(fd) != 0 && !(term != nullptr && std::strcmp(term, "dumb") == 0);
}

int terminal_columns(int fd) {
  winsize size{};
  return ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/// https://no-color.org: present and not empty.
bool wants_color() {
  const char* no_color = std::getenv("NO_COLOR");
  return !(no_color != nullptr && *no_color != '\0');
}

/// At most `n` bytes, never cutting a UTF-8 character; line breaks and control characters would tear the line.
std::string clipped(std::string text, int n) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  std::size_t size = std::min(text.size(), static_cast<std::size_t>(std::max(0, n)));
  if (size < text.size())
    while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  text.resize(size);
  return text;
}

int length(const std::string& text) { return static_cast<int>(text.size()); }

}  // namespace

std::string progress_line(const ProgressState& s) {
  return fmt::format("{}: {}/{} ({} %), {}, {}{}{}", s.label, s.done, s.total, percent(s), rate_text(rate(s)),
                     time_text(s), s.note.empty() ? "" : ", ", s.note);
}

std::string progress_bar(const ProgressState& s, int columns, bool color) {
  const std::string numbers = fmt::format("{:3d} %  {}  {}", percent(s), rate_text(rate(s)), time_text(s));
  std::string note = s.note.empty() ? "" : "  " + s.note;
  const int fixed = length(s.label) + 1 + length(numbers) + 3;  // "label [bar] numbers"
  const int bar = std::min(columns - fixed - length(note), longest_bar);
  const int width = bar >= shortest_bar ? bar : std::min(columns - fixed, shortest_bar);
  if (width < shortest_bar) return clipped(s.label + " " + numbers, columns);
  note = clipped(note, columns - fixed - width);
  const int filled = static_cast<int>(fraction(s) * width);
  std::string cells(static_cast<std::size_t>(filled), '=');
  if (filled < width) cells += '>';
  cells.resize(static_cast<std::size_t>(width), ' ');
  if (color) cells = "\x1b[36m" + cells + "\x1b[0m";
  return fmt::format("{} [{}] {}{}", s.label, cells, numbers, note);
}

struct Progress::Impl {
  std::mutex lock;
  ProgressState state;
  bool quiet = false, terminal = false, color = false, finished = false;
  Clock::time_point start = Clock::now();
  double next_s = 0;  ///< when something is printed next
  double wait_s = first_line_s;

  double elapsed() const { return std::chrono::duration<double>(Clock::now() - start).count(); }

  void draw() {
    // Blanks up to the edge instead of an erase code: nothing of a longer line stays, on any terminal.
    const int columns = std::max(1, terminal_columns(STDERR_FILENO) - 1);
    std::string line = progress_bar(state, columns, color);
    const std::size_t codes = color && line.find('\x1b') != std::string::npos ? 9 : 0;
    line.resize(std::max(line.size(), static_cast<std::size_t>(columns) + codes), ' ');
    std::fprintf(stderr, "\r%s", line.c_str());
    std::fflush(stderr);
  }

  void print(bool last) {
    if (terminal) {
      draw();
      if (last) std::fputc('\n', stderr);
      next_s = state.elapsed_s + redraw_s;
    } else {
      std::fprintf(stderr, "%s\n", progress_line(state).c_str());
      wait_s = std::min(wait_s * line_growth, longest_wait_s);
      next_s = state.elapsed_s + wait_s;
    }
    std::fflush(stderr);
  }
};

Progress::Progress(std::string label, long total, bool quiet) : impl_(std::make_unique<Impl>()) {
  impl_->state.label = std::move(label);
  impl_->state.total = total;
  impl_->quiet = quiet;
  impl_->terminal = draws_bars(STDERR_FILENO);
  impl_->color = wants_color();
  impl_->next_s = impl_->terminal ? 0 : first_line_s;
}

Progress::~Progress() { finish(); }

void Progress::advance(long units, const std::string& note) {
  const std::lock_guard<std::mutex> guard(impl_->lock);
  impl_->state.done += units;
  if (!note.empty()) impl_->state.note = note;
  if (impl_->quiet || impl_->finished) return;
  impl_->state.elapsed_s = impl_->elapsed();
  if (impl_->state.elapsed_s >= impl_->next_s && impl_->state.done < impl_->state.total) impl_->print(false);
}

void Progress::skip(long units) {
  const std::lock_guard<std::mutex> guard(impl_->lock);
  impl_->state.total -= units;
}

void Progress::finish() {
  const std::lock_guard<std::mutex> guard(impl_->lock);
  if (impl_->quiet || impl_->finished) return;
  impl_->finished = true;
  impl_->state.elapsed_s = impl_->elapsed();
  impl_->print(true);
}

}  // namespace moe
