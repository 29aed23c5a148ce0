#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cli/eval/policies/head_policy.h"
#include "gpu_worker/checkpoint/model_config.h"
#include "kernels/backend.h"

namespace sparsekv {

// Attends what a policy selected, for one token and KV head, with the backend's own attention: the
// rows where they lie, or copies of them that stand at another distance. One thread.
class SelectionAttender {
 public:
  // Both outlive it. REQUIRES: host memory.
  SelectionAttender(const ModelConfig& config, Backend* backend, uint32_t max_tokens);
  ~SelectionAttender();

  // q and out: [group, head_dim] of the KV head. `mean_value`, [head_dim], is what the rest of
  // selection.share goes to.
  void Attend(const HeadSelection& selection, uint32_t kv_head, uint32_t position,
              const RowTable& rows, const float* q, std::span<const double> mean_value, float* out);

 private:
  RowTable Move(const HeadSelection& selection, uint32_t position, const RowTable& rows);

  const ModelConfig& config_;
  Backend* const backend_;
  const std::vector<float> inverse_frequency_;
  RowLayout layout_;                // of moved rows: one head, float32
  std::byte* moved_ = nullptr;      // layout_.pool_bytes()
  std::vector<uint32_t> blocks_;    // 0, 1, ...
  std::vector<uint32_t> in_order_;  // 0, 1, ...
};

}  // namespace sparsekv
