#pragma once

#include <cstdint>
#include <vector>

namespace sparsekv {

// A pointer chase. The context holds pairs (key a, value form of b) in random filler, each key in
// one pair, the pairs a single cycle over all keys used. It ends with a key a0 that is asked; the
// model answers with the b of its pair, which is at once the next question. So every generated
// token depends on the one before, and on one row anywhere in the context.
struct RecallPrompt {
  std::vector<uint32_t> prompt;    // exactly `context` token ids
  std::vector<uint32_t> expected;  // the `hops` ids that greedy decoding must give
  uint32_t pairs = 0;
};

// Pairs in a context of this many tokens: one for four tokens, at most one for each key.
uint32_t RecallPairs(uint32_t context);

// REQUIRES: 1 <= hops < RecallPairs(context), so that no key is asked twice.
RecallPrompt MakeRecallPrompt(uint32_t context, uint32_t hops, uint64_t seed);

}  // namespace sparsekv
