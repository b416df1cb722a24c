#include "support/checkpoint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>

#include <algorithm>
#include <utility>

#include "support/config.hpp"
#include "support/config_keys.hpp"
#include "support/result_file.hpp"
#include "support/schedule.hpp"

namespace moe {

namespace {

/// Layout of the state in the file: a change of it makes older checkpoints unreadable.
constexpr int checkpoint_version = 10;

std::string job_group(int job) { return fmt::format("/job/{}", job); }

void require_checkpoint(const H5Reader& file, const std::string& path) {
  const auto refuse = [&](const std::string& found) {
    throw IoError(fmt::format("io: {} is not a checkpoint: {}. Give --resume a file that --checkpoint has written.",
                              path, found));
  };
  file.verify();
  const std::string kind = file.attribute_text("/", "kind");
  if (kind != "checkpoint") refuse(fmt::format("its kind is \"{}\"", kind));
}

bool may_differ(const std::string& key, const std::vector<std::string>& unused) {
  return std::any_of(unused.begin(), unused.end(),
                     [&](const std::string& name) { return key == name || key.starts_with(name + "."); });
}

}  // namespace

std::map<std::string, std::string> identifying_values(const RunSpec& spec) {
  std::map<std::string, std::string> values;
  RunSpec copy = spec;
  for (const auto& key : config_keys()) values[key.path] = value_as_toml(key.field(copy));
  values["output.observe_every"] = fmt::format("{}", observe_interval(spec));
  values["training.eval_every"] = fmt::format("{}", eval_interval(spec.training));
  values["training.test_every"] = fmt::format("{}", test_interval(spec.training));
  return values;
}

std::string digest(const std::vector<const Eigen::MatrixXd*>& arrays) {
  uLong sum = ::crc32_z(0, nullptr, 0);
  for (const Eigen::MatrixXd* m : arrays) {
    const Eigen::Index shape[2] = {m->rows(), m->cols()};
    sum = ::crc32_z(sum, reinterpret_cast<const Bytef*>(shape), sizeof shape);
    sum =
        ::crc32_z(sum, reinterpret_cast<const Bytef*>(m->data()), static_cast<std::size_t>(m->size()) * sizeof(double));
  }
  return fmt::format("{:08x}", sum);
}

RunSpec checkpoint_config(const std::string& file) {
  const H5Reader reader(file);
  require_checkpoint(reader, file);
  return read_config_text(reader.attribute_text("/", "config"), file);
}

Checkpoints::Checkpoints(CheckpointOptions options, RunIdentity identity,
                         std::function<void(const std::string&)> on_problem)
    : options_(std::move(options)),
      identity_(std::move(identity)),
      on_problem_(std::move(on_problem)),
      last_(Clock::now()) {
  if (!options_.file.empty()) {
    const H5Writer probe(options_.file, checkpoint_flag);
  }  // a name that cannot be written is a fault at once
  if (options_.resume.empty()) return;
  resume_ = std::make_unique<H5Reader>(options_.resume);
  require_checkpoint(*resume_, options_.resume);

  std::vector<std::string> differences;
  const auto differs = [&](const std::string& what, const std::string& then, const std::string& now) {
    differences.push_back(fmt::format("{} was {} and is {} now", what, then, now));
  };
  const auto refuse_if_any = [&] {
    if (differences.empty()) return;
    throw ConfigError({fmt::format(
        "--resume {}: {}. Continue with what the checkpoint was written with, or start anew without --resume",
        options_.resume, fmt::join(differences, "; "))});
  };
  const auto compare = [&](const char* attribute, const std::string& now, const std::string& what) {
    if (const std::string then = resume_->attribute_text("/", attribute); then != now) differs(what, then, now);
  };
  compare("program", identity_.program, "the program");
  compare("version", program_version(), "its version");
  if (resume_->attribute_number("/", "checkpoint_version") != checkpoint_version)
    differs("the layout of checkpoints", fmt::format("{}", resume_->attribute_number("/", "checkpoint_version")),
            fmt::format("{}", checkpoint_version));
  refuse_if_any();
  const auto now = identifying_values(*identity_.spec);
  for (const auto& [key, then] :
       identifying_values(read_config_text(resume_->attribute_text("/", "config"), options_.resume)))
    if (then != now.at(key) && !may_differ(key, identity_.unused)) differs(key, then, now.at(key));
  refuse_if_any();
  compare("data", identity_.data, "the checksum of the data");
  compare("constants", identity_.constants, "what the parameterization file comes to");
  refuse_if_any();
  if (resume_->has("/job"))
    for (const std::string& job : resume_->members("/job")) saved_.insert(std::stoi(job));
}

Checkpoints::~Checkpoints() = default;

std::optional<Archive> Checkpoints::begin(int job) {
  const std::lock_guard lock(mutex_);
  running_.insert(job);
  if (saved_.erase(job) == 0) return std::nullopt;
  return Archive(*resume_, job_group(job));
}

void Checkpoints::between_steps(int job, const State& state, bool now) {
  const std::lock_guard lock(mutex_);
  if (options_.file.empty()) return;
  if (!file_) {
    if (!now && std::chrono::duration<double>(Clock::now() - last_).count() < options_.every_s) return;
    start_file();
  }
  add(job, state);
}

void Checkpoints::finish(int job, State result) {
  const std::lock_guard lock(mutex_);
  add(job, result);
  running_.erase(job);
  finished_.emplace_back(job, std::move(result));
}

void Checkpoints::leave(int job) {
  const std::lock_guard lock(mutex_);
  running_.erase(job);
  if (!file_ || awaited_.erase(job) == 0) return;
  try {
    commit_if_complete();
  } catch (const IoError& error) {
    give_up_file(error.what());
  }
}

void Checkpoints::start_file() {
  try {
    file_ = std::make_unique<H5Writer>(options_.file, checkpoint_flag);
    write_root_attributes(*file_, "checkpoint", identity_.program, *identity_.spec);
    file_->attribute("/", "checkpoint_version", std::int64_t{checkpoint_version});
    file_->attribute("/", "data", identity_.data);
    file_->attribute("/", "constants", identity_.constants);
    awaited_ = running_;
    for (const int job : saved_) file_->copy(options_.resume, job_group(job));
    for (const auto& [job, result] : finished_) {
      Archive archive(*file_, job_group(job));
      result(archive);
    }
  } catch (const IoError& error) {
    give_up_file(error.what());
  }
}

void Checkpoints::add(int job, const State& state) {
  if (!file_ || awaited_.erase(job) == 0) return;
  try {
    Archive archive(*file_, job_group(job));
    state(archive);
    commit_if_complete();
  } catch (const IoError& error) {
    give_up_file(error.what());
  }
}

void Checkpoints::commit_if_complete() {
  if (!awaited_.empty()) return;
  file_->commit();
  file_.reset();
  last_ = Clock::now();
}

void Checkpoints::give_up_file(const std::string& reason) {
  file_.reset();
  awaited_.clear();
  last_ = Clock::now();  // the next attempt after another interval
  if (on_problem_) on_problem_(reason);
}

}  // namespace moe
