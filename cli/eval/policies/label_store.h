#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cli/eval/policies/key_history.h"
#include "kernels/label_codes.h"

namespace sparsekv {

// The labels of one (layer, KV head), and what they say of a query head: in a format of codes the
// worker's own scores, to the bit (kernels/label_codes.h). One thread.
class LabelStore {
 public:
  LabelStore(LabelFormat format, uint32_t channels, uint32_t capacity);

  uint32_t tokens() const { return values_.tokens(); }
  // kBf16: kept as they are, rounded by the caller to what it stores; else coded here. [channels].
  // REQUIRES: room
  void Append(std::span<const float> label);
  void Truncate(uint32_t tokens);
  // scores[t] for t < tokens, of a query head's values on the channels, scaled for its pooling and
  // rounded (LabelQuery); coded here where labels are.
  void Score(std::span<const float> query, uint32_t tokens, float* scores) const;

 private:
  bool coded() const { return format_ != LabelFormat::kBf16; }

  LabelFormat format_;
  KeyHistory values_;                  // or codes, whole numbers
  std::vector<float> steps_, leasts_;  // of codes, by token
};

}  // namespace sparsekv
