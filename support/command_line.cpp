#include <fcntl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <map>
#include <system_error>

#include "support/config.hpp"
#include "support/config_keys.hpp"
#include "support/config_reader.hpp"
#include "support/enum_names.hpp"
#include "support/ranks.hpp"
#include "support/result_file.hpp"
#include "support/words.hpp"

namespace moe {

namespace {

/// Flags that every program has.
const ProgramFlag common_flags[] = {
    {"--config", "FILE", "TOML configuration; flags override it (also as first positional argument)"},
    {"--set", "KEY=VALUE", "any key by its full name, repeatable: --set sampling.experts=512"},
    {"--out", "FILE", "result file"},
    {"--threads", "INT", "0 = all cores (default 0)"},
    {"--device", "NAME", "auto, cpu or cuda (default auto)"},
    {"--checkpoint", "FILE",
     "save the state of the run here at intervals, to go on from after an end of any kind (moe_train: a folder, "
     "OUT.runs if not "
     "given)"},
    {"--checkpoint-every", "TIME", "between two checkpoints: 30s, 10min, 2h; 0 = after every step (default 60s)"},
    {"--resume", "FILE",
     "go on from this checkpoint, whose configuration holds; --checkpoint is the same file if not given"},
    {"--quiet", "", "no progress and no summary"},
    {"--print-config", "", "print the resolved configuration as TOML and stop"},
    {"--help", "", "print this and stop"},
    {"--version", "", "print the version and stop"},
};

std::string words_of(const Key& key, const Field& field) {
  if (const auto* names = std::get_if<EnumField>(&field)) return alternatives(names->names);
  if (key.words.empty() || key.words.size() > 12) return "";
  return alternatives(key.words);
}

/// However the two are written: ./a and a, by way of links or of "..".
bool same_file(const std::string& a, const std::string& b) {
  std::error_code unknown;
  return std::filesystem::weakly_canonical(std::filesystem::absolute(a), unknown) ==
         std::filesystem::weakly_canonical(std::filesystem::absolute(b), unknown);
}

/// "[model]" and its keys: flag, what it is, allowed words or range, default.
std::string help_text(const ProgramInfo& program) {
  std::string text =
      fmt::format("{}: {}\n\nUsage: {} [CONFIG.toml] [flags]\n\n", program.name, program.summary, program.name);
  const auto line = [&](const ProgramFlag& flag, const std::string& more) {
    text += fmt::format("  {:<42}{}{}\n", fmt::format("{} {}", flag.name, flag.value), flag.help, more);
  };
  for (const auto& flag : program.flags) line(flag, "");
  for (const auto& flag : common_flags)
    line(flag,
         flag.name == "--out" && !program.default_out.empty() ? fmt::format(" (default {})", program.default_out) : "");
  text += "\nKeys. Quantities without a unit are dimensionless. Keys that a run does not use are ignored.\n";
  RunSpec defaults;
  if (program.own_defaults) program.own_defaults(defaults, {});
  std::string section;
  for (const auto& key : config_keys()) {
    if (key.section() != section) {
      section = key.section();
      text += fmt::format("\n[{}]\n", section);
    }
    const Field field = key.field(defaults);
    std::string flags;
    for (const auto& flag : key.flags) {
      flags += flags.empty() ? "" : ", ";
      flags += flag;
    }
    if (flags.empty()) flags = fmt::format("--set {}=", key.path);
    std::string allowed = words_of(key, field);
    if (allowed.empty()) allowed = key.range.text();
    text += fmt::format("  {:<42}{}{} (default {})\n", flags, key.help, allowed.empty() ? "" : "; " + allowed,
                        value_as_toml(field));
  }
  return text;
}

/// One parse of one command line. CLI11 splits the words; every value is text until the key's type is known, so that
/// all faults are reported together.
class CommandLine {
 public:
  CommandLine(const ProgramInfo& program, Faults& list)
      : faults(list), program_(program), app_(program.summary, program.name) {
    invocation.options.out = program.default_out;
    app_.set_help_flag();
    app_.allow_extras();
    app_.add_flag("-h,--help", help);
    app_.add_flag("--version", version);
    app_.add_flag("--quiet", invocation.options.quiet);
    app_.add_flag("--print-config", invocation.options.print_config);
    file_option("--config", invocation.options.config_file);
    file_option("--out", invocation.options.out);
    file_option("--checkpoint", invocation.options.checkpoint.file);
    checkpoint_every_option_ = text_option("--checkpoint-every", checkpoint_every_);
    file_option("--resume", invocation.options.checkpoint.resume);
    text_option("--threads", threads_);
    text_option("--device", device_);
    app_.add_option("--set", settings_)->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    for (const auto& flag : program.flags) {
      own_.push_back({&flag, nullptr, ""});
      own_.back().option = flag.value.empty() ? app_.add_flag(flag.name) : text_option(flag.name, own_.back().text);
    }
    for (const auto& key : config_keys()) {
      if (key.flags.empty()) continue;
      std::string names;
      for (const auto& flag : key.flags) {
        names += names.empty() ? "" : ",";
        names += flag;
      }
      values_.push_back({&key, nullptr, ""});
      values_.back().option = text_option(names, values_.back().text);
      RunSpec any;
      if (std::holds_alternative<bool*>(key.field(any))) values_.back().option->expected(0, 1);
    }
  }

  void parse(int argc, const char* const* argv) {
    std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    std::reverse(words.begin(), words.end());  // CLI11 takes them from the back
    try {
      app_.parse(words);
    } catch (const CLI::ParseError& error) {
      faults.add(fmt::format("command line: {}. {} --help lists the flags", error.what(), program_.name));
      return;
    }
    if (help || version) return;
    separate_bare_booleans();
    read_extras();
    refuse_empty_names();
    RunSpec& spec = invocation.spec;
    if (!invocation.options.config_file.empty()) read_config_file(invocation.options.config_file, spec, faults);
    read_flags(spec);
    read_settings(spec);
    read_program_options();
    for (const auto& flag : own_)
      if (flag.option->count() > 0) invocation.own[flag.flag->name] = flag.flag->value.empty() ? "true" : flag.text;
    refuse_to_replace_inputs(spec);
    if (program_.own_defaults) program_.own_defaults(spec, invocation.own);
    validate(spec, faults);
    set_refused_aside(spec);
    const std::size_t others = faults.list().size();
    refuse_unavailable(invocation.options.device, faults);
    if (faults.list().size() > others) {  // told once
      faults.set_aside("device");
      invocation.options.device = Device::automatic;
    }
  }

  Invocation invocation;
  Faults& faults;
  bool help = false, version = false;

 private:
  struct FlagValue {
    const Key* key;
    CLI::Option* option;
    std::string text;
  };
  struct FileFlag {
    std::string flag;
    CLI::Option* option;
    const std::string* target;
  };
  struct OwnFlag {
    const ProgramFlag* flag;
    CLI::Option* option;
    std::string text;
  };

  CLI::Option* text_option(const std::string& names, std::string& target) {
    return app_.add_option(names, target)->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }

  CLI::Option* file_option(const std::string& name, std::string& target) {
    files_.push_back({name, text_option(name, target), &target});
    return files_.back().option;
  }

  /// A variable of a script that was never set must not be as good as no flag.
  void refuse_empty_names() {
    for (const auto& file : files_)
      if (file.option->count() > 0 && file.target->empty())
        faults.add(fmt::format("command line: {} has an empty name. Give a file, or leave the flag out", file.flag));
  }

  /// What a run reads would be gone: its result, and a checkpoint, are renamed to the place of what is there.
  void refuse_to_replace_inputs(const RunSpec& spec) {
    const ProgramOptions& options = invocation.options;
    std::vector<std::pair<std::string, std::string>> inputs = {{"the configuration", options.config_file},
                                                               {"data.source", spec.data.source},
                                                               {"network.init_from", spec.network.init_from}};
    if (spec.model.param.ends_with(".toml")) inputs.emplace_back("model.param", spec.model.param);
    for (const auto& own : own_)
      if (own.flag->value.find("FILE") != std::string::npos)
        for (const auto& name : comma_separated(own.text)) inputs.emplace_back(own.flag->name, name);
    for (const auto& [flag, output] : {std::pair{"--out", options.out}, {"--checkpoint", options.checkpoint.file}})
      for (const auto& [what, input] : inputs)
        if (!input.empty() && !output.empty() && same_file(input, output))
          faults.add(fmt::format(
              "command line: {} is read ({}), and what is written ({}) would replace it. Give {} another name", output,
              what, flag, flag));
  }

  /// `--residual run.toml` is a bare `--residual` and a configuration file.
  void separate_bare_booleans() {
    for (auto& value : values_) {
      if (value.option->count() == 0 || value.option->get_expected_min() > 0) continue;
      if (value.text.empty()) value.text = "true";
      if (!value.text.ends_with(".toml")) continue;
      extras_.push_back(value.text);
      value.text = "true";
    }
  }

  /// What CLI11 did not know: unknown flags (with their values) and the configuration file.
  void read_extras() {
    const auto remaining = app_.remaining();
    extras_.insert(extras_.end(), remaining.begin(), remaining.end());
    std::string& file = invocation.options.config_file;
    for (std::size_t i = 0; i < extras_.size(); ++i) {
      const std::string& word = extras_[i];
      if (word == "--") continue;
      if (word.size() > 1 && word[0] == '-') {
        report_unknown_flag(word);
        const bool takes_next = i + 1 < extras_.size() && word.find('=') == std::string::npos &&
                                extras_[i + 1][0] != '-' && !extras_[i + 1].ends_with(".toml");
        if (takes_next) ++i;
      } else if (word.empty()) {
        faults.add("command line: the name of the configuration file is empty. Give a file, or leave it out");
      } else if (file.empty()) {
        file = word;
      } else {
        faults.add(fmt::format("command line: '{}' is a second configuration file beside '{}'. Give one", word, file));
      }
    }
  }

  void report_unknown_flag(const std::string& word) {
    const std::string name = word.substr(0, word.find('='));
    std::vector<std::string> known, same_leaf;
    for (const auto& flag : common_flags) known.push_back(flag.name);
    for (const auto& flag : program_.flags) known.push_back(flag.name);
    std::string leaf = name.substr(std::min(name.find_first_not_of('-'), name.size())), whole;
    std::replace(leaf.begin(), leaf.end(), '-', '_');
    for (const auto& key : config_keys()) {
      known.insert(known.end(), key.flags.begin(), key.flags.end());
      if (key.leaf() == leaf) same_leaf.push_back("--set " + key.path + "=VALUE");
      std::string with_section = key.path;
      std::replace(with_section.begin(), with_section.end(), '.', '_');
      if (with_section == leaf) whole = key.flags.empty() ? "--set " + key.path + "=VALUE" : key.flags.front();
    }
    const std::string near = whole.empty() ? nearest(name, known) : whole;
    std::string remedy = fmt::format("{} --help lists the flags", program_.name);
    if (!near.empty()) remedy = fmt::format("Did you mean {}?", near);
    if (!same_leaf.empty()) remedy = fmt::format("Its name is not unique: use {}", alternatives(same_leaf));
    faults.add(fmt::format("command line: {} is an unknown flag. {}", name, remedy));
  }

  void read_flags(RunSpec& spec) {
    for (const auto& value : values_)
      if (value.option->count() > 0)
        set(*value.key, value.text, value.key->flags.front() + " on the command line", spec);
  }

  void read_settings(RunSpec& spec) {
    for (const auto& setting : settings_) {
      const auto equals = setting.find('=');
      if (equals == std::string::npos) {
        faults.add(fmt::format("command line: --set {} has no value. Write --set KEY=VALUE", setting));
        continue;
      }
      const std::string path = setting.substr(0, equals), text = setting.substr(equals + 1);
      const std::string place = "--set on the command line";
      if (const Key* key = find_config_key(path))
        set(*key, text, place, spec);
      else
        report_unknown_key(path, text, place, faults);
    }
  }

  /// Keys at fault go back to their defaults.
  void set_refused_aside(RunSpec& spec) {
    const auto at_fault = [this](const std::string& key) {
      return std::any_of(faults.list().begin(), faults.list().end(),
                         [&](const std::string& fault) { return fault.starts_with(key + " = "); });
    };
    RunSpec defaults;
    for (const auto& key : config_keys()) {
      if (!at_fault(key.path)) continue;
      faults.set_aside(key.path);
      assign(key.field(spec), written_on_command_line(key.field(spec), value_as_toml(key.field(defaults))));
    }
  }

  void set(const Key& key, const std::string& text, const std::string& place, RunSpec& spec) {
    assign_or_report(key, written_on_command_line(key.field(spec), text), place, ".", spec, faults);
  }

  void read_program_options() {
    int& threads = invocation.options.threads;
    const char *const begin = threads_.data(), *const end = begin + threads_.size();
    const auto read = std::from_chars(begin, end, threads);
    if (read.ec != std::errc{} || read.ptr != end || threads < 0 || threads > 65536)
      faults.add("threads", threads_, "--threads on the command line", "is not a number of threads",
                 "Write an integer from 0 to 65536; 0 is all cores");
    read_checkpoint_options();
    const auto names = enum_names(Device{});
    const auto it = std::find(names.begin(), names.end(), device_);
    if (it == names.end())
      faults.add("device", device_, "--device on the command line", "is not known", "Use " + alternatives(names));
    else
      invocation.options.device = static_cast<Device>(it - names.begin());
  }

  void read_checkpoint_options() {
    CheckpointOptions& checkpoint = invocation.options.checkpoint;
    if (checkpoint.file.empty()) checkpoint.file = checkpoint.resume;
    checkpoint.every_said = checkpoint_every_option_->count() > 0;
    const std::string& out = invocation.options.out;
    if (!checkpoint.file.empty() && same_file(checkpoint.file, out))
      faults.add(fmt::format(
          "command line: {} is the file of the result (--out) and of the checkpoint (--checkpoint, --resume), and one "
          "would replace the other. Give them different names",
          checkpoint.file));
    static const std::map<std::string, double> units = {{"", 1}, {"ms", 1e-3}, {"s", 1}, {"min", 60}, {"h", 3600}};
    const char *const begin = checkpoint_every_.data(), *const end = begin + checkpoint_every_.size();
    const auto read = std::from_chars(begin, end, checkpoint.every_s);
    const auto unit = units.find(std::string(read.ptr, end));
    if (read.ec != std::errc{} || unit == units.end() || !(checkpoint.every_s >= 0) || checkpoint.every_s > 1e9)
      faults.add("checkpoint-every", checkpoint_every_, "--checkpoint-every on the command line", "is not a time",
                 "Write a number and one of the units ms, s, min, h, e.g. 60s");
    else
      checkpoint.every_s *= unit->second;
  }

  const ProgramInfo& program_;
  CLI::App app_;
  CLI::Option* checkpoint_every_option_ = nullptr;
  std::string checkpoint_every_ = "60s", threads_ = "0", device_ = "auto";
  std::vector<std::string> settings_, extras_;
  std::vector<FileFlag> files_;
  std::deque<FlagValue> values_;  // CLI11 keeps references to the texts
  std::deque<OwnFlag> own_;
};

}  // namespace

Invocation parse_command_line(const ProgramInfo& program, int argc, const char* const* argv, Faults& faults) {
  CommandLine line(program, faults);
  line.parse(argc, argv);
  const bool only_asks = line.help || line.version || line.invocation.options.print_config;
  if (only_asks) faults.throw_if_any();
  if (line.help) std::fputs(help_text(program).c_str(), stdout);
  if (line.version && !line.help) std::printf("%s %s\n", program.name.c_str(), program_version().c_str());
  const bool print = line.invocation.options.print_config && !line.help && !line.version;
  if (print) std::fputs(print_config(line.invocation.spec).c_str(), stdout);
  if (only_asks) line.invocation.exit_code = 0;
  return line.invocation;
}

Invocation parse_command_line(const ProgramInfo& program, int argc, const char* const* argv) {
  Faults faults;
  Invocation invocation = parse_command_line(program, argc, argv, faults);
  faults.throw_if_any();
  return invocation;
}

void open_standard_streams() {
  for (int descriptor = 0; descriptor <= STDERR_FILENO; ++descriptor)
    if (::fcntl(descriptor, F_GETFD) < 0 && errno == EBADF)
      (void)::open("/dev/null", descriptor == STDIN_FILENO ? O_RDONLY : O_WRONLY);  // the lowest number that is free
}

int status_with_output(const std::string& program, int status) {
  errno = 0;
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (written || errno == EPIPE) return status;  // who reads no further has what was wanted
  std::fprintf(stderr, "%s: standard output could not be written in full. Check the space where it goes\n",
               program.c_str());
  return status == 0 ? 1 : status;
}

int guarded_main(const ProgramInfo& program, int (*run)(int, char**), int argc, char** argv) {
  open_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is told of as one on a full disk is
  int status = 0;
  std::exception_ptr error;
  try {
    ranks().start(program.name);
    status = status_with_output(program.name, run(argc, argv));
  } catch (...) {
    error = std::current_exception();
  }
  return ranks().finish(program.name, status, error);
}

}  // namespace moe
