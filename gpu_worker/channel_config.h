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
//   labels, "label_format": "bf16" (where absent), "int8", "int4" or "int2", "pooling": as above,
//   "criterion": what was measured, e.g. "qk",
//   "text": {"xxh3": 16 digits, "tokens": N}, the calibration text,
//   "context": tokens of one context of it (optional),
//   "recall" (optional): recall of attention mass on text that was held out, {"budget_denominator":
//   16, "context", "queries", "mass": [layers][kv_heads]}, 0..1 each,
//   "order": [layers][kv_heads][head_dim], a permutation of the channels each, best first.
// The format published with Double Sparsity loads too: "model.layers.I.self_attn.{q,k,qk}_proj", a
// permutation per head. It names no model, so only its sizes are checked.
struct ChannelConfig {
  struct Text {  // what calibration ran on
    uint64_t xxh3 = 0;
    uint64_t tokens = 0;
  };
  struct Recall {                     // on other text, with these channels
    uint32_t budget_denominator = 0;  // of 1/N
    uint32_t context = 0;             // tokens
    uint32_t queries = 0;             // of each head; 0: was not measured
    std::vector<double> mass;  // [layers, kv_heads], share of the attention that was selected
  };

  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t channels = 0;  // r, 1..head_dim
  LabelFormat label_format = LabelFormat::kBf16;
  Pooling pooling = Pooling::kMaxNormalised;
  std::string criterion;
  Text text;
  uint32_t context = 0;  // tokens of one context of the text; 0 = not known
  Recall recall;
  std::vector<uint16_t> order;        // [layers, kv_heads, head_dim], best first
  std::vector<uint16_t> channel_ids;  // [layers, kv_heads, channels], the first of each order

  const uint16_t* Layer(uint32_t layer) const;  // [kv_heads, channels]
  LabelLayout label_layout() const { return {layers, kv_heads, channels, label_format}; }

  // max(2, head_dim / 16) of bf16, max(2, head_dim / 4) of codes. At head_dim 64, 96, 128
  // and 256 labels of as many bf16 or int2 are at most 1/32 of a row of bf16.
  static uint32_t DefaultChannels(uint32_t head_dim, LabelFormat format = LabelFormat::kBf16);

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

// One order per KV head from the orders [heads, head_dim] of its group's query heads: by the sum of
// a channel's ranks, ties by the lower channel. [kv_heads, head_dim]
std::vector<uint16_t> PoolOrders(const std::vector<uint16_t>& orders, uint32_t kv_heads,
                                 uint32_t head_dim);

}  // namespace sparsekv
