#include "gpu_worker/scratch.h"

#include <algorithm>

namespace sparsekv {

namespace {

// Calls take(kind, count, pointer) for every buffer of a scratch.
template <typename Take>
void ForEachBuffer(const ModelConfig& config, bool slots, bool predict, Scratch& scratch,
                   const Take& take) {
  const size_t tokens = scratch.max_tokens, batch = scratch.max_logit_rows;
  const size_t q_width = size_t{config.heads} * config.head_dim;
  const size_t kv_width = size_t{config.kv_heads} * config.head_dim;
  take("activations", tokens * config.hidden_size, scratch.hidden);
  take("activations", tokens * config.hidden_size, scratch.normed);
  take("activations", tokens * q_width, scratch.q);
  take("activations", tokens * kv_width, scratch.k);
  take("activations", tokens * kv_width, scratch.v);
  take("activations", tokens * q_width, scratch.attended);
  const size_t intermediate = std::max(config.intermediate_size, config.experts.intermediate_size);
  take("activations", tokens * intermediate, scratch.gate);
  take("activations", tokens * intermediate, scratch.up);
  if (config.experts.count > 0) {
    take("activations", tokens * config.experts.count, scratch.router);
    take("activations", tokens * config.hidden_size, scratch.expert_in);
    take("activations", tokens * config.hidden_size, scratch.mixed);
  }
  take("activations", Scratch::kInputs * batch * config.hidden_size, scratch.inputs);
  take("activations", config.layers * batch, scratch.cosines);
  take("logits", batch * config.vocab_size, scratch.logits);
  take("selection", scratch.selection_entries, scratch.scores);
  take("selection", scratch.selection_entries, scratch.selection);
  if (!slots) return;
  take("selection", scratch.selection_entries, scratch.slots);
  take("selection", scratch.selection_entries, scratch.misses);
  take("selection", batch * config.kv_heads, scratch.resolved);
  if (!predict) return;
  take("prediction", batch * config.hidden_size, scratch.ahead.normed);
  take("prediction", batch * q_width, scratch.ahead.q);
  take("prediction", batch * q_width, scratch.ahead.compact);
  take("prediction", scratch.selection_entries, scratch.ahead.scores);
  take("prediction", scratch.selection_entries, scratch.ahead.selection);
  take("prediction", scratch.selection_entries, scratch.ahead.slots);
  take("prediction", 2 * scratch.selection_entries, scratch.kept);
  take("prediction", config.layers * batch * config.kv_heads, scratch.common);
}

Scratch Sized(const ModelConfig& config, uint32_t max_tokens, uint32_t max_logit_rows,
              uint32_t selection_tokens) {
  Scratch scratch;
  scratch.max_tokens = max_tokens;
  scratch.max_logit_rows = max_logit_rows;
  scratch.selection_entries = size_t{selection_tokens} * config.kv_heads;
  return scratch;
}

}  // namespace

absl::StatusOr<Scratch> Scratch::Take(const ModelConfig& config, uint32_t max_tokens,
                                      uint32_t max_logit_rows, uint32_t selection_tokens,
                                      bool slots, bool predict, DeviceArena& arena) {
  Scratch scratch = Sized(config, max_tokens, max_logit_rows, selection_tokens);
  absl::Status status;
  ForEachBuffer(config, slots, predict, scratch,
                [&](const char* kind, size_t count, auto*& pointer) {
                  if (!status.ok()) return;
                  auto memory = arena.Take(kind, count * sizeof(*pointer));
                  if (!memory.ok()) {
                    status = memory.status();
                  } else {
                    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(*memory);
                  }
                });
  if (!status.ok()) return status;
  return scratch;
}

std::map<std::string, size_t> Scratch::Bytes(const ModelConfig& config, uint32_t max_tokens,
                                             uint32_t max_logit_rows, uint32_t selection_tokens,
                                             bool slots, bool predict) {
  Scratch scratch = Sized(config, max_tokens, max_logit_rows, selection_tokens);
  std::map<std::string, size_t> bytes;
  ForEachBuffer(config, slots, predict, scratch,
                [&](const char* kind, size_t count, auto*& pointer) {
                  bytes[kind] += DeviceArena::Padded(count * sizeof(*pointer));
                });
  return bytes;
}

}  // namespace sparsekv
