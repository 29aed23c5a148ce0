#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/weights.h"
#include "gpu_worker/device_arena.h"
#include "gpu_worker/label_pool.h"
#include "gpu_worker/memory_plan.h"
#include "gpu_worker/model.h"
#include "kernels/backend.h"

namespace sparsekv {

// A checkpoint directory, read whole: its configuration, mapped weights and, where there is one,
// channel config.
struct ModelFiles {
  ModelConfig config;
  std::unique_ptr<Weights> weights;
  std::optional<ChannelConfig> channels;

  // `channels_file`: "" = MODEL_DIR/channels.json where that exists; "none" = no channel config.
  static absl::StatusOr<ModelFiles> Load(const std::string& model_dir,
                                         const std::string& channels_file);

  const ChannelConfig* channel_config() const { return channels ? &*channels : nullptr; }
  // Rows of this checkpoint in a pool of `blocks` blocks.
  RowLayout Layout(uint32_t blocks) const;
};

// Everything that one device holds: backend, memory, labels, model. Built once at start; belongs to
// the device thread. The model files and the row pool outlive it.
struct Device {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<DeviceArena> arena;
  std::unique_ptr<LabelPool> labels;  // of 0 pages without a channel config
  std::unique_ptr<Model> model;
  MemoryPlan plan;

  struct Options {
    size_t device_bytes = 0;
    uint32_t max_batch = 0;
    uint32_t prefill_unit_tokens = 0;
    unsigned threads = 0;    // of the cpu backend, 0 = every core
    bool reference = false;  // the reference backend (tests)
    RowLayout row_layout;
    std::byte* row_pool = nullptr;
  };
  static absl::StatusOr<Device> Make(const ModelFiles& files, const Options& options);
};

}  // namespace sparsekv
