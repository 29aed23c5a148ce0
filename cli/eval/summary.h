#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cli/eval/case_runner.h"

namespace sparsekv {

// A figure and its 95 % interval.
struct Estimate {
  double value = 0, low = 0, high = 0;
};

// What a task's cases say of one candidate.
struct CandidateSummary {
  std::string policy, budget;
  Estimate value;
  // Beside dense, from the same draws: of accuracy the difference, of perplexity ratio - 1.
  Estimate change;
  double mean_rows = 0;                   // of a selection
  std::optional<double> recall;           // of dense attention, held; nothing: nobody looked
  double rows_share = 0;                  // of the rows that dense attention attends
  double bytes_per_step = 0;              // over layers and KV heads
  double bytes_share = 0;                 // of dense attention's
  std::vector<double> captured, overlap;  // recall: means, [layers, kv_heads]
};

struct TaskSummary {
  std::string name, about;
  Metric metric = Metric::kAccuracy;
  uint32_t cases = 0;
  double units = 0;  // questions, or tokens
  std::vector<CandidateSummary> candidates;

  nlohmann::ordered_json ToJson() const;
};

inline constexpr uint32_t kResamples = 2000;

// Draws units with replacement, the same ones for all candidates, kResamples times; intervals are
// the 2.5th and 97.5th percentiles. `dense`: the candidate that others are compared with.
// REQUIRES: results is not empty, all of the same candidates.
void Summarise(std::span<const CaseResult> results, Metric metric, size_t dense, uint64_t seed,
               std::vector<CandidateSummary>* candidates);

std::string BudgetText(const RowBudget& budget);

}  // namespace sparsekv
