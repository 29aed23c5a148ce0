#include "gpu_worker/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "gpu_worker/device_arena.h"
#include "gpu_worker/scratch.h"
#include "kernels/labels.h"

namespace sparsekv {

namespace {

// What Scratch takes, without taking it: the same code over an arena that only counts would have to
// allocate, so the sum stands here and a test holds that the two agree.
size_t ScratchBytes(const ModelConfig& config, const MemoryPlan& plan) {
  auto pad = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  const size_t tokens = plan.max_step_tokens;
  const size_t q = size_t{config.heads} * config.head_dim;
  const size_t kv = size_t{config.kv_heads} * config.head_dim;
  size_t bytes = 2 * pad(tokens * config.hidden_size * 4) + 2 * pad(tokens * q * 4) +
                 2 * pad(tokens * kv * 4) + 2 * pad(tokens * config.intermediate_size * 4);
  bytes += pad(size_t{plan.max_batch} * config.vocab_size * 4);
  bytes += 2 * pad(size_t{plan.selection_tokens} * config.kv_heads * 4);
  return bytes;
}

}  // namespace

absl::StatusOr<MemoryPlan> MemoryPlan::Make(const ModelConfig& config,
                                            const ChannelConfig* channels, size_t device_bytes,
                                            uint32_t max_batch, uint32_t prefill_unit_tokens) {
  MemoryPlan plan;
  plan.max_batch = max_batch;
  plan.max_step_tokens = std::max(max_batch, prefill_unit_tokens);
  // Selections of a long batch are made in rounds, so their scratch need not grow with the batch.
  plan.selection_tokens = channels ? config.max_context : 0;
  size_t need = ScratchBytes(config, plan);
  size_t page_bytes = 0, one_sequence = 0;
  const size_t context_pages = (size_t{config.max_context} + kBlockTokens - 1) / kBlockTokens;
  if (channels) {
    page_bytes = LabelLayout{config.layers, config.kv_heads, channels->channels}.page_bytes();
    one_sequence = context_pages * page_bytes;
  }
  if (need + one_sequence > device_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "device memory: activations and the labels of one sequence of ", config.max_context,
        " tokens need ", need + one_sequence, " bytes, the budget is ", device_bytes));
  }
  if (channels) {
    const size_t pages = std::min((device_bytes - need) / page_bytes, context_pages * max_batch);
    plan.label_pages = static_cast<uint32_t>(pages);
  }
  return plan;
}

}  // namespace sparsekv
