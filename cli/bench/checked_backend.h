#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <utility>

#include "base/check.h"
#include "kernels/backend.h"

namespace sparsekv::testing {

// Another backend's operations, with the rules of a device that has memory of its own: whatever it
// is given lies whole in what it allocated or shares, and host and device meet outside of steps
// only. For the operations that benches call.
class CheckedBackend final : public Backend {
 public:
  explicit CheckedBackend(std::unique_ptr<Backend> backend) : inner_(std::move(backend)) {}
  ~CheckedBackend() override { CHECK(ranges_.empty()); }

  std::string_view name() const override { return inner_->name(); }
  bool host_memory() const override { return false; }

  std::byte* Allocate(size_t bytes) override {
    CHECK(!in_step_);
    std::byte* memory = inner_->Allocate(bytes);
    ranges_[memory] = bytes;
    return memory;
  }
  void Free(std::byte* memory) override {
    CHECK(!in_step_);
    CHECK_EQ(ranges_.erase(memory), 1u);
    inner_->Free(memory);
  }
  bool Share(std::byte* host, size_t bytes, std::string*) override {
    ranges_[host] = bytes;
    return true;
  }
  void Unshare(std::byte* host, size_t bytes) override {
    CHECK_EQ(ranges_.at(host), bytes);
    ranges_.erase(host);
  }
  void Upload(void* device, const void* host, size_t bytes) override {
    CHECK(!in_step_);
    Mine(device, bytes);
    inner_->Upload(device, host, bytes);
  }
  void Download(void* host, const void* device, size_t bytes) override {
    CHECK(!in_step_);
    Mine(device, bytes);
    inner_->Download(host, device, bytes);
  }
  void Copy(void* to, const void* from, size_t bytes) override {
    Mine(to, bytes);
    Mine(from, bytes);
    inner_->Copy(to, from, bytes);
  }
  void Fill(void* to, uint8_t byte, size_t bytes) override {
    Mine(to, bytes);
    inner_->Fill(to, byte, bytes);
  }
  void BeginStep(StepKind) override {
    CHECK(!in_step_);
    in_step_ = true;
  }
  void EndStep() override {
    CHECK(in_step_);
    in_step_ = false;
  }

  void RmsNorm(const RmsNormArgs& args) override {
    Floats(args.x, args.tokens, args.weight.cols);
    Floats(args.out, args.tokens, args.weight.cols);
    Matrix(args.weight);
    inner_->RmsNorm(args);
  }
  void Linear(const LinearArgs& args) override {
    Floats(args.x, args.tokens, args.weight.cols);
    Floats(args.y, args.tokens, args.weight.rows);
    Matrix(args.weight);
    inner_->Linear(args);
  }
  void Project(const ProjectArgs& args) override {
    Floats(args.x, args.tokens, args.norm.cols);
    Floats(args.normed, args.tokens, args.norm.cols);
    Matrix(args.norm);
    for (const ProjectArgs::Output& output : args.outputs) {
      Matrix(output.weight);
      Floats(output.y, args.tokens, output.weight.rows);
    }
    inner_->Project(args);
  }
  void GateUp(const GateUpArgs& args) override {
    Floats(args.x, args.tokens, args.norm.cols);
    Floats(args.normed, args.tokens, args.norm.cols);
    for (const WeightView& weight : {args.norm, args.gate, args.up}) Matrix(weight);
    for (const float* y : {args.spare, args.out}) Floats(y, args.tokens, args.gate.rows);
    inner_->GateUp(args);
  }
  void RotateAppend(const RotateAppendArgs& args) override {
    const size_t tokens = args.positions.size();
    Floats(args.q, tokens, size_t{args.heads} * args.head_dim);
    for (const float* x : {static_cast<const float*>(args.k), args.v}) {
      Floats(x, tokens, size_t{args.kv_heads} * args.head_dim);
    }
    for (const auto& item : args.rows) Rows(item.rows, item.span.position + item.span.tokens);
    for (const auto& item : args.labels) {
      Labels(item.labels, item.span.position + item.span.tokens);
      Channels(args.channels, args.kv_heads, item.labels);
    }
    inner_->RotateAppend(args);
  }
  void ScoreLabels(const ScoreLabelsArgs& args) override {
    for (const auto& item : args.items) {
      Floats(args.q, item.query + 1, size_t{args.kv_heads} * args.group * args.head_dim);
      Labels(item.labels, item.tokens);
      Channels(args.channels, args.kv_heads, item.labels);
      Floats(item.scores, args.kv_heads, args.score_stride);
    }
    inner_->ScoreLabels(args);
  }
  void Select(const SelectArgs& args) override {
    for (const auto& item : args.items) {
      Floats(item.scores, args.kv_heads, args.score_stride);
      Mine(item.selection, sizeof(uint32_t) * args.kv_heads * args.selection_stride);
    }
    inner_->Select(args);
  }
  void Attend(const AttendArgs& args) override {
    const size_t width = size_t{args.kv_heads} * args.group * args.head_dim;
    for (const auto& item : args.items) {
      for (const float* x : {args.q, static_cast<const float*>(args.out)}) {
        Floats(x, item.span.first + item.span.tokens, width);
      }
      Rows(item.rows, item.span.position + item.span.tokens);
      if (item.selection == nullptr) continue;
      Mine(item.selection, sizeof(uint32_t) * args.kv_heads * args.selection_stride);
    }
    inner_->Attend(args);
  }
  void Resolve(const ResolveArgs& args) override {
    for (const auto& item : args.items) {
      const size_t entries = args.kv_heads * args.stride;
      Slots(item.table);
      for (uint32_t head = 0; head < args.kv_heads; ++head) {
        for (uint32_t i = 0; i < item.count; ++i) {
          const uint32_t token = item.rows[head * args.stride + i];
          Mine(item.table.map_pages + token / kBlockTokens, sizeof(std::byte*));
          Mine(item.table.map_pages[token / kBlockTokens], item.table.map_layout->page_bytes());
        }
      }
      Mine(item.rows, sizeof(uint32_t) * entries);
      Mine(item.slots, sizeof(uint32_t) * entries);
      Mine(item.misses, sizeof(RowMove) * args.kv_heads * item.miss_stride);
      Mine(item.resolved, sizeof(Resolved) * args.kv_heads);
    }
    inner_->Resolve(args);
  }
  void CopyRows(const CopyRowsArgs& args) override {
    for (const auto& item : args.items) {
      Mine(item.moves, sizeof(RowMove) * args.kv_heads * item.stride);
      Mine(item.resolved, sizeof(Resolved) * args.kv_heads);
      for (uint32_t head = 0; head < args.kv_heads; ++head) {
        for (uint32_t i = 0; i < item.resolved[head].misses; ++i) {
          const RowMove& move = item.moves[head * item.stride + i];
          Mine(item.from.Row(head, move.token), item.from.layout->row_bytes());
          Mine(item.to.Row(head, move.slot), item.to.layout->row_bytes());
        }
      }
    }
    inner_->CopyRows(args);
  }
  SampledToken Sample(const SampleArgs& args) override {
    Floats(args.logits, 1, args.vocab);
    return inner_->Sample(args);
  }

  void Embed(const EmbedArgs&) override { CHECK(false); }
  void SwiGlu(const SwiGluArgs&) override { CHECK(false); }
  void Rope(const RopeArgs&) override { CHECK(false); }
  void AppendRows(const AppendRowsArgs&) override { CHECK(false); }
  void AppendLabels(const AppendLabelsArgs&) override { CHECK(false); }
  void Extrapolate(const ExtrapolateArgs&) override { CHECK(false); }
  void ExpandQuery(const ExpandQueryArgs&) override { CHECK(false); }
  void Cosine(const CosineArgs&) override { CHECK(false); }
  void Forget(const ForgetArgs&) override { CHECK(false); }
  void CopyAhead(const CopyAheadArgs&) override { CHECK(false); }
  void StopCopy(CopyProgress*) override { CHECK(false); }
  void ForgetRest(const ForgetRestArgs&) override { CHECK(false); }
  void Overlap(const OverlapArgs&) override { CHECK(false); }

 private:
  void Mine(const void* memory, size_t bytes) const {
    const auto* begin = static_cast<const std::byte*>(memory);
    auto range = ranges_.upper_bound(begin);
    CHECK(range != ranges_.begin());
    --range;
    CHECK(begin + bytes <= range->first + range->second);
  }
  void Floats(const float* memory, size_t rows, size_t cols) const {
    Mine(memory, rows * cols * sizeof(float));
  }
  void Matrix(const WeightView& weight) const {
    Mine(weight.data, size_t{weight.rows} * weight.cols * SizeOf(weight.dtype));
  }
  void Rows(const RowTable& table, uint32_t tokens) const {
    const uint32_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
    Mine(table.blocks, sizeof(uint32_t) * blocks);
    for (uint32_t b = 0; b < blocks; ++b) {
      CHECK_LT(table.blocks[b], table.layout->blocks);
      Mine(table.Row(0, b * kBlockTokens), table.layout->block_stride());
    }
  }
  void Labels(const LabelTable& table, uint32_t tokens) const {
    const uint32_t pages = (tokens + kBlockTokens - 1) / kBlockTokens;
    CHECK_LT(table.layer, table.layout->layers);
    Mine(table.pages, sizeof(std::byte*) * pages);
    for (uint32_t p = 0; p < pages; ++p) Mine(table.pages[p], table.layout->page_bytes());
  }
  void Channels(const uint16_t* channels, uint32_t kv_heads, const LabelTable& table) const {
    Mine(channels, sizeof(uint16_t) * kv_heads * table.layout->channels);
  }
  void Slots(const SlotTable& table) const {
    Rows(table.rows, table.slots);
    for (uint32_t head = 0; head < table.map_layout->kv_heads; ++head) {
      for (uint32_t s = 0; s < table.slots; ++s) Mine(&table.Meta(head, s), sizeof(SlotMeta));
    }
  }

  std::unique_ptr<Backend> inner_;
  std::map<const std::byte*, size_t> ranges_;  // first byte, bytes
  bool in_step_ = false;
};

}  // namespace sparsekv::testing
