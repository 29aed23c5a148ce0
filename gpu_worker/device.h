#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/channel_config.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "gpu_worker/checkpoint/weights.h"
#include "gpu_worker/device_arena.h"
#include "gpu_worker/device_tables.h"
#include "gpu_worker/memory_plan.h"
#include "gpu_worker/model.h"
#include "gpu_worker/page_pool.h"
#include "gpu_worker/prefetcher.h"
#include "gpu_worker/query_predictor.h"
#include "gpu_worker/row_fetcher.h"
#include "gpu_worker/shared_rows.h"
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
                                         const std::string& channels_file,
                                         Weights::Use use = Weights::Use::kCompute);

  const ChannelConfig* channel_config() const { return channels ? &*channels : nullptr; }
  // OK, or which field of config.json asks for products that CUDA devices do not have.
  absl::Status CheckCuda() const;
  // Rows of this checkpoint in a pool of `blocks` blocks.
  RowLayout Layout(uint32_t blocks) const;
};

enum class BackendKind : uint8_t { kCpu, kReference, kCuda };
// "cpu", "cuda", "reference"; "auto": cuda where a device can run the checkpoint, else cpu.
BackendKind BackendFor(std::string_view name, const ModelFiles& files);

// Everything that one device holds: backend, memory, rows, labels, model. Built once at start;
// belongs to the device thread. The model files, the row pool and the store's client outlive it.
struct Device {
  struct Options {
    size_t device_bytes = 0;  // kCuda: 0 = 90 % of what is free
    uint32_t max_batch = 0;
    uint32_t prefill_unit_tokens = 0;
    unsigned threads = 0;  // of the cpu backend, 0 = every core
    BackendKind backend = BackendKind::kCpu;
    int device = -1;             // kCuda: CudaOptions::device
    bool graphs = true;          // kCuda: decode steps are kept as graphs
    bool early_launch = true;    // kCuda: kernels begin while the one before ends
    bool exact_prompts = false;  // kCuda: CudaOptions::exact_prompts
    bool mirror_rows = false;    // kCuda: SharedRows with a mirror
    // kCuda: makes another device instead; for tests.
    std::function<std::unique_ptr<Backend>()> make_backend;
    std::string share_lock_file;  // SharedRows::Options, with the next
    size_t share_chunk_bytes = size_t{256} << 20;
    RowLayout row_layout;
    std::byte* row_pool = nullptr;
    RowMode rows;
    uint32_t selection = 0;  // MemoryPlan::Request, with the next
    uint32_t row_blocks = 0;
    LinkSpec link;                             // not in place
    kv_store::GatherClient* gather = nullptr;  // predictions are fetched by the store; null: direct
    Timeline* timeline = nullptr;
  };
  static absl::StatusOr<Device> Make(const ModelFiles& files, const Options& options);

  // The plan by kind, and what of it sequences hold.
  struct MemoryUse {
    std::string kind;
    size_t bytes = 0, used_bytes = 0;
  };
  std::vector<MemoryUse> Memory() const;

  // Before a sequence's blocks of the segment are used. As SharedRows::Use.
  absl::Status UseBlocks(std::span<const uint32_t> blocks);

  std::unique_ptr<Backend> backend;
  std::unique_ptr<SharedRows> shared_rows;  // null where the device's memory is the host's
  std::unique_ptr<DeviceArena> arena;
  std::unique_ptr<Weights> weights;  // the device's own copy; null: the files' serve
  std::unique_ptr<DeviceTables> tables;
  MemoryPlan plan;
  float* prompt_hidden = nullptr;             // LayerwisePrefill's; null: it finds its own
  std::unique_ptr<PagePool> labels;           // of 0 pages without a channel config
  std::unique_ptr<DeviceRows> rows;           // null in place; so the next four
  std::unique_ptr<SimulatedLink> link;        // null: none is simulated
  std::unique_ptr<QueryPredictor> predictor;  // null: no predictions
  std::unique_ptr<RowFetcher> fetcher;
  std::unique_ptr<Attention> attention;
  std::unique_ptr<Model> model;
  std::unique_ptr<Prefetcher> prefetcher;  // last: its thread writes into the rest

 private:
  absl::Status MakeBackend(const Options& options);
  absl::Status ShareRows(const Options& options);
  absl::Status MakeTables(const ModelFiles& files);
  absl::Status MakeRows(const ModelFiles& files, const Options& options);
  absl::Status MakeAttention(const ModelFiles& files, const Options& options,
                             const Scratch& scratch);
  absl::Status MakeFetcher(const ModelFiles& files, const Options& options);
  absl::Status MakeLaneFetcher(const ModelFiles& files, const Options& options, std::byte* lists);
  absl::StatusOr<std::byte*> TakeTable(const void* table, size_t bytes);
  absl::StatusOr<const uint32_t*> TakeBlocks(uint32_t count);

  const uint16_t* channel_table_ = nullptr;
};

}  // namespace sparsekv
