#include "cli/eval/sweep.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "cli/eval/case_runner.h"
#include "cli/eval/summary.h"
#include "cli/local_memory.h"

namespace sparsekv {

namespace {

constexpr size_t kPartsPerJob = 4;  // so that jobs end together

// What one session does in one go: the prefix once, then these candidates.
struct Part {
  size_t task = 0;
  uint32_t index = 0;
  std::vector<size_t> candidates;
};

bool IsRecall(const std::string& name) { return name == "recall"; }

std::vector<Part> Missing(const Sweep& sweep, const StateFile& state) {
  std::vector<Part> cases;
  for (size_t t = 0; t < sweep.tasks.size(); ++t) {
    const NamedTask& task = sweep.tasks[t];
    for (uint32_t i = 0; i < task.task->cases(); ++i) {
      Part part = {t, i, {}};
      for (size_t c = 0; c < sweep.candidates.size(); ++c) {
        if (!state.Find(task.name, i, CandidateText(sweep.candidates[c]))) {
          part.candidates.push_back(c);
        }
      }
      if (part.candidates.empty()) continue;
      if (IsRecall(task.name)) {  // all of them look at the same steps
        part.candidates.resize(sweep.candidates.size());
        for (size_t c = 0; c < part.candidates.size(); ++c) part.candidates[c] = c;
      }
      cases.push_back(std::move(part));
    }
  }
  return cases;
}

// Few cases are cut into parts by candidate; a policy's budgets stay together where they can.
std::vector<Part> Cut(std::vector<Part> cases, const Sweep& sweep) {
  if (sweep.jobs == 1 || cases.empty()) return cases;
  const size_t pieces = (kPartsPerJob * sweep.jobs + cases.size() - 1) / cases.size();
  std::vector<Part> parts;
  for (Part& whole : cases) {
    const bool recall = IsRecall(sweep.tasks[whole.task].name);
    const size_t count = recall ? 1 : std::min(pieces, whole.candidates.size());
    for (size_t p = 0; p < count; ++p) {
      const auto at = [&](size_t i) {
        return whole.candidates.begin() +
               static_cast<ptrdiff_t>(i * whole.candidates.size() / count);
      };
      parts.push_back({whole.task, whole.index, {at(p), at(p + 1)}});
    }
  }
  return parts;
}

// The jobs' common list of parts, and what they found.
class Work {
 public:
  Work(const Sweep& sweep, StateFile* state)
      : sweep_(sweep), state_(state), parts_(Cut(Missing(sweep, *state), sweep)) {}

  size_t jobs() const { return std::min<size_t>(sweep_.jobs, parts_.size()); }
  const absl::Status& status() const { return status_; }

  // One job, on the calling thread.
  void Run() {
    Session::Options options = sweep_.session;
    options.threads = std::max(options.threads / static_cast<unsigned>(jobs()), 1u);
    auto session = Session::Make(*sweep_.files, options, sweep_.candidates);
    if (!session.ok()) return Fail(session.status());
    TaskCase made;
    while (const Part* part = Next(&made)) {
      const auto begin = std::chrono::steady_clock::now();
      std::vector<Candidate> candidates;
      for (size_t c : part->candidates) candidates.push_back(sweep_.candidates[c]);
      RunCase(
          **session, *sweep_.tokenizer, made, candidates,
          [&](size_t i, CandidateResult result) { Keep(*part, candidates[i], std::move(result)); });
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      const NamedTask& task = sweep_.tasks[part->task];
      spdlog::info("{}: {} of {} candidates of case {} of {} took {:.2f} s", task.name,
                   candidates.size(), sweep_.candidates.size(), part->index + 1, task.task->cases(),
                   seconds.count());
    }
  }

 private:
  // Tasks are for one thread, so cases are made under the lock. Null when nothing is left.
  const Part* Next(TaskCase* made) {
    const std::lock_guard lock(mutex_);
    if (!status_.ok() || next_ == parts_.size()) return nullptr;
    const Part& part = parts_[next_++];
    auto task_case = sweep_.tasks[part.task].task->Make(part.index);
    if (!task_case.ok()) {
      status_ = task_case.status();
      return nullptr;
    }
    *made = *std::move(task_case);
    return &part;
  }

  void Keep(const Part& part, const Candidate& candidate, CandidateResult result) {
    const std::lock_guard lock(mutex_);
    status_.Update(state_->Add(sweep_.tasks[part.task].name, part.index, CandidateText(candidate),
                               std::move(result)));
  }

  void Fail(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    status_.Update(status);
  }

  const Sweep& sweep_;
  StateFile* const state_;
  const std::vector<Part> parts_;
  std::mutex mutex_;  // of what follows, of the state and of the tasks
  size_t next_ = 0;
  absl::Status status_;
};

}  // namespace

std::string CandidateText(const Candidate& candidate) {
  return absl::StrCat(candidate.policy.text(), " ", BudgetText(candidate.budget));
}

absl::Status RunSweep(const Sweep& sweep, StateFile* state) {
  Work work(sweep, state);
  if (work.jobs() == 0) return absl::OkStatus();
  const absl::Status fits = CheckLocalMemory(*sweep.files, work.jobs() * sweep.session.max_tokens,
                                             Session::KeyBytes(sweep.files->config));
  if (!fits.ok()) return fits;
  std::vector<std::thread> threads;
  for (size_t i = 1; i < work.jobs(); ++i) threads.emplace_back([&] { work.Run(); });
  work.Run();
  for (std::thread& thread : threads) thread.join();
  return work.status();
}

}  // namespace sparsekv
