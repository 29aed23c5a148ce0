#include "cli/bench/device_cases.h"

#include <algorithm>

namespace sparsekv {
namespace {

constexpr const char* kCaseNames[] = {
    "ceiling_copy",  "ceiling_product", "linear_decode", "linear_prompt",  "attend_dense",
    "score_labels",  "select",          "score_select",  "attend_sparse",  "attend_selection",
    "attend_prompt", "resolve",         "resolve_copy",  "resolve_attend", "rotate_append",
    "rms_norm",      "sample"};

constexpr uint32_t kK = 1024;

}  // namespace

DeviceGrid DeviceGrid::Usual() {
  return {.models = {{.name = "llama-3.1-8b",
                      .hidden = 4096,
                      .heads = 32,
                      .kv_heads = 8,
                      .head_dim = 128,
                      .intermediate = 14336,
                      .vocab = 128256},
                     {.name = "llama-2-7b",
                      .hidden = 4096,
                      .heads = 32,
                      .kv_heads = 32,
                      .head_dim = 128,
                      .intermediate = 11008,
                      .vocab = 32000}},
          .batches = {1, 4, 8, 16, 32},
          .attention_batches = {1, 8, 32},
          .contexts = {8 * kK, 32 * kK, 128 * kK},
          .prompt_positions = {0, 30 * kK, 126 * kK},
          .hot_batches = {1, 8},
          .hot_slots = {2048, 4096, 6144}};
}

DeviceGrid DeviceGrid::Full() {
  DeviceGrid grid = Usual();
  grid.attention_batches = grid.batches;
  grid.contexts = {2 * kK, 8 * kK, 32 * kK, 64 * kK, 128 * kK, 256 * kK};
  grid.hot_batches = {1, 8, 32};
  return grid;
}

bool DeviceCaseExists(const std::string& filter) {
  return std::any_of(std::begin(kCaseNames), std::end(kCaseNames), [&](const std::string& name) {
    return name.find(filter) != std::string::npos;
  });
}

absl::StatusOr<BenchReport> BenchDevice(Backend& backend, const DeviceGrid& grid) {
  auto bench = DeviceBench::Make(backend, grid.bench);
  if (!bench.ok()) return bench.status();
  for (const DeviceGrid::Model& model : grid.models) {
    BenchProducts(**bench, grid, model);
    BenchAttention(**bench, grid, model);
    BenchHotRows(**bench, grid, model);
    BenchTokenwise(**bench, grid, model);
  }
  return (*bench)->TakeReport();
}

}  // namespace sparsekv
