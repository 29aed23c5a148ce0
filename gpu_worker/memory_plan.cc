#include "gpu_worker/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "gpu_worker/device_arena.h"
#include "gpu_worker/device_rows.h"
#include "gpu_worker/lane_row_fetcher.h"
#include "gpu_worker/query_predictor.h"
#include "gpu_worker/row_fetcher.h"
#include "gpu_worker/scratch.h"
#include "kernels/labels.h"

namespace sparsekv {

namespace {

size_t Padded(size_t bytes) { return DeviceArena::Padded(bytes); }
uint32_t Pages(uint32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

// What one sequence of the full context takes, and what the pieces are.
struct Unit {
  bool lands = false;  // rows that are read land before they have slots
  size_t label_page = 0;
  size_t map_page = 0;
  size_t row_block = 0;  // with its slots' metadata and its part of the lists
  uint32_t pages = 0;
  uint32_t blocks = 0;
  uint32_t sets = 0;

  size_t bytes() const { return pages * (label_page + map_page) + blocks * row_block; }
};

Unit UnitOf(const ModelConfig& config, const ChannelConfig* channels,
            const MemoryPlan::Request& request) {
  Unit unit;
  unit.pages = Pages(config.max_context);
  if (channels) unit.label_page = channels->label_layout().page_bytes();
  if (request.rows.in_place) return unit;
  const RowLayout block{.layers = 1,
                        .kv_heads = config.kv_heads,
                        .head_dim = config.head_dim,
                        .dtype = config.row_dtype,
                        .blocks = 1};
  unit.sets = request.rows.hot_rows ? config.layers : 2;
  const size_t lists = ListBytesPerSlot(config.kv_heads) * kBlockTokens;
  unit.row_block = block.block_stride() + DeviceRows::MetaBytes(block) + lists / unit.sets + 1;
  unit.blocks = unit.pages;  // a dense sequence
  if (!channels) return unit;
  unit.lands = !request.host_memory && request.rows.hot_rows > 0;
  if (unit.lands) unit.row_block += (block.block_stride() + sizeof(uint32_t)) / unit.sets + 1;
  const uint32_t selection =
      request.selection ? request.selection : config.max_context / kDefaultBudgetDenominator;
  unit.map_page = MapLayout{unit.sets, config.kv_heads}.page_bytes();
  unit.blocks = DeviceRows::NeedOf(config.layers, request.rows.hot_rows, RowPlacement::kOffload,
                                   config.max_context, selection)
                    .blocks();
  return unit;
}

// As many as one layer's sets have, but no more than a batch can select.
uint32_t LandingBlocks(const Unit& unit, const MemoryPlan::Request& request, uint32_t set_slots) {
  const uint32_t of_one = std::min(unit.pages, Pages(DeviceRows::kMostSelected));
  const uint64_t most = uint64_t{request.max_batch} * of_one;
  return static_cast<uint32_t>(std::min<uint64_t>(set_slots / kBlockTokens, most));
}

size_t EmptyMetaBytes(const ModelConfig& config) {
  return DeviceRows::MetaBytes({.kv_heads = config.kv_heads});
}

// What is elsewhere where the device reads the host's memory.
void AddDeviceOnly(const ModelConfig& config, const ChannelConfig* channels,
                   const MemoryPlan::Request& request, MemoryPlan* plan) {
  const size_t pages = Pages(config.max_context);
  const size_t page_entries = sizeof(uint32_t) + 2 * sizeof(std::byte*);
  plan->bytes_by_kind["weights"] = request.weight_bytes;
  plan->scratch_bytes = kDeviceScratchBytes;
  plan->bytes_by_kind["scratch"] = 3 * kDeviceScratchBytes;  // of each lane but the one that keeps
  // Blocks and pages of the sequence, the blocks of its row sets, and what aligning them takes.
  plan->table_bytes =
      Padded(pages * (page_entries + std::max(config.layers, 2u) * sizeof(uint32_t)) + 64);
  plan->bytes_by_kind["tables"] += Padded(request.max_batch * plan->table_bytes);
  if (channels) {
    plan->bytes_by_kind["tables"] +=
        Padded(channels->channels * config.kv_heads * config.layers * sizeof(uint16_t));
  }
  if (request.rows.in_place) return;
  plan->prompt_bytes = size_t{config.max_context} * config.hidden_size * sizeof(float);
  plan->bytes_by_kind["prompt"] = Padded(plan->prompt_bytes);
  plan->bytes_by_kind["selection"] +=
      Padded(LaneRowFetcher::JournalBytes(config.layers, request.max_batch, config.kv_heads));
}

// Selections of a long batch are made in rounds, so their scratch need not grow with the batch; but
// a device of its own does better with all of it at once.
uint32_t SelectionTokens(const ModelConfig& config, const MemoryPlan::Request& request) {
  if (request.host_memory) return config.max_context;
  // Scores, selection, slots and moves; of predictions the first three again, and two kept lists.
  const size_t entry =
      3 * sizeof(float) + sizeof(RowMove) + (request.rows.predict ? 5 * sizeof(float) : 0);
  const size_t fit = request.device_bytes / 32 / (entry * config.kv_heads);
  return static_cast<uint32_t>(
      std::clamp<size_t>(fit, config.max_context, size_t{config.max_context} * request.max_batch));
}

// Everything but labels, maps and rows.
void AddFixed(const ModelConfig& config, const ChannelConfig* channels,
              const MemoryPlan::Request& request, MemoryPlan* plan) {
  const bool on_device = !request.rows.in_place;
  plan->prediction = on_device && request.rows.predict && channels != nullptr;
  plan->bytes_by_kind = Scratch::Bytes(config, plan->max_step_tokens, plan->max_batch,
                                       plan->selection_tokens, on_device, plan->prediction);
  if (!request.host_memory) AddDeviceOnly(config, channels, request, plan);
  plan->samples_recall = request.host_memory && channels != nullptr;
  if (plan->samples_recall) {
    plan->bytes_by_kind["selection"] += Padded(config.max_context * sizeof(float));
  }
  if (!on_device) return;
  plan->bytes_by_kind["tables"] += Padded(EmptyMetaBytes(config));
  const RowLayout layer{.layers = 1,
                        .kv_heads = config.kv_heads,
                        .head_dim = config.head_dim,
                        .dtype = config.row_dtype,
                        .blocks = Pages(config.max_context)};
  plan->prefill_tokens = layer.blocks * kBlockTokens;
  plan->bytes_by_kind["prefill"] = Padded(layer.pool_bytes());
  plan->bytes_by_kind["tables"] += Padded(layer.blocks * sizeof(uint32_t));
  if (plan->prediction) {
    plan->bytes_by_kind["prediction"] +=
        Padded(QueryPredictor::Bytes(config, *channels)) +
        Padded(QueryPredictor::DriftBytes(config, request.max_batch));
  }
}

}  // namespace

size_t MemoryPlan::total_bytes() const {
  size_t total = 0;
  for (const auto& [kind, bytes] : bytes_by_kind) total += bytes;
  return total;
}

absl::StatusOr<MemoryPlan> MemoryPlan::Make(const ModelConfig& config,
                                            const ChannelConfig* channels, const Request& request) {
  MemoryPlan plan;
  plan.max_batch = request.max_batch;
  plan.max_step_tokens = std::max(request.max_batch, request.prefill_unit_tokens);
  plan.selection_tokens = channels ? SelectionTokens(config, request) : 0;
  AddFixed(config, channels, request, &plan);
  const Unit unit = UnitOf(config, channels, request);
  const size_t fixed = plan.total_bytes() + 2048;  // and what padding of the rest may take
  if (fixed + unit.bytes() > request.device_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "device memory: activations and one sequence of ", config.max_context, " tokens need ",
        fixed + unit.bytes(), " bytes, the budget is ", request.device_bytes));
  }
  size_t left = request.device_bytes - fixed;
  if (channels) {
    const size_t sequences = std::min<size_t>(left / unit.bytes(), request.max_batch);
    const size_t page = unit.label_page + unit.map_page;
    const size_t most = size_t{unit.pages} * request.max_batch;
    // In place nothing else wants the memory.
    const size_t pages =
        request.rows.in_place ? std::min(left / page, most) : sequences * unit.pages;
    plan.label_pages = static_cast<uint32_t>(pages);
    plan.bytes_by_kind["labels"] = Padded(pages * unit.label_page);
    if (unit.map_page) {
      plan.map_pages = plan.label_pages;
      plan.bytes_by_kind["maps"] = Padded(pages * unit.map_page);
    }
    left -= pages * page;
  }
  if (unit.row_block > 0) {
    const size_t most = request.row_blocks ? request.row_blocks
                                           : std::max(unit.pages * config.layers, unit.blocks) *
                                                 size_t{request.max_batch};
    plan.row_blocks =
        static_cast<uint32_t>(std::min({left / unit.row_block, most, size_t{1} << 31}));
    plan.set_slots = plan.row_blocks / unit.sets * kBlockTokens;
    const RowLayout rows{.layers = 1,
                         .kv_heads = config.kv_heads,
                         .head_dim = config.head_dim,
                         .dtype = config.row_dtype,
                         .blocks = plan.row_blocks};
    plan.bytes_by_kind["rows"] = Padded(rows.pool_bytes());
    plan.bytes_by_kind["maps"] += Padded(plan.row_blocks * DeviceRows::MetaBytes(rows));
    if (channels) {
      plan.bytes_by_kind["selection"] += Padded(plan.set_slots * ListBytesPerSlot(config.kv_heads));
    }
    if (unit.lands) {
      plan.landing_blocks = LandingBlocks(unit, request, plan.set_slots);
      RowLayout landing = rows;
      landing.blocks = plan.landing_blocks;
      plan.bytes_by_kind["rows"] += Padded(landing.pool_bytes());
      plan.bytes_by_kind["tables"] += Padded(plan.landing_blocks * sizeof(uint32_t));
    }
  }
  return plan;
}

}  // namespace sparsekv
