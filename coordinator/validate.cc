#include "coordinator/validate.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/ids.h"
#include "base/limits.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv {

namespace {

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

bool IsUtf8(std::string_view text) { return tokenizer::ValidUtf8Prefix(text) == text.size(); }

absl::Status ValidateSampling(const v1::GenerateRequest& request, GenerateParams* params) {
  if (request.has_temperature()) {
    const float t = request.temperature();
    if (!(t >= 0 && t <= kMaxTemperature)) {
      return Invalid("temperature: ", t, " is not within 0 .. ", kMaxTemperature);
    }
    params->temperature = t;
  }
  if (request.has_top_p()) {
    const float p = request.top_p();
    if (!(p > 0 && p <= 1)) return Invalid("top_p: ", p, " is not within (0, 1]");
    params->top_p = p;
  }
  params->top_k = request.top_k();
  params->seed = request.has_seed() ? request.seed() : NewBootId();
  if (request.logprobs() > kMaxTopLogprobs) {
    return Invalid("logprobs: ", request.logprobs(), " is over ", kMaxTopLogprobs);
  }
  params->logprobs = request.logprobs();
  return absl::OkStatus();
}

absl::Status ValidateStops(const v1::GenerateRequest& request, GenerateParams* params) {
  if (request.stop_size() > static_cast<int>(kMaxStopStrings)) {
    return Invalid("stop: ", request.stop_size(), " strings are over ", kMaxStopStrings);
  }
  for (int i = 0; i < request.stop_size(); ++i) {
    const std::string& stop = request.stop(i);
    if (stop.empty()) return Invalid("stop[", i, "]: is empty");
    if (stop.size() > kMaxStopBytes) {
      return Invalid("stop[", i, "]: ", stop.size(), " bytes are over ", kMaxStopBytes);
    }
    if (!IsUtf8(stop)) return Invalid("stop[", i, "]: is not UTF-8");
    params->stop.push_back(stop);
  }
  return absl::OkStatus();
}

// REQUIRES: params->attention is set.
absl::Status ValidateRecallTarget(const v1::GenerateRequest& request, const ServedModel& model,
                                  GenerateParams* params) {
  if (!request.has_recall_target()) return absl::OkStatus();
  const double target = request.recall_target();
  if (!(target > 0 && target < 1)) {
    return Invalid("recall_target: ", target, " is not within (0, 1)");
  }
  if (params->attention != v1::ATTENTION_DOUBLE_SPARSITY) {
    return Invalid("recall_target: ", target, " needs attention double-sparsity");
  }
  if (!model.info.recall_targets()) {
    return absl::FailedPreconditionError(
        absl::StrCat("recall_target: is not in this version of backend ", model.info.backend()));
  }
  params->recall_target = target;
  return absl::OkStatus();
}

absl::Status ValidateAttention(const v1::GenerateRequest& request, const ServedModel& model,
                               GenerateParams* params) {
  switch (request.attention()) {
    case v1::ATTENTION_UNSPECIFIED:
      params->attention =
          model.info.double_sparsity() ? v1::ATTENTION_DOUBLE_SPARSITY : v1::ATTENTION_DENSE;
      break;
    case v1::ATTENTION_DENSE:
      params->attention = v1::ATTENTION_DENSE;
      break;
    case v1::ATTENTION_DOUBLE_SPARSITY:
      if (!model.info.double_sparsity()) {
        return absl::FailedPreconditionError(
            "attention: double sparsity needs a channel config, and this server has none");
      }
      params->attention = v1::ATTENTION_DOUBLE_SPARSITY;
      break;
    default:
      return Invalid("attention: ", static_cast<int>(request.attention()), " is not known");
  }
  if (absl::Status status = ValidateRecallTarget(request, model, params); !status.ok()) {
    return status;
  }
  params->budget = request.budget();
  switch (request.budget().value_case()) {
    case v1::Budget::kRows:
      if (request.budget().rows() == 0) return Invalid("budget.rows: 0 is not at least 1");
      break;
    case v1::Budget::kFractionDenominator:
      if (request.budget().fraction_denominator() == 0) {
        return Invalid("budget.fraction_denominator: 0 is not at least 1");
      }
      break;
    case v1::Budget::VALUE_NOT_SET:
      params->budget.set_fraction_denominator(
          params->recall_target > 0 ? kRecallBudgetDenominator : model.default_budget_denominator);
      break;
  }
  return absl::OkStatus();
}

absl::Status CheckLength(uint64_t prompt, uint64_t max_new_tokens, uint32_t context) {
  if (prompt + max_new_tokens <= context) return absl::OkStatus();
  return Invalid("max_new_tokens: prompt ", prompt, " + ", max_new_tokens, " exceed the context ",
                 context);
}

// Takes the prompt's ids or makes them, and checks that it fits the context.
absl::Status ReadPrompt(const v1::GenerateRequest& request, const ServedModel& model,
                        const TextCodec& codec, GenerateParams* params) {
  const uint32_t context = model.info.context();
  if (request.has_text()) {
    if (request.text().empty()) return Invalid("prompt: is empty");
    auto ids = codec.Encode(request.text(), /*bos=*/true);
    if (!ids.ok()) {
      return absl::Status(ids.status().code(),
                          absl::StrCat("prompt.text: ", ids.status().message()));
    }
    if (ids->empty()) return Invalid("prompt.text: yields no tokens");
    params->prompt_ids = *std::move(ids);
  } else if (request.has_token_ids()) {
    const auto& ids = request.token_ids().ids();
    if (ids.empty()) return Invalid("prompt: is empty");
    // Before they are copied: a length that cannot fit is not worth it.
    if (auto status = CheckLength(ids.size(), params->max_new_tokens, context); !status.ok()) {
      return status;
    }
    params->prompt_ids.assign(ids.begin(), ids.end());
  } else {
    return Invalid("prompt: neither text nor token_ids is set");
  }
  const uint32_t vocab = model.info.vocab_size();
  for (size_t i = 0; i < params->prompt_ids.size(); ++i) {
    const uint32_t id = params->prompt_ids[i];
    if (id < vocab) continue;
    if (request.has_text()) {
      return Invalid("prompt.text: its token ", id, " is not below the vocabulary size ", vocab);
    }
    return Invalid("token_ids.ids[", i, "]: ", id, " is not below the vocabulary size ", vocab);
  }
  return CheckLength(params->prompt_ids.size(), params->max_new_tokens, context);
}

}  // namespace

absl::Status ValidateRequestId(std::string_view id) {
  if (id.size() > kMaxRequestIdBytes) {
    return Invalid("request_id: ", id.size(), " bytes are over ", kMaxRequestIdBytes);
  }
  if (!IsUtf8(id)) return Invalid("request_id: is not UTF-8");
  return absl::OkStatus();
}

absl::StatusOr<GenerateParams> Prepare(const v1::GenerateRequest& request, const ServedModel& model,
                                       const TextCodec& codec) {
  GenerateParams params;
  params.max_new_tokens =
      request.max_new_tokens() == 0 ? kDefaultMaxNewTokens : request.max_new_tokens();
  if (!request.ignore_eos()) params.stop_token_ids = model.eos_token_ids;
  if (auto status = ValidateSampling(request, &params); !status.ok()) return status;
  if (auto status = ValidateStops(request, &params); !status.ok()) return status;
  if (auto status = ValidateAttention(request, model, &params); !status.ok()) return status;
  if (auto status = ReadPrompt(request, model, codec, &params); !status.ok()) return status;
  return params;
}

}  // namespace sparsekv
