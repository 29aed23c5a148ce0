#include "coordinator/scheduler.h"

#include <optional>
#include <tuple>

#include "base/limits.h"

namespace sparsekv {

namespace {

constexpr uint32_t kUnitAlone = kPrefillUnitTokens;
constexpr uint32_t kUnitAmongDecodes = kPrefillAlign;

bool FitsNow(const Need& need, const WorkerCapacity& worker) {
  return worker.ready && worker.slots_free > 0 && need.host_blocks <= worker.blocks_free &&
         need.label_pages <= worker.label_pages_free;
}

std::optional<uint32_t> Choose(const Need& need, std::span<const WorkerCapacity> workers) {
  std::optional<uint32_t> best;
  for (uint32_t i = 0; i < workers.size(); ++i) {
    if (!FitsNow(need, workers[i])) continue;
    auto room = [&](uint32_t w) { return std::tie(workers[w].slots_free, workers[w].blocks_free); };
    if (!best || room(i) > room(*best)) best = i;
  }
  return best;
}

}  // namespace

Need NeedOf(uint32_t tokens, bool double_sparsity) {
  const uint32_t blocks = tokens / kBlockTokens + (tokens % kBlockTokens != 0);
  return {.host_blocks = blocks, .label_pages = double_sparsity ? blocks : 0};
}

bool CanEverFit(const Need& need, const WorkerCapacity& worker) {
  return need.host_blocks <= worker.blocks_total && need.label_pages <= worker.label_pages_total;
}

std::vector<Placement> Schedule(const std::deque<Waiting>& queue,
                                std::vector<WorkerCapacity> workers) {
  std::vector<Placement> placements;
  for (const Waiting& waiting : queue) {
    const std::optional<uint32_t> worker = Choose(waiting.need, workers);
    if (!worker) break;
    WorkerCapacity& chosen = workers[*worker];
    chosen.blocks_free -= waiting.need.host_blocks;
    chosen.label_pages_free -= waiting.need.label_pages;
    chosen.slots_free -= 1;
    placements.push_back({waiting.key, *worker});
  }
  return placements;
}

uint32_t PrefillUnitTokens(bool others_decode) {
  return others_decode ? kUnitAmongDecodes : kUnitAlone;
}

}  // namespace sparsekv
