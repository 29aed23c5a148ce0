#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace sparsekv {

// How the next token is drawn. temperature 0 = greedy (highest logit, ties by the lower id).
// Otherwise softmax(logits / temperature), cut to the top_k highest (0 = all), then to the smallest
// set of the highest that holds top_p of what top_k left, renormalised; ties by the lower id. The
// draw walks the kept tokens by id until it has passed UniformFor(seed, position) of their mass: it
// never depends on earlier draws. NaN logits count as minus infinity.
struct SampleParams {
  float temperature = 0.0f;
  float top_p = 1.0f;
  uint32_t top_k = 0;
  uint64_t seed = 0;
};

struct SampledToken {
  uint32_t id = 0;
  float logprob = 0.0f;                         // log softmax of the untouched logits at id
  std::vector<std::pair<uint32_t, float>> top;  // the `top_logprobs` highest, best first
};

struct SampleArgs {
  const float* logits = nullptr;  // [vocab]
  uint32_t vocab = 0;
  uint32_t position = 0;  // of the token that is being drawn
  SampleParams params;
  uint32_t top_logprobs = 0;
};

// The uniform number in [0, 1) that (seed, position) stands for.
double UniformFor(uint64_t seed, uint32_t position);

}  // namespace sparsekv
