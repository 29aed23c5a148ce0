#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/device_arena.h"
#include "kernels/hot_rows.h"

namespace sparsekv {

// The activations and selection buffers of one step, taken from the arena at start. Sizes bound
// what a step may hold; the device thread owns the contents.
struct Scratch {
  uint32_t max_tokens = 0;       // tokens of one forward pass
  uint32_t max_logit_rows = 0;   // rows of `logits`
  size_t selection_entries = 0;  // floats of `scores`, and indices of `selection`

  float* hidden = nullptr;    // [max_tokens, hidden_size]  the residual stream
  float* normed = nullptr;    // [max_tokens, hidden_size]
  float* q = nullptr;         // [max_tokens, heads * head_dim]
  float* k = nullptr;         // [max_tokens, kv_heads * head_dim]
  float* v = nullptr;         // [max_tokens, kv_heads * head_dim]
  float* attended = nullptr;  // [max_tokens, heads * head_dim]
  float* gate = nullptr;      // [max_tokens, intermediate_size], of an MLP or of an expert
  float* up = nullptr;        // likewise
  // Where a model has experts:
  float* router = nullptr;     // [max_tokens, experts]
  float* expert_in = nullptr;  // [max_tokens, hidden_size]  one expert's tokens, then its outputs
  float* mixed = nullptr;      // [max_tokens, hidden_size]  the sum of a token's experts
  // [kInputs, max_logit_rows, hidden_size]  inputs of the last layers, which take them in turn
  float* inputs = nullptr;
  float* logits = nullptr;        // [max_logit_rows, vocab_size]
  float* scores = nullptr;        // [selection_entries]
  uint32_t* selection = nullptr;  // [selection_entries]
  // Where rows are brought to the device:
  uint32_t* slots = nullptr;     // [selection_entries]
  RowMove* misses = nullptr;     // [selection_entries]
  Resolved* resolved = nullptr;  // [max_logit_rows, kv_heads]
  // Where predictions are made: they have their own of everything, and may run beside a layer.
  struct Ahead {
    float* normed = nullptr;   // [max_logit_rows, hidden_size]
    float* q = nullptr;        // [max_logit_rows, heads * head_dim]
    float* compact = nullptr;  // [max_logit_rows, heads * head_dim]
    float* scores = nullptr;   // [selection_entries], as the next
    uint32_t* selection = nullptr;
    uint32_t* slots = nullptr;
  } ahead;
  // For steps that look at how good they are:
  uint32_t* kept = nullptr;    // [2, selection_entries]  predicted lists; layers take them in turn
  uint32_t* common = nullptr;  // [layers, max_logit_rows, kv_heads]  of those, selected
  float* cosines = nullptr;    // [layers, max_logit_rows]  similarity of consecutive layers' inputs

  // A layer's input is needed by the predictions of that layer and the next.
  static constexpr uint32_t kInputs = 3;
  float* Input(const ModelConfig& config, uint32_t layer) const {
    return inputs + size_t{layer % kInputs} * max_logit_rows * config.hidden_size;
  }

  // `selection_tokens`: the most tokens that the double-sparsity sequences of one selection round
  // have together; at least one whole sequence's. `slots`: whether rows are brought to the device;
  // `predict`: whether predictions are made.
  static absl::StatusOr<Scratch> Take(const ModelConfig& config, uint32_t max_tokens,
                                      uint32_t max_logit_rows, uint32_t selection_tokens,
                                      bool slots, bool predict, DeviceArena& arena);
  // What Take takes, by kind, padded as the arena does.
  static std::map<std::string, size_t> Bytes(const ModelConfig& config, uint32_t max_tokens,
                                             uint32_t max_logit_rows, uint32_t selection_tokens,
                                             bool slots, bool predict);
};

}  // namespace sparsekv
