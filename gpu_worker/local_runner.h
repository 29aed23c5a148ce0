#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu_worker/device.h"

namespace sparsekv {

// One sequence run in this process, without a store or a coordinator: what `sparsekv logits` and
// `sparsekv calibrate` use, and what tests compare services with. Rows lie in plain memory. One
// thread.
class LocalRunner {
 public:
  struct Options {
    uint32_t max_tokens = 0;  // rows and labels for so many positions
    uint32_t chunk_tokens = 512;
    unsigned threads = 0;
    bool reference = false;
  };
  // `files` outlives the runner.
  static absl::StatusOr<std::unique_ptr<LocalRunner>> Make(const ModelFiles& files,
                                                           const Options& options);

  // Computes the next tokens. A budget that is not dense needs single tokens and keeps labels.
  // REQUIRES: ids.size() <= chunk_tokens, position() + ids.size() <= max_tokens.
  void Forward(std::span<const uint32_t> ids, RowBudget budget);
  // Logits of the last Forward's token i, [vocab_size], valid until the next call.
  const float* Logits(uint32_t i) { return device_.model->Logits(i, 1); }

  void Reset() { position_ = 0; }
  uint32_t position() const { return position_; }
  Model& model() { return *device_.model; }
  const Device& device() const { return device_; }

 private:
  LocalRunner() = default;

  Device device_;
  RowLayout layout_;
  std::unique_ptr<std::byte[]> rows_;
  std::vector<uint32_t> blocks_;
  std::vector<std::byte*> label_pages_;
  uint32_t position_ = 0;
};

}  // namespace sparsekv
