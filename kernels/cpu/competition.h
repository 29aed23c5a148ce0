#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/select.h"

namespace sparsekv::cpu {

// Which tokens of an item compete for their places in a selection, and for how many: those between
// the two parts of the always-set. [begin, end) is empty where all tokens are selected.
struct Competition {
  uint32_t first = 0;  // of the item
  uint32_t begin = 0, end = 0;
  uint32_t tokens = 0;
  uint32_t count = 0;  // of the selection
  uint32_t want = 0;   // of those that compete

  explicit Competition(const SelectArgs::Item& item)
      : first(item.first), begin(item.first), end(item.first), tokens(item.tokens) {
    count = item.count;
    if (count == tokens - first) return;
    // Not all, so the always-set has its full size.
    begin = first < kSinkTokens ? kSinkTokens : first;
    end = tokens - kRecentTokens - 1;
    want = count - AlwaysSetSize(tokens, first);
  }

  // The selection's sinks; returns where those that compete come.
  uint32_t* WriteAlways(uint32_t* selection) const {
    for (uint32_t i = first; i < begin; ++i) *selection++ = i;
    return selection;
  }
  // What follows them, up to the last token. Call it last: they are written in whole vectors.
  void WriteRecent(uint32_t* selection) const {
    uint32_t* to = selection + (begin - first) + want;
    for (uint32_t i = end; i < tokens; ++i) *to++ = i;
  }
};

// What may be among the highest of some of those that compete, of one KV head. Tokens ascend.
struct Candidates {
  const float* scores = nullptr;
  const uint32_t* tokens = nullptr;
  size_t count = 0;
};

}  // namespace sparsekv::cpu
