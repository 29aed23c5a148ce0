#pragma once

#include <cstdint>

// How many CTAs share a row, the tokens that a KV head of an item selects from. Host code, pure.
namespace sparsekv::cuda::fused {

inline constexpr uint32_t kMostCtasBits = 4;
inline constexpr uint32_t kMostCtas = 1 << kMostCtasBits;  // of a row

inline constexpr uint32_t kCutTokens = 128;       // parts end at multiples of these
inline constexpr uint32_t kPartTokens = 1 << 17;  // at most: pages that a CTA has room for
// Keys of a part that shared memory has room for, beside those of another CTA; and keys with
// tokens of 3 bytes.
inline constexpr uint32_t kMostKeys = 149 * kCutTokens;
inline constexpr uint32_t kCandidates = kMostKeys * 4 / 7 / kCutTokens * kCutTokens;
// A CTA that has more candidates drops some. There is room for what its 16 warps add until they
// know, a cut of tokens each.
inline constexpr uint32_t kFull = kCandidates - 16 * kCutTokens;
static_assert(kFull % kCutTokens == 0);
// Selected tokens of a row that has parts of more tokens than kMostKeys, at most; parts are half as
// long where more than half of that are, so that their candidates have room for most rows.
inline constexpr uint32_t kMostWanted = kFull - 128;

struct Work {
  uint32_t rows;
  uint32_t tokens;  // of the longest row
  uint32_t want;    // the most that a row selects besides the always-set
};

// Clusters of 1 << i CTAs that the device runs at once; 0 where it has none of that size.
struct ClustersAtOnce {
  uint32_t of[kMostCtasBits + 1] = {};
};

// A power of two, so that steps have few shapes: the most with which all rows are at work at once,
// as a second turn costs more than longer parts do; more where a part would be too large. 0: there
// are never enough.
inline uint32_t CtasOfRow(const Work& work, const ClustersAtOnce& at_once) {
  const uint32_t part = work.want > kMostWanted       ? kMostKeys
                        : work.want > kMostWanted / 2 ? kPartTokens / 2
                                                      : kPartTokens;
  uint32_t bits = 0;
  while (bits < kMostCtasBits && at_once.of[bits + 1] > 0 &&
         (work.tokens > part << bits || work.rows <= at_once.of[bits + 1])) {
    ++bits;
  }
  return work.tokens > part << bits ? 0 : 1u << bits;
}

}  // namespace sparsekv::cuda::fused
