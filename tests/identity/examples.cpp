// Every configuration in examples/ runs through the built programs, limit and networks, and says what its comments promise.
#include <doctest/doctest.h>

#include <sys/wait.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "support/hdf5.hpp"
#include "tests/folders.hpp"
#include "tests/temporary_folder.hpp"

namespace {

const std::string examples = source_folder() + "/examples/";

/// A stand-in for the package dataset-fashion-mnist: its four files with `n` samples of arithmetic noise.
void write_images(const TemporaryFolder& folder, std::uint32_t n) {
  const auto number = [](std::uint32_t v) {
    std::string bytes;
    for (int shift : {24, 16, 8, 0}) bytes += static_cast<char>(v >> shift & 0xFFU);
    return bytes;
  };
  for (const char* part : {"train", "t10k"}) {
    std::string images = number(2051) + number(n) + number(28) + number(28), labels = number(2049) + number(n);
    for (std::uint32_t k = 0; k < n * 784; ++k) images += static_cast<char>(k * 2654435761U >> 24);
    for (std::uint32_t k = 0; k < n; ++k) labels += static_cast<char>(k % 10);
    write_bytes(folder / (std::string(part) + "-images-idx3-ubyte"), images);
    write_bytes(folder / (std::string(part) + "-labels-idx1-ubyte"), labels);
  }
}

/// Exit status of a built program; what it says goes to `log`.
int run(const std::string& program, const std::string& arguments, const std::string& log) {
  const int status =
      std::system(("'" + program_folder() + "/" + program + "' " + arguments + " >'" + log + "' 2>&1").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

bool all_finite(const moe::H5Array& data) {
  for (double v : data.values)
    if (!std::isfinite(v)) return false;
  return !data.values.empty();
}

}  // namespace

TEST_CASE("every example runs, limit and networks, two steps of small counts through the built programs") {
  const TemporaryFolder folder, images;
  write_images(images, 70);
  std::set<std::string> seen;
  for (const auto& entry : std::filesystem::directory_iterator(examples)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".toml") || name.ends_with(".param.toml")) continue;
    seen.insert(name);
    std::string common = "'" + entry.path().string() + "' --quiet --steps 2 --threads 1 --observables none";
    if (name == "fashion_mnist.toml") common += " --train 64 --set data.path='" + images.path().string() + "'";
    const std::string out = folder / "out.h5", log = folder / "log";
    CAPTURE(name);
    CAPTURE(common);
    const int solved = run("dmft_solve", common + " --neurons 60 --replicas 2 --out '" + out + "'", log);
    INFO(read_bytes(log));
    REQUIRE(solved == 0);
    {
      const moe::H5Reader limit(out);
      CHECK(all_finite(limit.read("/limit/loss")));
      CHECK(all_finite(limit.read("/limit/loss_sem")));
      CHECK(limit.attribute_text("/limit", "status") == "complete");
    }
    const int trained = run("moe_train", common + " --widths 16 --seeds 2 --out '" + out + "'", log);
    INFO(read_bytes(log));
    REQUIRE(trained == 0);
    CHECK(all_finite(moe::H5Reader(out).read("/network/N16/loss")));
  }
  for (const char* name : {"quickstart.toml", "fashion_mnist.toml", "dense_network.toml", "own_table.toml",
                           "wide_experts.toml", "all_grow.toml", "deep_recipe.toml", "deep_study.toml"})
    CHECK_MESSAGE(seen.contains(name), name);
}

TEST_CASE("every script of examples/ runs in small [examples]") {
  const TemporaryFolder folder, images;
  write_images(images, 140);
  const std::string log = folder / "log", out = folder / "out", source = source_folder();
  const std::string programs = "MOE_DMFT_BIN='" + program_folder() + "' ", data = images.path().string();
  // In the place of srun: one process, without srun's own flags.
  write_bytes(folder / "srun", "#!/bin/sh\nwhile [ \"${1#--}\" != \"$1\" ]; do shift; done\nexec \"$@\"\n");
  std::filesystem::permissions(folder / "srun", std::filesystem::perms::owner_all);
  std::filesystem::create_directory(out);
  // Shell scripts in a checkout whose path has a space.
  const std::string spaced = folder / "a checkout/examples/";
  std::filesystem::create_directories(spaced);
  std::filesystem::copy(examples, spaced);
  const std::string
      depth = "'" + spaced + "depth.sh' '" + out + "'",
      of_depth =
          " --steps 2 --train 16 --test 16 --neurons 60 --replicas 2 --widths 16,24 --seeds 2 --threads 1 --quiet";
  const std::multimap<std::string, std::pair<std::string, std::vector<std::string>>> commands = {
      {"slurm.sbatch",
       {"PATH='" + folder.path().string() + "':\"$PATH\" SLURM_CPUS_PER_TASK=1 env -C '" + out + "' bash '" + examples +
            "slurm.sbatch' --steps 2 --train 8 --test 0 --neurons 60 --set sampling.experts=30 --site-batches 2 "
            "--replicas 3 --widths 16,24 --seeds 2 --quiet",
        {"limit.h5", "networks.h5"}}},
      {"readme_figures.sh",
       {"'" + spaced + "readme_figures.sh' '" + out + "' --steps 2 --train 64 --set data.path='" + data +
            "' --neurons 60 --replicas 2 --widths 16,24 --seeds 2 --threads 1 --quiet",
        {"limit_mup.h5", "networks_mssp.h5", "loss.svg", "coordinate_check.png"}}},
      {"learning_rate.sh",
       {"'" + spaced + "learning_rate.sh' '" + out +
            "' --steps 2 --train 16 --test 16 --neurons 60 --replicas 2 --widths 16,24 --seeds 2 --threads 1 --quiet",
        {"sweep_mup.h5", "sweep_mssp.html", "learning_rate.svg", "best_loss.png"}}},
      {"depth.sh",
       {depth + " tables --lr-sweep 0.3:0.6:3 --depth 2" + of_depth, {"tables_mssp.h5", "tables_slow_mup.h5"}}},
      {"depth.sh", {depth + " rates --lr-sweep 0.3:0.6:3" + of_depth, {"rates_L8_alpha0.5.h5", "best_loss.svg"}}},
      {"depth.sh",
       {depth + " limits --steps 1 --neurons 60 --replicas 2 --threads 1 --quiet",
        {"limits_L32_alpha1.h5", "limits_L16_alpha0.h5", "limits_L16_slow.h5", "limits_L16_fast.h5"}}},
      {"monotone_improvement.py",
       {"'" + source + "/validation/python/python' '" + examples +
            "monotone_improvement.py' --quick --only II_sgd --threads 1 --out '" + out + "' --data-path '" + data + "'",
        {"monotone.csv", "monotone.pdf", "sweeps/digits_II_sgd_T20_mup.h5"}}},
      {"notebook.ipynb",
       {"'" + source + "/validation/python/python' '" + source + "/tests/python/notebook.py' '" + examples +
            "notebook.ipynb'",
        {}}}};
  for (const auto& entry : std::filesystem::directory_iterator(examples)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".toml")) continue;
    REQUIRE_MESSAGE(commands.contains(name), name << " has no command here");
    for (auto [one, end] = commands.equal_range(name); one != end; ++one) {
      const auto& [command, files] = one->second;
      CAPTURE(command);
      const int status = std::system((programs + command + " >'" + log + "' 2>&1").c_str());
      INFO(read_bytes(log));
      CHECK(status == 0);
      for (const auto& file : files) CHECK_MESSAGE(std::filesystem::exists(out + "/" + file), file);
    }
  }
}

TEST_CASE("the dense example does not depend on the router; the table of one's own is not another one's [examples]") {
  const TemporaryFolder folder;
  const std::string out = folder / "out.h5", log = folder / "log";
  const auto losses = [&](const std::string& program, const std::string& arguments) {
    const std::string sizes = program == "dmft_solve" ? " --neurons 60 --replicas 2" : " --widths 16 --seeds 2";
    REQUIRE(run(program, arguments + sizes + " --quiet --steps 3 --threads 1 --out '" + out + "'", log) == 0);
    return moe::H5Reader(out).read(program == "dmft_solve" ? "/limit/loss" : "/network/N16/loss").values;
  };
  for (const char* program : {"dmft_solve", "moe_train"}) {
    const std::string dense = "'" + examples + "dense_network.toml'", own = "'" + examples + "own_table.toml'";
    const auto as_is = losses(program, dense);
    CHECK(losses(program, dense + " --set optimizer.lr_scale.router=7") == as_is);
    CHECK(losses(program, dense + " --set optimizer.lr_scale.expert_in=7") != as_is);
    const auto table = losses(program, own);
    CHECK(losses(program, own + " --param mssp") != table);
    CHECK(losses(program,
                 own + " --param mssp --set optimizer.lr_scale.router=0.333 --set model.init_scale.expert_out=0.5") ==
          table);
  }
}
