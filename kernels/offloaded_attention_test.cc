#include <gtest/gtest.h>

#include <cmath>

#include "kernels/copy_ahead.h"
#include "kernels/hot_rows_cases.h"

namespace sparsekv::testing {
namespace {

struct Shape {
  uint32_t kv_heads = 1;
  uint32_t group = 1;
  uint32_t head_dim = 8;
  DType dtype = DType::kBF16;
  std::vector<uint32_t> tokens, slots;  // of each sequence
};

// Sequences whose selected rows are in slots or in the segment, step by step, as an offloaded layer
// has them: attended, then given slots. Every row that is listed and has a slot is NaN in the
// segment while it is attended, so that it counts where rows are read.
class Offloaded {
 public:
  Offloaded(Random& random, const Shape& shape)
      : shape_(shape),
        stride_(*std::ranges::max_element(shape.slots)),
        q_(random.Normals(shape.tokens.size() * width(), 2.0f)) {
    for (size_t s = 0; s < shape.tokens.size(); ++s) {
      sets_.push_back(std::make_unique<RowSet>(random, shape.kv_heads, shape.slots[s],
                                               shape.tokens[s], shape.head_dim, shape.dtype));
      landing_.push_back(
          std::make_unique<Rows>(random, shape.kv_heads, shape.head_dim, shape.dtype,
                                 std::vector<uint32_t>{(shape.slots[s] + kBlockTokens - 1) /
                                                       kBlockTokens * kBlockTokens}));
      lists_.push_back(std::make_unique<Lists>(shape.kv_heads, stride_));
      predicted_.push_back(std::make_unique<Lists>(shape.kv_heads, stride_));
      counts_.push_back(0);
    }
  }

  size_t width() const { return size_t{shape_.kv_heads} * shape_.group * shape_.head_dim; }

  void List(Random& random, uint32_t step, bool same_count) {
    const uint32_t most = *std::ranges::min_element(shape_.slots);
    const uint32_t same = random.Between(1, most);
    for (size_t s = 0; s < sets_.size(); ++s) {
      counts_[s] = same_count ? same : random.Between(1, shape_.slots[s]);
      for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
        const auto list = RandomList(random, counts_[s], shape_.tokens[s], step);
        std::ranges::copy(list, lists_[s]->rows.begin() + head * stride_);
      }
    }
  }

  struct How {
    bool hot = true;  // else no row has a slot
    bool lands = true, kept = true;
    size_t plain = SIZE_MAX;  // this sequence's rows are all where the segment has them
    CopyProgress* ahead = nullptr;
  };
  // Attends on the backend, whose bits must be those of the same rows in the segment.
  void Check(Backend& on, StepKind kind, const How& how) {
    Output<float> expected(q_.size()), got(q_.size());
    InStep(on, kind, [&] { on.Attend(Args({}, expected, nullptr)); });
    HideHits(how);
    Fill();
    times_[0] = {};
    InStep(on, kind, [&] { on.Attend(Args(how, got, times_.data())); });
    ShowHits();
    ExpectSameBits(got.data(), expected.data(), got.size(), "attention");
    EXPECT_TRUE(got.MarginsUntouched());
    const uint64_t missed_before = seen_misses;
    for (size_t s = 0; s < sets_.size(); ++s) {
      if (s != how.plain) CheckLanding(s, how);
    }
    const bool noted = !on.host_memory() && seen_misses > missed_before;
    EXPECT_EQ(times_[0].begin_ns > 0, noted);
    EXPECT_EQ(times_[0].begin_ns < times_[0].end_ns, noted);
  }

  // The same while a prefetch brings some of the rows and others, until attention says stop: on a
  // device whenever it happens to, on a host before.
  void CheckWhileRowsCome(Random& random, Backend& on, StepKind kind, uint32_t step) {
    Output<float> expected(q_.size()), got(q_.size());
    InStep(on, kind, [&] { on.Attend(Args({}, expected, nullptr)); });
    Predict(random, on, step);
    HideHits({});
    Fill();
    progress_[0] = {};
    InStep(on, kind, [&] {
      on.UseLane(Lane::kPrefetch);
      on.CopyAhead({.kv_heads = shape_.kv_heads, .items = copy_, .progress = progress_.data()});
      const uint32_t copied = on.Mark();
      on.UseLane(Lane::kCompute);
      on.Attend(Args({.ahead = progress_.data()}, got, times_.data()));
      on.WaitFor(copied);
      on.ForgetRest({.kv_heads = shape_.kv_heads, .items = rest_, .progress = progress_.data()});
    });
    ShowHits();
    ExpectSameBits(got.data(), expected.data(), got.size(), "attention");
    EXPECT_EQ(progress_[0].stop, 1u);
    EXPECT_TRUE(got.MarginsUntouched());
    for (size_t s = 0; s < sets_.size(); ++s) CheckLanding(s, {});
  }

  // Gives the rows slots, and brings them there from where they landed.
  void Keep(Backend& on) {
    ++use_;
    for (size_t s = 0; s < sets_.size(); ++s) {
      Lists& lists = *lists_[s];
      const ResolveArgs::Item resolve = {.table = sets_[s]->table,
                                         .rows = lists.rows.data(),
                                         .count = counts_[s],
                                         .hit_stamp = 4 * use_ + 2,
                                         .miss_stamp = 4 * use_ + 2,
                                         .slots = lists.slots.data(),
                                         .misses = lists.misses.data(),
                                         .miss_stride = stride_,
                                         .by_place = true,
                                         .resolved = lists.counts.data()};
      on.Resolve({.kv_heads = shape_.kv_heads, .stride = stride_, .items = {&resolve, 1}});
      const CopyRowsArgs::Item copy = {.from = landing_[s]->Table(0),
                                       .to = sets_[s]->table.rows,
                                       .moves = lists.misses.data(),
                                       .stride = stride_,
                                       .resolved = lists.counts.data()};
      on.CopyRows({.kv_heads = shape_.kv_heads, .items = {&copy, 1}});
      for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
        for (uint32_t i = 0; i < counts_[s]; ++i) {
          const uint32_t slot = lists.slots[head * stride_ + i];
          ASSERT_EQ(std::memcmp(sets_[s]->table.rows.Row(head, slot), HostRow(s, head, i),
                                sets_[s]->host.layout().row_bytes()),
                    0);
        }
      }
    }
  }

  uint64_t seen_hits = 0, seen_misses = 0;

 private:
  // Gives slots to rows of which some are listed; copy_ and rest_ are what a prefetch has to do.
  void Predict(Random& random, Backend& on, uint32_t step) {
    ++use_;
    copy_.clear();
    rest_.clear();
    for (size_t s = 0; s < sets_.size(); ++s) {
      Lists& lists = *predicted_[s];
      const uint32_t count = random.Between(1, shape_.slots[s]);
      for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
        const auto list = RandomList(random, count, shape_.tokens[s], step);
        std::ranges::copy(list, lists.rows.begin() + head * stride_);
      }
      const ResolveArgs::Item resolve = {.table = sets_[s]->table,
                                         .rows = lists.rows.data(),
                                         .count = count,
                                         .hit_stamp = 4 * use_ + 1,
                                         .miss_stamp = 4 * use_,
                                         .slots = lists.slots.data(),
                                         .misses = lists.misses.data(),
                                         .miss_stride = stride_,
                                         .map_misses = false,
                                         .resolved = lists.counts.data()};
      on.Resolve({.kv_heads = shape_.kv_heads, .stride = stride_, .items = {&resolve, 1}});
      const SlotTable& table = sets_[s]->table;
      copy_.push_back({{.from = sets_[s]->host.Table(0),
                        .to = table.rows,
                        .moves = lists.misses.data(),
                        .stride = stride_,
                        .resolved = lists.counts.data()},
                       table});
      rest_.push_back({table, lists.misses.data(), stride_, lists.counts.data()});
    }
  }

  AttendArgs Args(const How& how, Output<float>& out, CopyTimes* times) {
    items_.clear();
    for (uint32_t s = 0; s < sets_.size(); ++s) {
      AttendArgs::Item item = {.span = {.first = s, .tokens = 1, .position = shape_.tokens[s] - 1},
                               .rows = sets_[s]->host.Table(0),
                               .selection = lists_[s]->rows.data(),
                               .count = counts_[s]};
      if (times && s != how.plain) {
        item.offloaded = OffloadedRows{.times = times};
        if (how.hot) item.offloaded->hot = sets_[s]->table;
        item.offloaded->ahead = how.ahead;
        item.offloaded->kept = how.kept;
        if (how.lands) item.offloaded->landing = landing_[s]->Table(0);
      }
      items_.push_back(item);
    }
    return {.q = q_.data(),
            .out = out.data(),
            .kv_heads = shape_.kv_heads,
            .group = shape_.group,
            .head_dim = shape_.head_dim,
            .scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
            .selection_stride = stride_,
            .items = items_};
  }

  bool Hot(size_t s, uint32_t head, uint32_t i) const {
    return sets_[s]->table.SlotOf(head, lists_[s]->rows[head * stride_ + i]) != kNotHot;
  }
  std::byte* HostRow(size_t s, uint32_t head, uint32_t i) {
    return sets_[s]->host.Table(0).Row(head, lists_[s]->rows[head * stride_ + i]);
  }

  void HideHits(const How& how) {
    for (size_t s = 0; s < sets_.size(); ++s) {
      shown_.push_back(sets_[s]->host.pool());
      for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
        for (uint32_t i = 0; i < counts_[s] && how.hot && s != how.plain; ++i) {
          if (!Hot(s, head, i)) continue;
          std::memset(HostRow(s, head, i), 0xFF, sets_[s]->host.layout().row_bytes());
        }
      }
    }
  }
  void ShowHits() {
    for (size_t s = 0; s < sets_.size(); ++s) sets_[s]->host.pool() = shown_[s];
    shown_.clear();
  }
  void Fill() {
    for (auto& landing : landing_) std::ranges::fill(landing->pool(), std::byte{0xFF});
  }

  void CheckLanding(size_t s, const How& how) {
    const size_t bytes = sets_[s]->host.layout().row_bytes();
    for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
      for (uint32_t i = 0; i < counts_[s]; ++i) {
        const bool missed = !how.hot || !Hot(s, head, i);
        ++(missed ? seen_misses : seen_hits);
        if (!missed || !how.lands || !how.kept) continue;
        const std::byte* landed = landing_[s]->Table(0).Row(head, i);
        ASSERT_EQ(std::memcmp(landed, HostRow(s, head, i), bytes), 0)
            << "sequence " << s << ", KV head " << head << ", entry " << i;
      }
    }
  }

  const Shape shape_;
  uint32_t use_ = 0;  // of the slots, so far
  const size_t stride_;
  const Shared<float> q_;
  std::vector<std::unique_ptr<RowSet>> sets_;
  std::vector<std::unique_ptr<Rows>> landing_;
  std::vector<std::unique_ptr<Lists>> lists_, predicted_;
  std::vector<uint32_t> counts_;
  std::vector<AttendArgs::Item> items_;
  std::vector<Shared<std::byte>> shown_;
  Shared<CopyTimes> times_ = Shared<CopyTimes>(1);
  std::vector<CopyAheadArgs::Item> copy_;
  std::vector<ForgetRestArgs::Item> rest_;
  Shared<CopyProgress> progress_ = Shared<CopyProgress>(1);
};

class OffloadedAttentionTest : public BackendTest {
 protected:
  void CheckSteps(Random& random, const Shape& shape, uint32_t steps) {
    SCOPED_TRACE(::testing::Message()
                 << shape.tokens.size() << " sequences, the first of " << shape.tokens[0]
                 << " tokens, " << shape.kv_heads << " x " << shape.group << " heads of "
                 << shape.head_dim << " " << Name(shape.dtype));
    Offloaded offloaded(random, shape);
    for (uint32_t step = 1; step <= steps && !HasFatalFailure(); ++step) {
      offloaded.List(random, step, /*same_count=*/step % 2 == 0);
      for (StepKind kind : Kinds()) {
        offloaded.Check(backend(), kind, {.hot = false});
        offloaded.Check(backend(), kind, {.lands = false});
        offloaded.Check(backend(), kind, {.kept = false});
        offloaded.Check(other(), kind, {.plain = shape.tokens.size() - 1});
        offloaded.Check(backend(), kind, {});
        offloaded.CheckWhileRowsCome(random, backend(), kind, step);
      }
      offloaded.Keep(backend());
    }
    EXPECT_GT(offloaded.seen_misses, 0u);
    if (steps > 2) {
      EXPECT_GT(offloaded.seen_hits, 0u);
    }
  }
};
SPARSEKV_ON_EVERY_BACKEND(OffloadedAttentionTest);

TEST_P(OffloadedAttentionTest, AnyShape) {
  Random random(71);
  for (uint32_t round = 0; round < (slow() ? 3 : 8); ++round) {
    Shape shape{.kv_heads = random.Between(1, 3),
                .group = random.Pick({1u, 2u, 4u, 8u, 11u}),
                .head_dim = random.Pick({64u, 128u, 256u, 96u, 8 * random.Between(1, 30)}),
                .dtype = random.Pick({DType::kBF16, DType::kBF16, DType::kF16, DType::kF32})};
    for (uint32_t s = random.Between(1, 4); s > 0; --s) {
      shape.slots.push_back(random.Between(1, 300));
      shape.tokens.push_back(shape.slots.back() + random.Between(0, 900));
    }
    CheckSteps(random, shape, 4);
  }
}

// Lists of several splits.
TEST_P(OffloadedAttentionTest, LongLists) {
  if (slow()) GTEST_SKIP() << "so many sums in double take too long";
  Random random(72);
  CheckSteps(random, {2, 4, 128, DType::kBF16, {6000}, {3000}}, 3);
}

}  // namespace
}  // namespace sparsekv::testing
