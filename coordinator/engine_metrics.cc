// Engine: what it shows of itself and its workers.
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "coordinator/engine.h"

namespace sparsekv {

// Before the slot takes them: overlap is measured against the settings that they were made under.
void Engine::CountEpoch(const WorkerSlot& slot, const v1::EpochStats& stats) {
  metrics_.CountEpoch(slot.index(), stats);
  if (stats.steps() > 0) metrics_.last_step[slot.index()]->SetToCurrentTime();
  const auto& layers = metrics_.layers(slot.index());
  for (uint32_t i = 0; i < layers.size() && i < static_cast<uint32_t>(stats.layers_size()); ++i) {
    const auto coverage = slot.prefetch().Coverage(i, stats.layers(static_cast<int>(i)));
    if (coverage) layers[i].overlap->Set(*coverage);
  }
}

void Engine::ShowPrefetch(const WorkerSlot& slot) {
  const auto& layers = metrics_.layers(slot.index());
  const auto& settings = slot.prefetch().settings();
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool on = i < settings.size() && settings[i].predict;
    layers[i].prefetch_enabled->Set(on);
    layers[i].prefetch_percent->Set(on ? settings[i].percent : 0);
  }
}

void Engine::ShowPrefetchChanges(const WorkerSlot& slot,
                                 const std::vector<PrefetchControl::Change>& changes) {
  ShowPrefetch(slot);
  std::string line;
  for (const auto& [layer, now, why] : changes) {
    const std::string setting = now.predict ? absl::StrCat(now.percent, " %") : "off";
    absl::StrAppend(&line, line.empty() ? "" : "; ", "layer ", layer, " ", setting, " (", why, ")");
  }
  spdlog::info("worker {} prefetch: {}", slot.index(), line);
}

void Engine::UpdateGauges() {
  size_t running = 0;
  for (const auto& [key, request] : requests_) {
    running += request->phase != Phase::kPreparing && request->phase != Phase::kQueued;
  }
  metrics_.requests_running.Set(static_cast<double>(running));
  metrics_.requests_waiting.Set(static_cast<double>(requests_.size() - running));
  metrics_.ready.Set(Readiness().ok());
  double used_blocks = 0, blocks = 0;
  std::map<std::string, double> taken, held;  // device memory by kind
  for (const WorkerSlot& slot : slots_) {
    metrics_.worker_up[slot.index()]->Set(slot.up());
    blocks += store_.blocks_per_pool();
    // The ledger: the store's answers overtake each other, so the last one may be an old one.
    used_blocks += slot.held_blocks();
    for (const v1::DeviceMemory& memory : slot.DeviceMemory()) {
      taken[memory.kind()] += static_cast<double>(memory.bytes());
      held[memory.kind()] += static_cast<double>(memory.used_bytes());
    }
  }
  const auto bytes_per_block = static_cast<double>(store_.bytes_per_block());
  metrics_.host_kv_bytes_free.Set((blocks - used_blocks) * bytes_per_block);
  metrics_.host_kv_bytes_used.Set(used_blocks * bytes_per_block);
  for (auto& [kind, gauge] : metrics_.device_memory_bytes) gauge->Set(taken[kind]);
  for (auto& [kind, gauge] : metrics_.device_kv_bytes) gauge->Set(held[kind]);
  metrics_.store_up.Set(store_up_);
}

}  // namespace sparsekv
