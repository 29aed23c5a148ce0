#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cli/eval/session.h"
#include "cli/eval/state_file.h"
#include "cli/eval/tasks/task.h"

namespace sparsekv {

// A task by the name that results are kept under.
struct NamedTask {
  std::string name;
  std::unique_ptr<Task> task;
};

// How results are kept: the policy and its budget.
std::string CandidateText(const Candidate& candidate);

// Every case of every task under every candidate.
struct Sweep {
  const ModelFiles* files = nullptr;
  const Tokenizer* tokenizer = nullptr;
  std::span<const NamedTask> tasks;
  std::span<const Candidate> candidates;
  Session::Options session;  // its threads are all jobs' together
  unsigned jobs = 1;         // sessions at work at once, each on its own thread; no more than parts
};

// Does what `state` does not have, case after case, and adds it. With several jobs the candidates
// of one case are shared out where there are few cases; what a candidate makes of a case is the
// same. The first error ends it, when every job has ended its part; RESOURCE_EXHAUSTED, with
// nothing done, where the sessions of all jobs do not fit this machine.
absl::Status RunSweep(const Sweep& sweep, StateFile* state);

}  // namespace sparsekv
