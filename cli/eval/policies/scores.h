#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cli/eval/policies/head_policy.h"

// What policies share: scores of keys, softmax, the best of them.
namespace sparsekv {

// scores[t] = sum over `channels` of q[c] * keys[t][c] for t < tokens, products rounded before they
// are added, channels in order.
void ScoreKeys(const float* q, const KeyHistory& keys, uint32_t tokens,
               std::span<const uint16_t> channels, float* scores);
// Over all channels.
void ScoreKeys(const float* q, const KeyHistory& keys, uint32_t tokens, float* scores);

// scores = softmax(scale * scores) in place.
void Softmax(std::span<float> scores, float scale);

// Dense attention of a group's query heads to the first `tokens` tokens, mean over the group: sums
// to 1. q: [group, head_dim].
void GroupAttention(const float* q, const KeyHistory& keys, uint32_t tokens, const HeadShape& shape,
                    std::vector<float>* attention);

// The same over some rows only, as attending those gives it. [rows]
void GroupAttention(const float* q, const KeyHistory& keys, const HeadShape& shape,
                    std::span<const uint32_t> rows, std::vector<float>* attention);

// `count` of the tokens 0 .. tokens-1, ascending: the first `first` and the last `last` of them,
// and the highest scores of the rest, ties by the lower index. NaN is below every number.
std::vector<uint32_t> TopRows(std::span<const float> scores, uint32_t count, uint32_t first,
                              uint32_t last);

}  // namespace sparsekv
