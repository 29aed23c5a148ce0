#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cli/eval/case_runner.h"

namespace sparsekv {

// What a sweep has finished, so that a killed one goes on where it was: a line that says what the
// sweep is, then one line per case, each written as a whole when the case is done. What a kill cut
// short is dropped.
class StateFile {
 public:
  // Without a path nothing is kept. A file of another sweep is refused: the error names the first
  // setting that differs.
  static absl::StatusOr<std::unique_ptr<StateFile>> Open(const std::string& path,
                                                         const nlohmann::ordered_json& settings);
  ~StateFile();

  const CaseResult* Find(const std::string& task, uint32_t index) const;
  // Keeps a finished case, here and in the file.
  absl::Status Add(const std::string& task, uint32_t index, CaseResult result);
  size_t finished() const { return cases_.size(); }

 private:
  StateFile() = default;
  absl::Status ReadLines(const std::string& text, const nlohmann::ordered_json& settings);
  absl::Status ReadCase(const std::string& line, size_t number);

  std::string path_;
  std::FILE* file_ = nullptr;
  std::map<std::pair<std::string, uint32_t>, CaseResult> cases_;
};

}  // namespace sparsekv
