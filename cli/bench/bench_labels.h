#pragma once

#include <nlohmann/json.hpp>

#include "gpu_worker/channel_config.h"
#include "kernels/label_codes.h"

namespace sparsekv {

// The labels of a bench's cases: `--label-format`, `--label-channels`.
struct BenchLabels {
  LabelFormat format = LabelFormat::kBf16;
  uint32_t channels = 0;  // per KV head; 0 = the default for head_dim and format

  uint32_t Channels(uint32_t head_dim) const {
    return channels ? channels : ChannelConfig::DefaultChannels(head_dim, format);
  }
  // Of one token and KV head.
  double Bytes(uint32_t head_dim) const {
    return static_cast<double>(LabelBytes(format, Channels(head_dim)));
  }
  // Says in a case's params what its labels are: the format where it is not bf16.
  void Describe(uint32_t head_dim, nlohmann::ordered_json* params) const {
    (*params)["label_channels"] = Channels(head_dim);
    if (format != LabelFormat::kBf16) (*params)["label_format"] = Name(format);
  }
};

}  // namespace sparsekv
