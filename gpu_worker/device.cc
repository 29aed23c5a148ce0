#include "gpu_worker/device.h"

#include <filesystem>

#include "base/check.h"

namespace sparsekv {

absl::StatusOr<ModelFiles> ModelFiles::Load(const std::string& model_dir,
                                            const std::string& channels_file) {
  ModelFiles files;
  auto checkpoint = LoadCheckpoint(model_dir);
  if (!checkpoint.ok()) return checkpoint.status();
  files.config = checkpoint->config;
  files.weights = std::move(checkpoint->weights);

  std::string path = channels_file;
  if (path.empty()) {
    path = model_dir + "/channels.json";
    if (!std::filesystem::exists(path)) return files;
  }
  if (path == "none") return files;
  auto channels = ChannelConfig::Load(path, files.config, files.weights->fingerprint());
  if (!channels.ok()) return channels.status();
  files.channels = *std::move(channels);
  return files;
}

RowLayout ModelFiles::Layout(uint32_t blocks) const {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .dtype = weights->row_dtype(),
          .blocks = blocks};
}

absl::StatusOr<Device> Device::Make(const ModelFiles& files, const Options& options) {
  Device device;
  const ModelConfig& config = files.config;
  auto plan = MemoryPlan::Make(config, files.channel_config(), options.device_bytes,
                               options.max_batch, options.prefill_unit_tokens);
  if (!plan.ok()) return plan.status();
  device.plan = *plan;
  device.backend = options.reference ? MakeReferenceBackend() : MakeCpuBackend(options.threads);
  device.arena = std::make_unique<DeviceArena>(options.device_bytes);
  auto scratch = Scratch::Take(config, plan->max_step_tokens, plan->max_batch,
                               plan->selection_tokens, *device.arena);
  if (!scratch.ok()) return scratch.status();
  device.model = std::make_unique<Model>(Model::Options{.config = &config,
                                                        .weights = files.weights.get(),
                                                        .channels = files.channel_config(),
                                                        .backend = device.backend.get(),
                                                        .scratch = *scratch,
                                                        .row_layout = options.row_layout,
                                                        .row_pool = options.row_pool});
  const LabelLayout layout = device.model->label_layout();
  auto memory = device.arena->Take("labels", plan->label_pages * layout.page_bytes());
  if (!memory.ok()) return memory.status();
  device.labels = std::make_unique<LabelPool>(layout, *memory, plan->label_pages);
  return device;
}

}  // namespace sparsekv
