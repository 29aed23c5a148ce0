// What a checkpoint takes, and what of it fits where.
#include <algorithm>
#include <vector>

#include "base/concat.h"
#include "cli/inspect.h"
#include "gpu_worker/device_weights.h"
#include "kv_store/memory_check.h"

namespace sparsekv {

namespace {

using nlohmann::ordered_json;

constexpr uint64_t kGpuGigabytes[] = {24, 48, 80};
constexpr uint64_t kCpuDeviceBytes = 1ull << 30;  // as `serve` takes on the cpu

uint64_t Pages(uint32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

// Those of 8K, 32K and 128K tokens that the model has, or its own where that is shorter.
std::vector<uint32_t> Contexts(uint32_t longest) {
  std::vector<uint32_t> contexts;
  for (const uint32_t context : {8u << 10, 32u << 10, 128u << 10}) {
    if (context <= longest) contexts.push_back(context);
  }
  if (contexts.empty()) contexts.push_back(longest);
  return contexts;
}

// How many sequences of config.max_context a worker plans for; 0 when not even one fits. A plan
// reserves for a full batch, so a smaller one is tried where that is too much.
uint64_t PlannedSequences(const ModelFiles& files, const ModelConfig& config,
                          MemoryPlan::Request request) {
  for (uint32_t batch = kMaxBatch; batch > 0; batch /= 4) {
    request.max_batch = batch;
    const auto plan = MemoryPlan::Make(config, files.channel_config(), request);
    if (!plan.ok()) continue;
    if (request.rows.in_place && !files.channels) return batch;  // nothing but activations
    const uint64_t pages = files.channels ? plan->label_pages : plan->row_blocks;
    return std::min<uint64_t>(batch, pages / Pages(config.max_context));
  }
  return 0;
}

uint64_t OnCpu(const ModelFiles& files, const ModelConfig& config, uint64_t available) {
  const uint64_t planned = PlannedSequences(
      files, config,
      {.device_bytes = kCpuDeviceBytes, .prefill_unit_tokens = PrefillUnitTokens(false)});
  const uint64_t rows = Pages(config.max_context) * files.Layout(1).bytes_per_block();
  const uint64_t left = available > kCpuDeviceBytes ? available - kCpuDeviceBytes : 0;
  return std::min(planned, left / 2 / rows);  // half of what is left, as serve takes
}

uint64_t OnGpu(const ModelFiles& files, const ModelConfig& config, uint64_t gigabytes) {
  return PlannedSequences(files, config,
                          {.device_bytes = (gigabytes << 30) / 10 * 9,
                           .prefill_unit_tokens = PrefillUnitTokens(true),
                           .rows = {.in_place = false},
                           .host_memory = false,
                           .weight_bytes = DeviceWeightBytes(*files.weights)});
}

}  // namespace

ordered_json DescribeMemory(const ModelFiles& files) {
  const uint64_t block = files.Layout(1).bytes_per_block();
  ordered_json memory = {{"weight_bytes", DeviceWeightBytes(*files.weights)},
                         {"row_bytes_per_1000_tokens", block * 1000 / kBlockTokens}};
  if (files.channels) {
    const size_t page = files.channels->label_layout().page_bytes();
    memory["label_bytes_per_1000_tokens"] = page * 1000 / kBlockTokens;
  }
  const auto available = kv_store::AvailableMemory();
  const absl::Status cuda = files.CheckCuda();
  if (!cuda.ok()) memory["not_on_cuda"] = std::string(cuda.message());
  ordered_json fits = ordered_json::array();
  for (const uint32_t context : Contexts(files.config.max_context)) {
    ModelConfig config = files.config;
    config.max_context = context;
    ordered_json row = {{"context", context}, {"host_row_bytes", Pages(context) * block}};
    row["this_machine_cpu"] =
        available.ok() ? ordered_json(OnCpu(files, config, *available)) : ordered_json();
    for (const uint64_t gigabytes : kGpuGigabytes) {
      row[Concat("gpu_", gigabytes, "_gb")] =
          cuda.ok() ? ordered_json(OnGpu(files, config, gigabytes)) : ordered_json();
    }
    fits.push_back(std::move(row));
  }
  memory["sequences_that_fit"] = std::move(fits);
  return memory;
}

}  // namespace sparsekv
