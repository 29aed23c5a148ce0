#include "coordinator/worker_slot.h"

#include <algorithm>

#include "base/limits.h"

namespace sparsekv {

namespace {

// A plan is one message: with the prompt that passes this it stays below kMaxMessageBytes.
constexpr size_t kPromptIdsPerPlan = 1 << 20;
static_assert((kPromptIdsPerPlan + kMaxContext) * 3.1 < kMaxMessageBytes);  // an id takes 3 bytes

template <typename T>
T Less(T total, T used) {
  return total > used ? total - used : 0;
}

}  // namespace

void WorkerSlot::OnUp(uint64_t boot_id, const v1::WorkerHello& hello) {
  up_ = true;
  boot_id_ = boot_id;
  hello_ = hello;
  ++incarnation_;
  epoch_ = 0;
  settings_epoch_ = 1;
  const bool predicts = hello.device_row_blocks() > 0 && hello.model().double_sparsity();
  control_ = PrefetchControl(prefetch_, predicts ? hello.model().layers() : 0);
  reported_memory_.clear();
  last_report = Clock::now();
}

void WorkerSlot::OnDown() {
  up_ = false;
  members_.clear();
  starts_.clear();
  for (auto& [owner, holding] : held_) holding.active = false;
}

void WorkerSlot::EndOnDevice(uint64_t owner) {
  const auto found = held_.find(owner);
  if (found != held_.end()) found->second.active = false;
}

void WorkerSlot::KeepOnly(const std::vector<uint64_t>& owners) {
  std::erase_if(held_, [&](const auto& entry) {
    return std::find(owners.begin(), owners.end(), entry.first) == owners.end();
  });
}

uint32_t WorkerSlot::held_blocks() const {
  uint32_t blocks = 0;
  for (const auto& [owner, holding] : held_) blocks += holding.need.host_blocks;
  return blocks;
}

WorkerCapacity WorkerSlot::Capacity(uint32_t pool_blocks) const {
  uint32_t pages = 0;
  uint64_t row_blocks = 0;
  for (const auto& [owner, holding] : held_) {
    if (!holding.active) continue;
    pages += holding.need.label_pages;
    row_blocks += holding.row_blocks;
  }
  return {.ready = ready() && Clock::now() >= not_before,
          .blocks_total = pool_blocks,
          .blocks_free = Less(pool_blocks, held_blocks()),
          .label_pages_total = hello_.label_pages(),
          .label_pages_free = Less(hello_.label_pages(), pages),
          .slots_free = Less(std::min(hello_.max_batch(), kMaxBatch), active()),
          .row_blocks_total = hello_.device_row_blocks(),
          .row_blocks_free = Less<uint64_t>(hello_.device_row_blocks(), row_blocks),
          .layers = hello_.model().layers(),
          .hot_rows = hello_.hot_rows()};
}

uint32_t WorkerSlot::active() const {
  return static_cast<uint32_t>(std::count_if(
      held_.begin(), held_.end(), [](const auto& entry) { return entry.second.active; }));
}

void WorkerSlot::AddStart(v1::SequenceStart start) {
  members_.push_back(start.sequence_id());
  starts_.push_back(std::move(start));
}

bool WorkerSlot::Remove(uint64_t sequence_id) {
  std::erase(members_, sequence_id);
  return std::erase_if(starts_, [=](const v1::SequenceStart& start) {
           return start.sequence_id() == sequence_id;
         }) > 0;
}

v1::Plan WorkerSlot::TakePlan(uint64_t coordinator_boot_id, bool decoding) {
  v1::Plan plan;
  plan.set_coordinator_boot_id(coordinator_boot_id);
  plan.set_epoch(++epoch_);
  size_t sent = 0;
  for (size_t ids = 0; sent < starts_.size() && ids < kPromptIdsPerPlan; ++sent) {
    ids += starts_[sent].prompt_ids_size();
    *plan.add_starts() = std::move(starts_[sent]);
  }
  starts_.erase(starts_.begin(), starts_.begin() + sent);
  plan.mutable_members()->Add(members_.begin(), members_.end());
  plan.set_prefill_unit_tokens(PrefillUnitTokens(decoding));
  plan.set_valid_steps(kPlanSteps);
  control_.FillPlan(&plan);
  return plan;
}

// Steps of plans before the settings of now say nothing about them. (The last few of those come
// under the next plan's epoch; they are too few to matter.)
std::vector<PrefetchControl::Change> WorkerSlot::OnStats(uint64_t epoch,
                                                         const v1::EpochStats& stats) {
  reported_memory_.assign(stats.device_memory().begin(), stats.device_memory().end());
  if (epoch < settings_epoch_) return {};
  auto changes = control_.OnEpoch(stats);
  if (!changes.empty()) settings_epoch_ = epoch_ + 1;
  return changes;
}

// Reported while steps are made: without sequences the last report is out of date, and what is held
// is what was held at the start.
std::vector<v1::DeviceMemory> WorkerSlot::DeviceMemory() const {
  if (!up_) return {};
  if (active() > 0 && !reported_memory_.empty()) return reported_memory_;
  return {hello_.device_memory().begin(), hello_.device_memory().end()};
}

}  // namespace sparsekv
