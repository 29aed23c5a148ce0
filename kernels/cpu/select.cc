#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstring>

#include "base/check.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/vector-inl.h"

// Exact selection: scores become unsigned keys of the same order. A sample of them says which key
// almost surely lies a little below the last selected one; one pass keeps what is not below that
// key, and radix selection finds the last selected key among the few that are left: a histogram of
// the upper bits finds its bucket, two more rounds inside it the key itself. Where the sample was
// unlucky the radix rounds run over all scores. Either way what is selected is exact.
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

// Writes, in order, the tokens of what the threshold selects of scores[0, count): indices[i], or
// first + i where there are none. Whole vectors are loaded and stored: up to kLanes - 1 entries
// behind the last are read, and overwritten.
uint32_t* WriteSelected(const float* scores, size_t count, const uint32_t* indices, uint32_t first,
                        Threshold threshold, uint32_t* to) {
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
    const VU tokens = indices != nullptr ? hn::LoadU(du, indices + i)
                                         : hn::Iota(du, first + static_cast<uint32_t>(i));
    to += StoreCompressed(tokens, selected, to);
  }
  return to;
}

// Scores from which a sample is worth its cost, and values of the sample.
constexpr size_t kMinSampled = 8192;
constexpr size_t kSample = 2048;

// A score that is almost surely no higher than the `want` largest of scores[0, count), but not much
// lower either. NaN where nothing is gained.
float SampledBound(const float* scores, size_t count, uint32_t want, uint32_t* candidates) {
  constexpr float kNaN = __builtin_nanf("");
  const float expected = static_cast<float>(want) * kSample / static_cast<float>(count);
  // Four deviations of how many of the wanted the sample holds.
  const float rank = expected + 4 * __builtin_sqrtf(expected) + 4;
  if (count < kMinSampled || rank > kSample / 4) return kNaN;
  HWY_ALIGN float sample[kSample];
  const size_t stride = (count / kSample - 1) | 1;  // odd: in step with no period of the text
  for (size_t i = 0; i < kSample; ++i) sample[i] = scores[i * stride];
  const Threshold bound = FindThreshold(sample, kSample, static_cast<uint32_t>(rank), candidates);
  // The score of that key: Keys undone.
  const uint32_t bits = bound.key >> 31 != 0 ? bound.key ^ 0x80000000u : ~bound.key;
  float score;
  memcpy(&score, &bits, sizeof(score));
  return score;
}

// Writes the tokens first + i of scores[0, count) that are no lower than `bound`; returns how many.
// 0 as soon as they turn out to be more than `most`.
uint32_t KeepFrom(const float* scores, size_t count, uint32_t first, float bound, uint32_t most,
                  uint32_t* kept) {
  const DF d;
  const DU du;
  uint32_t found = 0;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto mask = hn::Ge(hn::LoadU(d, scores + i), hn::Set(d, bound));
    if (hn::AllFalse(d, mask)) continue;
    const VU tokens = hn::Iota(du, first + static_cast<uint32_t>(i));
    found += StoreCompressed(tokens, hn::RebindMask(du, mask), kept + found);
    if (found > most) return 0;
  }
  for (; i < count; ++i) {
    if (scores[i] >= bound) kept[found++] = first + static_cast<uint32_t>(i);
  }
  return found;
}

// Writes the tokens first + i of the `want` highest of scores[0, count), ascending, 0 < want.
// `scratch` has room for SelectScratch(count) values.
constexpr size_t kSlack = 16;  // the widest vector
size_t SelectScratch(size_t count) { return 3 * (count + kSlack); }

uint32_t* SelectHighest(const float* scores, size_t count, uint32_t first, uint32_t want,
                        uint32_t* scratch, uint32_t* to) {
  uint32_t* candidates = scratch;
  uint32_t* kept = candidates + count + kSlack;
  auto* kept_scores = reinterpret_cast<float*>(kept + count + kSlack);
  const auto most = static_cast<uint32_t>(count / 4);  // beyond that, ties: nothing is gained
  const float bound = SampledBound(scores, count, want, candidates);
  const uint32_t found = bound == bound ? KeepFrom(scores, count, first, bound, most, kept) : 0;
  if (found < want) {
    const Threshold threshold = FindThreshold(scores, count, want, candidates);
    return WriteSelected(scores, count, nullptr, first, threshold, to);
  }
  for (uint32_t i = 0; i < found; ++i) kept_scores[i] = scores[kept[i] - first];
  const Threshold threshold = FindThreshold(kept_scores, found, want, candidates);
  return WriteSelected(kept_scores, found, kept, 0, threshold, to);
}

void SelectHead(const float* scores, uint32_t tokens, uint32_t first, uint32_t count,
                uint32_t* selection, uint32_t* scratch) {
  if (count == tokens - first) {
    for (uint32_t i = 0; i < count; ++i) selection[i] = first + i;
    return;
  }
  // Not all, so the always-set has its full size and the tokens between its two parts compete.
  const uint32_t recent = tokens - kRecentTokens - 1;
  const uint32_t want = count - AlwaysSetSize(tokens, first);
  uint32_t* to = selection;
  for (; first < kSinkTokens; ++first) *to++ = first;
  static_assert(kRecentTokens >= kLanes, "WriteSelected overwrites only what is written below");
  if (want > 0) to = SelectHighest(scores + first, recent - first, first, want, scratch, to);
  for (uint32_t i = recent; i < tokens; ++i) *to++ = i;
}

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sparsekv::cpu {

HWY_EXPORT(SelectHead);
HWY_EXPORT(SelectScratch);

void Select(const SelectArgs& args, Context& context) {
  for (const SelectArgs::Item& item : args.items) {
    CHECK_LE(AlwaysSetSize(item.tokens, item.first), item.count);
    CHECK_LE(item.count, item.tokens - item.first);
  }
  const auto select = HWY_DYNAMIC_DISPATCH(SelectHead);
  const auto scratch_size = HWY_DYNAMIC_DISPATCH(SelectScratch);
  const auto tasks = static_cast<uint32_t>(args.items.size() * args.kv_heads);
  context.pool.Run(tasks, [&](uint32_t task, unsigned thread) {
    const SelectArgs::Item& item = args.items[task / args.kv_heads];
    const uint32_t h = task % args.kv_heads;
    float* scratch = context.scratch.Get(thread, scratch_size(item.tokens - item.first));
    select(item.scores + h * args.score_stride, item.tokens, item.first, item.count,
           item.selection + h * args.selection_stride, reinterpret_cast<uint32_t*>(scratch));
  });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
