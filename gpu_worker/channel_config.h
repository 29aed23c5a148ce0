#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "kernels/labels.h"

namespace sparsekv {

// "max-normalised", "sum", "softmax-mass", as channel config files write them.
std::string_view Name(Pooling pooling);
std::optional<Pooling> ParsePooling(std::string_view name);

// Which channels of K are labels, per layer and KV head, in the half-split rotary layout of Hugging
// Face checkpoints. A plain value; constant once loaded.
//
// File format, version 1, one JSON object:
//   "format": "sparsekv-channels", "version": 1,
//   "fingerprint": 16 hexadecimal digits of the model (Weights::fingerprint),
//   "layers", "kv_heads", "head_dim": the model's, "channels": r, how many of each order are
//   labels, "label_format": "bf16", "pooling": as above, "criterion": what was measured, e.g. "qk",
//   "text": {"xxh3": 16 digits, "tokens": N}, the calibration text,
//   "order": [layers][kv_heads][head_dim], a permutation of the channels each, best first.
// The format published with Double Sparsity loads too: "model.layers.I.self_attn.{q,k,qk}_proj", a
// permutation per head. It names no model, so only its sizes are checked.
struct ChannelConfig {
  struct Text {  // what calibration ran on
    uint64_t xxh3 = 0;
    uint64_t tokens = 0;
  };

  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t channels = 0;  // r, 1..head_dim
  Pooling pooling = Pooling::kMaxNormalised;
  std::string criterion;
  Text text;
  std::vector<uint16_t> order;        // [layers, kv_heads, head_dim], best first
  std::vector<uint16_t> channel_ids;  // [layers, kv_heads, channels], the first of each order

  const uint16_t* Layer(uint32_t layer) const;  // [kv_heads, channels]

  // max(2, head_dim / 16): 1/32 of a row's bytes where rows are bf16, as labels are.
  static uint32_t DefaultChannels(uint32_t head_dim);

  // Takes the first `count` of each order as labels.  REQUIRES: 1 <= count <= head_dim.
  void UseChannels(uint32_t count);

  // `fingerprint` is the loaded model's; a file of our format for another one is refused.
  // `channels_override` replaces the file's r (0: keep it; published files have none, and get the
  // default). `criterion` chooses among a published file's orders: "qk", "k" or "q"; empty takes
  // the first of these that every layer has. Errors are one line: file, field, value.
  static absl::StatusOr<ChannelConfig> Load(const std::string& path, const ModelConfig& config,
                                            uint64_t fingerprint, uint32_t channels_override = 0,
                                            std::string_view criterion = "");

  // Writes our format, replacing `path` as a whole.  REQUIRES: order is complete.
  absl::Status Save(const std::string& path, uint64_t fingerprint) const;
};

}  // namespace sparsekv
