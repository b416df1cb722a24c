/// Progress: a bar with rate and time remaining on a terminal, plain lines at growing intervals elsewhere. Goes to
/// stderr.
#pragma once

#include <memory>
#include <string>

namespace moe {

class Progress {
 public:
  /// `total` units of work; quiet prints nothing.
  Progress(std::string label, long total, bool quiet);
  ~Progress();
  /// Thread-safe. `note` is shown behind the bar, e.g. "loss 0.41".
  void advance(long units, const std::string& note = "");
  /// Units that need no work after all: neither done nor to do.
  void skip(long units);
  /// Ends the line.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// What a progress line shows.
struct ProgressState {
  std::string label;
  std::string note;
  long done = 0;
  long total = 0;
  double elapsed_s = 0;
};

/// "label: 30/100 (30 %), 12.5/s, 0:06 left, loss 0.41", and after the last unit "..., took 0:08".
std::string progress_line(const ProgressState& state);

/// "label [======>     ]  30 %  12.5/s  0:06 left  loss 0.41" in at most `columns` characters (colour codes not
/// counted): the note is cut first, then the bar dropped. `color` paints the bar.
std::string progress_bar(const ProgressState& state, int columns, bool color);

}  // namespace moe
