/// One start of a program lists all that can be known to be wrong without a run: no fault hides another.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "support/gpu.hpp"
#include "tests/program.hpp"

namespace {

/// What is wrong, and what the program says of it.
struct Fault {
  std::vector<std::string> arguments;
  std::string said;
};

std::size_t listed(const std::string& text) {
  std::size_t count = 0;
  for (std::size_t at = text.find("\n  - "); at != std::string::npos; at = text.find("\n  - ", at + 1)) ++count;
  return count;
}

/// Each fault by itself is one fault, and all of them at once are as many as they are.
void check_together(const std::string& program, const std::vector<std::string>& rest,
                    const std::vector<Fault>& faults) {
  const TemporaryFolder folder;
  std::vector<std::string> all = rest;
  const auto with_out = [&](std::vector<std::string> words) {
    if (std::find(words.begin(), words.end(), "--out") == words.end())
      words.insert(words.end(), {"--out", folder / "a.h5"});
    return words;
  };
  for (const Fault& fault : faults) {
    std::vector<std::string> one = rest;
    one.insert(one.end(), fault.arguments.begin(), fault.arguments.end());
    all.insert(all.end(), fault.arguments.begin(), fault.arguments.end());
    const ProgramRun run = run_program(program, with_out(one));
    CAPTURE(run.text);
    CHECK(run.status == 2);
    CHECK_MESSAGE(contains(run.text, fault.said), fault.said);
    CHECK(listed(run.text) == 1);
  }
  const ProgramRun run = run_program(program, with_out(all));
  CAPTURE(run.text);
  CHECK(run.status == 2);
  for (const Fault& fault : faults) CHECK_MESSAGE(contains(run.text, fault.said), fault.said);
  CHECK(listed(run.text) == faults.size());
  CHECK(folder.file_count() == 0);
}

const std::vector<std::string> small = {"--widths",  "8,16", "--seeds",    "2", "--steps",  "2",
                                        "--train",   "8",    "--test",     "0", "--source", "gaussian",
                                        "--neurons", "64",   "--replicas", "3"};

/// Of every program that runs something. Each stands for another stage of a start.
std::vector<Fault> common() {
  std::vector<Fault> faults = {
      {{"--nuerons", "3"}, "--nuerons is an unknown flag"},
      {{"--lr", "-1"}, "optimizer.lr = -1.0 (--lr on the command line)"},
      {{"--threads", "x"}, "threads = x"},
      {{"--config", "/nonexistent/run.toml"}, "/nonexistent/run.toml: cannot be read"},
      {{"--out", "/nonexistent/a.h5"}, "cannot write /nonexistent/a.h5"},
      {{"--source", "/nonexistent/data.h5"},
       "data.source = /nonexistent/data.h5 (--source on the command line): cannot"},
      {{"--param", "nosuch"}, "model.param = \"nosuch\" (--param on the command line)"},
  };
  if (!moe::gpu::device().present) faults.push_back({{"--device", "cuda"}, "--device cuda: "});
  return faults;
}

std::vector<Fault> joined(std::vector<Fault> faults, const std::vector<Fault>& more) {
  faults.insert(faults.end(), more.begin(), more.end());
  return faults;
}

}  // namespace

TEST_CASE("dmft_solve lists faults of the command line, files, data, table, limit and checkpoint together") {
  check_together("dmft_solve", small,
                 joined(common(), {{{"--resume", program_folder() + "/none.ckpt"}, "/none.ckpt: No such file"},
                                   {{"--checkpoint", "/nonexistent/b.ckpt"}, "cannot write /nonexistent/b.ckpt"}}));
  check_together("dmft_solve", small,
                 {{{"--classes", "1"}, "data.classes = 1"},
                  {{"--steps", "2", "--set", "output.kernels_at=3"}, "output.kernels_at = 3"},
                  {{"--optimizer", "sgd", "--method", "iterate", "--dynamics", "flow"},
                   "training.dynamics = \"flow\" (--dynamics on the command line): kernel"},
                  {{"--experts-per-width", "0.001"}, "gives no expert samples at width 64"},
                  {{"--checkpoint-every", "3s"}, "--checkpoint-every: there is no checkpoint"}});
  // What the limit refuses beside what the data set refuses, and what the machine does not hold beside what cannot be written.
  check_together("dmft_solve", small,
                 {{{"--source", "digits", "--train", "5000"}, "data.train = 5000"},
                  {{"--param", "mup", "--optimizer", "signsgd"}, "has no limit with mup"}});
  check_together(
      "dmft_solve", small,
      {{{"--neurons", "16777216"}, "memory: "}, {{"--out", "/nonexistent/a.h5"}, "cannot write /nonexistent/a.h5"}});
}

TEST_CASE("moe_train lists faults of the command line, files, data, table, sizes, weights and device together") {
  check_together("moe_train", small,
                 joined(common(), {{{"--init-from", "/nonexistent/w.h5"}, "network.init_from = /nonexistent/w.h5"},
                                   {{"--resume", "/nonexistent/runs"}, "there are no runs in /nonexistent/runs"}}));
  check_together(
      "moe_train", small,
      {{{"--classes", "1"}, "data.classes = 1"},
       {{"--tf32"}, "network.tf32 = true"},
       {{"--param", "nosuch"}, "model.param = \"nosuch\""},
       {{"--widths", "8", "--regime", "III", "--experts-per-width", "0.001"}, "no experts at"},
       {{"--widths", "8", "--regime", "III", "--expert-width-per-width", "0.001"}, "no hidden units in an expert at"}});
}

TEST_CASE("dmft_validate lists faults of both sides, and of what was asked for, together") {
  check_together("dmft_validate", small,
                 joined(common(), {{{"--init-from", "/nonexistent/w.h5"}, "network.init_from = /nonexistent/w.h5"},
                                   {{"--replicas", "1"}, "sampling.replicas = 1"},
                                   {{"--force"}, "--force is about files"},
                                   {{"--sweep-loss", "tail"}, "--sweep-loss belongs to --lr-sweep"},
                                   {{"--checkpoint-every", "3s"}, "keeps nothing of a run"}}));
  check_together("dmft_validate", small,
                 {{{"--optimizer", "sgd", "--method", "iterate", "--dynamics", "flow"},
                   "training.dynamics = \"flow\" (--dynamics on the command line): kernel"},
                  {{"--classes", "1"}, "data.classes = 1"},
                  {{"--widths", "8"}, "network.widths = [8]"},
                  {{"--tf32"}, "network.tf32 = true"}});
  check_together("dmft_validate", small,
                 {{{"--coordinate-check", "mup,nosuch"}, "model.param = \"nosuch\""},
                  {{"--source", "/nonexistent/data.h5"}, "data.source = /nonexistent/data.h5"},
                  {{"--seeds", "1"}, "network.seeds = 1"}});
  check_together("dmft_validate", small,
                 {{{"--lr-sweep", "3:0.03:9"}, "3:0.03:9"},
                  {{"--source", "/nonexistent/data.h5"}, "data.source = /nonexistent/data.h5"},
                  {{"--model.nothing", "1"}, "model.nothing"}});
}

TEST_CASE("a key that was refused is told once: its default, which stands for it, is not held against other keys") {
  const auto said = [](std::vector<std::string> words) {
    words.insert(words.end(), {"--out", "/nonexistent/a.h5"});
    const ProgramRun run = run_program("dmft_solve", words);
    CAPTURE(run.text);
    CHECK(run.status == 2);
    return listed(run.text) - 1;
  };
  CHECK(said({"--regime", "IV", "--param", "mup_moe"}) == 1);   // which has no regime II, the default
  CHECK(said({"--optimizer", "adm", "--param", "sp"}) == 1);    // which has no limit with adam
  CHECK(said({"--source", "nosuch", "--train", "5000"}) == 1);  // which digits do not have
  CHECK(said({"--test", "-1", "--train", "1700"}) == 1);        // which leave fewer than the default of 256
  CHECK(said({"--regime", "IV", "--param", "nosuch"}) == 2);    // what is known of it all the same
}

TEST_CASE("moe_param lists faults of the command line, sizes, desiderata and table together") {
  const auto check = [](std::vector<std::string> words, const std::vector<std::string>& pieces) {
    words.insert(words.end(), {"--param", "nosuch", "--lr", "-1", "--format", "no", "--nuerons", "3"});
    const ProgramRun run = run_program("moe_param", words);
    CAPTURE(run.text);
    CHECK(run.status == 2);
    for (const char* piece : {"model.param = \"nosuch\"", "optimizer.lr = -1.0", "--format no", "--nuerons"})
      CHECK_MESSAGE(contains(run.text, piece), piece);
    for (const std::string& piece : pieces) CHECK_MESSAGE(contains(run.text, piece), piece);
  };
  for (const char* command : {"table", "constants", "exponents"}) check({command}, {});
  check({"transfer", "--base", "N=1"}, {"--base lacks M", "--target is missing"});
  check({"check", "--desiderata", "none"}, {"there is no 'none'"});
}
