// The highest of scores that pass by in the order of their tokens. Compiled once per instruction
// set.
#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/competition.h"
#include "kernels/cpu/vector-inl.h"

#if defined(SPARSEKV_KERNELS_CPU_HIGHEST_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SPARSEKV_KERNELS_CPU_HIGHEST_INL_H_
#undef SPARSEKV_KERNELS_CPU_HIGHEST_INL_H_
#else
#define SPARSEKV_KERNELS_CPU_HIGHEST_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

using DU = hn::ScalableTag<uint32_t>;
using VU = hn::Vec<DU>;

// Entries behind the last that whole vectors may overwrite: the widest vector.
constexpr size_t kSlack = 16;

// Scores as unsigned keys: larger score, larger key; -0 and +0 the same key, NaN the lowest.
HWY_INLINE VU Keys(VF scores) {
  const DF d;
  const DU du;
  const hn::RebindToSigned<DF> di;
  const VF score = hn::Add(scores, hn::Zero(d));  // -0 + 0 = +0
  const VU bits = hn::BitCast(du, score);
  const VU negative = hn::BitCast(du, hn::ShiftRight<31>(hn::BitCast(di, score)));
  const VU key = hn::Xor(bits, hn::Or(negative, hn::Set(du, 0x80000000u)));
  return hn::IfThenZeroElse(hn::RebindMask(du, hn::IsNaN(score)), key);
}

// The score of a key; NaN of keys that no number has.
inline float ScoreOf(uint32_t key) {
  const uint32_t bits = key >> 31 != 0 ? key ^ 0x80000000u : ~key;
  float score;
  memcpy(&score, &bits, sizeof(score));
  return score;
}

// The next lower score; NaN where there is none.
inline float ScoreBelow(uint32_t key) {
  constexpr uint32_t kZero = 0x80000000u;  // below it is the key that -0 would have
  return key == 0 ? ScoreOf(0) : ScoreOf(key == kZero ? kZero - 2 : key - 1);
}

#if HWY_TARGET > HWY_AVX3  // the targets before AVX-512 have no such instruction
// For every mask its lanes, then any. (The library's own table is copied to the stack at each
// call.)
struct PackTable {
  uint8_t lanes[size_t{1} << kLanes][kLanes] = {};
  constexpr PackTable() {
    for (size_t bits = 0; bits < size_t{1} << kLanes; ++bits) {
      size_t next = 0;
      for (size_t lane = 0; lane < kLanes; ++lane) {
        if ((bits >> lane & 1) != 0) lanes[bits][next++] = static_cast<uint8_t>(lane);
      }
    }
  }
};
constexpr PackTable kPackTable;
#endif

// Stores the lanes of a mask back to back; a whole vector is written.
// (On some processors the instruction that compresses into memory is far slower than two.)
class Packing {
 public:
#if HWY_TARGET > HWY_AVX3
  explicit HWY_INLINE Packing(hn::Mask<DU> mask) {
    const DU du;
    uint8_t bytes[8] = {};
    hn::StoreMaskBits(du, mask, bytes);
    const size_t bits = bytes[0];
    count_ = static_cast<uint32_t>(__builtin_popcountll(bits));
    const hn::Rebind<uint8_t, DU> d8;
    order_ = hn::PromoteTo(du, hn::LoadU(d8, kPackTable.lanes[bits]));
  }
  HWY_INLINE void Store(VU v, uint32_t* to) const {
    const DU du;
    hn::StoreU(hn::TableLookupLanes(v, hn::IndicesFromVec(du, order_)), du, to);
  }
#else
  explicit HWY_INLINE Packing(hn::Mask<DU> mask)
      : count_(static_cast<uint32_t>(hn::CountTrue(DU(), mask))), mask_(mask) {}
  HWY_INLINE void Store(VU v, uint32_t* to) const { hn::StoreU(hn::Compress(v, mask_), DU(), to); }
#endif
  uint32_t count() const { return count_; }

 private:
  uint32_t count_;
#if HWY_TARGET > HWY_AVX3
  VU order_;
#else
  hn::Mask<DU> mask_;
#endif
};

// Returns how many lanes were stored.
HWY_INLINE uint32_t StorePacked(VU v, hn::Mask<DU> mask, uint32_t* to) {
  const Packing packing(mask);
  packing.Store(v, to);
  return packing.count();
}

// Calls function(at, mask) for the vectors of [0, count), the mask of the lanes below count.
template <typename Function>
HWY_INLINE void ForVectors(size_t count, const Function& function) {
  const DU du;
  size_t at = 0;
  const auto all = hn::FirstN(du, kLanes);
  for (; at + kLanes <= count; at += kLanes) function(at, all);
  if (at < count) function(at, hn::FirstN(du, count - at));
}

// Some of the keys are selected: every larger one, and the first `equal` of those that equal it.
struct Threshold {
  uint32_t key = 0;
  uint32_t equal = 0;
};

constexpr uint32_t kRadixBits = 10;
constexpr uint32_t kBuckets = 1u << kRadixBits;

// The threshold of the `want` largest of keys[0, count), 0 < want <= count. Buckets of one width
// between the lowest and the highest key say in which of them it lies; the same again among those
// that lie there, until they are equal. The keys are overwritten, with up to kSlack behind them.
HWY_NOINLINE Threshold FindThreshold(uint32_t* keys, size_t count, uint32_t want) {
  const DU du;
  for (;;) {
    VU low = hn::Set(du, ~0u), high = hn::Zero(du);
    ForVectors(count, [&](size_t i, auto mask) {
      const VU some = hn::LoadU(du, keys + i);
      low = hn::Min(low, hn::IfThenElse(mask, some, low));
      high = hn::Max(high, hn::IfThenElseZero(mask, some));
    });
    const uint32_t lowest = hn::GetLane(hn::MinOfLanes(du, low));
    const uint32_t spread = hn::GetLane(hn::MaxOfLanes(du, high)) - lowest;
    if (spread == 0) return {.key = lowest, .equal = want};
    const auto bits = static_cast<uint32_t>(32 - __builtin_clz(spread));
    const uint32_t shift = bits > kRadixBits ? bits - kRadixBits : 0;
    uint32_t histogram[kBuckets] = {};
    for (size_t i = 0; i < count; ++i) ++histogram[(keys[i] - lowest) >> shift];
    uint32_t bucket = spread >> shift;
    while (histogram[bucket] < want) want -= histogram[bucket--];
    if (shift == 0) return {.key = lowest + bucket, .equal = want};
    const VU first = hn::Set(du, lowest + (bucket << shift));
    const VU width = hn::Set(du, 1u << shift);
    size_t kept = 0;
    ForVectors(count, [&](size_t i, auto mask) {
      const VU some = hn::LoadU(du, keys + i);
      const auto inside = hn::Lt(hn::Sub(some, first), width);  // below `first` it wraps
      kept += StorePacked(some, hn::And(inside, mask), keys + kept);
    });
    count = kept;
  }
}

// A bound for Highest: a score that is almost surely below the `want` highest of `total`, but not
// by much, judged by a sample of them. NaN where nothing is gained. `keys`: room for sample and
// kSlack.
HWY_NOINLINE float SampledBound(const float* sample, size_t count, uint32_t want, size_t total,
                                uint32_t* keys) {
  const float expected =
      static_cast<float>(want) * static_cast<float>(count) / static_cast<float>(total);
  // Four deviations of how many of the wanted the sample holds.
  const float rank = expected + 4 * __builtin_sqrtf(expected) + 4;
  if (rank > static_cast<float>(count) / 4) return __builtin_nanf("");
  ForVectors(count, [&](size_t i, auto) {
    const bool whole = i + kLanes <= count;
    const VF some = whole ? LoadFloats(sample + i) : LoadFloatsTail(sample + i, count - i);
    hn::StoreU(Keys(some), DU(), keys + i);
  });
  return ScoreBelow(FindThreshold(keys, count, static_cast<uint32_t>(rank)).key);
}

// Their scores' keys. Reads and writes whole vectors.
HWY_INLINE void StoreKeys(const Candidates& from, uint32_t* keys) {
  for (size_t i = 0; i < from.count; i += kLanes) {
    hn::StoreU(Keys(LoadFloats(from.scores + i)), DU(), keys + i);
  }
}

// The first lanes of the mask, while any are wanted.
inline hn::Mask<DU> TakeFirst(hn::Mask<DU> mask, uint32_t* wanted) {
  const DU du;
  HWY_ALIGN uint32_t flags[kLanes];
  hn::Store(hn::VecFromMask(du, mask), du, flags);
  for (uint32_t& flag : flags) {
    if (flag == 0) continue;
    if (*wanted > 0) {
      --*wanted;
    } else {
      flag = 0;
    }
  }
  return hn::MaskFromVec(hn::Load(du, flags));
}

// Writes the tokens that the threshold selects, and their scores if asked; in place or elsewhere,
// up to kLanes entries behind them too. Returns how many; takes what equals the threshold off it.
HWY_NOINLINE size_t Keep(const Candidates& from, Threshold* threshold, float* scores_to,
                         uint32_t* to) {
  const DU du;
  const VU limit = hn::Set(du, threshold->key);
  size_t kept = 0;
  ForVectors(from.count, [&](size_t i, auto valid) {
    const VF scores = LoadFloats(from.scores + i);
    const VU keys = Keys(scores);
    const auto equal = hn::And(hn::Eq(keys, limit), valid);
    auto selected = hn::And(hn::Gt(keys, limit), valid);
    if (threshold->equal > 0 && !hn::AllFalse(du, equal)) {
      selected = hn::Or(selected, TakeFirst(equal, &threshold->equal));
    }
    const VU tokens = hn::LoadU(du, from.tokens + i);
    const Packing packing(selected);
    if (scores_to != nullptr) {
      packing.Store(hn::BitCast(du, scores), reinterpret_cast<uint32_t*>(scores_to + kept));
    }
    packing.Store(tokens, to + kept);
    kept += packing.count();
  });
  return kept;
}

// Writes the tokens of the `want` highest of `parts`, whose tokens ascend from part to part, and up
// to kLanes entries behind them. `keys`: room for all, and kSlack. False: there are fewer.
inline bool WriteHighest(const Candidates* parts, size_t count, size_t stride, uint32_t want,
                         uint32_t* keys, uint32_t* to) {
  size_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    StoreKeys(parts[i * stride], keys + total);
    total += parts[i * stride].count;
  }
  if (total < want) return false;
  Threshold threshold = FindThreshold(keys, total, want);
  for (size_t i = 0; i < count; ++i) to += Keep(parts[i * stride], &threshold, nullptr, to);
  return true;
}

// Keeps the `want` highest of the scores that it is given, ties by the lower token. What is no
// higher than a bound is dropped at once; whenever the rest fills the memory, all but the highest
// so far are dropped, and the lowest of these is the new bound. So only the bound that it starts
// with can be wrong.
class Highest {
 public:
  // For the highest of `tokens`.
  static size_t Capacity(uint32_t want, size_t tokens) {
    return HWY_MIN(size_t{2} * want + 1024, tokens + kPart);
  }
  static size_t Floats(size_t capacity) { return 2 * (capacity + kSlack); }
  static size_t KeyRoom(size_t capacity) { return capacity + kSlack; }

  Highest() = default;
  // 0 < want. `memory`: Floats(capacity); `keys`: KeyRoom, not used between the calls.
  Highest(uint32_t want, size_t capacity, float bound, float* memory, uint32_t* keys)
      : want_(want),
        capacity_(capacity),
        bound_(bound),
        scores_(memory),
        tokens_(reinterpret_cast<uint32_t*>(memory + capacity + kSlack)),
        keys_(keys) {}

  // The scores of the tokens first, first + 1, ..., all higher than those of the calls before.
  void Add(const float* scores, size_t count, uint32_t first) {
    for (size_t at = 0; at < count; at += kPart) {
      if (found_ + kPart > capacity_) DropLowest();
      const size_t size = HWY_MIN(kPart, count - at);
      AddPart(scores + at, size, first + static_cast<uint32_t>(at));
    }
  }

  // All that are kept; as long as nothing is added. Fewer than wanted, though there were enough:
  // the bound was too high.
  Candidates Found() const { return {.scores = scores_, .tokens = tokens_, .count = found_}; }

 private:
  // Scores that are looked at before there is a question of room.
  static constexpr size_t kPart = 128;
  static_assert(kPart <= 1024 && kPart % kLanes == 0);

  HWY_INLINE void AddPart(const float* scores, size_t count, uint32_t first) {
    const DF d;
    const DU du;
    const VF bound = hn::Set(d, bound_);
    const auto all = hn::IsNaN(bound);     // a bound of NaN lets everything pass, NaN too
    const VU lanes = hn::Iota(du, first);  // once: it is made in memory
    size_t found = found_;
    ForVectors(count, [&](size_t i, auto valid) {
      const bool whole = i + kLanes <= count;
      const VF some = whole ? LoadFloats(scores + i) : LoadFloatsTail(scores + i, count - i);
      const auto mask = hn::And(hn::RebindMask(du, hn::Or(hn::Gt(some, bound), all)), valid);
      const Packing packing(mask);
      packing.Store(hn::BitCast(du, some), reinterpret_cast<uint32_t*>(scores_ + found));
      packing.Store(hn::Add(lanes, hn::Set(du, static_cast<uint32_t>(i))), tokens_ + found);
      found += packing.count();
    });
    found_ = found;
  }

  void DropLowest() {
    StoreKeys(Found(), keys_);
    Threshold threshold = FindThreshold(keys_, found_, want_);
    bound_ = ScoreOf(threshold.key);  // tokens that come have lost a tie with it
    found_ = Keep(Found(), &threshold, scores_, tokens_);
  }

  uint32_t want_ = 0;
  size_t capacity_ = 0;
  float bound_ = 0;
  float* scores_ = nullptr;     // [capacity], of the tokens below
  uint32_t* tokens_ = nullptr;  // [capacity], ascending
  uint32_t* keys_ = nullptr;
  size_t found_ = 0;
};

}  // namespace
}  // namespace sparsekv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
