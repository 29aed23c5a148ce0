#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/eval/scoring.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "gpu_worker/device.h"

namespace sparsekv {

// What comes after a case's prefix, under the policy that is judged.
struct Question {
  enum class Kind : uint8_t {
    kLikelihood,  // how likely targets[i] is after ids[i]
    kGenerate,    // greedy tokens after ids, scored against answers
    kChoice,      // which of `choices` is the most likely after ids
    kChase,       // greedy tokens after ids, each compared with `targets`, until one is wrong
    kRecall,      // nothing is asked: what would be selected while ids are decoded densely
  };
  Kind kind = Kind::kGenerate;
  std::vector<uint32_t> ids;      // never empty
  std::vector<uint32_t> targets;  // kLikelihood: [ids]; kChase
  uint32_t max_new_tokens = 0;
  Scoring scoring = Scoring::kContainsAll;
  std::vector<std::string> answers;
  std::vector<std::string> classes;  // kClassification: all there are
  std::vector<uint32_t> choices;     // kChoice: ids, the right one at `right`
  uint32_t right = 0;
};

// A prefix that is computed once, and what is asked after it, each question from the prefix's end.
struct TaskCase {
  std::vector<uint32_t> prefix;
  std::vector<Question> questions;
};

// How a task's sums are read.
enum class Metric : uint8_t {
  kPerplexity,  // exp(sum / weight); lower is better
  kAccuracy,    // sum / weight, 0 .. 1; higher is better
};

// What every task may need. What it points to outlives the task.
struct TaskSettings {
  const ModelFiles* files = nullptr;
  const Tokenizer* tokenizer = nullptr;
  uint32_t context = 0;    // tokens of a case, answers included
  uint32_t cases = 0;      // 0 = all that a file has
  uint32_t questions = 1;  // per case, of generated lookups
  uint64_t seed = 0;
  std::string text_file;           // perplexity, recall; hay for needles
  std::string file;                // cases in their published format
  std::string phrasing = "paper";  // or "lookup": as deploy/demo was trained
  uint32_t stride = 0;             // perplexity: 0 = context
  uint32_t last = 0;               // perplexity: tokens that are decoded; 0 = all
  bool bos_each_window = false;
  uint32_t hops = 0;  // links of a chain; 0 = 64 of chase, 4 of variable-tracking
  uint32_t needles = 4;
  std::string haystack = "text";  // or "needles": nothing but other needles
  uint32_t shots = 5;             // mmlu
  uint32_t max_new_tokens = 0;    // of file tasks; 0 = their own
};

// A source of cases, the same for one seed. One thread.
class Task {
 public:
  virtual ~Task() = default;
  virtual uint32_t cases() const = 0;
  virtual absl::StatusOr<TaskCase> Make(uint32_t index) = 0;
  virtual Metric metric() const { return Metric::kAccuracy; }
  // One line: what a case is and what is counted.
  virtual std::string about() const = 0;
};

std::vector<std::string> TaskNames();
// Errors are one line that names the option or file and the value.
absl::StatusOr<std::unique_ptr<Task>> MakeTask(const std::string& name,
                                               const TaskSettings& settings);

}  // namespace sparsekv
