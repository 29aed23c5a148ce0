#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/device_arena.h"

namespace sparsekv {

// The activations and selection buffers of one step, taken from the arena at start. Sizes bound
// what a step may hold; the device thread owns the contents.
struct Scratch {
  uint32_t max_tokens = 0;       // tokens of one forward pass
  uint32_t max_logit_rows = 0;   // rows of `logits`
  size_t selection_entries = 0;  // floats of `scores`, and indices of `selection`

  float* hidden = nullptr;        // [max_tokens, hidden_size]  the residual stream
  float* normed = nullptr;        // [max_tokens, hidden_size]
  float* q = nullptr;             // [max_tokens, heads * head_dim]
  float* k = nullptr;             // [max_tokens, kv_heads * head_dim]
  float* v = nullptr;             // [max_tokens, kv_heads * head_dim]
  float* attended = nullptr;      // [max_tokens, heads * head_dim]
  float* gate = nullptr;          // [max_tokens, intermediate_size]
  float* up = nullptr;            // [max_tokens, intermediate_size]
  float* logits = nullptr;        // [max_logit_rows, vocab_size]
  float* scores = nullptr;        // [selection_entries]
  uint32_t* selection = nullptr;  // [selection_entries]

  // `selection_tokens`: the most tokens that the double-sparsity sequences of one selection round
  // have together; at least one whole sequence's.
  static absl::StatusOr<Scratch> Take(const ModelConfig& config, uint32_t max_tokens,
                                      uint32_t max_logit_rows, uint32_t selection_tokens,
                                      DeviceArena& arena);
};

}  // namespace sparsekv
