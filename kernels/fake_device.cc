#include "kernels/fake_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kernels/host_memory.h"

namespace sparsekv {

namespace {
constexpr size_t kPage = 4096;
size_t Pages(size_t bytes) { return (std::max<size_t>(bytes, 1) + kPage - 1) / kPage * kPage; }
}  // namespace

void FakeDevice::Awake::Protect(int protection) {
  for (const auto& [memory, bytes] : device_->own_) {
    CHECK_EQ(mprotect(const_cast<std::byte*>(memory), Pages(bytes), protection), 0);
  }
}

FakeDevice::FakeDevice(std::unique_ptr<Backend> inner, const Options& options)
    : inner_(std::move(inner)), options_(options) {}

FakeDevice::~FakeDevice() { CHECK(own_.empty() && shared_.empty()); }

std::byte* FakeDevice::Allocate(size_t bytes) {
  CHECK(!in_step_);
  if (bytes > free_bytes()) return nullptr;
  void* memory =
      mmap(nullptr, Pages(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  own_[static_cast<std::byte*>(memory)] = bytes;
  used_ += bytes;
  ++allocations_;
  return static_cast<std::byte*>(memory);
}

void FakeDevice::Free(std::byte* memory) {
  CHECK(!in_step_);
  const size_t bytes = own_.at(memory);
  own_.erase(memory);
  used_ -= bytes;
  munmap(memory, Pages(bytes));
}

bool FakeDevice::Share(std::byte* host, size_t bytes, std::string* why) {
  CHECK(!in_step_);
  CHECK(bytes > 0);
  const auto after = shared_.lower_bound(host);
  CHECK(after == shared_.end() || host + bytes <= after->first);
  CHECK(after == shared_.begin() || std::prev(after)->first + std::prev(after)->second <= host);
  if (bytes > options_.most_shared_bytes - shared_bytes_) {
    *why = "the fake shares no more";
    return false;
  }
  shared_[host] = bytes;
  shared_bytes_ += bytes;
  return true;
}

void FakeDevice::Unshare(std::byte* host, size_t bytes) {
  CHECK(!in_step_);
  CHECK_EQ(shared_.at(host), bytes);
  shared_.erase(host);
  shared_bytes_ -= bytes;
}

std::byte* FakeDevice::AllocateOnLargePages(size_t bytes, std::string*) {
  CHECK(!in_step_);
  std::byte* memory = AllocateOnHost(bytes);
  shared_[memory] = bytes;
  return memory;
}

void FakeDevice::FreeLargePages(std::byte* memory) {
  CHECK(!in_step_);
  CHECK_EQ(shared_.erase(memory), 1u);
  FreeOnHost(memory);
}

void FakeDevice::Upload(void* device, const void* host, size_t bytes) {
  CHECK(!in_step_);
  Mine(device, bytes);
  const Awake awake(this);
  std::memcpy(device, host, bytes);
}

void FakeDevice::Download(void* host, const void* device, size_t bytes) {
  CHECK(!in_step_);
  Mine(device, bytes);
  const Awake awake(this);
  std::memcpy(host, device, bytes);
}

void FakeDevice::Copy(void* to, const void* from, size_t bytes) {
  Mine(to, bytes);
  Mine(from, bytes);
  const Awake awake(this);
  std::memcpy(to, from, bytes);
}

void FakeDevice::Fill(void* to, uint8_t byte, size_t bytes) {
  Mine(to, bytes);
  const Awake awake(this);
  std::memset(to, byte, bytes);
}

void FakeDevice::Fetch(void* host, const void* device, size_t bytes) {
  Mine(device, bytes);
  const Awake awake(this);
  const auto* from = static_cast<const std::byte*>(device);
  if (!in_step_) {
    std::memcpy(host, from, bytes);
    return;
  }
  for (const Use& use : uses_) {
    const auto* resolved = reinterpret_cast<const std::byte*>(use.resolved);
    CHECK(Over(use) || resolved + sizeof(Resolved) <= from || from + bytes <= resolved);
  }
  deliveries_.push_back({host, {from, from + bytes}});
  std::memset(host, 0xC9, bytes);
}

void FakeDevice::BeginStep(StepKind kind) {
  CHECK(!in_step_);
  in_step_ = true;
  lane_ = Lane::kCompute;
  uses_.clear();
  at_mark_.clear();
  clocks_ = {};
  ++steps_[kind == StepKind::kDecode];
}

void FakeDevice::EndStep() {
  CHECK(in_step_);
  BringLate(SIZE_MAX);
  in_step_ = false;
  for (const Delivery& delivery : deliveries_) {
    std::memcpy(delivery.host, delivery.bytes.data(), delivery.bytes.size());
  }
  for (auto& [to, token] : samples_) *to = std::move(token);
  deliveries_.clear();
  samples_.clear();
}

uint32_t FakeDevice::Mark() {
  at_mark_.push_back(clock());
  return static_cast<uint32_t>(at_mark_.size() - 1);
}

void FakeDevice::WaitFor(uint32_t mark) {
  CHECK(in_step_);
  CHECK_LT(mark, at_mark_.size());
  for (size_t lane = 0; lane < kLanes; ++lane) {
    clock()[lane] = std::max(clock()[lane], at_mark_[mark][lane]);
  }
  BringLate(at_mark_[mark][static_cast<size_t>(Lane::kPrefetch)]);
}

// What the prefetch lane had begun when attention said stop is finished.
void FakeDevice::BringLate(size_t of_prefetch_lane) {
  std::erase_if(late_, [&](Late& late) {
    if (late.number > of_prefetch_lane) return false;
    const Awake awake(this);
    const uint32_t stop = std::exchange(late.args.progress->stop, 0);
    late.args.items = late.items;
    inner_->CopyAhead(late.args);
    late.args.progress->stop = stop;
    return true;
  });
}

FakeDevice::Use FakeDevice::UseOf(Use::Kind kind, const SlotTable& table) {
  return {.kind = kind, .map_pages = table.map_pages, .set = table.set};
}

bool FakeDevice::Over(const Use& use) const {
  return use.lane == lane_ ||
         use.number <= clocks_[static_cast<size_t>(lane_)][static_cast<size_t>(use.lane)];
}

void FakeDevice::Begin(Use use) {
  for (const Use& earlier : uses_) {
    if (!use.map_pages || earlier.map_pages != use.map_pages || earlier.set != use.set) continue;
    CHECK(Over(earlier) || (use.kind == Use::kAttends && earlier.kind == Use::kCopies));
  }
  use.lane = lane_;
  use.number = ++clock()[static_cast<size_t>(lane_)];
  uses_.push_back(use);
}

// `memory` is about to be written.
void FakeDevice::NotInUse(const void* memory, size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(memory);
  for (const Use& use : uses_) {
    const auto* list = static_cast<const std::byte*>(use.list);
    CHECK(Over(use) || begin + bytes <= list || list + use.list_bytes <= begin);
  }
}

void FakeDevice::Mine(const void* memory, size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(memory);
  const std::byte* const end = begin + bytes;
  for (const auto* ranges : {&own_, &shared_}) {
    auto range = ranges->upper_bound(begin);
    if (range == ranges->begin()) continue;
    --range;
    // What was shared in pieces is one.
    for (const std::byte* at = begin; range != ranges->end() && range->first <= at; ++range) {
      at = std::max(at, range->first + range->second);
      if (end <= at) return;
    }
  }
  CHECK(!"memory that is neither the device's nor shared");
}

void FakeDevice::Matrix(const WeightView& weight) const {
  Mine(weight.data, size_t{weight.rows} * weight.cols * SizeOf(weight.dtype));
}

void FakeDevice::Rows(const RowTable& table, uint32_t tokens) const {
  const uint32_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  Mine(table.blocks, sizeof(uint32_t) * blocks);
  for (uint32_t b = 0; b < blocks; ++b) {
    CHECK_LT(table.blocks[b], table.layout->blocks);
    Mine(table.Row(0, b * kBlockTokens), table.layout->block_stride());
  }
}

void FakeDevice::Labels(const LabelTable& table, uint32_t tokens) const {
  const uint32_t pages = (tokens + kBlockTokens - 1) / kBlockTokens;
  CHECK_LT(table.layer, table.layout->layers);
  Mine(table.pages, sizeof(std::byte*) * pages);
  for (uint32_t p = 0; p < pages; ++p) Mine(table.pages[p], table.layout->page_bytes());
}

void FakeDevice::Channels(const uint16_t* channels, uint32_t kv_heads,
                          const LabelTable& table) const {
  Mine(channels, sizeof(uint16_t) * kv_heads * table.layout->channels);
}

void FakeDevice::Slots(const SlotTable& table) const {
  Rows(table.rows, table.slots);
  for (uint32_t head = 0; head < table.map_layout->kv_heads; ++head) {
    for (uint32_t s = 0; s < table.slots; ++s) Mine(&table.Meta(head, s), sizeof(SlotMeta));
  }
}

void FakeDevice::Moves(const CopyRowsArgs::Item& item, uint32_t kv_heads) const {
  if (item.first_rows == 0) {
    Mine(item.moves, sizeof(RowMove) * kv_heads * item.stride);
    Mine(item.resolved, sizeof(Resolved) * kv_heads);
  }
  for (uint32_t head = 0; head < kv_heads; ++head) {
    for (uint32_t i = 0; i < item.Rows(head); ++i) {
      const RowMove move = item.Move(head, i);
      Mine(item.from.Row(head, move.token), item.from.layout->row_bytes());
      Mine(item.to.Row(head, move.slot), item.to.layout->row_bytes());
    }
  }
}

void FakeDevice::SelectedRows(const AttendArgs& args, const AttendArgs::Item& item) {
  const size_t row_bytes = item.rows.layout->row_bytes();
  const bool lands = item.offloaded && item.offloaded->landing.blocks != nullptr;
  for (const Use& use : uses_) CHECK(!lands || use.lane != Lane::kKeep || Over(use));
  if (item.offloaded && item.offloaded->hot.slots > 0) {
    Begin(UseOf(Use::kAttends, item.offloaded->hot));
    if (item.offloaded->ahead) Mine(item.offloaded->ahead, sizeof(CopyProgress));
  }
  if (item.offloaded && item.offloaded->times) Mine(item.offloaded->times, sizeof(CopyTimes));
  for (uint32_t head = 0; head < args.kv_heads; ++head) {
    const uint32_t* selection = item.selection + head * args.selection_stride;
    Mine(selection, sizeof(uint32_t) * item.count);
    for (uint32_t i = 0; i < item.count; ++i) {
      Mine(item.rows.blocks + selection[i] / kBlockTokens, sizeof(uint32_t));
      Mine(item.SelectedRow(head, selection[i]), row_bytes);
      if (lands) Mine(item.offloaded->landing.Row(head, i), row_bytes);
    }
  }
}

void FakeDevice::Embed(const EmbedArgs& args) {
  const Awake awake(this);
  Matrix(args.table);
  Floats(args.out, args.ids.size(), args.table.cols);
  inner_->Embed(args);
}

void FakeDevice::RmsNorm(const RmsNormArgs& args) {
  const Awake awake(this);
  Floats(args.x, args.tokens, args.weight.cols);
  Floats(args.out, args.tokens, args.weight.cols);
  Matrix(args.weight);
  inner_->RmsNorm(args);
}

void FakeDevice::Linear(const LinearArgs& args) {
  const Awake awake(this);
  Floats(args.x, args.tokens, args.weight.cols);
  Floats(args.y, args.tokens, args.weight.rows);
  Matrix(args.weight);
  inner_->Linear(args);
}

void FakeDevice::SwiGlu(const SwiGluArgs& args) {
  const Awake awake(this);
  Floats(args.gate, args.tokens, args.width);
  Floats(args.up, args.tokens, args.width);
  inner_->SwiGlu(args);
}

void FakeDevice::Rope(const RopeArgs& args) {
  const Awake awake(this);
  Floats(args.x, args.positions.size(), size_t{args.heads} * args.head_dim);
  inner_->Rope(args);
}

void FakeDevice::AppendRows(const AppendRowsArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) {
    const RowLayout& layout = *item.rows.layout;
    for (const float* x : {args.k, args.v}) {
      Floats(x, item.span.first + item.span.tokens, size_t{layout.kv_heads} * layout.head_dim);
    }
    for (uint32_t head = 0; head < layout.kv_heads; ++head) {
      if (item.slots) Mine(item.slots + head * item.slot_stride, sizeof(uint32_t));
      for (uint32_t t = 0; t < item.span.tokens; ++t) Mine(item.Row(head, t), layout.row_bytes());
    }
  }
  inner_->AppendRows(args);
}

void FakeDevice::AppendLabels(const AppendLabelsArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) {
    Floats(args.k, item.span.first + item.span.tokens, size_t{args.kv_heads} * args.head_dim);
    Labels(item.labels, item.span.position + item.span.tokens);
    Channels(args.channels, args.kv_heads, item.labels);
  }
  inner_->AppendLabels(args);
}

void FakeDevice::ScoreLabels(const ScoreLabelsArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) {
    Floats(args.q, item.query + 1, size_t{args.kv_heads} * args.group * args.head_dim);
    Labels(item.labels, item.tokens);
    Channels(args.channels, args.kv_heads, item.labels);
    Floats(item.scores, args.kv_heads, args.score_stride);
  }
  inner_->ScoreLabels(args);
}

void FakeDevice::Select(const SelectArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) {
    Floats(item.scores, args.kv_heads, args.score_stride);
    const size_t entries = args.kv_heads * args.selection_stride;
    Mine(item.selection, sizeof(uint32_t) * entries);
    NotInUse(item.selection, sizeof(uint32_t) * entries);
  }
  inner_->Select(args);
}

void FakeDevice::ScoreSelect(const ScoreLabelsArgs& score, const SelectArgs& select) {
  ScoreLabels(score);
  Select(select);
}

void FakeDevice::Attend(const AttendArgs& args) {
  const Awake awake(this);
  const size_t width = size_t{args.kv_heads} * args.group * args.head_dim;
  for (const auto& item : args.items) {
    for (const float* x : {args.q, static_cast<const float*>(args.out)}) {
      Floats(x, item.span.first + item.span.tokens, width);
    }
    if (item.selection == nullptr) {
      Rows(item.rows, item.span.position + item.span.tokens);
      continue;
    }
    SelectedRows(args, item);
  }
  inner_->Attend(args);
}

void FakeDevice::Extrapolate(const ExtrapolateArgs& args) {
  const Awake awake(this);
  Floats(args.x, args.tokens, args.width);
  Floats(args.out, args.tokens, args.width);
  if (args.layer > 0) Floats(args.previous, args.tokens, args.width);
  for (const auto& item : args.items) Floats(item.drift, args.layer + 1, args.width);
  inner_->Extrapolate(args);
}

void FakeDevice::ExpandQuery(const ExpandQueryArgs& args) {
  const Awake awake(this);
  const size_t heads = size_t{args.kv_heads} * args.group;
  Floats(args.compact, args.tokens, heads * args.width);
  Floats(args.q, args.tokens, heads * args.head_dim);
  Mine(args.channels, sizeof(uint16_t) * args.kv_heads * args.width);
  inner_->ExpandQuery(args);
}

void FakeDevice::Cosine(const CosineArgs& args) {
  const Awake awake(this);
  Floats(args.a, args.tokens, args.width);
  Floats(args.b, args.tokens, args.width);
  Floats(args.out, args.tokens, 1);
  inner_->Cosine(args);
}

void FakeDevice::Resolve(const ResolveArgs& args) {
  const Awake awake(this);
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
    NotInUse(item.misses, sizeof(RowMove) * args.kv_heads * item.miss_stride);
    Use use = UseOf(Use::kGives, item.table);
    use.list = item.rows;
    use.list_bytes = sizeof(uint32_t) * entries;
    use.resolved = item.resolved;
    Begin(use);
  }
  inner_->Resolve(args);
}

void FakeDevice::Forget(const ForgetArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) Slots(item.table);
  inner_->Forget(args);
}

void FakeDevice::CopyRows(const CopyRowsArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) {
    Moves(item, args.kv_heads);
    if (lane_ != Lane::kKeep) continue;
    Use use{.list = item.moves, .list_bytes = sizeof(RowMove) * args.kv_heads * item.stride};
    Begin(use);
  }
  if (args.times) Mine(args.times, sizeof(CopyTimes));
  inner_->CopyRows(args);
}

void FakeDevice::CopyAhead(const CopyAheadArgs& args) {
  const Awake awake(this);
  CHECK(lane_ == Lane::kPrefetch);
  Mine(args.progress, sizeof(CopyProgress));
  // The link is attention's first.
  for (const Use& use : uses_) CHECK(use.kind != Use::kAttends || Over(use));
  for (const auto& item : args.items) {
    Moves(item.rows, args.kv_heads);
    Use use = UseOf(Use::kCopies, item.table);
    use.list = item.rows.moves;
    use.list_bytes = sizeof(RowMove) * args.kv_heads * item.rows.stride;
    Begin(use);
  }
  const uint32_t chance = options_.stops_copies ? random_() % 3 : 0;
  if (chance == 1) {
    ++late_copies_;
    late_.push_back({{args.items.begin(), args.items.end()}, args, clock()[size_t(lane_)]});
    return;
  }
  if (chance == 2) {
    ++stopped_copies_;
    args.progress->stop = 1;
  }
  inner_->CopyAhead(args);
}

void FakeDevice::ForgetRest(const ForgetRestArgs& args) {
  const Awake awake(this);
  Mine(args.progress, sizeof(CopyProgress));
  for (const auto& item : args.items) {
    Slots(item.table);
    Mine(item.moves, sizeof(RowMove) * args.kv_heads * item.stride);
    Mine(item.resolved, sizeof(Resolved) * args.kv_heads);
    Use use = UseOf(Use::kForgets, item.table);
    use.list = item.moves;
    use.list_bytes = sizeof(RowMove) * args.kv_heads * item.stride;
    Begin(use);
  }
  CHECK_NE(args.progress->stop, 0u);  // or it may still go on
  inner_->ForgetRest(args);
}

void FakeDevice::Overlap(const OverlapArgs& args) {
  const Awake awake(this);
  for (const auto& item : args.items) {
    Mine(item.a, sizeof(uint32_t) * args.kv_heads * item.a_stride);
    Mine(item.b, sizeof(uint32_t) * args.kv_heads * item.b_stride);
    Mine(item.common, sizeof(uint32_t) * args.kv_heads);
  }
  inner_->Overlap(args);
}

SampledToken FakeDevice::Sample(const SampleArgs& args) {
  CHECK(!in_step_);
  const Awake awake(this);
  Floats(args.logits, 1, args.vocab);
  return inner_->Sample(args);
}

void FakeDevice::Sample(std::span<const SampleArgs> args, SampledToken* tokens) {
  const Awake awake(this);
  for (size_t i = 0; i < args.size(); ++i) {
    Floats(args[i].logits, 1, args[i].vocab);
    SampledToken token = inner_->Sample(args[i]);
    if (in_step_) {
      samples_.emplace_back(tokens + i, std::move(token));
      tokens[i] = {.id = 0xC9C9C9C9};
    } else {
      tokens[i] = std::move(token);
    }
  }
}

void FakeDevice::Project(const ProjectArgs& args) {
  const Awake awake(this);
  Floats(args.x, args.tokens, args.norm.cols);
  Floats(args.normed, args.tokens, args.norm.cols);
  Matrix(args.norm);
  for (const ProjectArgs::Output& output : args.outputs) {
    Matrix(output.weight);
    Floats(output.y, args.tokens, output.weight.rows);
  }
  inner_->Project(args);
}

void FakeDevice::GateUp(const GateUpArgs& args) {
  const Awake awake(this);
  Floats(args.x, args.tokens, args.norm.cols);
  Floats(args.normed, args.tokens, args.norm.cols);
  for (const WeightView& weight : {args.norm, args.gate, args.up}) Matrix(weight);
  for (const float* y : {args.spare, args.out}) Floats(y, args.tokens, args.gate.rows);
  inner_->GateUp(args);
}

void FakeDevice::RotateAppend(const RotateAppendArgs& args) {
  {
    const Awake awake(this);
    const size_t tokens = args.positions.size();
    Floats(args.q, tokens, size_t{args.heads} * args.head_dim);
    for (const float* x : {static_cast<const float*>(args.k), args.v}) {
      Floats(x, tokens, size_t{args.kv_heads} * args.head_dim);
    }
  }
  // Composed of operations that are checked.
  Backend::RotateAppend(args);
}

}  // namespace sparsekv
