/// From TOML text and command-line flags to a RunSpec and back. One table row per key gives the TOML path, the flag,
/// the help text, the unit and the default, so that they cannot drift apart.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "support/error.hpp"
#include "support/run_spec.hpp"

namespace moe {

/// What --checkpoint, --checkpoint-every and --resume say (support/checkpoint.hpp).
struct CheckpointOptions {
  std::string file;     ///< to write; empty: none
  double every_s = 60;  ///< least time between two; 0: after every step
  std::string resume;   ///< to continue from; empty: from the start
  bool every_said = false;
};

/// What a program was asked to do, beyond the run itself.
struct ProgramOptions {
  std::string config_file;  ///< empty: none given
  std::string out;          ///< result file; where nothing was said the program's default
  int threads = 0;          ///< 0: all cores
  Device device = Device::automatic;
  CheckpointOptions checkpoint;
  bool quiet = false;
  bool print_config = false;
};

/// Result of parsing a command line. `exit_code` >= 0: the program has printed what was asked (--help, --version,
/// --print-config) and shall end with that status.
struct Invocation {
  RunSpec spec;
  ProgramOptions options;
  std::map<std::string, std::string> own;  ///< ProgramInfo::flags that were given; "true" for one without a value
  int exit_code = -1;
};

/// A flag of one program that is no configuration key.
struct ProgramFlag {
  std::string name;   ///< "--lr-sweep"
  std::string value;  ///< "LO:HI:COUNT", or "" for a switch
  std::string help;
};

struct ProgramInfo {
  std::string name;                     ///< "dmft_solve"
  std::string summary;                  ///< one sentence for --help
  std::string default_out;              ///< "limit.h5"
  std::vector<ProgramFlag> flags = {};  ///< of this program alone
  /// Sets what was not said (RunSpec::origin) before validation; it is told which of `flags` were given.
  std::function<void(RunSpec&, const std::map<std::string, std::string>&)> own_defaults = {};
};

/// Parses and validates: faults for every unknown key, wrong type, out-of-range value and impossible combination, with key, value,
/// place and remedy. Keys at fault then stand at their defaults, so that the program can list what else is wrong before it throws
/// everything (Faults::set_aside). With --help, --version and --print-config they are thrown here.
Invocation parse_command_line(const ProgramInfo& program, int argc, const char* const* argv, Faults& faults);
/// Throws ConfigError with the faults.
Invocation parse_command_line(const ProgramInfo& program, int argc, const char* const* argv);

/// Standard input, output and error stand for something: of a program that was started without them, the file that is opened next
/// would be taken for one of them.
void open_standard_streams();

/// The exit status of a program that ends: `status`, or 1 for 0 where what it printed did not arrive, which is said then.
int status_with_output(const std::string& program, int status);

/// The whole of a program's main(): run(), with what it throws said on standard error. Exit status 2 for ConfigError (bad usage or
/// configuration), 1 for any other failure.
int guarded_main(const ProgramInfo& program, int (*run)(int, char**), int argc, char** argv);

/// Reads a TOML file into a spec on top of defaults; relative paths inside are resolved against the file's folder.
RunSpec read_config(const std::string& path);
RunSpec read_config_text(const std::string& text, const std::string& place);

/// All faults of a spec that can be seen without reading data or parameterization files.
void validate(const RunSpec& spec, Faults& faults);

/// A device that is not there is refused by name; parse_command_line() calls this, and what is given a device otherwise.
void refuse_unavailable(Device device, Faults& faults);

/// The resolved configuration as TOML; read_config_text(print_config(s)) gives s back. output.observe_every is left out
/// while nothing was said of it, because its default depends on that (support/schedule.hpp).
std::string print_config(const RunSpec& spec);

/// Names as they stand in files, e.g. to_string(Activation::gelu) == "gelu".
std::string to_string(Activation);
std::string to_string(Gate);
std::string to_string(Routing);
std::string to_string(Loss);
std::string to_string(OptimizerKind);
std::string to_string(Precision);

}  // namespace moe
