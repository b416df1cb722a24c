/// Files of ours that were altered or cut short after they were written: refused with a sentence, whoever reads them.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "dmft/limit_file.hpp"
#include "dmft/solve.hpp"
#include "support/checkpoint.hpp"
#include "support/hdf5.hpp"
#include "tests/network_fixture.hpp"
#include "tests/program.hpp"
#include "validation/network_file.hpp"
#include "validation/run_store.hpp"

namespace {

namespace fs = std::filesystem;

/// One file of each kind that our programs write and read again, by what it is.
struct Written {
  explicit Written(const TemporaryFolder& folder) {
    moe::RunSpec spec = network_fixture::spec("II", "mssp", moe::OptimizerKind::sgd, 2);
    spec.training.loss = moe::Loss::mse;
    spec.output.observables = {"none"};
    spec.sampling.neurons = 12;
    spec.sampling.replicas = 3;
    spec.network.widths = {8};
    spec.network.seeds = 1;
    const moe::Dataset data = network_fixture::data(3, 3, 2);
    const auto solve = [&](const std::string& file) {
      moe::Checkpoints checkpoints({file, 0, ""}, moe::solve_identity(spec, data, "dmft_solve"));
      moe::SolveOptions options;
      options.threads = 1;
      options.checkpoints = &checkpoints;
      return moe::solve_limit(spec, data, options);
    };
    moe::write_limit_file(folder / "limit.h5", "dmft_solve", spec, data, solve(folder / "sweep.ckpt"));
    moe::write_network_file(folder / "networks.h5", "moe_train", spec, data, moe::train_networks(spec, data, 1));
    moe::RunStore store(folder / "runs", spec, data, {0, {}});
    store.save(moe::train_network(spec, data, 8, 0));
    int step = 7;
    store.keep(
        8, 1, [&](moe::Archive& a) { a("step", step); }, true);
    spec.sampling.method = moe::Method::iterate;
    solve(folder / "iterate.ckpt");
    files = {{"result of the limit", folder / "limit.h5"},
             {"result of networks", folder / "networks.h5"},
             {"checkpoint of a sweep", folder / "sweep.ckpt"},
             {"checkpoint of kernel iteration", folder / "iterate.ckpt"},
             {"finished network", folder / "runs/N8_seed0.h5"},
             {"network in progress", folder / "runs/in_progress_N8_seed1.h5"},
             {"what a sweep was asked", folder / "runs/sweep.h5"}};
  }
  std::vector<std::pair<std::string, std::string>> files;
};

/// What a reader says of the file as it is now; "" where it reads it.
std::string refusal(const std::string& path) {
  return message_of<moe::IoError>([&] { moe::H5Reader(path).verify(); });
}

}  // namespace

TEST_CASE("files of every kind that were altered or cut short anywhere are refused with path and sentence [sample]") {
  const TemporaryFolder folder;
  std::mt19937 random(5);
  for (const auto& file_of_kind : Written(folder).files) {
    const std::string &what = file_of_kind.first, &path = file_of_kind.second;
    INFO(what);
    const std::string whole = read_bytes(path);
    REQUIRE(refusal(path).empty());
    for (int k = 0; k < 15; ++k) {
      std::string bytes = whole;
      const std::size_t at = random() % bytes.size();
      bytes[at] = static_cast<char>(bytes[at] ^ (1 + random() % 255));
      write_bytes(path, bytes);
      CHECK_MESSAGE(contains(refusal(path), path), "byte ", at);
      write_bytes(path, whole.substr(0, at));
      CHECK_MESSAGE(contains(refusal(path), path), "cut at ", at);
    }
    write_bytes(path, whole + "\n");
    CHECK(contains(refusal(path), "cut short or altered"));
    write_bytes(path, whole);
    CHECK(refusal(path).empty());
  }
}

TEST_CASE(
    "files of every kind: no bit of any byte can change, nor any end be missing, unseen [every byte, of large "
    "files every seventh] [slow]") {
  const TemporaryFolder folder;
  std::mt19937 random(6);
  for (const auto& file_of_kind : Written(folder).files) {
    const std::string &what = file_of_kind.first, &path = file_of_kind.second;
    const std::string whole = read_bytes(path);
    const moe::H5Reader reader(path);
    reader.verify();
    std::size_t unseen = 0;
    const auto look = [&](std::size_t at) {
      if (!message_of<moe::IoError>([&] { reader.verify(); }).empty()) return;
      ++unseen;
      MESSAGE(what << ", byte " << at << ": not seen");
    };
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      const auto put = [&](std::size_t at, char byte) {
        file.seekp(static_cast<std::streamoff>(at));
        file.put(byte);
        file.flush();
        REQUIRE(file.good());
      };
      // Large ones, whose bytes are alike, by every seventh.
      for (std::size_t at = 0; at<whole.size(); at += whole.size()> 50000 ? 7 : 1) {
        put(at, static_cast<char>(whole[at] ^ (1 << random() % 8)));
        look(at);
        put(at, whole[at]);
      }
      reader.verify();
    }
    for (std::size_t size = whole.size(); size-- > 0;) {
      fs::resize_file(path, size);
      if (whole.size() < 50000 || size % 97 == 0) look(size);
    }
    CHECK(unseen == 0);
  }
}

TEST_CASE("programs refuse altered files with status 2, the path and a sentence [each that reads one]") {
  const TemporaryFolder folder;
  const Written written(folder);
  const auto path_of = [&](const std::string& name) { return folder / name; };
  struct Reader {
    std::string file, program;
    std::vector<std::string> arguments;
  };
  const std::vector<std::string> compared = {"--limit", path_of("limit.h5"), "--networks", path_of("networks.h5"),
                                             "--out",   path_of("v.h5")};
  for (const Reader& r :
       {Reader{"sweep.ckpt", "dmft_solve", {"--resume", path_of("sweep.ckpt"), "--out", path_of("x.h5")}},
        {"iterate.ckpt", "dmft_solve", {"--resume", path_of("iterate.ckpt"), "--out", path_of("x.h5")}},
        {"runs/sweep.h5", "moe_train", {"--resume", path_of("runs"), "--out", path_of("x.h5")}},
        {"limit.h5", "dmft_validate", compared},
        {"networks.h5", "dmft_validate", compared}}) {
    const std::string path = path_of(r.file), whole = read_bytes(path);
    std::string bytes = whole;
    bytes[bytes.size() - 40] ^= 1;
    for (const std::string& altered : {bytes, whole.substr(0, whole.size() - 1)}) {
      write_bytes(path, altered);
      const ProgramRun run = run_program(r.program, r.arguments);
      INFO(r.program, " and ", r.file, ": ", run.text);
      CHECK(run.status == 2);
      CHECK(contains(run.text, path + " was cut short or altered"));
      CHECK_FALSE(fs::exists(path_of("x.h5")));
      CHECK_FALSE(fs::exists(path_of("v.h5")));
    }
    write_bytes(path, whole);
  }
}
