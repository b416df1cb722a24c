/// The one way in for TOML: text that toml++ 3.3 does not read safely is refused before it gets there.
#pragma once

#include <toml++/toml.h>

#include <optional>
#include <string>
#include <string_view>

#include "support/error.hpp"

namespace moe {

/// Of text that toml++ must not see, a sentence with PLACE:LINE:COLUMN (columns in characters, from 1), what stands there
/// and a remedy: bytes that are not UTF-8, and characters beyond ASCII outside quotes and comments, where TOML allows none
/// and toml++ 3.3 may run into code that it declares unreachable.
std::optional<std::string> unsafe_toml(std::string_view text, const std::string& place);

/// What the text says; or nothing, and a fault that starts with PLACE:LINE.
std::optional<toml::table> parse_toml(std::string_view text, const std::string& place, Faults& faults);

/// The same of a file; `what` says in a fault what it should have been, e.g. "configuration file".
std::optional<toml::table> read_toml_file(const std::string& path, const std::string& what, Faults& faults);

}  // namespace moe
