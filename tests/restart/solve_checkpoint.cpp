// A solve that was ended and continued from its checkpoint gives the numbers of one that was not, bit for bit.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/checkpoint.hpp"
#include "support/config.hpp"
#include "support/result_file.hpp"
#include "tests/limit_fixture.hpp"
#include "tests/temporary_folder.hpp"

namespace {

using enum moe::OptimizerKind;

struct Stopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Every number that a result holds but for wall times, in a fixed order.
std::vector<double> numbers(const moe::LimitResult& r) {
  std::vector<double> all;
  const auto add = [&](const std::vector<double>& values) { all.insert(all.end(), values.begin(), values.end()); };
  for (const moe::Curve* c : {&r.loss, &r.accuracy, &r.test_loss, &r.test_accuracy, &r.batch_loss})
    add(c->mean), add(c->sem);
  for (const auto& m : r.f) all.insert(all.end(), m.data(), m.data() + m.size());
  for (const auto& [name, c] : r.observables) add(c.mean), add(c.sem);
  for (const auto& [name, list] : r.kernels)
    for (const auto& m : list) all.insert(all.end(), m.data(), m.data() + m.size());
  for (const auto& [name, steps] : r.distributions)
    for (const moe::Curve& c : steps) add(c.mean), add(c.sem);
  for (const auto* steps : {&r.eval_steps, &r.test_steps, &r.observe_steps, &r.kernel_steps, &r.distribution_steps})
    all.insert(all.end(), steps->begin(), steps->end());
  for (const auto* rows : {&r.loss_per_replica, &r.test_loss_per_replica, &r.batch_loss_per_replica})
    for (const auto& row : *rows) add(row);
  for (const auto& [name, values] : r.diagnostics)
    if (name != "step_seconds") add(values);
  for (const auto& [name, value] : r.summary) all.push_back(value);
  return all;
}

/// Entries that differ, a different length counting as all.
std::size_t differing(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::max(a.size(), b.size());
  std::size_t n = 0;
  for (std::size_t k = 0; k < a.size(); ++k) n += a[k] == b[k] || (std::isnan(a[k]) && std::isnan(b[k])) ? 0 : 1;
  return n;
}

struct Case {
  const char* regime;
  const char* param;
  moe::OptimizerKind optimizer;
  int batch;
  const char* what;
  int depth = 1;
  double balance = 0;  ///< of top-K routing: rate of the bias and half of the loss's coefficient
};

moe::RunSpec spec_of(const Case& c) {
  moe::RunSpec s = limit_fixture::spec(c.regime, c.param, c.optimizer, moe::is_linear(c.optimizer) ? 0.3 : 0.05, 9);
  s.sampling.neurons = std::string(c.regime) == "III" ? 32 : 64;
  s.sampling.replicas = 3;
  s.sampling.tolerance = 1e-4;
  s.sampling.precision = c.batch > 0 ? moe::Precision::float32 : moe::Precision::float64;
  s.optimizer.weight_decay = 0.2;
  s.training.batch = c.batch;
  s.training.test_every = 2;
  s.output.observables = {"all"};
  s.output.kernels_at = {0, 4, 9};
  s.model.depth = c.depth;
  s.model.residual = c.depth > 1;
  s.model.norm = c.depth > 1 ? moe::Norm::rms : moe::Norm::none;
  s.output.distributions_at = {0, 3, 9};
  if (c.balance > 0) s.model.routing = moe::Routing::topk;
  s.model.balance_bias = c.balance;
  s.model.balance_loss = 2 * c.balance;
  return s;
}

moe::Dataset samples() {
  moe::Dataset d = limit_fixture::data(10, 6, 2);
  d.x_test = limit_fixture::data(4, 6, 2, 5).x;
  d.y_test = limit_fixture::data(4, 6, 2, 5).y;
  return d;
}

moe::LimitResult solve(const moe::RunSpec& s, const moe::Dataset& d, const moe::CheckpointOptions& files = {},
                       const std::function<void(int, int)>& on_step = {},
                       const std::atomic<bool>* interrupt = nullptr) {
  moe::Checkpoints checkpoints(files, moe::solve_identity(s, d, "test"));
  moe::SolveOptions options;
  options.threads = 2;
  options.checkpoints = &checkpoints;
  options.interrupt = interrupt;
  if (on_step) options.on_step = [&](int replica, int step, double) { on_step(replica, step); };
  return moe::solve_limit(s, d, options);
}

/// Step at which every job of a checkpoint goes on.
std::map<int, int> next_steps(const std::string& checkpoint) {
  const moe::H5Reader file(checkpoint);
  std::map<int, int> steps;
  for (const auto& job : file.members("/job"))
    steps[std::stoi(job)] = static_cast<int>(file.read("/job/" + job + "/next_step").values[0]);
  return steps;
}

const Case cases[] = {
    {"II", "mssp", sgd, 0, "bases that turn dense"},
    {"II", "mup", momentum, 0, "velocities, one-sided operators"},
    {"II", "mssp", adamw, 0, "moments and decay"},
    {"II", "mssp", adam, 4, "mini-batches, float32"},
    {"I", "mssp", sgd, 0, "one operator per expert, explicit router"},
    {"I", "mup", adam, 0, "the same with moments"},
    {"III", "mssp", momentum, 0, "shared experts"},
    {"III", "mup", adam, 0, "three populations"},
    {"II", "mssp", signsgd, 0, "no state but the value"},
    {"II", "mssp", sgd, 0, "two blocks on one stream, with norm", 2},
    {"I", "mssp", adam, 4, "three blocks, mini-batches", 3},
    {"II", "mssp", sgd, 4, "selection bias, two blocks, mini-batches", 2, 0.1},
    {"II", "mssp", adafactor, 4, "means over rows and columns, mini-batches"},
    {"III", "mssp", adafactor, 0, "the same with shared experts in two blocks", 2},
};

}  // namespace

TEST_CASE(
    "checkpoint: a solve that was interrupted, or died, and goes on gives the uninterrupted numbers bit for bit "
    "[regime x "
    "parameterization x optimizer, mini-batches, every form of an operator] [threads] [slow]") {
  const moe::Dataset d = samples();
  bool turned_dense_before = false, turned_dense_after = false;
  for (const Case& c : cases) {
    const moe::RunSpec s = spec_of(c);
    const moe::LimitResult whole_result = solve(s, d);
    const std::vector<double> whole = numbers(whole_result);
    REQUIRE(whole.size() > 400);
    const double dense_at = whole_result.summary.at("dense_since_step");
    for (const int at : {1, 5}) {
      turned_dense_before |= dense_at >= 0 && dense_at < at;
      turned_dense_after |= dense_at >= at;
      INFO(std::string(c.regime), " ", std::string(c.param), ", ", std::string(c.what), ", ended at step ", at);
      const TemporaryFolder folder;
      moe::CheckpointOptions files{folder / "run.ckpt", 1e9, ""};
      std::atomic<bool> interrupt{false};
      const moe::LimitResult part = solve(
          s, d, files,
          [&](int, int step) {
            if (step == at) interrupt = true;
          },
          &interrupt);
      CHECK(part.interrupted);
      files.resume = files.file;
      CHECK_MESSAGE(differing(numbers(solve(s, d, files)), whole) == 0, "after an interrupt");

      // Dies without any preparation; what there is was written after every step.
      files = {folder / "died.ckpt", 0, ""};
      CHECK_THROWS_AS(solve(s, d, files,
                            [&](int, int step) {
                              if (step == at + 2) throw Stopped("dies");
                            }),
                      Stopped);
      files.resume = files.file;
      CHECK_MESSAGE(differing(numbers(solve(s, d, files)), whole) == 0, "after its death");
    }
  }
  CHECK(turned_dense_before);
  CHECK(turned_dense_after);
}

TEST_CASE(
    "checkpoint: a gradient flow goes on bit for bit [steppers, history of the multistep method whole or begun, dense, "
    "bases] [slow]") {
  const moe::Dataset d = samples();
  for (const auto stepper : {moe::Stepper::dopri5, moe::Stepper::abm, moe::Stepper::rk4})
    for (const auto form : {moe::Form::dense, moe::Form::bases}) {
      moe::RunSpec s = spec_of(cases[0]);
      s.training.dynamics = moe::Dynamics::flow;
      s.training.stepper = stepper;
      s.training.steps = 7;
      s.training.rtol = 1e-3;
      s.output.kernels_at = {};
      s.output.distributions_at = {0, 6};
      s.sampling.form = form;
      s.sampling.replicas = 2;
      s.sampling.tolerance = 0.01;
      const std::vector<double> whole = numbers(solve(s, d));
      for (const int at : {1, 5}) {
        INFO("stepper ", static_cast<int>(stepper), ", form ", static_cast<int>(form), ", died at step ", at);
        const TemporaryFolder folder;
        moe::CheckpointOptions files{folder / "run.ckpt", 0, ""};
        CHECK_THROWS_AS(solve(s, d, files,
                              [&](int, int step) {
                                if (step == at + 1) throw Stopped("dies");
                              }),
                        Stopped);
        files.resume = files.file;
        CHECK(differing(numbers(solve(s, d, files)), whole) == 0);
      }
    }
}

TEST_CASE("checkpoint: replicas that were done, under way and not begun all go on, on one worker after two [threads]") {
  const moe::Dataset d = samples();
  moe::RunSpec s = spec_of(cases[0]);
  s.sampling.replicas = 5;
  const std::vector<double> whole = numbers(solve(s, d));
  const TemporaryFolder folder;
  moe::CheckpointOptions files{folder / "run.ckpt", 0, ""};
  CHECK_THROWS_AS(solve(s, d, files,
                        [&](int replica, int step) {
                          if (replica == 3 && step == 4) throw Stopped("dies");
                        }),
                  Stopped);
  // A second life on one worker, which dies before it reaches the replicas that the first had under way: they are kept.
  files.resume = files.file;
  moe::Checkpoints checkpoints(files, moe::solve_identity(s, d, "test"));
  moe::SolveOptions options;
  options.threads = 1;
  options.checkpoints = &checkpoints;
  const std::map<int, int> first = next_steps(files.file);
  CHECK(first.size() >= 2);
  int steps = 0;
  options.on_step = [&](int, int, double) {
    if (++steps == 3) throw Stopped("dies again");
  };
  CHECK_THROWS_AS(moe::solve_limit(s, d, options), Stopped);
  const std::map<int, int> second = next_steps(files.file);
  int further = 0;
  for (const auto& [replica, step] : first) {
    REQUIRE(second.count(replica) == 1);
    CHECK(second.at(replica) >= step);
  }
  for (const auto& [replica, step] : second) further += step - (first.contains(replica) ? first.at(replica) : 0);
  CHECK(further >= 2);  // the step that died is not in it
  std::mutex guard;     // both workers say what they resume
  std::map<int, int> resumed;
  moe::Checkpoints last(files, moe::solve_identity(s, d, "test"));
  options.checkpoints = &last;
  options.threads = 2;
  options.on_resume = [&](int replica, int n) {
    const std::scoped_lock lock(guard);
    resumed[replica] = n;
  };
  options.on_step = {};
  CHECK(differing(numbers(moe::solve_limit(s, d, options)), whole) == 0);
  CHECK(resumed == second);
}

TEST_CASE("checkpoint: does not wait for a job that was interrupted before its first step") {
  const moe::RunSpec s = spec_of(cases[0]);
  const TemporaryFolder folder;
  const std::string file = folder / "run.ckpt";
  moe::Checkpoints checkpoints({file, 1e9, ""}, moe::solve_identity(s, samples(), "test"));
  checkpoints.begin(0);
  checkpoints.begin(1);
  int number = 7;
  checkpoints.between_steps(
      0, [&](moe::Archive& a) { a("number", number); }, true);
  checkpoints.leave(1);
  CHECK(moe::H5Reader(file).has("/job/0/number"));
}

TEST_CASE("checkpoint: of another configuration, data or program it is refused with every key that differs") {
  const moe::Dataset d = samples();
  const moe::RunSpec s = spec_of(cases[0]);
  const TemporaryFolder folder;
  moe::CheckpointOptions files{folder / "run.ckpt", 0, ""};
  solve(s, d, files);
  const moe::CheckpointOptions resume{"", 60, files.file};
  const auto refusal = [&](const moe::RunSpec& other, const moe::Dataset& data, const char* program = "test") {
    return message_of<moe::ConfigError>([&] { moe::Checkpoints(resume, moe::solve_identity(other, data, program)); });
  };
  CHECK(refusal(s, d).empty());
  moe::RunSpec other = s;
  other.network.widths = {8};  // not used by the solver
  CHECK(refusal(other, d).empty());
  other.optimizer.lr = 0.4;
  other.model.gate = moe::Gate::softmax;
  other.training.steps = 10;
  const std::string text = refusal(other, d);
  CAPTURE(text);
  for (const char* part : {"optimizer.lr was 0.3 and is 0.4", "model.gate was \"sigmoid\" and is \"softmax\"",
                           "training.steps was 9 and is 10", "run.ckpt", "without --resume"})
    CHECK(contains(text, part));
  moe::Dataset moved = d;
  moved.x(0, 0) += 1e-9;
  CHECK(contains(refusal(s, moved), "checksum of the data"));
  CHECK(contains(refusal(s, d, "moe_train"), "the program was test and is moe_train"));
  CHECK(moe::checkpoint_config(files.file).optimizer.lr == 0.3);
}

TEST_CASE("checkpoint: of another version of the program, or another layout, it is refused with both") {
  const moe::Dataset d = samples();
  const moe::RunSpec s = spec_of(cases[0]);
  const moe::RunIdentity identity = moe::solve_identity(s, d, "test");
  const TemporaryFolder folder;
  const std::string path = folder / "run.ckpt";
  const auto refusal = [&](const std::string& version, std::int64_t layout) {
    moe::H5Writer file(path);
    for (const auto& [key, value] : {std::pair<const char*, std::string>{"kind", "checkpoint"},
                                     {"program", "test"},
                                     {"version", version},
                                     {"config", moe::print_config(s)},
                                     {"data", identity.data},
                                     {"constants", identity.constants}})
      file.attribute("/", key, value);
    file.attribute("/", "checkpoint_version", layout);
    file.commit();
    return message_of<moe::ConfigError>([&] { moe::Checkpoints({"", 60, path}, identity); });
  };
  const std::string old = refusal("0.0.7", 1);
  CHECK_MESSAGE(contains(old, "its version was 0.0.7 and is " + moe::program_version()), old);
  CHECK_MESSAGE(contains(old, "the layout of checkpoints was 1 and is "), old);
  std::int64_t layout = 1;
  while (layout < 100 && !refusal(moe::program_version(), layout).empty()) ++layout;
  CHECK_MESSAGE(layout < 100, "no layout is accepted");
}

TEST_CASE("checkpoint: what was not said counts as what it comes to [observe_every, eval_every under mini-batches]") {
  const moe::Dataset d = samples();
  moe::RunSpec unsaid = spec_of(cases[3]);  // mini-batches
  unsaid.training.steps = 300;
  moe::RunSpec said = unsaid, every_step = unsaid;
  said.output.observe_every = 3;  // steps/100
  said.training.eval_every = 15;  // steps/20
  every_step.output.observe_every = 1;
  every_step.origin["output.observe_every"] = "said";
  const TemporaryFolder folder;
  const std::string file = folder / "run.ckpt";
  const auto write = [&](const moe::RunSpec& s) {
    moe::Checkpoints checkpoints({file, 1e9, ""}, moe::solve_identity(s, d, "test"));
    checkpoints.begin(0);
    checkpoints.between_steps(
        0, [](moe::Archive&) {}, true);
  };
  const auto refusal = [&](const moe::RunSpec& s) {
    return message_of<moe::ConfigError>([&] { moe::Checkpoints({"", 60, file}, moe::solve_identity(s, d, "test")); });
  };
  write(unsaid);
  CHECK(refusal(unsaid).empty());
  CHECK(refusal(said).empty());
  CHECK(contains(refusal(every_step), "output.observe_every was 3 and is 1"));
  write(every_step);
  CHECK(contains(refusal(unsaid), "output.observe_every was 1 and is 3"));
}

TEST_CASE("checkpoint: cut short or altered in any byte it is refused [every byte kind]") {
  const moe::Dataset d = samples();
  moe::RunSpec s = spec_of(cases[2]);
  s.sampling.replicas = 1;
  s.sampling.neurons = 12;
  s.training.steps = 2;
  s.output.kernels_at = {};
  s.output.distributions_at = {};
  const TemporaryFolder folder;
  const moe::CheckpointOptions files{folder / "run.ckpt", 0, ""};
  solve(s, d, files);
  const std::string whole = read_bytes(files.file);
  REQUIRE(whole.size() > 20000);
  const std::string copy = folder / "copy.ckpt";
  const auto refused = [&](const std::string& bytes) {
    write_bytes(copy, bytes);
    return message_of<moe::IoError>([&] { moe::H5Reader(copy).verify(); });
  };
  CHECK(refused(whole).empty());
  for (std::size_t k = 1; k < 20; ++k) CHECK_FALSE(refused(whole.substr(0, whole.size() * k / 20)).empty());
  CHECK_FALSE(refused(whole.substr(0, whole.size() - 1)).empty());
  // Any byte, those that say nothing to HDF5 too.
  for (const int mask : {0x01, 0x10, 0xFF})
    for (std::size_t at = 0; at < whole.size(); at += whole.size() / 100) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ mask);
      const std::string message = refused(bytes);
      CAPTURE(at);
      CHECK_MESSAGE(contains(message, copy), message);
    }
  CHECK(contains(refused(whole + "x"), "cut short or altered"));
  // A number replaced in place, which HDF5 itself does not guard.
  const std::vector<double> loss = moe::H5Reader(files.file).read("/job/0/record/loss").values;
  std::string bytes = whole;
  const std::size_t at = bytes.find(std::string(reinterpret_cast<const char*>(loss.data()), sizeof(double)));
  REQUIRE(at != std::string::npos);
  bytes[at] ^= 1;
  CHECK(contains(refused(bytes), "cut short or altered"));
}

TEST_CASE("solve: a run whose loss reaches stop_at_loss ends there and says so; the numbers before it are the same") {
  const moe::Dataset d = limit_fixture::data(6, 5, 1);
  moe::RunSpec s = limit_fixture::spec("II", "mssp", sgd, 0.5, 40);
  s.sampling.neurons = 100;
  s.sampling.replicas = 3;
  s.output.kernels_at = {0, 39};
  const moe::LimitResult whole = moe::solve_limit(s, d);
  CHECK(whole.converged_at == -1);
  REQUIRE(whole.loss.mean.size() == 41);
  s.training.stop_at_loss = whole.loss.mean[12];
  const moe::LimitResult ended = moe::solve_limit(s, d);
  int first = 41;
  for (const auto& row : whole.loss_per_replica)
    for (int t = 0; t < first; ++t)
      if (row[static_cast<std::size_t>(t)] <= s.training.stop_at_loss) first = t;
  CHECK(ended.converged_at == first);
  REQUIRE(ended.loss.mean.size() == static_cast<std::size_t>(first) + 1);
  for (std::size_t t = 0; t < ended.loss.mean.size(); ++t) CHECK(ended.loss.mean[t] == whole.loss.mean[t]);
  CHECK(ended.kernel_steps == std::vector<int>{0});
}
