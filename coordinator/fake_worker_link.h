#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "coordinator/scheduler.h"
#include "coordinator/worker_link.h"

namespace sparsekv {

// For tests: a worker in memory that keeps the contract of worker.proto. The test says when it
// comes, steps and goes. Strand only.
class FakeWorkerLink final : public WorkerLink {
 public:
  struct Sequence {
    v1::SequenceStart start;
    uint32_t made = 0;
  };

  explicit FakeWorkerLink(uint32_t worker) : worker_(worker) {}

  // The token with this index; the default counts through the lower-case letters.
  std::function<uint32_t(const v1::SequenceStart&, uint32_t index)> next_token =
      [](const v1::SequenceStart&, uint32_t index) { return 'a' + index % 26; };
  v1::WorkerHello hello;
  size_t unsent_plans = 0;
  uint64_t plan_epoch_of_reports = 0;  // 0 = as it is

  void Start(Listener* listener) override { listener_ = listener; }
  void Send(v1::Plan plan) override {
    if (!up_) return;
    plans_sent.push_back(plan);
    plans_.push_back(std::move(plan));
  }
  size_t unsent() const override { return unsent_plans; }
  void Break(const std::string& why) override { broken.push_back(why); }
  void Stop() override { listener_ = nullptr; }

  void Up(uint64_t boot_id) {
    CHECK(!up_);
    up_ = true;
    epoch_ = 0;
    live_.clear();
    if (listener_) listener_->OnWorkerUp(worker_, boot_id, hello);
  }
  void Down() {
    CHECK(up_);
    up_ = false;
    plans_.clear();
    if (listener_) {
      listener_->OnWorkerDown(worker_, absl::UnavailableError("the fake worker died"));
    }
  }
  // Takes the plans that have come and, unless told not to, makes a token for every sequence.
  void Step(bool tokens = true) {
    CHECK(up_);
    v1::Report report;
    for (const v1::Plan& plan : std::exchange(plans_, {})) Apply(plan, &report);
    if (tokens) {
      std::vector<uint64_t> ids;
      for (const auto& [id, sequence] : live_) ids.push_back(id);
      for (uint64_t id : ids) MakeToken(id, &report);
    }
    Report(report);
  }
  void Report(v1::Report report) {
    report.set_epoch(plan_epoch_of_reports > 0 ? plan_epoch_of_reports : epoch_);
    if (listener_) listener_->OnWorkerReport(worker_, report);
  }
  void Fail(uint64_t id, int code, const std::string& error) {
    v1::Report report;
    End(id, v1::FINISH_REASON_ERROR, &report);
    report.mutable_ends(0)->set_error_code(code);
    report.mutable_ends(0)->set_error(error);
    Report(report);
  }

  bool up() const { return up_; }
  const std::map<uint64_t, Sequence>& live() const { return live_; }
  // Whether it may be writing rows of this owner. A stream that broke tells nothing: it may until
  // it is up again.
  bool HasOwner(uint64_t owner) const {
    for (const auto& [id, sequence] : live_) {
      if (sequence.start.owner() == owner) return true;
    }
    return false;
  }

  std::vector<v1::Plan> plans_sent;
  std::vector<std::string> broken;

 private:
  void Apply(const v1::Plan& plan, v1::Report* report) {
    CHECK_GT(plan.epoch(), epoch_);
    CHECK_NE(plan.coordinator_boot_id(), uint64_t{0});
    epoch_ = plan.epoch();
    const std::set<uint64_t> members(plan.members().begin(), plan.members().end());
    std::vector<uint64_t> dropped;
    for (const auto& [id, sequence] : live_) {
      if (!members.contains(id)) dropped.push_back(id);
    }
    for (uint64_t id : dropped) End(id, v1::FINISH_REASON_CANCELLED, report);
    for (const v1::SequenceStart& start : plan.starts()) {
      CHECK(members.contains(start.sequence_id()));
      CHECK(seen_.insert(start.sequence_id()).second);  // never reused
      live_[start.sequence_id()].start = start;
    }
    CHECK_LE(live_.size(), size_t{hello.max_batch()});
    CHECK_LE(RowBlocksTaken(), uint64_t{hello.device_row_blocks()});
  }

  uint64_t RowBlocksTaken() const {
    const WorkerCapacity worker{.row_blocks_total = hello.device_row_blocks(),
                                .layers = hello.model().layers(),
                                .hot_rows = hello.hot_rows()};
    uint64_t taken = 0;
    for (const auto& [id, sequence] : live_) {
      const v1::SequenceStart& start = sequence.start;
      CHECK_EQ(start.placement() == v1::PLACEMENT_UNSPECIFIED, hello.device_row_blocks() == 0);
      const uint32_t tokens =
          static_cast<uint32_t>(start.prompt_ids_size()) + start.max_new_tokens();
      const bool sparse = start.attention() == v1::ATTENTION_DOUBLE_SPARSITY;
      taken += DeviceBlocks(NeedOf(tokens, sparse, start.budget()), worker, start.placement());
    }
    return taken;
  }

  void MakeToken(uint64_t id, v1::Report* report) {
    Sequence& sequence = live_.at(id);
    const uint32_t token = next_token(sequence.start, sequence.made);
    auto* event = report->add_tokens();
    event->set_sequence_id(id);
    event->set_index(sequence.made++);
    event->set_token_id(token);
    for (uint32_t stop : sequence.start.stop_token_ids()) {
      if (token == stop) return End(id, v1::FINISH_REASON_STOP, report);
    }
    if (sequence.made == sequence.start.max_new_tokens()) {
      End(id, v1::FINISH_REASON_LENGTH, report);
    }
  }

  void End(uint64_t id, v1::FinishReason reason, v1::Report* report) {
    auto* end = report->add_ends();
    end->set_sequence_id(id);
    end->set_reason(reason);
    end->set_generated(live_.at(id).made);
    end->mutable_sparsity()->set_rows_selected(live_.at(id).made);
    end->set_decode_s(0.5);
    live_.erase(id);
  }

  const uint32_t worker_;
  Listener* listener_ = nullptr;
  bool up_ = false;
  uint64_t epoch_ = 0;
  std::vector<v1::Plan> plans_;  // not applied yet
  std::map<uint64_t, Sequence> live_;
  std::set<uint64_t> seen_;
};

}  // namespace sparsekv
