#pragma once

#include <cstdint>
#include <span>

#include "gpu_worker/budget.h"
#include "gpu_worker/device_rows.h"
#include "gpu_worker/sequence_recall.h"
#include "kernels/window.h"

namespace sparsekv {

// Token rows of a sequence, over layers and KV heads: selected = hits + useful + missed.
struct RowCounts {
  uint64_t selected = 0;
  uint64_t hits = 0;        // on the device before the step's prediction, or made by the step
  uint64_t prefetched = 0;  // brought by a prediction before the layer's rows were
  uint64_t useful = 0;      // of those, selected
  uint64_t missed = 0;      // fetched by the layer itself
  double stall_s = 0;       // the layers waited for rows, or read them while attending to others

  uint64_t fetched() const { return prefetched + missed; }
};

inline constexpr uint32_t kNoPrefill = 0xFFFFFFFF;

// One sequence's share of a forward pass: a chunk of its prompt, or one token.
struct StepItem {
  std::span<const uint32_t> ids;     // the step's tokens of this sequence
  uint32_t position = 0;             // of ids[0]
  const uint32_t* blocks = nullptr;  // row blocks for every position up to the last of ids
  // Pages for the same positions; null: no labels are kept.
  std::byte* const* label_pages = nullptr;
  RowBudget budget;  // not dense: ids.size() == 1 and label_pages given

  // The sequence's rows on the device; null: rows are attended where they lie.
  const RowSets* device = nullptr;
  // A prompt whose rows, of one layer at a time, are attended in the device's prefill buffer: the
  // buffer's block where position 0 lies. All earlier positions must have come through there.
  uint32_t prefill_block = kNoPrefill;
  uint64_t owner = 0;                     // for gather: as the store knows the sequence,
  const uint32_t* generations = nullptr;  // and its blocks
  RowCounts* counts = nullptr;            // of decode steps; null: nobody asks
  // Of decode steps that select, where the device's memory is the host's; null: nobody asks. With
  // a target, `budget` is the most that a layer may take.
  SequenceRecall* recall = nullptr;
  bool long_rope = false;  // ModelConfig::long_rope of all its tokens to come

  bool offloaded() const { return device != nullptr && !device->resident(); }
  bool resident() const { return device != nullptr && device->resident(); }

  // The first token that the item's first may attend in a layer of that window.
  uint32_t First(uint32_t window) const { return FirstInWindow(position, window); }
};

// Of one layer over the decode steps of an epoch: worker.proto, LayerStats.
struct LayerCounts {
  RowCounts rows;
  uint64_t cut = 0;
  uint64_t predicted = 0;
  uint64_t predicted_selected = 0;
  double similarity_sum = 0;
  uint32_t similarity_count = 0;
  double recall_sum = 0;  // of samples, sequences' layers each
  uint32_t recall_samples = 0;
  uint32_t fell_back = 0;  // sequences whose target this layer missed
};

// What the plan says of one layer: worker.proto, LayerPlan.
struct LayerPolicy {
  bool predict = false;
  uint32_t prefetch_percent = 100;
  bool uncorrected = false;
};

}  // namespace sparsekv
