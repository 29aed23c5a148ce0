#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// How the device's memory is divided at start: a pure function of the model and the budget.
// Activations come first; labels take what is left, up to what a full batch could use.
struct MemoryPlan {
  uint32_t max_step_tokens = 0;   // tokens of one forward pass
  uint32_t max_batch = 0;         // sequences of one decode step
  uint32_t label_pages = 0;       // 0 without a channel config
  uint32_t selection_tokens = 0;  // see Scratch::Take

  // RESOURCE_EXHAUSTED, with both figures, when not even one sequence of the model's full context
  // fits.
  static absl::StatusOr<MemoryPlan> Make(const ModelConfig& config, const ChannelConfig* channels,
                                         size_t device_bytes, uint32_t max_batch,
                                         uint32_t prefill_unit_tokens);
};

}  // namespace sparsekv
