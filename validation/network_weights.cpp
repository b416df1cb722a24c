#include <fmt/format.h>

#include <set>
#include <stdexcept>
#include <utility>

#include "regimes/regime.hpp"
#include "support/config.hpp"
#include "support/hdf5.hpp"
#include "support/random.hpp"
#include "validation/network.hpp"
#include "validation/network_start.hpp"

namespace moe {

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Streams of initial weights stand apart from those of the limit's samples.
constexpr std::uint32_t first_weight_stream = 0x4E450000u;

/// std times standard normals, one independent stream per tensor and width.
MatrixXd gaussian(Index rows, Index cols, double std, Tensor tensor, int width, std::uint64_t seed) {
  const StreamKey key{seed, 0, first_weight_stream + static_cast<std::uint32_t>(tensor),
                      static_cast<std::uint32_t>(width)};
  MatrixXd w(rows, cols);
  const Index size = w.size();
#pragma omp parallel for schedule(static) if (size > 2048)
  for (Index k = 0; k < size; k += 2) {
    double pair[2];
    normal_pair(key, static_cast<std::uint64_t>(k / 2), pair);
    w.data()[k] = std * pair[0];
    if (k + 1 < size) w.data()[k + 1] = std * pair[1];
  }
  return w;
}

bool fits(const NetworkWeights& w, const NetworkShape& s) {
  const auto is = [](const MatrixXd& m, Index rows, Index cols) { return m.rows() == rows && m.cols() == cols; };
  const Index experts = Index{s.L} * s.M, sites = experts * s.Ne;
  return is(w.w_in, s.N, s.D) && is(w.router, experts, s.N) && is(w.expert_in, sites, s.N) &&
         is(w.expert_out, s.N, sites) && is(w.readout, s.C, s.N);
}

std::string text(const std::vector<std::size_t>& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

NetworkShape shape_of(const RunSpec& spec, int width, int D, int C) {
  const Sizes sizes = network_sizes(spec, width, D);
  return {.N = static_cast<int>(sizes.N),
          .M = static_cast<int>(sizes.M),
          .Ne = static_cast<int>(sizes.Ne),
          .K = static_cast<int>(sizes.K),
          .D = D,
          .C = C,
          .L = spec.model.depth};
}

/// The file of network.init_from.
H5Reader weights_file(const std::string& path, const std::string& place) {
  try {
    return H5Reader(path);
  } catch (const IoError& error) {
    Faults faults;
    faults.add("network.init_from", path, place, error);
    throw ConfigError(faults.list());
  }
}

}  // namespace

NetworkShape network_shape(const RunSpec& spec, const Dataset& data, int width) {
  return shape_of(spec, width, static_cast<int>(data.x.rows()), static_cast<int>(data.y.rows()));
}

void check_networks(const RunSpec& spec, const Dataset* data, const std::vector<int>& widths, Faults& faults) {
  const auto refuse = [&](const std::string& key, const std::string& value, const std::string& problem,
                          const std::string& remedy) { faults.add(key, value, spec.place(key), problem, remedy); };
  if (data != nullptr && data->x.cols() == 0)
    faults.add("data: the training set is empty. Raise data.train or choose another data.source.");
  if (data != nullptr && spec.training.batch > data->x.cols())
    refuse("training.batch", fmt::format("{}", spec.training.batch),
           fmt::format("must not exceed the {} training samples", data->x.cols()), "Lower it or raise data.train.");
  const std::string &init_from = spec.network.init_from, place = spec.place("network.init_from");
  if (!init_from.empty()) faults.collect([&] { weights_file(init_from, place); });
  faults.collect([&] { load_parameterization(spec); });
  std::set<int> seen;
  for (int width : widths) {
    if (!seen.insert(width).second)
      refuse("network.widths", fmt::format("{}", width), "stands there twice",
             "Name every width once; network.seeds repeats runs.");
    NetworkShape s;
    const bool has_sizes =
        faults.collect([&] { s = data != nullptr ? network_shape(spec, *data, width) : shape_of(spec, width, 1, 1); });
    if (!has_sizes) continue;
    faults.collect([&] { constants_at(spec, s); });
    if (s.N < 1 || s.M < 1 || s.Ne < 1)
      refuse("network.widths", fmt::format("{}", width), fmt::format("gives {} experts of width {}", s.M, s.Ne),
             "Raise it, or model.experts_per_width and model.expert_width_per_width.");
    else if (data != nullptr && !init_from.empty())
      faults.collect([&] { read_weights(init_from, s, place); });
  }
}

void check_network_device(const RunSpec& spec, Device device, Faults& faults) {
  refuse_unavailable(device, faults);
  if (!spec.network.tf32) return;
  const auto refuse = [&](const char* problem, const char* remedy) {
    faults.add("network.tf32", "true", spec.place("network.tf32"), problem, remedy);
  };
  if (device != Device::cuda && !faults.refused("device"))
    refuse("is a way in which GPUs multiply", "Add --device cuda, or leave it out");
  if (spec.sampling.precision == Precision::float64)
    refuse("rounds more than sampling.precision = \"float64\" promises", "Use float32, or leave it out");
}

NetworkConstants constants_at(const RunSpec& spec, const NetworkShape& shape) {
  return network_constants(spec, load_parameterization(spec), network_sizes(spec, shape.N, shape.D));
}

NetworkWeights start_weights(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed,
                             const NetworkWeights* initial) {
  const NetworkShape shape = network_shape(spec, data, width);
  if (initial) {
    if (!fits(*initial, shape))
      throw std::invalid_argument(
          fmt::format("TrainOptions::initial does not have the sizes of the network of width {}", width));
    return *initial;
  }
  if (!spec.network.init_from.empty())
    return read_weights(spec.network.init_from, shape, spec.place("network.init_from"));
  return random_weights(spec, data, width, seed);
}

NetworkWeights random_weights(const RunSpec& spec, const Dataset& data, int width, std::uint64_t seed) {
  const NetworkShape s = network_shape(spec, data, width);
  const NetworkConstants c = constants_at(spec, s);
  const auto draw = [&](Tensor tensor, Index rows, Index cols) {
    return gaussian(rows, cols, c.std[tensor], tensor, width, seed);
  };
  NetworkWeights w;
  w.w_in = draw(Tensor::input, s.N, s.D);
  const Index experts = Index{s.L} * s.M;
  w.router = draw(Tensor::router, experts, s.N);
  // Shared: one expert of every block is drawn and repeated M times.
  w.expert_in = draw(Tensor::expert_in, (c.expert_in_shared ? s.L : experts) * s.Ne, s.N);
  w.expert_out = draw(Tensor::expert_out, s.N, (c.expert_out_shared ? s.L : experts) * s.Ne);
  if (c.expert_in_shared) {
    const MatrixXd one = std::exchange(w.expert_in, MatrixXd(experts * s.Ne, s.N));
    for (Index i = 0; i < experts; ++i) w.expert_in.middleRows(i * s.Ne, s.Ne) = one.middleRows(i / s.M * s.Ne, s.Ne);
  }
  if (c.expert_out_shared) {
    const MatrixXd one = std::exchange(w.expert_out, MatrixXd(s.N, experts * s.Ne));
    for (Index i = 0; i < experts; ++i) w.expert_out.middleCols(i * s.Ne, s.Ne) = one.middleCols(i / s.M * s.Ne, s.Ne);
  }
  w.readout = spec.model.readout_init == ReadoutInit::zero ? MatrixXd(MatrixXd::Zero(s.C, s.N))
                                                           : draw(Tensor::readout, s.C, s.N);
  return w;
}

NetworkWeights read_weights(const std::string& path, const NetworkShape& s, const std::string& place) {
  const H5Reader file = weights_file(path, place);
  Faults faults;
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  const auto read = [&](const char* name, const std::vector<std::size_t>& shape) {
    H5Array array;
    if (faults.collect([&] { array = file.read(name); }) && array.shape != shape)
      faults.add("network.init_from", path, place,
                 fmt::format("dataset {} has shape {}, the configuration asks for {} (N = {}, M = {}, N_e = {}, D = "
                             "{}, C = {}, L = {})",
                             name, text(array.shape), text(shape), s.N, s.M, s.Ne, s.D, s.C, s.L),
                 "Give network.widths, model and data the sizes of the file.");
    return array.values;
  };
  // Tensors of blocks have an axis of blocks where there are several.
  const auto read_of_blocks = [&](const char* name, std::vector<std::size_t> shape) {
    if (s.L > 1) shape.insert(shape.begin(), size(s.L));
    return read(name, shape);
  };
  const auto w_in = read("w_in", {size(s.N), size(s.D)}), router = read_of_blocks("router", {size(s.M), size(s.N)});
  const auto expert_in = read_of_blocks("expert_in", {size(s.M), size(s.Ne), size(s.N)});
  const auto expert_out = read_of_blocks("expert_out", {size(s.M), size(s.N), size(s.Ne)});
  const auto readout = read("readout", {size(s.C), size(s.N)});
  faults.throw_if_any();

  const auto matrix = [](const double* values, Index rows, Index cols) {
    return MatrixXd(Eigen::Map<const RowMajor>(values, rows, cols));
  };
  NetworkWeights w;
  w.w_in = matrix(w_in.data(), s.N, s.D);
  const Index experts = Index{s.L} * s.M;
  w.router = matrix(router.data(), experts, s.N);
  w.expert_in = matrix(expert_in.data(), experts * s.Ne, s.N);
  w.expert_out.resize(s.N, experts * s.Ne);
  for (Index i = 0; i < experts; ++i)
    w.expert_out.middleCols(i * s.Ne, s.Ne) = matrix(expert_out.data() + i * s.N * s.Ne, s.N, s.Ne);
  w.readout = matrix(readout.data(), s.C, s.N);
  return w;
}

}  // namespace moe
