#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/session.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {

// What one case gave every candidate. Sums are over units that are drawn again together: a case's
// questions, or a stretch of a window's tokens.
struct CaseResult {
  std::vector<double> weights;            // [units]
  std::vector<std::vector<double>> sums;  // [candidates][units]
  std::vector<AttendCost> costs;          // [candidates]
  // Of recall: dense attention that was captured, and rows in common with the true best ones as a
  // share, sums over steps. [candidates][layers, kv_heads]
  std::vector<std::vector<double>> captured, overlap;

  nlohmann::ordered_json ToJson() const;
  static absl::StatusOr<CaseResult> FromJson(const nlohmann::json& json);
};

// Runs a case: its prefix once, then every candidate over every question.
CaseResult RunCase(Session& session, const Tokenizer& tokenizer, const TaskCase& task,
                   std::span<const Candidate> candidates);

}  // namespace sparsekv
