#pragma once

#include <sys/mman.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace sparsekv {

// A device with memory of its own that needs none: another backend's operations under the rules
// that a real one has, for tests of whoever drives devices.
//
// - The host cannot touch the device's memory: outside of operations it is not mapped for anybody,
//   so that a forgotten Upload or Download is a SIGSEGV.
// - Operations are given nothing but the device's memory and what was shared, whole; else: abort.
// - Host and device meet outside of steps only; inside a step, what is fetched or sampled is
//   garbage until the step ends.
// - There is only so much memory, of its own and shared.
// - A prefetch brings all of its rows at once, or none, or all when its layer has been attended and
//   somebody waits for it, as chance has it.
// - What a lane resolves, attends in slots or forgets there, and what the keep lane reads or writes
//   beside these (lists, rows that landed, counts), is left alone by every lane that has not waited
//   for it.
//
// Operations run at once, in the order in which they are given: whether lanes are joined where
// marks say so is the tape's test (cuda/tape_test.cc).
class FakeDevice final : public Backend {
 public:
  struct Options {
    size_t bytes = size_t{256} << 20;
    size_t most_shared_bytes = SIZE_MAX;
    bool stops_copies = false;  // a random third of the prefetches brings nothing, a third is late
  };
  FakeDevice(std::unique_ptr<Backend> inner, const Options& options);
  ~FakeDevice() override;  // REQUIRES: all memory was freed, and nothing is shared any more

  size_t allocations() const { return allocations_; }  // ever
  size_t prompt_steps() const { return steps_[0]; }
  size_t decode_steps() const { return steps_[1]; }
  size_t stopped_copies() const { return stopped_copies_; }
  size_t late_copies() const { return late_copies_; }
  size_t reserved_bytes() const { return reserved_; }
  // First byte, bytes.
  const std::map<const std::byte*, size_t>& shared() const { return shared_; }

  std::string_view name() const override { return "fake device"; }
  bool host_memory() const override { return false; }
  std::byte* Allocate(size_t bytes) override;
  void Free(std::byte* memory) override;
  size_t free_bytes() const override { return options_.bytes - used_; }
  bool Share(std::byte* host, size_t bytes, std::string* why) override;
  void Unshare(std::byte* host, size_t bytes) override;
  std::byte* AllocateOnLargePages(size_t bytes, std::string* why) override;
  void FreeLargePages(std::byte* memory) override;
  void Upload(void* device, const void* host, size_t bytes) override;
  void Download(void* host, const void* device, size_t bytes) override;
  void Copy(void* to, const void* from, size_t bytes) override;
  void Fill(void* to, uint8_t byte, size_t bytes) override;
  void Fetch(void* host, const void* device, size_t bytes) override;
  void Reserve(size_t bytes) override { reserved_ = bytes; }

  void BeginStep(StepKind kind) override;
  void EndStep() override;
  void UseLane(Lane lane) override { lane_ = lane; }
  uint32_t Mark() override;
  void WaitFor(uint32_t mark) override;

  void Embed(const EmbedArgs& args) override;
  void RmsNorm(const RmsNormArgs& args) override;
  void Linear(const LinearArgs& args) override;
  void SwiGlu(const SwiGluArgs& args) override;
  void Rope(const RopeArgs& args) override;
  void AppendRows(const AppendRowsArgs& args) override;
  void AppendLabels(const AppendLabelsArgs& args) override;
  void ScoreLabels(const ScoreLabelsArgs& args) override;
  void Select(const SelectArgs& args) override;
  void Attend(const AttendArgs& args) override;
  void Extrapolate(const ExtrapolateArgs& args) override;
  void ExpandQuery(const ExpandQueryArgs& args) override;
  void Cosine(const CosineArgs& args) override;
  void Resolve(const ResolveArgs& args) override;
  void Forget(const ForgetArgs& args) override;
  void CopyRows(const CopyRowsArgs& args) override;
  void CopyAhead(const CopyAheadArgs& args) override;
  void ForgetRest(const ForgetRestArgs& args) override;
  void Overlap(const OverlapArgs& args) override;
  SampledToken Sample(const SampleArgs& args) override;
  void Sample(std::span<const SampleArgs> args, SampledToken* tokens) override;
  void Project(const ProjectArgs& args) override;
  void GateUp(const GateUpArgs& args) override;
  void RotateAppend(const RotateAppendArgs& args) override;
  void ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select) override;

 private:
  // The device's memory is there while one of these lives.
  class Awake {
   public:
    explicit Awake(FakeDevice* device) : device_(device) { Protect(PROT_READ | PROT_WRITE); }
    ~Awake() { Protect(PROT_NONE); }

   private:
    void Protect(int protection);
    FakeDevice* device_;
  };

  void Mine(const void* memory, size_t bytes) const;
  void Floats(const float* memory, size_t rows, size_t cols) const {
    Mine(memory, rows * cols * sizeof(float));
  }
  void Matrix(const WeightView& weight) const;
  void Rows(const RowTable& table, uint32_t tokens) const;
  void Labels(const LabelTable& table, uint32_t tokens) const;
  void Channels(const uint16_t* channels, uint32_t kv_heads, const LabelTable& table) const;
  void Slots(const SlotTable& table) const;
  void Moves(const CopyRowsArgs::Item& item, uint32_t kv_heads) const;
  void SelectedRows(const AttendArgs& args, const AttendArgs::Item& item);

  // What an operation of this step reads or writes until it is over.
  struct Use {
    enum Kind : uint32_t { kGives, kAttends, kCopies, kForgets };
    Kind kind = kGives;
    std::byte* const* map_pages = nullptr;  // of a table, with the set
    uint32_t set = 0;
    const void* list = nullptr;
    size_t list_bytes = 0;
    const Resolved* resolved = nullptr;
    Lane lane = Lane::kCompute;
    size_t number = 0;  // of the lane's uses
  };
  static Use UseOf(Use::Kind kind, const SlotTable& table);
  // Aborts where the lane in use has not waited for an earlier use of the same table.
  void Begin(Use use);
  bool Over(const Use& use) const;
  void NotInUse(const void* memory, size_t bytes) const;
  void BringLate(size_t of_prefetch_lane);

  const std::unique_ptr<Backend> inner_;
  const Options options_;
  std::map<const std::byte*, size_t> own_, shared_;  // first byte, bytes
  size_t used_ = 0, shared_bytes_ = 0, reserved_ = 0;
  size_t allocations_ = 0;
  size_t steps_[2]{};
  bool in_step_ = false;
  Lane lane_ = Lane::kCompute;
  std::vector<Use> uses_;
  // By lane: how many of each lane's uses are surely over; as it was at each mark.
  using Clock = std::array<size_t, kLanes>;
  std::array<Clock, kLanes> clocks_{};
  std::vector<Clock> at_mark_;
  Clock& clock() { return clocks_[static_cast<size_t>(lane_)]; }
  struct Late {
    std::vector<CopyAheadArgs::Item> items;
    CopyAheadArgs args;
    size_t number;  // of the prefetch lane's uses
  };
  std::vector<Late> late_;
  std::mt19937 random_{1};
  size_t stopped_copies_ = 0, late_copies_ = 0;

  struct Delivery {
    void* host;
    std::vector<std::byte> bytes;
  };
  std::vector<Delivery> deliveries_;
  std::vector<std::pair<SampledToken*, SampledToken>> samples_;
};

}  // namespace sparsekv
