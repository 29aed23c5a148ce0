#pragma once

#include <functional>
#include <nlohmann/json.hpp>

#include "cli/eval/tasks/prompt_parts.h"

// Cases that others published, from the user's own files. Nothing in them is trusted.
namespace sparsekv {

inline constexpr size_t kMaxCaseFileBytes = size_t{1} << 30;
inline constexpr size_t kMaxLineBytes = size_t{16} << 20;

// The objects of a file with one per line, plain or compressed with gzip. Errors name the file and
// the line.
absl::StatusOr<std::vector<nlohmann::json>> ReadJsonLines(const std::string& path);

// A string of an object, or an error that names file, line and field.
absl::StatusOr<std::string> StringField(const nlohmann::json& object, const char* field,
                                        const std::string& path, size_t line);

// settings.file as lost-in-the-middle's (kv-retrieval), LongEval's (lines) or LongLM's (passkey)
// objects. Prompts that do not fit settings.context are an error.
absl::StatusOr<std::unique_ptr<Task>> MakeCaseFile(const std::string& name,
                                                   const TaskSettings& settings);

}  // namespace sparsekv
