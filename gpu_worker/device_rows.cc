#include "gpu_worker/device_rows.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

namespace {

constexpr uint32_t kDoubleBuffer = 2;

uint32_t Pages(uint32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

}  // namespace

bool RowSets::shared() const {
  return placement == RowPlacement::kOffload && device->hot_rows() == 0;
}

size_t RowSets::bytes() const {
  if (device == nullptr) return 0;
  const RowLayout& layout = device->layout();
  return blocks.size() * (layout.block_stride() + DeviceRows::MetaBytes(layout)) +
         map_pages.size() * device->maps().page_bytes();
}

RowTable RowSets::Rows(uint32_t layer) const {
  const uint32_t set = layer % sets;
  return {device->options_.rows, block_table + size_t{set} * Pages(slots), &device->layout()};
}

std::byte* RowSets::ResidentBlock(uint32_t layer, uint32_t block) const {
  const size_t set = layer % sets;
  return device->options_.rows +
         blocks[set * Pages(slots) + block] * device->layout().block_stride();
}

SlotTable RowSets::Slots(uint32_t layer) const {
  return {.rows = Rows(layer),
          .slots = slots,
          .meta = device->options_.meta,
          .map_pages = map_table,
          .map_layout = &device->map_layout(),
          .set = layer % sets};
}

DeviceRows::DeviceRows(const Options& options)
    : options_(options),
      map_layout_{.sets = options.hot_rows ? options.layers : kDoubleBuffer,
                  .kv_heads = options.layout.kv_heads},
      maps_(map_layout_.page_bytes(), options.map_pages, options.map_page_count) {
  CHECK_EQ(options.layout.layers, 1u);
  for (uint32_t block = options.layout.blocks; block-- > 0;) free_.push_back(block);
  const std::vector<SlotMeta> empty(size_t{options.layout.kv_heads} * kBlockTokens);
  options.backend->Upload(options.empty_meta, empty.data(), empty.size() * sizeof(SlotMeta));
  drifts_.resize(options.drift ? options.max_sequences : 0);
  for (size_t i = 0; i < drifts_.size(); ++i) {
    drifts_[i].values = options.drift + i * options.drift_values;
    free_drifts_.push_back(&drifts_[i]);
  }
}

DeviceRows::Need DeviceRows::NeedOf(uint32_t layers, uint32_t hot_rows, RowPlacement placement,
                                    uint32_t tokens, uint32_t selection) {
  if (placement == RowPlacement::kResident) return {layers, Pages(tokens) * kBlockTokens};
  if (selection == 0) return {1, Pages(tokens) * kBlockTokens};
  return {hot_rows ? layers : kDoubleBuffer,
          Pages(std::max(std::min(hot_rows, tokens), selection)) * kBlockTokens};
}

bool DeviceRows::Take(RowPlacement placement, uint32_t tokens, uint32_t selection,
                      TableSpace* tables, RowSets* sets) {
  const Need need = NeedOf(options_.layers, options_.hot_rows, placement, tokens, selection);
  const uint32_t count = need.blocks();
  if (count > free_.size()) return false;
  const bool mapped = placement == RowPlacement::kOffload && selection > 0;
  if (mapped && !maps_.Take(Pages(tokens), sets->map_pages)) return false;
  sets->device = this;
  sets->placement = placement;
  sets->sets = need.sets;
  sets->slots = need.slots;
  sets->blocks.assign(free_.end() - count, free_.end());
  free_.resize(free_.size() - count);
  if (mapped && options_.drift) {
    CHECK(!free_drifts_.empty());
    sets->drift = free_drifts_.back();
    free_drifts_.pop_back();
  }
  sets->block_table = tables->Put(sets->blocks);
  sets->map_table = tables->Put(sets->map_pages);
  Clear(*sets);
  return true;
}

void DeviceRows::Clear(const RowSets& sets) {
  Backend& backend = *options_.backend;
  backend.BeginStep(StepKind::kPrompt);
  for (std::byte* page : sets.map_pages) backend.Fill(page, 0xFF, maps_.page_bytes());
  if (sets.drift) {
    sets.drift->steps = 0;
    backend.Fill(sets.drift->values, 0, options_.drift_values * sizeof(float));
  }
  const size_t metas = size_t{layout().kv_heads} * kBlockTokens;
  // Only slots have any; what resident rows are is told by their place.
  if (!sets.map_pages.empty()) {
    for (uint32_t block : sets.blocks) {
      backend.Copy(options_.meta + block * metas, options_.empty_meta, metas * sizeof(SlotMeta));
    }
  }
  backend.EndStep();
}

void DeviceRows::Return(RowSets* sets) {
  if (sets->device == nullptr) return;
  free_.insert(free_.end(), sets->blocks.begin(), sets->blocks.end());
  CHECK_LE(free_.size(), total_blocks());
  sets->blocks.clear();
  maps_.Return(sets->map_pages);
  if (sets->drift) free_drifts_.push_back(sets->drift);
  sets->drift = nullptr;
  sets->device = nullptr;
}

size_t DeviceRows::MetaBytes(const RowLayout& layout) {
  return size_t{layout.kv_heads} * kBlockTokens * sizeof(SlotMeta);
}

size_t DeviceRows::used_row_bytes() const {
  return (total_blocks() - free_.size()) * layout().block_stride();
}

size_t DeviceRows::used_map_bytes() const {
  return maps_.used_bytes() + (total_blocks() - free_.size()) * MetaBytes(layout());
}

}  // namespace sparsekv
