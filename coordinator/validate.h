#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text_codec.h"
#include "sparsekv/v1/generation.pb.h"

namespace sparsekv {

inline constexpr uint32_t kDefaultMaxNewTokens = 128;
inline constexpr float kMaxTemperature = 100;

// What the served model and the server's settings allow. Immutable once made.
struct ServedModel {
  v1::ModelInfoResponse info;
  std::vector<uint32_t> eos_token_ids;
  uint32_t default_budget_denominator = 16;
};

// A request that is valid for a model, every default filled in.
struct GenerateParams {
  std::vector<uint32_t> prompt_ids;
  uint32_t max_new_tokens = 0;
  float temperature = 0;
  float top_p = 1;
  uint32_t top_k = 0;
  uint64_t seed = 0;
  std::vector<std::string> stop;
  std::vector<uint32_t> stop_token_ids;
  v1::Attention attention = v1::ATTENTION_DENSE;
  v1::Budget budget;
  double recall_target = 0;  // 0 = none
  uint32_t logprobs = 0;

  uint32_t tokens() const { return static_cast<uint32_t>(prompt_ids.size()) + max_new_tokens; }
};

// Errors are one line, "field: value is not ...". InvalidArgument, unless said otherwise.
absl::Status ValidateRequestId(std::string_view id);

// Checks and tokenises. Pure but for the seed, which is drawn when the request names none. May take
// seconds for a long text. FailedPrecondition: double sparsity without a channel config.
absl::StatusOr<GenerateParams> Prepare(const v1::GenerateRequest& request, const ServedModel& model,
                                       const TextCodec& codec);

}  // namespace sparsekv
