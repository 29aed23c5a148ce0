#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstring>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/vector-inl.h"

// Exact selection by radix: scores become unsigned keys of the same order; a histogram of their
// upper bits finds the bucket of the last selected one, two more rounds inside it find that key
// itself; one pass in index order then writes what lies above it and the first of its equals.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

using DU = hn::ScalableTag<uint32_t>;
using VU = hn::Vec<DU>;

constexpr uint32_t kRadixBits = 11;
constexpr uint32_t kBuckets = 1u << kRadixBits;
constexpr size_t kStrip = 64;  // keys between the vector and the counting half of a histogram

// Larger score, larger key; -0 and +0 the same key, NaN the lowest.
HWY_INLINE VU Keys(const float* scores) {
  const DF d;
  const DU du;
  const hn::RebindToSigned<DF> di;
  const VF score = hn::Add(hn::LoadU(d, scores), hn::Zero(d));  // -0 + 0 = +0
  const VU bits = hn::BitCast(du, score);
  const VU negative = hn::BitCast(du, hn::ShiftRight<31>(hn::BitCast(di, score)));
  const VU key = hn::Xor(bits, hn::Or(negative, hn::Set(du, 0x80000000u)));
  return hn::IfThenZeroElse(hn::RebindMask(du, hn::IsNaN(score)), key);
}

// kLanes keys from `at`; lanes at and beyond `end` get key 0, which the caller must not count.
HWY_INLINE VU KeysTail(const float* scores, size_t at, size_t end) {
  HWY_ALIGN float padded[kLanes] = {};
  for (size_t i = at; i < end; ++i) padded[i - at] = scores[i];
  return Keys(padded);
}

// Stores the lanes of the mask back to back and returns their number. A whole vector is written.
// (On some processors the instruction that compresses into memory is far slower than these two.)
HWY_INLINE uint32_t StoreCompressed(VU v, hn::Mask<DU> mask, uint32_t* to) {
  const DU du;
  hn::StoreU(hn::Compress(v, mask), du, to);
  return static_cast<uint32_t>(hn::CountTrue(du, mask));
}

struct Threshold {
  uint32_t key = 0;    // every score with a larger key is selected,
  uint32_t equal = 0;  // and this many with this key
};

// The bucket that holds the `want`-th largest entry; `want` becomes its rank inside the bucket.
uint32_t FindBucket(const uint32_t* histogram, uint32_t* want) {
  uint32_t bucket = kBuckets - 1;
  while (histogram[bucket] < *want) *want -= histogram[bucket--];
  return bucket;
}

// Keeps of keys[0, count) those whose bits above `shift` equal `prefix`. In place.
uint32_t KeepPrefix(uint32_t* keys, uint32_t count, uint32_t shift, uint32_t prefix) {
  uint32_t kept = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t key = keys[i];
    keys[kept] = key;
    kept += (key >> shift) == prefix;
  }
  return kept;
}

// Writes the keys of the first round's bucket and returns their number. Neighbouring scores are
// often alike, so two histograms take turns: an increment need not wait for the one before.
uint32_t FirstRound(const float* scores, size_t count, uint32_t* want, uint32_t* bucket,
                    uint32_t* candidates) {
  const DU du;
  constexpr int kShift = 32 - kRadixBits;
  uint32_t histograms[2][kBuckets] = {};
  HWY_ALIGN uint32_t strip[kStrip];
  for (size_t at = 0; at < count; at += kStrip) {
    const size_t size = HWY_MIN(kStrip, count - at);
    for (size_t i = 0; i < size; i += kLanes) {
      const bool whole = i + kLanes <= size;
      const VU keys = whole ? Keys(scores + at + i) : KeysTail(scores, at + i, at + size);
      hn::Store(hn::ShiftRight<kShift>(keys), du, strip + i);
    }
    for (size_t i = 0; i < size; ++i) ++histograms[i % 2][strip[i]];
  }
  for (uint32_t i = 0; i < kBuckets; ++i) histograms[0][i] += histograms[1][i];
  *bucket = FindBucket(histograms[0], want);

  const VU wanted = hn::Set(du, *bucket);
  uint32_t found = 0;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VU keys = Keys(scores + i);
    const auto inside = hn::Eq(hn::ShiftRight<kShift>(keys), wanted);
    found += StoreCompressed(keys, inside, candidates + found);
  }
  if (i < count) {
    hn::Store(KeysTail(scores, i, count), du, strip);
    for (size_t j = 0; j < count - i; ++j) {
      if ((strip[j] >> kShift) == *bucket) candidates[found++] = strip[j];
    }
  }
  return found;
}

// The threshold of the `want` largest of scores[0, count), 0 < want. `candidates` has room for
// count and a vector.
Threshold FindThreshold(const float* scores, size_t count, uint32_t want, uint32_t* candidates) {
  uint32_t prefix;
  uint32_t left = FirstRound(scores, count, &want, &prefix, candidates);
  uint32_t shift = 32 - kRadixBits;
  while (shift > 0) {
    const uint32_t bits = HWY_MIN(kRadixBits, shift);
    shift -= bits;
    uint32_t histogram[kBuckets] = {};
    for (uint32_t i = 0; i < left; ++i) {
      ++histogram[(candidates[i] >> shift) & ((1u << bits) - 1)];
    }
    prefix = (prefix << bits) | FindBucket(histogram, &want);
    left = KeepPrefix(candidates, left, shift, prefix);
  }
  return {.key = prefix, .equal = want};
}

// Writes first + i, ascending, for what the threshold selects of scores[0, count). Whole vectors
// are stored: up to kLanes - 1 entries behind the last are overwritten.
uint32_t* WriteSelected(const float* scores, size_t count, uint32_t first, Threshold threshold,
                        uint32_t* to) {
  const DU du;
  const VU limit = hn::Set(du, threshold.key);
  for (size_t i = 0; i < count; i += kLanes) {
    const bool whole = i + kLanes <= count;
    const VU keys = whole ? Keys(scores + i) : KeysTail(scores, i, count);
    const auto valid = hn::FirstN(du, whole ? kLanes : count - i);
    const auto equal = hn::And(hn::Eq(keys, limit), valid);
    auto selected = hn::And(hn::Gt(keys, limit), valid);
    if (threshold.equal > 0 && !hn::AllFalse(du, equal)) {
      // The first of the equals, while any are wanted: rank by position among them.
      HWY_ALIGN uint32_t flags[kLanes];
      hn::Store(hn::VecFromMask(du, equal), du, flags);
      for (uint32_t& flag : flags) {
        if (flag == 0) continue;
        if (threshold.equal > 0) {
          --threshold.equal;
        } else {
          flag = 0;
        }
      }
      selected = hn::Or(selected, hn::MaskFromVec(hn::Load(du, flags)));
    }
    const VU indices = hn::Iota(du, first + static_cast<uint32_t>(i));
    to += StoreCompressed(indices, selected, to);
  }
  return to;
}

void SelectHead(const float* scores, uint32_t tokens, uint32_t count, uint32_t* selection,
                uint32_t* candidates) {
  if (count == tokens) {
    for (uint32_t i = 0; i < count; ++i) selection[i] = i;
    return;
  }
  // count < tokens, so the always-set has its full size and the tokens between its two parts
  // compete.
  const uint32_t recent = tokens - kRecentTokens - 1;
  const uint32_t want = count - AlwaysSetSize(tokens);
  for (uint32_t i = 0; i < kSinkTokens; ++i) selection[i] = i;
  uint32_t* to = selection + kSinkTokens;
  static_assert(kRecentTokens >= kLanes, "WriteSelected overwrites only what is written below");
  if (want > 0) {
    const size_t competing = recent - kSinkTokens;
    const Threshold threshold = FindThreshold(scores + kSinkTokens, competing, want, candidates);
    to = WriteSelected(scores + kSinkTokens, competing, kSinkTokens, threshold, to);
  }
  for (uint32_t i = recent; i < tokens; ++i) *to++ = i;
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(SelectHead);

void Select(const SelectArgs& args, Context& context) {
  for (const SelectArgs::Item& item : args.items) {
    CHECK_LE(AlwaysSetSize(item.tokens), item.count);
    CHECK_LE(item.count, item.tokens);
  }
  const auto select = HWY_DYNAMIC_DISPATCH(SelectHead);
  const auto tasks = static_cast<uint32_t>(args.items.size() * args.kv_heads);
  context.pool.Run(tasks, [&](uint32_t task, unsigned thread) {
    const SelectArgs::Item& item = args.items[task / args.kv_heads];
    const uint32_t h = task % args.kv_heads;
    constexpr size_t kVector = 16;  // the widest, in 32-bit lanes
    float* scratch = context.scratch.Get(thread, item.tokens + kVector);
    select(item.scores + h * args.score_stride, item.tokens, item.count,
           item.selection + h * args.selection_stride, reinterpret_cast<uint32_t*>(scratch));
  });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
