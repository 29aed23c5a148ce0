#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "base/check.h"
#include "kernels/cpu/competition.h"
#include "kernels/cpu/highest-inl.h"
#include "kernels/cpu/operations.h"

// Exact selection among scores that lie in memory. A sample of them says which score almost surely
// lies a little below the last selected one, so that few are looked at twice; where the sample was
// unlucky, they are gone through again without. Either way what is selected is exact.
HWY_BEFORE_NAMESPACE();
namespace sparsekv::cpu::HWY_NAMESPACE {
namespace {

// Scores from which a sample is worth its cost, and values of the sample.
constexpr size_t kMinSampled = 8192;
constexpr size_t kSample = 2048;

float BoundOf(const float* scores, size_t count, uint32_t want, uint32_t* keys) {
  if (count < kMinSampled) return __builtin_nanf("");
  HWY_ALIGN float sample[kSample];
  const size_t stride = (count / kSample - 1) | 1;  // odd: in step with no period of the text
  for (size_t i = 0; i < kSample; ++i) sample[i] = scores[i * stride];
  return SampledBound(sample, kSample, want, count, keys);
}

size_t SelectScratch(uint32_t want, size_t count) {
  const size_t capacity = Highest::Capacity(want, count);
  return Highest::Floats(capacity) + HWY_MAX(Highest::KeyRoom(capacity), kSample + kSlack);
}

// Writes the tokens first + i of the `want` highest of scores[0, count), ascending, 0 < want.
void SelectHighest(const float* scores, size_t count, uint32_t first, uint32_t want, float* scratch,
                   uint32_t* to) {
  const size_t capacity = Highest::Capacity(want, count);
  auto* keys = reinterpret_cast<uint32_t*>(scratch + Highest::Floats(capacity));
  float bound = BoundOf(scores, count, want, keys);
  for (;; bound = __builtin_nanf("")) {
    Highest highest(want, capacity, bound, scratch, keys);
    highest.Add(scores, count, first);
    const Candidates found = highest.Found();
    if (WriteHighest(&found, 1, 1, want, keys, to)) return;
  }
}

void SelectHead(const float* scores, const Competition& among, uint32_t* selection,
                float* scratch) {
  uint32_t* const to = among.WriteAlways(selection);
  static_assert(kRecentTokens >= kLanes, "SelectHighest overwrites what is written behind it only");
  if (among.want > 0) {
    SelectHighest(scores + among.begin, among.end - among.begin, among.begin, among.want, scratch,
                  to);
  }
  among.WriteRecent(selection);
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
    const Competition among(item);
    select(item.scores + h * args.score_stride, among, item.selection + h * args.selection_stride,
           context.scratch.Get(thread, scratch_size(among.want, among.end - among.begin)));
  });
}

}  // namespace sparsekv::cpu
#endif  // HWY_ONCE
