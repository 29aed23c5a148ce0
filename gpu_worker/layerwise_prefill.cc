#include "gpu_worker/layerwise_prefill.h"

#include <algorithm>

#include "base/check.h"

namespace sparsekv {

LayerwisePrefill::LayerwisePrefill(Model* model, uint32_t prompt_tokens, uint32_t chunk_tokens,
                                   float* hidden)
    : model_(model),
      tokens_(prompt_tokens),
      chunk_(chunk_tokens),
      own_(hidden ? 0 : size_t{prompt_tokens} * model->config().hidden_size),
      hidden_(hidden ? hidden : own_.data()) {
  CHECK_EQ(chunk_tokens % kPrefillAlign, 0u);
}

uint64_t LayerwisePrefill::Run(const StepItem& prompt, uint64_t token_layers) {
  CHECK_EQ(prompt.ids.size(), size_t{tokens_});
  uint64_t used = 0;
  while (!done() && used < token_layers) {
    uint32_t count = std::min(chunk_, tokens_ - position_);
    const uint64_t left = token_layers - used;
    if (count > left) {
      count = static_cast<uint32_t>(left / kPrefillAlign * kPrefillAlign);
      if (count == 0 && used > 0) break;
      if (count == 0) count = std::min(kPrefillAlign, tokens_ - position_);
    }
    StepItem chunk = prompt;
    chunk.ids = prompt.ids.subspan(position_, count);
    chunk.position = position_;
    model_->ForwardLayer(layer_, chunk, hidden_ + size_t{position_} * model_->config().hidden_size);
    used += count;
    position_ += count;
    if (position_ == tokens_) {
      last_token_ = count - 1;
      position_ = 0;
      ++layer_;
    }
  }
  return used;
}

}  // namespace sparsekv
