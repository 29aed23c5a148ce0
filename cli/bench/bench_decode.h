#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cli/bench/bench_labels.h"
#include "gpu_worker/budget.h"
#include "gpu_worker/simulated_link.h"

namespace sparsekv {

// `sparsekv bench decode`: decode steps with offloaded rows, for every combination of the lists
// below; what of the fetching was hidden behind computing, and what was waited for.
struct DecodeBenchOptions {
  std::string shape = "llama-3.2-1b";
  std::string weights = "bf16";  // of the shape: bf16, int8, int4, fp8
  uint32_t layers = 0;           // 0 = the shape's
  BenchLabels labels;            // of the shape
  uint32_t context = 32768;
  uint32_t batch = 1;
  uint32_t budget = 2048;
  double step_overlap = 0.8;
  double layer_similarity = 0.95;
  std::string trace;        // selections recorded from a real run, instead of queries made up
  std::string record;       // where to record them; with `model`
  std::string model, text;  // a real checkpoint and its prompt, instead of random weights
  LinkSpec link;
  std::vector<std::string> predict = {"off", "on"};
  std::vector<std::string> hot_rows = {"off", "2048"};  // counts
  std::vector<std::string> fetch = {"direct"};
  bool corrected = true;
  uint32_t prefetch_percent = 100;
  uint32_t warmup = 8;
  uint32_t steps = 16;
  uint32_t threads = 0;
  std::string backend = "cpu";  // of the measured runner; what it starts from is made on the cpu
  std::string placement = "offload";
  bool graphs = true;
  bool early_launch = true;
  bool mirror_rows = false;
  bool dense = false;  // attend every row: no selection, no hot rows

  RowBudget row_budget() const { return dense ? RowBudget{} : RowBudget{.rows = budget}; }
  std::string timeline;  // JSON of the last case's last step
  bool json = false;
};

absl::Status BenchDecode(const DecodeBenchOptions& options);

}  // namespace sparsekv
