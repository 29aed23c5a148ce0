#pragma once

#include <memory>
#include <string>

#include "cli/eval/tasks/task.h"

// One maker per kind of task; MakeTask (task.h) finds it by name.
namespace sparsekv {

using TaskMaker = absl::StatusOr<std::unique_ptr<Task>>(const std::string& name,
                                                        const TaskSettings& settings);

TaskMaker MakeWindows;    // perplexity, recall
TaskMaker MakeLookups;    // kv-retrieval, passkey, lines: generated, or from a file
TaskMaker MakeNeedles;    // niah-single, niah-multikey, niah-multivalue, niah-multiquery
TaskMaker MakeTracing;    // variable-tracking, common-words, frequent-words
TaskMaker MakeLongBench;  // longbench
TaskMaker MakeMmlu;       // mmlu
TaskMaker MakeChase;      // chase

}  // namespace sparsekv
