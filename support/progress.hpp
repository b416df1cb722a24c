/// Progress: a bar with rate and time remaining on a terminal, plain lines at growing intervals elsewhere. Goes to stderr.
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
  /// Ends the line.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe
