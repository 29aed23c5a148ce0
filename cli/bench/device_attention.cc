#include <algorithm>

#include "cli/bench/device_layers.h"

// Attention of one layer: for one token of every sequence, dense and over a selection with all that
// leads to it, and for a prompt's chunk.
namespace sparsekv {
namespace {

using Limit = DeviceBench::Limit;

bool WantsAny(const DeviceBench& bench, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](auto name) { return bench.Wants(name); });
}

nlohmann::ordered_json ModelParams(const DeviceGrid::Model& model) {
  return {{"model", model.name},
          {"kv_heads", model.kv_heads},
          {"group", model.heads / model.kv_heads},
          {"head_dim", model.head_dim},
          {"dtype", "bf16"}};
}

// Over a selection: scoring, choosing and attending, alone and together.
void BenchSparse(DeviceBench& bench, DeviceLayers& layers, nlohmann::ordered_json params,
                 const DeviceLayers::Size& size, uint32_t budget) {
  layers.SetBudget(budget);
  params["budget"] = budget;
  const double rows = layers.row_bytes(budget), labels = layers.label_bytes();
  const double flops = layers.flops(budget);
  const double scores =
      double(sizeof(float)) * size.batch * size.context * params["kv_heads"].get<uint32_t>();
  // One operation of the step before it left the scores in the cache, if they fit there. So they
  // are the same for every run here, and the copy's rate is no limit.
  layers.Score(0);
  bench.Measure({.item = {"select", params, scores}, .items = size.batch, .run = [&](uint32_t) {
                   layers.Select();
                 }});
  bench.Measure({.item = {"attend_selection", params, rows, flops},
                 .limit = Limit::kCopy,
                 .items = size.batch,
                 .run = [&](uint32_t i) { layers.AttendRandom(i); }});
  bench.Measure({.item = {"score_select", params, labels, layers.score_flops()},
                 .limit = Limit::kCopy,
                 .items = 2 * size.batch,
                 .run = [&](uint32_t i) { layers.ScoreSelect(i); }});
  bench.Measure({.item = {"attend_sparse", params, labels + rows, layers.score_flops() + flops},
                 .limit = Limit::kCopy,
                 .items = 3 * size.batch,
                 .run = [&](uint32_t i) {
                   layers.ScoreSelect(i);
                   layers.AttendSelected(i);
                 }});
}

void BenchDecode(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model,
                 uint32_t batch, uint32_t context) {
  const DeviceLayers::Size size = {.batch = batch,
                                   .context = context,
                                   .channels = grid.labels.Channels(model.head_dim),
                                   .format = grid.labels.format};
  const auto layers = DeviceLayers::Make(bench, model, size);
  if (!layers) return;
  auto params = ModelParams(model);
  params["batch"] = batch;
  params["context"] = context;
  bench.Measure(
      {.item = {"attend_dense", params, layers->row_bytes(context), layers->flops(context)},
       .limit = Limit::kCopy,
       .items = batch,
       .run = [&](uint32_t i) { layers->AttendDense(i); }});
  grid.labels.Describe(model.head_dim, &params);
  bench.Measure({.item = {"score_labels", params, layers->label_bytes(), layers->score_flops()},
                 .limit = Limit::kCopy,
                 .items = batch,
                 .run = [&](uint32_t i) { layers->Score(i); }});
  if (!WantsAny(bench, {"select", "attend_selection", "score_select", "attend_sparse"})) return;
  std::vector<uint32_t> budgets = {context / 16};
  if (grid.budget <= context && grid.budget != context / 16) budgets.push_back(grid.budget);
  for (uint32_t budget : budgets) BenchSparse(bench, *layers, params, size, budget);
}

void BenchPrompt(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model,
                 uint32_t position) {
  const uint32_t context = position + grid.prompt_tokens;
  const auto layers = DeviceLayers::Make(
      bench, model, {.batch = 1, .context = context, .queries = grid.prompt_tokens});
  if (!layers) return;
  auto params = ModelParams(model);
  params["position"] = position;
  params["tokens"] = grid.prompt_tokens;
  // Token t of them attends position + t + 1 rows.
  const double pairs = double(grid.prompt_tokens) * (position + (grid.prompt_tokens + 1) / 2.0);
  bench.Measure({.item = {"attend_prompt", params, layers->row_bytes(context),
                          4 * double(model.width()) * pairs},
                 .kind = StepKind::kPrompt,
                 .limit = Limit::kProduct,
                 .run = [&](uint32_t i) { layers->AttendDense(i); }});
}

}  // namespace

void BenchAttention(DeviceBench& bench, const DeviceGrid& grid, const DeviceGrid::Model& model) {
  if (WantsAny(bench, {"attend_dense", "score_labels", "select", "attend_selection", "score_select",
                       "attend_sparse"})) {
    for (uint32_t batch : grid.attention_batches) {
      for (uint32_t context : grid.contexts) BenchDecode(bench, grid, model, batch, context);
    }
  }
  if (!bench.Wants("attend_prompt")) return;
  for (uint32_t position : grid.prompt_positions) BenchPrompt(bench, grid, model, position);
}

}  // namespace sparsekv
