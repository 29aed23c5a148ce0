#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cli/eval/session.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {

// What `sparsekv eval` is told.
struct EvalOptions {
  std::string model_dir, channels_file;
  std::vector<std::string> tasks, policies, budgets;
  BudgetUnit unit = BudgetUnit::kRows;
  TaskSettings task;  // but for what the model says
  uint32_t attention_stride = 8;
  std::vector<std::string> channel_sets;  // NAME=FILE, for policies with from=NAME
  unsigned threads = 0, jobs = 1;         // jobs: cases at once, which share the threads
  bool quick = false, measure_recall = false;
  std::string state_file, html_file;
  bool json = false;
};

// Runs every task over every policy and budget, and prints a table or one JSON object.
absl::Status Eval(EvalOptions options);

}  // namespace sparsekv
