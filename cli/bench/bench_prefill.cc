#include "cli/bench/bench_prefill.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/bench/random_model.h"
#include "cli/bench/report.h"
#include "cli/local_memory.h"
#include "gpu_worker/local_runner.h"

namespace sparsekv {

namespace {

constexpr uint32_t kStates = 256;  // token ids that have an embedding

// 2 per weight and token, but for the output matrix, which only the last token needs; 4 x head_dim
// per query head and pair of tokens.
double Flops(const ModelConfig& c, double tokens) {
  const double weights = double(c.hidden_size) *
                         (2.0 * c.head_dim * (c.heads + c.kv_heads) + 3.0 * c.intermediate_size);
  return c.layers * (2 * weights * tokens + 2.0 * c.heads * c.head_dim * tokens * tokens);
}

absl::Status RunCase(const PrefillBenchOptions& o, uint32_t tokens, BenchReport* report) {
  auto model = RandomModel::Make(
      {.shape = o.shape, .layers = o.layers, .context = tokens, .states = kStates});
  if (!model.ok()) return model.status();
  const ModelFiles& files = (*model)->files();
  if (absl::Status status = CheckLocalMemory(files, tokens); !status.ok()) return status;
  std::vector<uint32_t> ids(tokens);
  for (uint32_t i = 0; i < tokens; ++i) ids[i] = i * 7919 % kStates;
  const BackendKind kind = BackendFor(o.backend, files);
  const bool cuda = kind == BackendKind::kCuda;
  std::vector<double> seconds;
  std::string backend;
  for (uint32_t round = 0; round <= o.rounds; ++round) {
    auto runner = LocalRunner::Make(
        files,
        {.max_tokens = tokens,
         .chunk_tokens = PrefillUnitTokens(cuda),
         .threads = o.threads,
         .backend = kind,
         .exact_prompts = o.exact_prompts,
         .rows = {.in_place = false},
         .placement = o.placement == "resident" ? RowPlacement::kResident : RowPlacement::kOffload,
         .selection = 2048});
    if (!runner.ok()) return runner.status();
    const auto begin = std::chrono::steady_clock::now();
    (*runner)->Prefill(0, ids);
    const double took =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (round > 0 || o.rounds == 0) seconds.push_back(took);
    backend = (*runner)->device().backend->name();
  }
  BenchCase item;
  item.name = absl::StrCat("prefill/", o.placement);
  item.seconds_median = Median(seconds);
  item.flops = Flops(files.config, tokens);
  item.params = {{"backend", backend},
                 {"shape", o.shape},
                 {"layers", files.config.layers},
                 {"tokens", tokens},
                 {"exact_prompts", o.exact_prompts},
                 {"tokens_per_s", std::round(tokens / item.seconds_median)}};
  report->Add(std::move(item));
  return absl::OkStatus();
}

}  // namespace

absl::Status BenchPrefill(const PrefillBenchOptions& options) {
  BenchReport report;
  for (uint32_t tokens : options.tokens) {
    if (absl::Status status = RunCase(options, tokens, &report); !status.ok()) return status;
  }
  report.Print(options.json);
  return absl::OkStatus();
}

}  // namespace sparsekv
