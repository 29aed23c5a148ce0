#include "cli/eval/report/report.h"

#include "absl/strings/str_format.h"

namespace sparsekv {

nlohmann::ordered_json EvalReport::ToJson() const {
  nlohmann::ordered_json json = {{"settings", settings},
                                 {"tasks", nlohmann::ordered_json::array()}};
  for (const TaskSummary& task : tasks) json["tasks"].push_back(task.ToJson());
  return json;
}

std::string EvalReport::ToText() const {
  std::string text;
  for (const TaskSummary& task : tasks) {
    const bool perplexity = task.metric == Metric::kPerplexity;
    absl::StrAppendFormat(&text, "%s: %s\n%u cases, %.0f %s; 95 %% intervals\n\n", task.name,
                          task.about, task.cases, task.units,
                          perplexity || task.name == "recall" ? "tokens" : "questions");
    absl::StrAppendFormat(&text, "%-36s %7s %10s %21s %9s %21s %8s %7s %7s %7s\n", "policy",
                          "budget", perplexity ? "perplexity" : "accuracy", "interval", "change",
                          "interval", "rows", "of all", "bytes", "recall");
    for (const CandidateSummary& c : task.candidates) {
      const int digits = perplexity ? 3 : 4;
      absl::StrAppendFormat(&text, "%-36s %7s %10.*f  %9.*f.. %8.*f %+8.2f%% %+9.2f.. %+8.2f%% ",
                            c.policy, c.budget, digits, c.value.value, digits, c.value.low, digits,
                            c.value.high, 100 * c.change.value, 100 * c.change.low,
                            100 * c.change.high);
      absl::StrAppendFormat(&text, "%8.1f %6.2f%% %6.2f%% %7s\n", c.mean_rows, 100 * c.rows_share,
                            100 * c.bytes_share,
                            c.recall ? absl::StrFormat("%.4f", *c.recall) : "");
    }
    text += "\n";
  }
  return text;
}

}  // namespace sparsekv
