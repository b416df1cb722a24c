/// What a progress line says, against hand-computed text.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>
#include <thread>
#include <vector>

#include "support/progress.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;

namespace {

ProgressState state(long done, long total, double elapsed_s, std::string note = "") {
  return {"solve", std::move(note), done, total, elapsed_s};
}

/// What `call` writes to stderr.
template <class Call>
std::string captured_stderr(Call&& call) {
  const TemporaryFolder folder;
  std::fflush(stderr);
  const int saved = ::dup(STDERR_FILENO);
  REQUIRE(std::freopen((folder / "stderr").c_str(), "w", stderr));
  call();
  std::fflush(stderr);
  ::dup2(saved, STDERR_FILENO);
  ::close(saved);
  return read_bytes(folder / "stderr");
}

}  // namespace

TEST_CASE("progress lines state count, percent, rate and remaining time") {
  CHECK(progress_line(state(30, 100, 2.4, "loss 0.41")) == "solve: 30/100 (30 %), 12.5/s, 0:06 left, loss 0.41");
  CHECK(progress_line(state(100, 100, 8)) == "solve: 100/100 (100 %), 12.5/s, took 0:08");
  CHECK(progress_line(state(0, 100, 0)) == "solve: 0/100 (0 %), -/s, -:-- left");
  CHECK(progress_line(state(999, 1000, 999)) == "solve: 999/1000 (99 %), 1/s, 0:01 left");
  CHECK(progress_line(state(1, 3, 3600)) == "solve: 1/3 (33 %), 1/h, 2:00:00 left");
  CHECK(progress_line(state(1, 3, 60)) == "solve: 1/3 (33 %), 1/min, 2:00 left");
  CHECK(progress_line(state(50000, 100000, 2)) == "solve: 50000/100000 (50 %), 25.0k/s, 0:02 left");
}

TEST_CASE("progress bars fit their width: the note is cut first, then the bar dropped") {
  const ProgressState s = state(30, 100, 2.4, "loss 0.41");
  CHECK(progress_bar(s, 100, false) ==
        "solve [============>                           ]  30 %  12.5/s  0:06 left  loss 0.41");
  CHECK(progress_bar(s, 51, false) == "solve [==>     ]  30 %  12.5/s  0:06 left  loss 0.4");
  CHECK(progress_bar(s, 36, false) == "solve  30 %  12.5/s  0:06 left");
  for (int columns = 1; columns < 120; ++columns)
    CHECK(progress_bar(s, columns, false).size() <= static_cast<std::size_t>(columns));
  CHECK(contains(progress_bar(s, 100, true), "\x1b[36m============>"));
  CHECK_FALSE(contains(progress_bar(s, 100, false), "\x1b"));
  CHECK(contains(progress_bar(state(100, 100, 8), 80, false), "[========================================] 100 %"));
}

TEST_CASE("progress without a terminal prints one plain line for a short run, counting from all threads; quiet none") {
  const auto work = [](bool quiet) {
    Progress progress("train", 4000, quiet);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) progress.advance(1, "loss 1");
      });
    for (std::thread& thread : threads) thread.join();
    progress.finish();
    progress.finish();
  };
  const std::string text = captured_stderr([&] { work(false); });
  CHECK(contains(text, "train: 4000/4000 (100 %)"));
  CHECK(contains(text, "loss 1\n"));
  CHECK(text.find('\n') == text.size() - 1);
  CHECK_FALSE(contains(text, "\r"));
  CHECK(captured_stderr([&] { work(true); }).empty());
}
