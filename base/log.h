#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace sparsekv {

// Logs go to stderr, one line each, with the process's name; stdout carries results only. Call once
// at the start of main. Level from the environment variable SPARSEKV_LOG (debug, info, warn, error;
// default info).
void InitLog(const std::string& process_name);

// One line on stderr in the form of every error of the command line: "sparsekv: what".
void PrintError(const std::string& program, const std::string& what);

}  // namespace sparsekv
