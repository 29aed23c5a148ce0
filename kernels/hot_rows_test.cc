#include <gtest/gtest.h>

#include <map>
#include <set>

#include "kernels/test_cases.h"

namespace sparsekv::testing {
namespace {

// A cache that is as slow and obvious as can be: every slot's token and time of last use, in order.
class ObviousCache {
 public:
  explicit ObviousCache(uint32_t slots) {
    for (uint32_t slot = 0; slot < slots; ++slot) by_use_.insert({0, slot});
  }

  struct Outcome {
    std::vector<uint32_t> slots;
    std::vector<std::pair<uint32_t, uint32_t>> misses;  // token, slot
    uint32_t hits = 0, useful = 0;
  };

  Outcome Resolve(const std::vector<uint32_t>& tokens, uint32_t current, uint32_t hit,
                  uint32_t miss, uint32_t useful) {
    Outcome outcome;
    for (uint32_t token : tokens) {
      if (!slot_of_.contains(token)) continue;
      ++outcome.hits;
      outcome.useful += use_of_[slot_of_[token]] == useful;
      Touch(slot_of_[token], hit);
    }
    for (uint32_t token : tokens) {
      if (!slot_of_.contains(token)) {
        const auto [use, slot] = *by_use_.begin();
        EXPECT_LT(use, std::min(hit, miss));
        Drop(slot);
        slot_of_[token] = slot;
        token_of_[slot] = token;
        Touch(slot, miss);
        if (token == current) {
          ++outcome.hits;
        } else {
          outcome.misses.emplace_back(token, slot);
        }
      }
      outcome.slots.push_back(slot_of_[token]);
    }
    return outcome;
  }

  void Forget(uint32_t token) {
    const uint32_t slot = slot_of_.at(token);
    Drop(slot);
    Touch(slot, 0);
  }
  void Clear() {
    while (!slot_of_.empty()) Forget(slot_of_.begin()->first);
    for (auto& [slot, use] : std::map(use_of_)) Touch(slot, 0);
  }

 private:
  void Touch(uint32_t slot, uint32_t use) {
    by_use_.erase({use_of_[slot], slot});
    use_of_[slot] = use;
    by_use_.insert({use, slot});
  }
  void Drop(uint32_t slot) {
    if (!token_of_.contains(slot)) return;
    slot_of_.erase(token_of_[slot]);
    token_of_.erase(slot);
  }

  std::set<std::pair<uint32_t, uint32_t>> by_use_;
  std::map<uint32_t, uint32_t> use_of_, slot_of_, token_of_;
};

// One row set on its own little device, and the host rows that it caches.
struct RowSet {
  RowSet(Random& random, uint32_t heads, uint32_t slot_count, uint32_t tokens)
      : host(random, heads, 8, DType::kF32, {tokens}),
        device(random, heads, 8, DType::kF32, {slot_count}),
        map_layout{.sets = 3, .kv_heads = heads} {
    host.Fill(random, 0, tokens);
    meta.resize(size_t{device.layout().blocks} * heads * kBlockTokens);
    const uint32_t pages = (tokens + kBlockTokens - 1) / kBlockTokens;
    map.assign(pages * map_layout.page_bytes(), std::byte{0xFF});
    for (uint32_t i = 0; i < pages; ++i) {
      map_pages.push_back(map.data() + i * map_layout.page_bytes());
    }
    table = {.rows = device.Table(0),
             .slots = slot_count,
             .meta = meta.data(),
             .map_pages = map_pages.data(),
             .map_layout = &map_layout,
             .set = 1};
  }

  Rows host, device;
  MapLayout map_layout;
  std::vector<SlotMeta> meta;
  std::vector<std::byte> map;
  std::vector<std::byte*> map_pages;
  SlotTable table;
};

// The parameter: threads of the cpu backend, 0 = the reference.
class HotRowsTest : public ::testing::TestWithParam<unsigned> {
 protected:
  std::unique_ptr<Backend> backend_ =
      GetParam() ? MakeCpuBackend(GetParam()) : MakeReferenceBackend();
};

// Mostly rows of a slowly moving window and some from anywhere, ascending, the newest always.
std::vector<uint32_t> RandomList(Random& random, uint32_t count, uint32_t tokens, uint32_t step) {
  std::set<uint32_t> list = {tokens - 1};
  while (list.size() < count) {
    const uint32_t near = (step / 4 + random.Between(0, count * 3 / 2)) % tokens;
    list.insert(random.Between(0, 3) ? near : random.Between(0, tokens - 1));
  }
  return {list.begin(), list.end()};
}

struct Lists {
  Lists(uint32_t heads, size_t most)
      : stride(most),
        rows(heads * most),
        slots(heads * most),
        misses(heads * most),
        counts(heads) {}

  size_t stride;
  std::vector<uint32_t> rows, slots;
  std::vector<RowMove> misses;
  std::vector<Resolved> counts;
};

// 10,000 steps of prediction, given up at a random place, and truth, against the obvious cache.
TEST_P(HotRowsTest, EqualsAnObviousCacheOver10000Steps) {
  constexpr uint32_t kHeads = 2, kSlots = 96, kTokens = 400;
  Random random(7);
  RowSet set(random, kHeads, kSlots, kTokens);
  std::vector<ObviousCache> model(kHeads, ObviousCache(kSlots));
  Lists lists(kHeads, kSlots + 3);

  auto resolve = [&](uint32_t step, bool truth, bool clear) {
    const uint32_t count = random.Between(1, kSlots * 2 / 3);
    for (uint32_t head = 0; head < kHeads; ++head) {
      const auto list = RandomList(random, count, kTokens, step);
      std::copy(list.begin(), list.end(), lists.rows.begin() + head * lists.stride);
    }
    const uint32_t hit = 4 * step + (truth ? 2 : 1), miss = 4 * step + (truth ? 2 : 0);
    const ResolveArgs::Item item = {.table = set.table,
                                    .rows = lists.rows.data(),
                                    .count = count,
                                    .current = truth ? kTokens - 1 : kNoToken,
                                    .clear = clear,
                                    .hit_stamp = hit,
                                    .miss_stamp = miss,
                                    .useful_stamp = truth ? 4 * step : kNoToken,
                                    .slots = lists.slots.data(),
                                    .misses = lists.misses.data(),
                                    .miss_stride = lists.stride,
                                    .resolved = lists.counts.data()};
    backend_->Resolve({.kv_heads = kHeads, .stride = lists.stride, .items = {&item, 1}});
    for (uint32_t head = 0; head < kHeads; ++head) {
      if (clear) model[head].Clear();
      const uint32_t* rows = lists.rows.data() + head * lists.stride;
      const auto expected = model[head].Resolve({rows, rows + count}, item.current, hit, miss,
                                                truth ? 4 * step : kNoToken);
      ASSERT_EQ(lists.counts[head].hits, expected.hits);
      ASSERT_EQ(lists.counts[head].useful, expected.useful);
      ASSERT_EQ(lists.counts[head].misses, expected.misses.size());
      for (uint32_t i = 0; i < count; ++i) {
        ASSERT_EQ(lists.slots[head * lists.stride + i], expected.slots[i]) << "step " << step;
      }
      for (size_t i = 0; i < expected.misses.size(); ++i) {
        ASSERT_EQ(lists.misses[head * lists.stride + i].token, expected.misses[i].first);
        ASSERT_EQ(lists.misses[head * lists.stride + i].slot, expected.misses[i].second);
      }
    }
  };

  for (uint32_t step = 1; step <= 10000 && !HasFatalFailure(); ++step) {
    const bool clear = random.Between(0, 99) == 0, predict = random.Between(0, 3) != 0;
    if (predict) {
      resolve(step, /*truth=*/false, clear);
      for (uint32_t head = 0; head < kHeads; ++head) {
        const uint32_t misses = lists.counts[head].misses, done = random.Between(0, misses);
        const std::span moves(lists.misses.data() + head * lists.stride, misses);
        const ForgetArgs::Item item = {set.table, head, moves.subspan(done)};
        backend_->Forget({.items = {&item, 1}});
        for (const RowMove& move : item.moves) model[head].Forget(move.token);
      }
    }
    resolve(step, /*truth=*/true, clear && !predict);
  }
}

// Whatever was hot, what is attended through slots is what lies on the host: rows are brought
// whole, to the right places, for several sequences at once.
TEST_P(HotRowsTest, SlotsHoldTheRowsOfTheHost) {
  constexpr uint32_t kHeads = 3, kSteps = 60;
  Random random(11);
  std::vector<std::unique_ptr<RowSet>> sets;
  std::vector<std::unique_ptr<Lists>> lists;
  for (uint32_t slots : {70u, 130u, 64u}) {
    sets.push_back(std::make_unique<RowSet>(random, kHeads, slots, 300));
    lists.push_back(std::make_unique<Lists>(kHeads, 130));
  }
  for (uint32_t step = 1; step <= kSteps; ++step) {
    std::vector<ResolveArgs::Item> resolve;
    std::vector<CopyRowsArgs::Item> copy;
    for (size_t s = 0; s < sets.size(); ++s) {
      const uint32_t count = random.Between(1, sets[s]->table.slots);
      for (uint32_t head = 0; head < kHeads; ++head) {
        const auto list = RandomList(random, count, 300, step);
        std::copy(list.begin(), list.end(), lists[s]->rows.begin() + head * lists[s]->stride);
      }
      resolve.push_back({.table = sets[s]->table,
                         .rows = lists[s]->rows.data(),
                         .count = count,
                         .hit_stamp = 4 * step + 2,
                         .miss_stamp = 4 * step + 2,
                         .useful_stamp = 4 * step,
                         .slots = lists[s]->slots.data(),
                         .misses = lists[s]->misses.data(),
                         .miss_stride = 130,
                         .resolved = lists[s]->counts.data()});
      copy.push_back({.from = sets[s]->host.Table(0),
                      .to = sets[s]->table.rows,
                      .moves = lists[s]->misses.data(),
                      .stride = 130,
                      .resolved = lists[s]->counts.data()});
    }
    backend_->Resolve({.kv_heads = kHeads, .stride = 130, .items = resolve});
    backend_->CopyRows({.kv_heads = kHeads, .items = copy});
    for (size_t s = 0; s < sets.size(); ++s) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        for (uint32_t i = 0; i < resolve[s].count; ++i) {
          const uint32_t token = lists[s]->rows[head * 130 + i];
          const uint32_t slot = lists[s]->slots[head * 130 + i];
          ASSERT_EQ(
              std::memcmp(sets[s]->host.Table(0).Row(head, token),
                          sets[s]->table.rows.Row(head, slot), sets[s]->host.layout().row_bytes()),
              0);
        }
      }
    }
  }
}

TEST_P(HotRowsTest, ExpandedQueryHasTheChannelsAndZerosElsewhere) {
  Random random(3);
  const uint32_t kv_heads = 2, group = 3, dim = 16, width = 4, tokens = 5;
  const auto compact = random.Normals(size_t{tokens} * kv_heads * group * width);
  const std::vector<uint16_t> channels = {3, 11, 0, 8, 7, 15, 15, 7};
  Output<float> q(size_t{tokens} * kv_heads * group * dim);
  std::vector<float> values = compact;
  for (size_t i = 0; i < values.size() / width; ++i) {  // head 1 names its channels twice
    if (i % (kv_heads * group) >= group) {
      values[i * width + 3] = values[i * width];
      values[i * width + 2] = values[i * width + 1];
    }
  }
  backend_->ExpandQuery({.compact = values.data(),
                         .channels = channels.data(),
                         .tokens = tokens,
                         .kv_heads = kv_heads,
                         .group = group,
                         .head_dim = dim,
                         .width = width,
                         .q = q.data()});
  EXPECT_TRUE(q.MarginsUntouched());
  for (uint32_t i = 0; i < tokens * kv_heads * group; ++i) {
    std::vector<float> expected(dim, 0.0f);
    const uint32_t kv_head = i % (kv_heads * group) / group;
    for (uint32_t j = 0; j < width; ++j) {
      expected[channels[kv_head * width + j]] = values[i * width + j];
    }
    ExpectSameBits(q.data() + i * dim, expected.data(), dim, "q");
  }
}

TEST_P(HotRowsTest, ExtrapolationFollowsTheDrift) {
  const std::vector<float> x = {1, 2, 10, 20}, previous = {0, 1, 7, 7};
  std::vector<float> drift = {0, 0, 0.5, 1, 100, 200};  // [3 layers, 2]
  Output<float> out(4);
  const ExtrapolateArgs::Item item = {.token = 1, .drift = drift.data(), .rate = 0.5f};
  backend_->Extrapolate({.x = x.data(),
                         .previous = previous.data(),
                         .tokens = 2,
                         .width = 2,
                         .layer = 1,
                         .items = {&item, 1},
                         .out = out.data()});
  EXPECT_TRUE(out.MarginsUntouched());
  EXPECT_EQ(drift, (std::vector<float>{0, 0, 1.75, 7, 100, 200}));
  ExpectSameBits(out.data(), std::vector<float>{1, 2, 110, 220}.data(), 4, "out");
  backend_->Extrapolate(
      {.x = x.data(), .tokens = 2, .width = 2, .layer = 0, .items = {&item, 1}, .out = out.data()});
  EXPECT_EQ(drift, (std::vector<float>{0, 0, 1.75, 7, 100, 200}));
  ExpectSameBits(out.data(), std::vector<float>{1, 2, 11.75, 27}.data(), 4, "layer 0");
}

TEST_P(HotRowsTest, CosineOfKnownVectors) {
  const std::vector<float> a = {1, 0, 2, 2, 0, 0}, b = {1, 1, -4, -4, 1, 1};
  Output<float> out(3);
  backend_->Cosine({.a = a.data(), .b = b.data(), .tokens = 3, .width = 2, .out = out.data()});
  EXPECT_TRUE(out.MarginsUntouched());
  EXPECT_FLOAT_EQ(out[0], std::sqrt(0.5f));
  EXPECT_FLOAT_EQ(out[1], -1.0f);
  EXPECT_EQ(out[2], 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Backends, HotRowsTest, ::testing::Values(0u, 1u, 3u),
                         [](const auto& threads) {
                           return threads.param ? "cpu" + std::to_string(threads.param)
                                                : std::string("reference");
                         });

}  // namespace
}  // namespace sparsekv::testing
