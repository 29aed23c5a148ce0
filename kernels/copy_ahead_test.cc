#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "kernels/hot_rows_cases.h"

namespace sparsekv::testing {
namespace {

// Sequences whose lists are resolved again and again, and what a prefetch has to bring then.
class Prefetch {
 public:
  Prefetch(Random& random, uint32_t head_dim) {
    for (uint32_t slots : {200u, 64u, 130u}) {
      sets_.push_back(std::make_unique<RowSet>(random, kHeads, slots, kTokens, head_dim));
      lists_.push_back(std::make_unique<Lists>(kHeads, slots));
    }
  }

  // The lists of another step: some of their rows are there. The progress begins anew.
  void Resolve(Random& random, Backend& backend) {
    ++step_;
    progress_[0] = {};
    std::vector<ResolveArgs::Item> items;
    copy_.clear();
    rest_.clear();
    before_.clear();
    for (size_t s = 0; s < sets_.size(); ++s) {
      RowSet& set = *sets_[s];
      Lists& lists = *lists_[s];
      const uint32_t count = random.Between(set.table.slots / 2, set.table.slots);
      for (uint32_t head = 0; head < kHeads; ++head) {
        const auto list = RandomList(random, count, kTokens, 100 * step_);
        std::copy(list.begin(), list.end(), lists.rows.begin() + head * lists.stride);
      }
      const ResolveArgs::Item item = {.table = set.table,
                                      .rows = lists.rows.data(),
                                      .count = count,
                                      .hit_stamp = 4 * step_ + 1,
                                      .miss_stamp = 4 * step_,
                                      .slots = lists.slots.data(),
                                      .misses = lists.misses.data(),
                                      .miss_stride = lists.stride,
                                      .map_misses = false,
                                      .resolved = lists.counts.data()};
      backend.Resolve({.kv_heads = kHeads, .stride = lists.stride, .items = {&item, 1}});
      copy_.push_back({{set.host.Table(0), set.table.rows, lists.misses.data(), lists.stride,
                        lists.counts.data()},
                       set.table});
      rest_.push_back({set.table, lists.misses.data(), lists.stride, lists.counts.data()});
      before_.push_back(set.device.pool());
    }
  }

  CopyAheadArgs Copy() {
    return {.kv_heads = kHeads, .items = copy_, .progress = progress_.data()};
  }
  ForgetRestArgs Rest() {
    return {.kv_heads = kHeads, .items = rest_, .progress = progress_.data()};
  }
  CopyProgress& progress() { return progress_[0]; }

  uint64_t rows() const {
    uint64_t total = 0;
    for (const auto& lists : lists_) {
      for (const Resolved& resolved : lists->counts) total += resolved.misses;
    }
    return total;
  }
  uint64_t brought() const {
    return std::min(rows(), uint64_t{progress_[0].slices} * kCopySliceRows);
  }

  // The rows of the slices that were begun are there, whole, and named by the map; the other slots
  // are as they were, and empty once the rest was forgotten.
  void Check(bool forgotten) {
    uint64_t at = 0;
    for (size_t s = 0; s < sets_.size(); ++s) {
      const SlotTable& table = sets_[s]->table;
      const RowTable host = sets_[s]->host.Table(0);
      for (uint32_t head = 0; head < kHeads; ++head) {
        for (uint32_t i = 0; i < lists_[s]->counts[head].misses; ++i) {
          const RowMove move = lists_[s]->misses[head * lists_[s]->stride + i];
          const bool there = at++ < brought();
          const std::byte* slot = table.rows.Row(head, move.slot);
          const std::byte* expected =
              there ? host.Row(head, move.token)
                    : before_[s].data() + (slot - sets_[s]->device.pool().data());
          ASSERT_EQ(std::memcmp(slot, expected, host.layout->row_bytes()), 0)
              << "row " << at << " of " << rows() << ", brought " << brought();
          const bool taken = there || !forgotten;
          ASSERT_EQ(table.SlotOf(head, move.token), there ? move.slot : kNotHot);
          ASSERT_EQ(table.Meta(head, move.slot).token, taken ? move.token : kNoToken);
          ASSERT_EQ(table.Meta(head, move.slot).last_use, taken ? 4 * step_ : 0);
        }
      }
      if (forgotten) CheckHits(s);
    }
  }

 private:
  // Rows that were not to be brought keep their slots.
  void CheckHits(size_t s) {
    const Lists& lists = *lists_[s];
    for (uint32_t head = 0; head < kHeads; ++head) {
      std::set<uint32_t> missing;
      for (uint32_t i = 0; i < lists.counts[head].misses; ++i) {
        missing.insert(lists.misses[head * lists.stride + i].token);
      }
      const uint32_t count = lists.counts[head].misses + lists.counts[head].hits;
      for (uint32_t i = 0; i < count; ++i) {
        const uint32_t token = lists.rows[head * lists.stride + i];
        if (missing.contains(token)) continue;
        ASSERT_EQ(sets_[s]->table.SlotOf(head, token), lists.slots[head * lists.stride + i]);
      }
    }
  }

  static constexpr uint32_t kHeads = 3, kTokens = 400;
  uint32_t step_ = 0;
  std::vector<std::unique_ptr<RowSet>> sets_;
  std::vector<std::unique_ptr<Lists>> lists_;
  std::vector<CopyAheadArgs::Item> copy_;
  std::vector<ForgetRestArgs::Item> rest_;
  std::vector<Shared<std::byte>> before_;  // the devices' pools
  Shared<CopyProgress> progress_ = Shared<CopyProgress>(1);
};

class CopyAheadTest : public BackendTest {};
SPARSEKV_ON_ONE_INSTRUCTION_SET(CopyAheadTest);

TEST_P(CopyAheadTest, BringsEveryRow) {
  Random random(71);
  for (uint32_t head_dim : {8u, 64u}) {
    Prefetch prefetch(random, head_dim);
    for (int round = 0; round < 5; ++round) {
      prefetch.Resolve(random, backend());
      backend().CopyAhead(prefetch.Copy());
      EXPECT_EQ(prefetch.brought(), prefetch.rows());
      prefetch.Check(/*forgotten=*/false);
      prefetch.progress().stop = 1;  // too late
      backend().ForgetRest(prefetch.Rest());
      prefetch.Check(/*forgotten=*/true);
    }
  }
}

TEST_P(CopyAheadTest, NothingIsBroughtAfterAStop) {
  Random random(72);
  Prefetch prefetch(random, 16);
  for (int round = 0; round < 5; ++round) {
    prefetch.Resolve(random, backend());
    prefetch.progress().stop = 1;
    backend().CopyAhead(prefetch.Copy());
    EXPECT_EQ(prefetch.brought(), 0u);
    prefetch.Check(/*forgotten=*/false);
    backend().ForgetRest(prefetch.Rest());
    prefetch.Check(/*forgotten=*/true);
  }
}

// The word that says stop lies where the 41st of 100 rows is brought to: its slice is finished, and
// none begins after it.
TEST_P(CopyAheadTest, ASliceThatHasBegunIsFinished) {
  if (!backend().host_memory()) return;  // a device copies several slices at once
  Random random(75);
  constexpr uint32_t kRows = 100, kStopRow = 40, kStopSlot = 150;
  Rows host(random, 1, 8, DType::kF32, {kRows});
  host.Fill(random, 0, kRows);
  const RowLayout layout = {
      .layers = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::kF32, .blocks = 3};
  Shared<std::byte> pool(layout.pool_bytes() + 64);
  // Rows begin 4 bytes late, so that the last word of a row is the first of an aligned progress.
  const Shared<uint32_t> blocks = {0, 1, 2};
  const RowTable to = {pool.data() + 4, blocks.data(), &layout};
  auto* const progress =
      reinterpret_cast<CopyProgress*>(to.Row(0, kStopSlot) + layout.row_bytes() - 4);
  Shared<RowMove> moves(kRows);
  for (uint32_t i = 0; i < kRows; ++i) moves[i] = {i, i == kStopRow ? kStopSlot : i};
  const Shared<Resolved> resolved = {{.misses = kRows}};
  RowSet map(random, 1, kRows, kRows);
  const CopyAheadArgs::Item item = {{host.Table(0), to, moves.data(), kRows, resolved.data()},
                                    map.table};
  backend().CopyAhead({.kv_heads = 1, .items = {&item, 1}, .progress = progress});
  constexpr uint32_t kSlices = kStopRow / kCopySliceRows + 1;
  EXPECT_EQ(progress->slices, kSlices);
  for (uint32_t i = 0; i < kRows; ++i) {
    if (i == kStopRow) continue;  // its slot is the progress now
    const int difference = std::memcmp(to.Row(0, i), host.Table(0).Row(0, i), layout.row_bytes());
    EXPECT_EQ(difference == 0, i < kSlices * kCopySliceRows) << "row " << i;
  }
}

TEST_P(CopyAheadTest, AnotherThreadStopsIt) {
  if (!backend().host_memory()) return;  // a device's instances belong to one thread
  Random random(74);
  Prefetch prefetch(random, 128);
  for (int round = 0; round < 5; ++round) {
    prefetch.Resolve(random, backend());
    std::atomic<bool> watching = false, over = false;
    std::thread stopper([&] {
      const std::atomic_ref<uint32_t> slices(prefetch.progress().slices);
      watching = true;
      while (slices.load() < 3 && !over.load()) continue;
      std::atomic_ref<uint32_t>(prefetch.progress().stop).store(1);
    });
    while (!watching.load()) std::this_thread::yield();
    backend().CopyAhead(prefetch.Copy());
    over = true;
    stopper.join();
    EXPECT_GE(prefetch.brought(), std::min(prefetch.rows(), uint64_t{3} * kCopySliceRows));
    prefetch.Check(/*forgotten=*/false);
    backend().ForgetRest(prefetch.Rest());
    prefetch.Check(/*forgotten=*/true);
  }
}

}  // namespace
}  // namespace sparsekv::testing
