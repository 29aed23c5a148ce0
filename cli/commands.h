#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sparsekv {

// What a subcommand does once its options are parsed. Not OK: one line on stderr, exit 1.
using Command = std::function<absl::Status()>;

// Each adds its subcommand and options to `app` and sets *command when that subcommand was chosen.
void AddServe(CLI::App& app, Command* command);
void AddGenerate(CLI::App& app, Command* command);
void AddChat(CLI::App& app, Command* command);
void AddInspect(CLI::App& app, Command* command);
void AddTokenize(CLI::App& app, Command* command);
void AddLogits(CLI::App& app, Command* command);
void AddCalibrate(CLI::App& app, Command* command);
void AddRecall(CLI::App& app, Command* command);
void AddEval(CLI::App& app, Command* command);
void AddBench(CLI::App& app, Command* command);

// Reads "1,2,3". INVALID_ARGUMENT names the first part that is not a number.
absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(const std::string& text);

// The same from a file, - = stdin; space at its end is not minded.
absl::StatusOr<std::vector<uint32_t>> ReadTokenIds(const std::string& path);

// "K" or "1/N" as rows and denominator; one of the two is 0. INVALID_ARGUMENT names the text.
absl::Status ParseBudget(const std::string& text, uint32_t* rows, uint32_t* denominator);

// A whole file, or standard input for "-". NOT_FOUND names the path.
absl::StatusOr<std::string> ReadInput(const std::string& path);

}  // namespace sparsekv
