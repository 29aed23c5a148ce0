#pragma once

#include <cstdint>

// Every bound of the system in one place. What a user may set lies within these.
namespace sparsekv {

inline constexpr uint32_t kBlockTokens = 64;    // tokens in a row block and in a label page
inline constexpr uint32_t kPrefillAlign = 256;  // prefill chunks end at multiples of this position
inline constexpr uint32_t kPrefillUnitTokens = 2 * kPrefillAlign;  // most of one forward pass
inline constexpr uint32_t kSinkTokens = 4;                         // always-set: first tokens
inline constexpr uint32_t kRecentTokens =
    64;  // always-set: last tokens, the current one beside them
inline constexpr uint32_t kDefaultBudgetDenominator = 16;  // budget when a request names none: 1/16
inline constexpr uint32_t kRecallBudgetDenominator = 4;    // the same, with a recall target

inline constexpr uint32_t kMaxLayers = 1024;
inline constexpr uint32_t kMaxHeadDim = 256;
inline constexpr uint32_t kMaxGroup = 64;  // query heads per KV head
inline constexpr uint32_t kMaxVocab = 1u << 20;
inline constexpr uint32_t kMaxContext = 1u << 24;

inline constexpr uint32_t kMaxBatch = 64;        // sequences decoded in one step by one worker
inline constexpr uint32_t kMaxQueued = 1024;     // requests that wait, over all clients
inline constexpr uint32_t kPlanSteps = 32;       // steps a plan stays valid without a successor
inline constexpr uint32_t kMaxStopStrings = 16;  // per request
inline constexpr uint32_t kMaxStopBytes = 256;   // per stop string
inline constexpr uint32_t kMaxMessageBytes = 64u << 20;  // one gRPC message
inline constexpr uint32_t kMaxChatBytes = 16u << 20;  // one conversation, its tools and variables
inline constexpr uint32_t kMaxRequestIdBytes = 128;
inline constexpr uint32_t kMaxTopLogprobs = 20;

static_assert(kPrefillAlign % kBlockTokens == 0);

}  // namespace sparsekv
