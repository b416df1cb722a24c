/// What H5Writer writes, H5Reader and h5py read; a file is there completely or not at all.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <thread>

#include "support/hdf5.hpp"
#include "tests/temporary_folder.hpp"

using namespace moe;

namespace {
void write_number(const std::string& path, double value) {
  H5Writer file(path);
  file.dataset("/value", {}, &value, "one number", {});
  file.commit();
}
}  // namespace

TEST_CASE("HDF5 values, shapes and attributes come back exactly [three types, ranks 0 to 3, empty]") {
  const TemporaryFolder folder;
  const std::vector<double> doubles = {1.0 / 3, -0.0, std::numeric_limits<double>::denorm_min(), 1e308, 5, 6};
  const std::vector<float> floats = {0.1f, -2.5f, 3e38f, 1, 2, 3, 4, 5};
  const std::vector<std::int64_t> integers = {-5, std::int64_t{1} << 52};
  const std::string config(200'000, 'c');  // longer than HDF5's 64 KiB object header
  {
    H5Writer file(folder / "a.h5");
    file.dataset("/limit/observables/rms_h", {2, 3}, doubles.data(), "RMS of h", {"step", "sample"});
    file.dataset("/limit/cube", {2, 1, 4}, floats.data(), "floats", {"a", "b", "c"});
    file.dataset("/aa", {2}, integers.data(), "integers", {"n"});
    file.dataset("/none", {0, 3}, static_cast<const double*>(nullptr), "no rows", {"row", "column"});
    file.attribute("/", "config", config);
    file.attribute("/limit", "N", std::int64_t{64});
    file.attribute("/limit/cube", "scale", 0.1);
    file.attribute("/", "note", "λ");
    file.commit();
  }
  const H5Reader file(folder / "a.h5");
  const H5Array rms = file.read("/limit/observables/rms_h");
  CHECK(rms.shape == std::vector<std::size_t>{2, 3});
  CHECK(rms.values == doubles);
  CHECK(std::signbit(rms.values[1]));
  const H5Array cube = file.read("/limit/cube");
  CHECK(cube.shape == std::vector<std::size_t>{2, 1, 4});
  CHECK(cube.values == std::vector<double>(floats.begin(), floats.end()));
  CHECK(file.read("aa").values == std::vector<double>(integers.begin(), integers.end()));
  CHECK(file.read("/none").shape == std::vector<std::size_t>{0, 3});
  CHECK(file.read("/none").values.empty());
  CHECK(file.attribute_text("/", "config") == config);
  CHECK(file.attribute_text("/", "note") == "λ");
  CHECK(file.attribute_number("/limit", "N") == 64);
  CHECK(file.attribute_number("/limit/cube", "scale") == 0.1);
  CHECK(file.attribute_text("/limit/observables/rms_h", "description") == "RMS of h");
  // In the order of writing, not of the alphabet.
  CHECK(file.members("/") == std::vector<std::string>{"limit", "aa", "none"});
  CHECK(file.members("/limit") == std::vector<std::string>{"observables", "cube"});
  CHECK(file.has("/limit/observables"));
  CHECK_FALSE(file.has("/limit/observables/rms_h/below_a_dataset"));
  CHECK_FALSE(file.has("/limit/nothing/at/all"));
  CHECK_FALSE(file.has(""));
}

TEST_CASE("HDF5 dimension names and descriptions are read by h5py") {
  const TemporaryFolder folder;
  const std::vector<double> values(6, 1.0);
  {
    H5Writer file(folder / "a.h5");
    file.dataset("/limit/loss", {2, 3}, values.data(), "mean loss", {"seed", "step"});
    file.attribute("/", "format", "moe-dmft");
    file.commit();
  }
  const std::string script =
      "import h5py,sys; f=h5py.File(sys.argv[1]); d=f['limit/loss']; "
      "sys.exit(not ([x.label for x in d.dims]==['seed','step'] and d.attrs['description']=='mean loss' and "
      "d.shape==(2,3) and d.dtype=='f8' and f.attrs['format']=='moe-dmft'))";
  CHECK(std::system(("/usr/bin/python3 -c \"" + script + "\" " + (folder / "a.h5")).c_str()) == 0);
}

TEST_CASE("HDF5 files appear only when committed, and replace the old one at once") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.h5";
  {
    const H5Writer file(path);
    CHECK(folder.file_count() == 1);  // the temporary
    CHECK_FALSE(std::filesystem::exists(path));
  }
  CHECK(folder.file_count() == 0);
  write_number(path, 1);
  CHECK(folder.file_count() == 1);
  const std::string old = read_bytes(path);
  {
    H5Writer file(path);
    const double value = 2;
    file.dataset("/value", {}, &value, "one number", {});
    CHECK(std::filesystem::exists(path + ".tmp-" + std::to_string(::getpid())));
    CHECK(read_bytes(path) == old);
  }
  CHECK(read_bytes(path) == old);
  CHECK(folder.file_count() == 1);
  write_number(path, 2);
  CHECK(folder.file_count() == 1);
  CHECK(H5Reader(path).read("/value").values == std::vector<double>{2});
}

TEST_CASE("HDF5 files of equal content are equal byte for byte") {
  const TemporaryFolder folder;
  write_number(folder / "a.h5", 3);
  write_number(folder / "b.h5", 3);
  CHECK(read_bytes(folder / "a.h5") == read_bytes(folder / "b.h5"));
}

TEST_CASE("HDF5 output through a symbolic link replaces the file behind it") {
  const TemporaryFolder folder;
  write_number(folder / "real.h5", 1);
  std::filesystem::create_symlink(folder / "real.h5", folder / "link.h5");
  write_number(folder / "link.h5", 2);
  CHECK(std::filesystem::is_symlink(folder / "link.h5"));
  CHECK(H5Reader(folder / "real.h5").read("/value").values == std::vector<double>{2});
}

TEST_CASE("HDF5 writers and readers work from several threads") {
  const TemporaryFolder folder;
  std::vector<std::thread> threads;
  std::vector<int> good(4, 0);
  [[maybe_unused]] std::mutex turns;
  for (std::size_t t = 0; t < good.size(); ++t)
    threads.emplace_back([&, t] {
      const std::string path = folder / (std::to_string(t) + ".h5");
      for (int i = 0; i < 5; ++i) {
#ifdef __SANITIZE_ADDRESS__
        // The sanitizer's allocator does not guard a fork made while other threads allocate (the C library's does): they take turns.
        const std::lock_guard<std::mutex> turn(turns);
#endif
        write_number(path, static_cast<double>(t) + 10 * i);
        good[t] += H5Reader(path).read("/value").values[0] == static_cast<double>(t) + 10 * i;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(good == std::vector<int>(4, 5));
}

TEST_CASE("HDF5: a process that was forked while a file was written does not keep its readers out") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.h5";
  const double value = 3;
  H5Writer file(path);
  file.dataset("/value", {}, &value, "one number", {});
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  file.commit();
  try {
    CHECK(H5Reader(path).read("/value").values == std::vector<double>{value});
  } catch (const IoError& e) {
    FAIL_CHECK(e.what());
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

// A limit on the file size stands for a full disk: writes fail likewise, and no special file system is needed.
TEST_CASE("HDF5 output on a full disk fails with IoError, leaves nothing, and the program goes on") {
  const TemporaryFolder folder;
  for (const std::size_t size :
       {std::size_t{100'000}, std::size_t{100}}) {  // data do not fit; only metadata do not fit
    CAPTURE(size);
    const pid_t child = ::fork();
    if (child == 0) {
      int outcome = 1;
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{2000, RLIM_INFINITY};
      ::setrlimit(RLIMIT_FSIZE, &limit);
      try {
        const std::vector<double> values(size, 1.0);
        H5Writer file(folder / "a.h5");
        file.dataset("/a/b", {size}, values.data(), "too much", {"n"});
        file.commit();
      } catch (const IoError& e) {
        outcome = contains(e.what(), folder / "a.h5") && contains(e.what(), "File too large") ? 0 : 2;
      }
      const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
      ::setrlimit(RLIMIT_FSIZE, &none);
      if (outcome == 0 && folder.file_count() != 0) outcome = 3;
      write_number(folder / "next.h5", 4);
      if (outcome == 0 && H5Reader(folder / "next.h5").read("/value").values[0] != 4) outcome = 4;
      std::filesystem::remove(folder / "next.h5");
      std::quick_exit(outcome);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
  }
}
