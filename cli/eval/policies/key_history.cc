#include "cli/eval/policies/key_history.h"

#include "base/check.h"

namespace sparsekv {

void KeyHistory::Append(const float* key) {
  CHECK_LT(tokens_, capacity_);
  for (uint32_t c = 0; c < head_dim_; ++c) values_[size_t{c} * capacity_ + tokens_] = key[c];
  ++tokens_;
}

}  // namespace sparsekv
