#include "cli/eval/tasks/task.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/eval/tasks/tasks.h"

namespace sparsekv {

namespace {

const std::map<std::string, TaskMaker*>& Makers() {
  static const std::map<std::string, TaskMaker*> makers = {
      {"perplexity", MakeWindows},
      {"recall", MakeWindows},
      {"kv-retrieval", MakeLookups},
      {"passkey", MakeLookups},
      {"lines", MakeLookups},
      {"niah-single", MakeNeedles},
      {"niah-multikey", MakeNeedles},
      {"niah-multivalue", MakeNeedles},
      {"niah-multiquery", MakeNeedles},
      {"variable-tracking", MakeTracing},
      {"common-words", MakeTracing},
      {"frequent-words", MakeTracing},
      {"longbench", MakeLongBench},
      {"mmlu", MakeMmlu},
      {"chase", MakeChase},
  };
  return makers;
}

}  // namespace

std::vector<std::string> TaskNames() {
  std::vector<std::string> names;
  for (const auto& [name, maker] : Makers()) names.push_back(name);
  return names;
}

absl::StatusOr<std::unique_ptr<Task>> MakeTask(const std::string& name,
                                               const TaskSettings& settings) {
  const auto found = Makers().find(name);
  if (found == Makers().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--task: \"", name, "\" is not one of ", absl::StrJoin(TaskNames(), ", ")));
  }
  return found->second(name, settings);
}

}  // namespace sparsekv
