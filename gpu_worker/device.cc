#include "gpu_worker/device.h"

#include <spdlog/spdlog.h>

#include <filesystem>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "gpu_worker/backend_limits.h"
#include "gpu_worker/device_weights.h"
#include "gpu_worker/host_row_fetcher.h"
#include "gpu_worker/lane_row_fetcher.h"

namespace sparsekv {

absl::StatusOr<ModelFiles> ModelFiles::Load(const std::string& model_dir,
                                            const std::string& channels_file, Weights::Use use) {
  ModelFiles files;
  auto checkpoint = LoadCheckpoint(model_dir, use);
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

absl::Status ModelFiles::CheckCuda() const {
  if (const std::string why = WhyNotOnCuda(config); !why.empty()) {
    return absl::UnimplementedError(why);
  }
  if (weights->quantized() == nullptr) return absl::OkStatus();
  const QuantizationConfig& quantization = weights->quantized()->config();
  return absl::UnimplementedError(
      absl::StrCat(quantization.file, ": quantization_config.quant_method \"", quantization.name,
                   "\" is not supported with CUDA devices"));
}

RowLayout ModelFiles::Layout(uint32_t blocks) const {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .dtype = weights->row_dtype(),
          .blocks = blocks};
}

BackendKind BackendFor(std::string_view name, const ModelFiles& files) {
  if (name == "reference") return BackendKind::kReference;
  if (name == "cuda") return BackendKind::kCuda;
  if (name != "auto" || !WhyNoCuda().empty()) return BackendKind::kCpu;
  const absl::Status able = files.CheckCuda();
  if (able.ok()) return BackendKind::kCuda;
  spdlog::info("backend cpu: {}", std::string(able.message()));
  return BackendKind::kCpu;
}

absl::Status Device::MakeBackend(const Options& options) {
  switch (options.backend) {
    case BackendKind::kReference:
      backend = MakeReferenceBackend();
      return absl::OkStatus();
    case BackendKind::kCpu:
      backend = MakeCpuBackend(options.threads);
      return absl::OkStatus();
    case BackendKind::kCuda:
      break;
  }
  if (options.link.bytes_per_s > 0) {
    return absl::InvalidArgumentError("--link: a CUDA device has a link of its own");
  }
  if (options.gather) {
    return absl::InvalidArgumentError("--fetch: gather is not in this version of backend cuda");
  }
  if (options.make_backend) {
    backend = options.make_backend();
    return ShareRows(options);
  }
  std::string why;
  backend = MakeCudaBackend({.device = options.device,
                             .graphs = options.graphs,
                             .early_launch = options.early_launch,
                             .exact_prompts = options.exact_prompts},
                            &why);
  if (!backend) return absl::FailedPreconditionError(why);
  return ShareRows(options);
}

// A device that can have none of the rows is of no use: the first block is tried at once.
absl::Status Device::ShareRows(const Options& options) {
  std::byte* mirror = nullptr;
  if (options.mirror_rows) {
    std::string why;
    mirror = backend->AllocateOnLargePages(options.row_layout.pool_bytes(), &why);
    if (!mirror) {
      return absl::FailedPreconditionError(
          absl::StrCat("--mirror-rows: the device has no such memory: ", why));
    }
  }
  shared_rows =
      std::make_unique<SharedRows>(SharedRows::Options{.backend = backend.get(),
                                                       .pool = options.row_pool,
                                                       .layout = options.row_layout,
                                                       .chunk_bytes = options.share_chunk_bytes,
                                                       .lock_file = options.share_lock_file,
                                                       .mirror = mirror});
  const uint32_t first = 0;
  return shared_rows->Use({&first, options.row_layout.blocks > 0 ? 1u : 0u});
}

absl::StatusOr<Device> Device::Make(const ModelFiles& files, const Options& options) {
  Device device;
  if (options.backend == BackendKind::kCuda) {
    if (absl::Status status = files.CheckCuda(); !status.ok()) return status;
  }
  if (absl::Status status = device.MakeBackend(options); !status.ok()) return status;
  Backend& backend = *device.backend;
  const size_t device_bytes =
      options.device_bytes ? options.device_bytes : backend.free_bytes() / 10 * 9;
  auto plan = MemoryPlan::Make(
      files.config, files.channel_config(),
      {.device_bytes = device_bytes,
       .max_batch = options.max_batch,
       .prefill_unit_tokens = options.prefill_unit_tokens,
       .rows = options.rows,
       .host_memory = backend.host_memory(),
       .weight_bytes = backend.host_memory() ? 0 : DeviceWeightBytes(*files.weights),
       .selection = options.selection,
       .row_blocks = options.row_blocks});
  if (!plan.ok()) return plan.status();
  device.plan = *plan;
  device.arena = std::make_unique<DeviceArena>(device_bytes, &backend);
  if (!backend.host_memory()) {
    auto weights = CopyToDevice(*files.weights, &backend, device.arena.get());
    if (!weights.ok()) return weights.status();
    device.weights = *std::move(weights);
  }
  auto scratch =
      Scratch::Take(files.config, plan->max_step_tokens, plan->max_batch, plan->selection_tokens,
                    !options.rows.in_place, plan->prediction, *device.arena);
  if (!scratch.ok()) return scratch.status();
  if (plan->scratch_bytes > 0) {
    backend.Reserve(plan->scratch_bytes);
    device.arena->Count("scratch", plan->bytes_by_kind.at("scratch"));
  }
  if (absl::Status status = device.MakeTables(files); !status.ok()) return status;
  if (absl::Status status = device.MakeRows(files, options); !status.ok()) return status;
  if (absl::Status status = device.MakeAttention(files, options, *scratch); !status.ok()) {
    return status;
  }
  device.model = std::make_unique<Model>(
      Model::Options{.config = &files.config,
                     .weights = device.weights ? device.weights.get() : files.weights.get(),
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

// A table as the device reads it.
absl::StatusOr<std::byte*> Device::TakeTable(const void* table, size_t bytes) {
  auto memory = arena->Take("tables", bytes);
  if (memory.ok()) backend->Upload(*memory, table, bytes);
  return memory;
}

absl::Status Device::UseBlocks(std::span<const uint32_t> blocks) {
  return shared_rows ? shared_rows->Use(blocks) : absl::OkStatus();
}

// 0, 1, ...: of a pool whose blocks are used in order.
absl::StatusOr<const uint32_t*> Device::TakeBlocks(uint32_t count) {
  std::vector<uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), 0u);
  auto table = TakeTable(blocks.data(), blocks.size() * sizeof(uint32_t));
  if (!table.ok()) return table.status();
  return reinterpret_cast<const uint32_t*>(*table);
}

absl::Status Device::MakeTables(const ModelFiles& files) {
  std::byte* memory = nullptr;
  if (!backend->host_memory()) {
    auto taken = arena->Take("tables", plan.max_batch * plan.table_bytes);
    if (!taken.ok()) return taken.status();
    memory = *taken;
    if (plan.prompt_bytes > 0) {
      auto prompt = arena->Take("prompt", plan.prompt_bytes);
      if (!prompt.ok()) return prompt.status();
      prompt_hidden = reinterpret_cast<float*>(*prompt);
    }
  }
  tables = std::make_unique<DeviceTables>(backend.get(), memory, plan.table_bytes, plan.max_batch);
  if (!files.channels) return absl::OkStatus();
  const std::vector<uint16_t>& channels = files.channels->channel_ids;
  channel_table_ = channels.data();
  if (backend->host_memory()) return absl::OkStatus();
  auto table = TakeTable(channels.data(), channels.size() * sizeof(uint16_t));
  if (!table.ok()) return table.status();
  channel_table_ = reinterpret_cast<const uint16_t*>(*table);
  return absl::OkStatus();
}

absl::Status Device::MakeRows(const ModelFiles& files, const Options& options) {
  if (options.rows.in_place) return absl::OkStatus();
  RowLayout layout = files.Layout(plan.row_blocks);
  layout.layers = 1;
  DeviceRows::Options rows_options{.backend = backend.get(),
                                   .layers = files.config.layers,
                                   .layout = layout,
                                   .map_page_count = plan.map_pages,
                                   .hot_rows = options.rows.hot_rows};
  auto row_memory = arena->Take("rows", layout.pool_bytes());
  if (!row_memory.ok()) return row_memory.status();
  rows_options.rows = *row_memory;
  auto meta = arena->Take("maps", plan.row_blocks * DeviceRows::MetaBytes(layout));
  if (!meta.ok()) return meta.status();
  rows_options.meta = reinterpret_cast<SlotMeta*>(*meta);
  auto empty = arena->Take("tables", DeviceRows::MetaBytes(layout));
  if (!empty.ok()) return empty.status();
  rows_options.empty_meta = reinterpret_cast<SlotMeta*>(*empty);
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
                                                 weights ? *weights : *files.weights, backend.get(),
                                                 *memory);
  }
  return MakeFetcher(files, options);
}

absl::Status Device::MakeFetcher(const ModelFiles& files, const Options& options) {
  std::byte* lists = nullptr;
  if (files.channels) {
    auto taken = arena->Take("selection", plan.set_slots * ListBytesPerSlot(files.config.kv_heads));
    if (!taken.ok()) return taken.status();
    lists = *taken;
  }
  if (!backend->host_memory()) return MakeLaneFetcher(files, options, lists);
  if (plan.prediction) {
    prefetcher = std::make_unique<Prefetcher>(Prefetcher::Options{
        .link = link.get(), .gather = options.gather, .timeline = options.timeline});
  }
  fetcher =
      std::make_unique<HostRowFetcher>(HostRowFetcher::Options{.host_layout = options.row_layout,
                                                               .host_pool = options.row_pool,
                                                               .backend = backend.get(),
                                                               .prefetcher = prefetcher.get(),
                                                               .link = link.get(),
                                                               .timeline = options.timeline,
                                                               .lists = lists,
                                                               .set_slots = plan.set_slots,
                                                               .max_batch = plan.max_batch});
  return absl::OkStatus();
}

absl::Status Device::MakeLaneFetcher(const ModelFiles& files, const Options& options,
                                     std::byte* lists) {
  auto journal = arena->Take(
      "selection",
      LaneRowFetcher::JournalBytes(files.config.layers, plan.max_batch, files.config.kv_heads));
  if (!journal.ok()) return journal.status();
  LaneRowFetcher::Options lane_options{.host_layout = options.row_layout,
                                       .host_pool = shared_rows->read_pool(),
                                       .backend = backend.get(),
                                       .layers = files.config.layers,
                                       .lists = lists,
                                       .set_slots = plan.set_slots,
                                       .journal = *journal,
                                       .max_batch = plan.max_batch};
  if (plan.landing_blocks > 0) {
    lane_options.landing_layout = files.Layout(plan.landing_blocks);
    lane_options.landing_layout.layers = 1;
    auto landing = arena->Take("rows", lane_options.landing_layout.pool_bytes());
    if (!landing.ok()) return landing.status();
    lane_options.landing = *landing;
    auto blocks = TakeBlocks(plan.landing_blocks);
    if (!blocks.ok()) return blocks.status();
    lane_options.landing_blocks = *blocks;
  }
  fetcher = std::make_unique<LaneRowFetcher>(lane_options);
  return absl::OkStatus();
}

absl::Status Device::MakeAttention(const ModelFiles& files, const Options& options,
                                   const Scratch& scratch) {
  Attention::Options attention_options{.config = &files.config,
                                       .channels = files.channel_config(),
                                       .channel_table = channel_table_,
                                       .backend = backend.get(),
                                       .scratch = scratch,
                                       .row_layout = options.row_layout,
                                       .row_pool = options.row_pool,
                                       .mirror_pool = shared_rows ? shared_rows->mirror() : nullptr,
                                       .fetcher = fetcher.get(),
                                       .predictor = predictor.get(),
                                       .timeline = options.timeline};
  if (plan.samples_recall) {
    auto mass = arena->Take("selection", files.config.max_context * sizeof(float));
    if (!mass.ok()) return mass.status();
    attention_options.row_mass = reinterpret_cast<float*>(*mass);
  }
  if (!options.rows.in_place) {
    attention_options.prefill_layout = files.Layout(plan.prefill_tokens / kBlockTokens);
    attention_options.prefill_layout.layers = 1;
    auto prefill = arena->Take("prefill", attention_options.prefill_layout.pool_bytes());
    if (!prefill.ok()) return prefill.status();
    attention_options.prefill = *prefill;
    auto blocks = TakeBlocks(attention_options.prefill_layout.blocks);
    if (!blocks.ok()) return blocks.status();
    attention_options.prefill_blocks = *blocks;
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
