#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdio>
#include <cstdlib>

namespace sparsekv {

void InitLog(const std::string& process_name) {
  auto logger = spdlog::stderr_logger_mt(process_name);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %n[%P] %v");
  spdlog::set_default_logger(logger);
  const char* level = std::getenv("SPARSEKV_LOG");
  spdlog::set_level(level ? spdlog::level::from_str(level) : spdlog::level::info);
  spdlog::flush_on(spdlog::level::trace);
}

void PrintError(const std::string& program, const std::string& what) {
  std::string line = program + ": " + what;
  for (char& c : line) {
    if (c == '\n') c = ' ';
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace sparsekv
