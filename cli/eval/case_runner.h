#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/session.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {

// What one case gave one candidate. Sums are over units that are drawn again together: a case's
// questions, or a stretch of a window's tokens.
struct CandidateResult {
  std::vector<double> weights, sums;  // [units]
  AttendCost cost;
  // Of recall: dense attention that was captured, and rows in common with the true best ones as a
  // share, sums over steps. [layers, kv_heads]
  std::vector<double> captured, overlap;

  nlohmann::ordered_json ToJson() const;
  static absl::StatusOr<CandidateResult> FromJson(const nlohmann::json& json);
};

// And all candidates. [candidates]
using CaseResult = std::vector<const CandidateResult*>;

// Gets what a candidate, by its place among those that run, made of the case, once it is done.
using CandidateDone = std::function<void(size_t candidate, CandidateResult result)>;

// Runs a case: its prefix once, then every candidate over every question.
void RunCase(Session& session, const Tokenizer& tokenizer, const TaskCase& task,
             std::span<const Candidate> candidates, const CandidateDone& done);

}  // namespace sparsekv
