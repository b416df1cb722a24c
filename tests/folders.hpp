/// Where this build's sources and programs are. Functions of main.cpp, so that only that file depends on the places.
#pragma once

#include <string>

/// The folder of CMakeLists.txt, without a slash at its end: MOE_SOURCE_DIR of the environment, for programs that were carried elsewhere, or
/// where they were built.
std::string source_folder();
/// The folder of the built programs, without a slash at its end.
std::string program_folder();
