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
  auto plan = MemoryPlan::Make(files.config, files.channel_config(),
                               {.device_bytes = options.device_bytes,
                                .max_batch = options.max_batch,
                                .prefill_unit_tokens = options.prefill_unit_tokens,
                                .rows = options.rows,
                                .selection = options.selection,
                                .row_blocks = options.row_blocks});
  if (!plan.ok()) return plan.status();
  device.plan = *plan;
  device.backend = options.reference ? MakeReferenceBackend() : MakeCpuBackend(options.threads);
  device.arena = std::make_unique<DeviceArena>(options.device_bytes);
  auto scratch = Scratch::Take(files.config, plan->max_step_tokens, plan->max_batch,
                               plan->selection_tokens, !options.rows.in_place, *device.arena);
  if (!scratch.ok()) return scratch.status();
  if (absl::Status status = device.MakeRows(files, options); !status.ok()) return status;
  if (absl::Status status = device.MakeAttention(files, options, *scratch); !status.ok()) {
    return status;
  }
  device.model = std::make_unique<Model>(Model::Options{.config = &files.config,
                                                        .weights = files.weights.get(),
                                                        .backend = device.backend.get(),
                                                        .scratch = *scratch,
                                                        .attention = device.attention.get(),
                                                        .timeline = options.timeline});
  const size_t page_bytes = device.attention->label_layout().page_bytes();
  auto memory = device.arena->Take("labels", plan->label_pages * page_bytes);
  if (!memory.ok()) return memory.status();
  device.labels = std::make_unique<PagePool>(page_bytes, *memory, plan->label_pages);
  return device;
}

absl::Status Device::MakeRows(const ModelFiles& files, const Options& options) {
  if (options.rows.in_place) return absl::OkStatus();
  RowLayout layout = files.Layout(plan.row_blocks);
  layout.layers = 1;
  DeviceRows::Options rows_options{.layers = files.config.layers,
                                   .layout = layout,
                                   .map_page_count = plan.map_pages,
                                   .hot_rows = options.rows.hot_rows};
  auto row_memory = arena->Take("rows", layout.pool_bytes());
  if (!row_memory.ok()) return row_memory.status();
  rows_options.rows = *row_memory;
  auto meta = arena->Take("maps", plan.row_blocks * DeviceRows::MetaBytes(layout));
  if (!meta.ok()) return meta.status();
  rows_options.meta = reinterpret_cast<SlotMeta*>(*meta);
  const uint32_t sets = options.rows.hot_rows ? files.config.layers : 2;
  auto maps =
      arena->Take("maps", plan.map_pages * MapLayout{sets, files.config.kv_heads}.page_bytes());
  if (!maps.ok()) return maps.status();
  rows_options.map_pages = *maps;
  if (plan.prediction) {
    auto drift =
        arena->Take("prediction", QueryPredictor::DriftBytes(files.config, plan.max_batch));
    if (!drift.ok()) return drift.status();
    rows_options.drift = reinterpret_cast<float*>(*drift);
    rows_options.drift_values = size_t{files.config.layers} * files.config.hidden_size;
    rows_options.max_sequences = plan.max_batch;
  }
  rows = std::make_unique<DeviceRows>(rows_options);

  if (options.link.bytes_per_s > 0) {
    link = std::make_unique<SimulatedLink>(
        options.link.bytes_per_s, std::chrono::nanoseconds(int64_t(options.link.latency_s * 1e9)));
  }
  if (plan.prediction) {
    auto memory = arena->Take("prediction", QueryPredictor::Bytes(files.config, *files.channels));
    if (!memory.ok()) return memory.status();
    predictor = std::make_unique<QueryPredictor>(files.config, *files.channels, *files.weights,
                                                 backend.get(), *memory);
    prefetcher = std::make_unique<Prefetcher>(Prefetcher::Options{
        .link = link.get(), .gather = options.gather, .timeline = options.timeline});
  }
  RowFetcher::Options fetcher_options{.host_layout = options.row_layout,
                                      .host_pool = options.row_pool,
                                      .backend = backend.get(),
                                      .prefetcher = prefetcher.get(),
                                      .link = link.get(),
                                      .timeline = options.timeline,
                                      .set_slots = plan.set_slots,
                                      .max_batch = plan.max_batch};
  if (files.channels) {
    auto lists = arena->Take("selection", plan.set_slots * ListBytesPerSlot(layout.kv_heads));
    if (!lists.ok()) return lists.status();
    fetcher_options.lists = *lists;
  }
  fetcher = std::make_unique<RowFetcher>(fetcher_options);
  return absl::OkStatus();
}

absl::Status Device::MakeAttention(const ModelFiles& files, const Options& options,
                                   const Scratch& scratch) {
  Attention::Options attention_options{.config = &files.config,
                                       .channels = files.channel_config(),
                                       .backend = backend.get(),
                                       .scratch = scratch,
                                       .row_layout = options.row_layout,
                                       .row_pool = options.row_pool,
                                       .fetcher = fetcher.get(),
                                       .predictor = predictor.get(),
                                       .timeline = options.timeline};
  if (!options.rows.in_place) {
    attention_options.prefill_layout = files.Layout(plan.prefill_tokens / kBlockTokens);
    attention_options.prefill_layout.layers = 1;
    auto prefill = arena->Take("prefill", attention_options.prefill_layout.pool_bytes());
    if (!prefill.ok()) return prefill.status();
    attention_options.prefill = *prefill;
  }
  attention = std::make_unique<Attention>(attention_options);
  return absl::OkStatus();
}

std::vector<Device::MemoryUse> Device::Memory() const {
  std::vector<MemoryUse> use;
  for (const auto& [kind, bytes] : arena->bytes_by_kind()) {
    MemoryUse one = {kind, bytes, bytes};
    if (kind == "labels") one.used_bytes = labels->used_bytes();
    if (kind == "rows") one.used_bytes = rows->used_row_bytes();
    if (kind == "maps") one.used_bytes = rows->used_map_bytes();
    use.push_back(std::move(one));
  }
  return use;
}

}  // namespace sparsekv
