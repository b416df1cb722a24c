#include "support/result_file.hpp"

#include <cstdint>
#include <ctime>

#include "support/config.hpp"
#include "support/distribution.hpp"
#include "support/ranks.hpp"
#include "support/schedule.hpp"

#ifndef MOE_VERSION
#error "MOE_VERSION is set by support/CMakeLists.txt"
#endif

namespace moe {

namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[sizeof "2000-01-01T00:00:00Z"];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc)};
}

std::size_t bytes(const Eigen::MatrixXd& m) { return static_cast<std::size_t>(m.size()) * sizeof(double); }

}  // namespace

void check_writable(const std::string& path, Faults& faults, const std::string& flag) {
  if (ranks().first()) faults.collect([&] { const H5Writer probe(path, flag); });
}

std::string program_version() { return MOE_VERSION; }

void write_root_attributes(H5Writer& file, const std::string& kind, const std::string& program, const RunSpec& spec) {
  file.attribute("/", "format", "moe-dmft");
  file.attribute("/", "format_version", std::int64_t{result_format_version});
  file.attribute("/", "kind", kind);
  file.attribute("/", "config", print_config(spec));
  file.attribute("/", "program", program);
  file.attribute("/", "version", program_version());
  file.attribute("/", "created", utc_now());
}

void write_data(H5Writer& file, const Eigen::MatrixXd& x, const Eigen::MatrixXd& y) {
  // One sample per column in memory is one sample per row in a row-major file: the bytes are the same.
  const auto write = [&](const char* name, const Eigen::MatrixXd& m, const char* description, const char* dimension) {
    if (m.size() == 0 || bytes(m) > optional_dataset_bytes) return;
    file.dataset(name, {static_cast<std::size_t>(m.cols()), static_cast<std::size_t>(m.rows())}, m.data(), description,
                 {"sample", dimension});
  };
  write("/data/x", x, "inputs that were trained on", "input");
  write("/data/y", y, "targets that were trained on", "output");
}

void write_steps(H5Writer& file, const std::string& name, const std::vector<int>& steps,
                 const std::string& description) {
  const std::vector<std::int64_t> values(steps.begin(), steps.end());
  file.dataset(name, {values.size()}, values.data(), description, {"step"});
}

void write_distribution_axes(H5Writer& file, const std::string& group, const std::vector<int>& steps) {
  const std::vector<double> edges = distribution_edges();
  file.dataset(group + "/edges", {edges.size()}, edges.data(), "edges of the bins", {"edge"});
  write_steps(file, group + "/steps", steps, "steps of the distributions");
}

void write_flow_times(H5Writer& file, const std::string& name, const RunSpec& spec) {
  std::vector<double> times;
  for (int t = 0; t <= spec.training.steps; ++t) times.push_back(flow_time(spec.training, t));
  file.dataset(name, {times.size()}, times.data(),
               "times of the states of the flow, in steps of gradient descent with the same lr", {"step"});
}

}  // namespace moe
