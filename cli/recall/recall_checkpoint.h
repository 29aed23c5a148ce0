#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/dtype.h"
#include "cli/recall/recall_codes.h"
#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"

namespace sparsekv {

// A Llama checkpoint whose weights are constructed, not trained, so that it answers an associative
// recall exactly, over any context. The residual stream has rooms, one after the other: the token's
// code, the code of the token before, the code that a row of this token answers with, the answer
// found, and a constant. RMS norms only scale them by known numbers; MLPs are zero.
//
//   layer 0   Query and key read the constant into the fast rotary pairs, the key's phase one
//             position behind, so that the score peaks at the token before. V and O copy its code.
//   between   `extra_layers` layers of small random weights: inputs of consecutive layers become
//             similar but not equal, as in real models.
//   last      The query reads the token's code, the key the code of the token before, both into the
//             slow pairs, which hardly turn. So the row after a key answers to that key. V and O
//             bring that row's answer code to the room for it.
//   output    The product of every token's code with the room for the answer.
//
// A value form answers with its key's code; every other token with its own, so that a wrong row
// shows.
struct RecallModel {
  RecallDifficulty difficulty = RecallDifficulty::kEasy;
  // Each KV head attends for its share of the components (component i belongs to head i mod
  // kv_heads), and has its own arrangement of channels, so the heads must agree for a clean answer.
  uint32_t kv_heads = 1;
  uint32_t group = 1;       // query heads per KV head, which ask alike, each a little sharper
  uint32_t head_dim = 128;  // or 64
  uint32_t extra_layers = 0;
  // Of each KV head of the last layer: larger than any heavy channel in every query and key, and
  // the same in all, so that they tell no key from another. At most head_dim / 16.
  uint32_t loud_channels = 0;
  DType dtype = DType::kF32;
  uint64_t seed = 0;
};

// The numbers of config.json for this model. Codes have head_dim / 2 components.
ModelConfig RecallConfig(const RecallModel& model, uint32_t max_context);

// Writes DIR/config.json and DIR/model.safetensors.
absl::Status WriteRecallCheckpoint(const std::string& dir, const RecallModel& model,
                                   uint32_t max_context);

// The channels that the construction made heavy: head_dim / 16 of each KV head in the last layer.
ChannelConfig RecallChannels(const RecallModel& model);

// The loud ones of a KV head, in the slowest of the pairs that hold no code.
std::vector<uint16_t> RecallLoudChannels(const RecallModel& model, uint32_t kv_head);

}  // namespace sparsekv
