#include "validation/run_store.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "support/result_file.hpp"
#include "validation/network_start.hpp"

namespace moe {

namespace {

namespace fs = std::filesystem;
using Eigen::MatrixXd;

[[noreturn]] void fail(const std::string& folder, const std::string& what, const std::string& reason) {
  throw IoError(fmt::format(
      "io: cannot keep finished runs in {}: {}: {}. Check permissions and free space, or choose another file with "
      "--out.",
      folder, what, reason));
}

/// Fowler-Noll-Vo over the bytes: equal data gives equal numbers on every machine of this byte order.
std::uint64_t checksum(const MatrixXd& values, std::uint64_t hash) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (std::size_t k = 0; k < static_cast<std::size_t>(values.size()) * sizeof(double); ++k)
    hash = (hash ^ bytes[k]) * 0x100000001B3ULL;
  return hash;
}

/// "key = value" lines of a TOML text as full names.
void add_keys(const std::string& toml, std::map<std::string, std::string>& keys) {
  std::istringstream in(toml);
  std::string line, table;
  while (std::getline(in, line)) {
    if (line.starts_with("[")) table = line.substr(1, line.find(']') - 1) + ".";
    if (const auto equals = line.find(" = "); equals != std::string::npos)
      keys[table + line.substr(0, equals)] = line.substr(equals + 3);
  }
}

// One run in a file: every vector a dataset, matrices of one kind in one of shape (count, cols, rows).

void write(H5Writer& file, const std::string& name, const std::vector<double>& values) {
  if (!values.empty()) file.dataset(name, {values.size()}, values.data(), name, {"entry"});
}
void write(H5Writer& file, const std::string& name, const std::vector<int>& values) {
  write(file, name, std::vector<double>(values.begin(), values.end()));
}
void write(H5Writer& file, const std::string& name, const std::vector<MatrixXd>& matrices) {
  if (matrices.empty()) return;
  std::vector<double> all;
  for (const MatrixXd& m : matrices) all.insert(all.end(), m.data(), m.data() + m.size());
  const auto size = [](Eigen::Index n) { return static_cast<std::size_t>(n); };
  file.dataset(name, {matrices.size(), size(matrices[0].cols()), size(matrices[0].rows())}, all.data(), name,
               {"entry", "column", "row"});
}

std::vector<MatrixXd> as_matrices(const std::vector<std::vector<double>>& rows) {
  std::vector<MatrixXd> matrices;
  matrices.reserve(rows.size());
  for (const auto& row : rows)
    matrices.emplace_back(Eigen::Map<const MatrixXd>(row.data(), static_cast<Eigen::Index>(row.size()), 1));
  return matrices;
}

void read(const H5Reader& file, const std::string& name, std::vector<double>& values) {
  if (file.has(name)) values = file.read(name).values;
}
void read(const H5Reader& file, const std::string& name, std::vector<int>& values) {
  std::vector<double> numbers;
  read(file, name, numbers);
  values.assign(numbers.begin(), numbers.end());
}
void read(const H5Reader& file, const std::string& name, std::vector<MatrixXd>& matrices) {
  if (!file.has(name)) return;
  const H5Array array = file.read(name);
  const auto cols = static_cast<Eigen::Index>(array.shape.at(1)), rows = static_cast<Eigen::Index>(array.shape.at(2));
  for (std::size_t k = 0; k < array.shape[0]; ++k)
    matrices.emplace_back(
        Eigen::Map<const MatrixXd>(array.values.data() + static_cast<Eigen::Index>(k) * rows * cols, rows, cols));
}

/// What a run consists of, once for writing and reading: visit(name, member).
template <class Run, class Visit>
void for_members(Run& run, Visit&& visit) {
  visit("eval_steps", run.eval_steps);
  visit("observe_steps", run.observe_steps);
  visit("test_steps", run.test_steps);
  visit("kernel_steps", run.kernel_steps);
  visit("distribution_steps", run.distribution_steps);
  visit("loss", run.loss);
  visit("accuracy", run.accuracy);
  visit("test_loss", run.test_loss);
  visit("test_accuracy", run.test_accuracy);
  visit("batch_loss", run.batch_loss);
  visit("f", run.f);
}
template <class Weights, class Visit>
void for_tensors(Weights& w, Visit&& visit) {
  visit("weights/w_in", w.w_in);
  visit("weights/router", w.router);
  visit("weights/expert_in", w.expert_in);
  visit("weights/expert_out", w.expert_out);
  visit("weights/readout", w.readout);
}

}  // namespace

std::map<std::string, std::string> sweep_identity(const RunSpec& spec, const Dataset& data) {
  std::map<std::string, std::string> identity;
  add_keys(print_config(spec), identity);
  identity["version of the program"] = program_version();
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const auto* values : {&data.x, &data.y, &data.x_test, &data.y_test}) hash = checksum(*values, hash);
  identity["checksum of the data"] = fmt::format("{:016x}", hash);
  for (const int width : spec.network.widths) {
    const NetworkConstants c = constants_at(spec, network_shape(spec, data, width));
    for (std::size_t t = 0; t < num_tensors; ++t)
      identity[fmt::format("{} at N = {}", tensor_names[t], width)] =
          fmt::format("std {} lr {} eps {}", c.std.values[t], c.lr.values[t], c.eps.values[t]);
    identity[fmt::format("prefactor and sharing at N = {}", width)] =
        fmt::format("{} {} {}", c.aggregation, c.expert_in_shared, c.expert_out_shared);
  }
  return identity;
}

RunStore::RunStore(const std::string& out, const std::map<std::string, std::string>& identity)
    : folder_(out + ".runs") {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) fail(folder_, "making the folder", error.message());
  lock_ = ::open((folder_ + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) fail(folder_, "making the file lock", std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    throw IoError(
        fmt::format("io: another process writes the runs of {}. Wait for it, or choose another file with --out.", out));
  }
  try {
    const std::string path = folder_ + "/sweep.h5";
    if (!fs::exists(path)) {
      H5Writer file(path);
      for (const auto& [key, value] : identity) file.attribute("/", key, value);
      file.commit();
      return;
    }
    const H5Reader file(path);
    std::vector<std::string> differences;
    for (const auto& [key, value] : identity) {
      std::string stored = "absent";
      try {
        stored = file.attribute_text("/", key);
      } catch (const IoError&) {  // a key that the stored sweep did not have
      }
      if (stored != value) differences.push_back(fmt::format("{} = {} there, {} here", key, stored, value));
    }
    if (!differences.empty())
      throw ConfigError(
          {fmt::format("{} holds finished runs of another configuration: {}. Give the same one to continue it, choose "
                       "another file with --out, or delete the folder.",
                       folder_, fmt::join(differences, "; "))});
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

RunStore::~RunStore() {
  if (lock_ >= 0) ::close(lock_);
}

std::string RunStore::path_of(int width, std::uint64_t seed) const {
  return fmt::format("{}/N{}_seed{}.h5", folder_, width, seed);
}

void RunStore::save(const NetworkRun& run) const {
  H5Writer file(path_of(run.shape.N, run.seed));
  for_members(run, [&](const std::string& name, const auto& member) { write(file, "/" + name, member); });
  for (const auto& [name, values] : run.observables) write(file, "/observables/" + name, values);
  for (const auto& [name, matrices] : run.kernels) write(file, "/kernels/" + name, matrices);
  for (const auto& [name, of_steps] : run.distributions) write(file, "/distributions/" + name, as_matrices(of_steps));
  if (run.final_weights.w_in.size() > 0)
    for_tensors(run.final_weights,
                [&](const std::string& name, const MatrixXd& w) { write(file, "/" + name, std::vector{w}); });
  file.attribute("/", "failed_step", std::int64_t{run.failure ? run.failure->step : -1});
  if (run.failure) {
    file.attribute("/", "failed_field", run.failure->field);
    file.attribute("/", "failure", run.failure->detail);
  }
  const NetworkShape& s = run.shape;
  const std::vector<int> shape = {s.N, s.M, s.Ne, s.K, s.D, s.C};
  write(file, "/shape", shape);
  file.commit();
}

std::optional<NetworkRun> RunStore::load(int width, std::uint64_t seed) const {
  const std::string path = path_of(width, seed);
  if (!fs::exists(path)) return std::nullopt;
  try {
    const H5Reader file(path);
    NetworkRun run;
    for_members(run, [&](const std::string& name, auto& member) { read(file, "/" + name, member); });
    if (file.has("/observables"))
      for (const auto& name : file.members("/observables")) read(file, "/observables/" + name, run.observables[name]);
    if (file.has("/kernels"))
      for (const auto& name : file.members("/kernels")) read(file, "/kernels/" + name, run.kernels[name]);
    if (file.has("/distributions"))
      for (const auto& name : file.members("/distributions")) {
        std::vector<MatrixXd> rows;
        read(file, "/distributions/" + name, rows);
        for (const MatrixXd& row : rows) run.distributions[name].emplace_back(row.data(), row.data() + row.size());
      }
    if (file.has("/weights"))
      for_tensors(run.final_weights, [&](const std::string& name, MatrixXd& w) {
        std::vector<MatrixXd> one;
        read(file, "/" + name, one);
        w = one.at(0);
      });
    if (const double step = file.attribute_number("/", "failed_step"); step >= 0)
      run.failure = NumericsError(static_cast<int>(step), file.attribute_text("/", "failed_field"),
                                  file.attribute_text("/", "failure"));
    std::vector<int> shape;
    read(file, "/shape", shape);
    run.shape = {shape.at(0), shape.at(1), shape.at(2), shape.at(3), shape.at(4), shape.at(5)};
    run.seed = seed;
    return run;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void RunStore::remove() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

}  // namespace moe
