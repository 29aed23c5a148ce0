#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>

#include "absl/status/statusor.h"
#include "cli/eval/case_runner.h"

namespace sparsekv {

// What a sweep has finished, so that a killed one goes on where it was: a line that says what the
// sweep is, then one line per case and candidate, each written as a whole when that is done. What a
// kill cut short is dropped. A sweep may be widened: more cases, tasks, policies or budgets find
// what is done already. One thread at a time.
class StateFile {
 public:
  // Without a path nothing is kept. `settings`: what a result depends on beside its task, case and
  // candidate. A file with others is refused: the error names the first that differs.
  static absl::StatusOr<std::unique_ptr<StateFile>> Open(const std::string& path,
                                                         const nlohmann::ordered_json& settings);
  ~StateFile();

  // `candidate`: a policy and a budget, as text.
  const CandidateResult* Find(const std::string& task, uint32_t index,
                              const std::string& candidate) const;
  // Keeps what is finished, here and in the file.
  absl::Status Add(const std::string& task, uint32_t index, const std::string& candidate,
                   CandidateResult result);
  size_t finished() const { return cases_.size(); }

 private:
  StateFile() = default;
  absl::Status ReadLines(const std::string& text, const nlohmann::ordered_json& settings);
  absl::Status ReadCase(const std::string& line, size_t number);

  std::string path_;
  std::FILE* file_ = nullptr;
  std::map<std::tuple<std::string, uint32_t, std::string>, CandidateResult> cases_;
};

}  // namespace sparsekv
