#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/eval/summary.h"

namespace sparsekv {

// A finished sweep.
struct EvalReport {
  nlohmann::ordered_json settings;  // what was asked, the model's name and fingerprint in it
  std::vector<TaskSummary> tasks;

  // {"settings": ..., "tasks": [...]}: nothing that would differ in a repetition.
  nlohmann::ordered_json ToJson() const;
  // A table per task, for a terminal.
  std::string ToText() const;
  // A page that needs nothing else: plots, tables, settings and the date.
  std::string ToHtml(const std::string& date) const;
};

}  // namespace sparsekv
