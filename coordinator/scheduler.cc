#include "coordinator/scheduler.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/slots.h"

namespace sparsekv {

namespace {

constexpr uint32_t kUnitAlone = kPrefillUnitTokens;
constexpr uint32_t kUnitAmongDecodes = kPrefillAlign;

uint32_t CeilDiv(uint32_t a, uint32_t b) { return a / b + (a % b != 0); }

// The worker's rule (gpu_worker/budget.h) at a step with so many tokens. It grows with the tokens,
// so the last step's is the largest.
uint32_t SelectionAt(const v1::Budget& budget, uint32_t tokens) {
  const uint32_t always_set = std::min(tokens, kSinkTokens + kRecentTokens + 1);
  const uint32_t wanted = budget.fraction_denominator() > 0
                              ? CeilDiv(tokens, budget.fraction_denominator())
                              : budget.rows();
  return std::clamp(wanted, always_set, tokens);
}

// In the order in which they are tried.
std::vector<v1::Placement> Placements(PlacementPolicy policy) {
  switch (policy) {
    case PlacementPolicy::kResident:
      return {v1::PLACEMENT_RESIDENT};
    case PlacementPolicy::kOffload:
      return {v1::PLACEMENT_OFFLOAD};
    case PlacementPolicy::kAuto:
      break;
  }
  return {v1::PLACEMENT_RESIDENT, v1::PLACEMENT_OFFLOAD};
}

bool FitsNow(const Need& need, const WorkerCapacity& worker, v1::Placement placement) {
  return worker.ready && worker.slots_free > 0 && need.host_blocks <= worker.blocks_free &&
         need.label_pages <= worker.label_pages_free &&
         DeviceBlocks(need, worker, placement) <= worker.row_blocks_free;
}

std::optional<uint32_t> Choose(const Need& need, std::span<const WorkerCapacity> workers,
                               v1::Placement placement) {
  std::optional<uint32_t> best;
  for (uint32_t i = 0; i < workers.size(); ++i) {
    if (!FitsNow(need, workers[i], placement)) continue;
    auto room = [&](uint32_t w) { return std::tie(workers[w].slots_free, workers[w].blocks_free); };
    if (!best || room(i) > room(*best)) best = i;
  }
  return best;
}

std::optional<Admission> Admit(const Waiting& waiting, std::span<const WorkerCapacity> workers,
                               PlacementPolicy policy) {
  for (const v1::Placement placement : Placements(policy)) {
    const std::optional<uint32_t> worker = Choose(waiting.need, workers, placement);
    if (!worker) continue;
    const WorkerCapacity& chosen = workers[*worker];
    const bool counted = chosen.row_blocks_total > 0;
    return Admission{.key = waiting.key,
                     .worker = *worker,
                     .placement = counted ? placement : v1::PLACEMENT_UNSPECIFIED,
                     .row_blocks = DeviceBlocks(waiting.need, chosen, placement)};
  }
  return std::nullopt;
}

std::string NeedsLine(uint64_t need, const char* of, const char* where, uint64_t has) {
  return absl::StrCat("prompt + max_new_tokens need ", need, " ", of, ", ", where, " memory has ",
                      has);
}

}  // namespace

Need NeedOf(uint32_t tokens, bool double_sparsity, const v1::Budget& budget) {
  const uint32_t blocks = CeilDiv(tokens, kBlockTokens);
  if (!double_sparsity) return {.host_blocks = blocks};
  return {.host_blocks = blocks,
          .label_pages = blocks,
          .largest_selection = SelectionAt(budget, tokens)};
}

uint64_t DeviceBlocks(const Need& need, const WorkerCapacity& worker, v1::Placement placement) {
  if (worker.row_blocks_total == 0) return 0;
  if (placement == v1::PLACEMENT_RESIDENT) return uint64_t{need.host_blocks} * worker.layers;
  if (need.largest_selection == 0) return need.host_blocks;  // dense: one layer at a time
  if (need.largest_selection > kMostOffloadedSelection) return UINT64_MAX;
  const uint32_t hot_rows = std::min(worker.hot_rows, need.host_blocks * kBlockTokens);
  const uint32_t set_rows = std::max(hot_rows, need.largest_selection);
  const uint64_t sets = worker.hot_rows > 0 ? worker.layers : 2;
  return sets * CeilDiv(set_rows, kBlockTokens);
}

std::string WhyNever(const Need& need, const WorkerCapacity& worker, PlacementPolicy policy) {
  if (need.host_blocks > worker.blocks_total) {
    return NeedsLine(need.host_blocks, "row blocks of 64 tokens", "host", worker.blocks_total);
  }
  if (need.label_pages > worker.label_pages_total) {
    return NeedsLine(need.label_pages, "label pages of 64 tokens", "device",
                     worker.label_pages_total);
  }
  uint64_t least = UINT64_MAX;
  for (const v1::Placement placement : Placements(policy)) {
    least = std::min(least, DeviceBlocks(need, worker, placement));
  }
  if (least <= worker.row_blocks_total) return "";
  return NeedsLine(least,
                   policy == PlacementPolicy::kResident ? "row blocks of 64 tokens to be resident"
                                                        : "row blocks of 64 tokens",
                   "device", worker.row_blocks_total);
}

std::vector<Admission> Schedule(const std::deque<Waiting>& queue,
                                std::vector<WorkerCapacity> workers, PlacementPolicy policy) {
  std::vector<Admission> admissions;
  for (const Waiting& waiting : queue) {
    const std::optional<Admission> admission = Admit(waiting, workers, policy);
    if (!admission) break;
    WorkerCapacity& chosen = workers[admission->worker];
    chosen.blocks_free -= waiting.need.host_blocks;
    chosen.label_pages_free -= waiting.need.label_pages;
    chosen.row_blocks_free -= admission->row_blocks;
    chosen.slots_free -= 1;
    admissions.push_back(*admission);
  }
  return admissions;
}

uint32_t PrefillUnitTokens(bool others_decode) {
  return others_decode ? kUnitAmongDecodes : kUnitAlone;
}

}  // namespace sparsekv
