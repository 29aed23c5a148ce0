#include "gpu_worker/scratch.h"

namespace sparsekv {

absl::StatusOr<Scratch> Scratch::Take(const ModelConfig& config, uint32_t max_tokens,
                                      uint32_t max_logit_rows, uint32_t selection_tokens,
                                      DeviceArena& arena) {
  Scratch scratch;
  scratch.max_tokens = max_tokens;
  scratch.max_logit_rows = max_logit_rows;
  scratch.selection_entries = size_t{selection_tokens} * config.kv_heads;

  absl::Status status;
  auto take = [&](const char* kind, size_t rows, size_t width, auto*& pointer) {
    if (!status.ok()) return;
    auto memory = arena.Take(kind, rows * width * sizeof(*pointer));
    if (!memory.ok()) {
      status = memory.status();
    } else {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(*memory);
    }
  };
  const size_t q_width = size_t{config.heads} * config.head_dim;
  const size_t kv_width = size_t{config.kv_heads} * config.head_dim;
  take("activations", max_tokens, config.hidden_size, scratch.hidden);
  take("activations", max_tokens, config.hidden_size, scratch.normed);
  take("activations", max_tokens, q_width, scratch.q);
  take("activations", max_tokens, kv_width, scratch.k);
  take("activations", max_tokens, kv_width, scratch.v);
  take("activations", max_tokens, q_width, scratch.attended);
  take("activations", max_tokens, config.intermediate_size, scratch.gate);
  take("activations", max_tokens, config.intermediate_size, scratch.up);
  take("logits", max_logit_rows, config.vocab_size, scratch.logits);
  take("selection", scratch.selection_entries, 1, scratch.scores);
  take("selection", scratch.selection_entries, 1, scratch.selection);
  if (!status.ok()) return status;
  return scratch;
}

}  // namespace sparsekv
