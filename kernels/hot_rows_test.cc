#include <gtest/gtest.h>

#include <map>
#include <set>

#include "kernels/hot_rows_cases.h"

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

class HotRowsTest : public BackendTest {
 protected:
  // One sequence's slots, and the obvious cache that must always agree with them.
  struct Subject {
    Subject(Random& random, uint32_t heads, uint32_t slots, uint32_t tokens)
        : set(random, heads, slots, tokens),
          model(heads, ObviousCache(slots)),
          lists(heads, slots + 3),
          kv_heads(heads),
          last_token(tokens - 1) {}

    RowSet set;
    std::vector<ObviousCache> model;
    Lists lists;
    uint32_t kv_heads, last_token;
    Shared<CopyProgress> progress = Shared<CopyProgress>(1);
  };

  void Resolve(Random& random, Subject& subject, uint32_t step, bool truth, bool clear) {
    Lists& lists = subject.lists;
    const uint32_t count = random.Between(1, subject.set.table.slots * 2 / 3);
    for (uint32_t head = 0; head < subject.kv_heads; ++head) {
      const auto list = RandomList(random, count, subject.last_token + 1, step);
      std::copy(list.begin(), list.end(), lists.rows.begin() + head * lists.stride);
    }
    const uint32_t hit = 4 * step + (truth ? 2 : 1), miss = 4 * step + (truth ? 2 : 0);
    const bool by_place = truth && random.Between(0, 1) == 1;
    const ResolveArgs::Item item = {.table = subject.set.table,
                                    .rows = lists.rows.data(),
                                    .count = count,
                                    .current = truth ? subject.last_token : kNoToken,
                                    .clear = clear,
                                    .hit_stamp = hit,
                                    .miss_stamp = miss,
                                    .useful_stamp = truth ? 4 * step : kNoToken,
                                    .slots = lists.slots.data(),
                                    .misses = lists.misses.data(),
                                    .miss_stride = lists.stride,
                                    .by_place = by_place,
                                    .resolved = lists.counts.data()};
    backend().Resolve({.kv_heads = subject.kv_heads, .stride = lists.stride, .items = {&item, 1}});
    for (uint32_t head = 0; head < subject.kv_heads; ++head) {
      if (clear) subject.model[head].Clear();
      const uint32_t* rows = lists.rows.data() + head * lists.stride;
      const auto expected = subject.model[head].Resolve({rows, rows + count}, item.current, hit,
                                                        miss, truth ? 4 * step : kNoToken);
      ASSERT_EQ(lists.counts[head].hits, expected.hits);
      ASSERT_EQ(lists.counts[head].useful, expected.useful);
      ASSERT_EQ(lists.counts[head].misses, expected.misses.size());
      for (uint32_t i = 0; i < count; ++i) {
        ASSERT_EQ(lists.slots[head * lists.stride + i], expected.slots[i]) << "step " << step;
      }
      for (size_t i = 0; i < expected.misses.size(); ++i) {
        const uint32_t named = lists.misses[head * lists.stride + i].token;
        ASSERT_EQ(by_place ? rows[named] : named, expected.misses[i].first);
        ASSERT_EQ(lists.misses[head * lists.stride + i].slot, expected.misses[i].second);
      }
    }
  }

  // A host counted which rows of each head were brought.
  void Forget(Random& random, Subject& subject) {
    for (uint32_t head = 0; head < subject.kv_heads; ++head) {
      const uint32_t misses = subject.lists.counts[head].misses;
      const std::span moves(subject.lists.misses.data() + head * subject.lists.stride, misses);
      const ForgetArgs::Item item = {subject.set.table, head,
                                     moves.subspan(random.Between(0, misses))};
      backend().Forget({.items = {&item, 1}});
      for (const RowMove& move : item.moves) subject.model[head].Forget(move.token);
    }
  }

  // The device counted slices of all heads' rows.
  void ForgetRest(Random& random, Subject& subject) {
    const Lists& lists = subject.lists;
    subject.progress[0].slices = random.Between(0, 16);
    const ForgetRestArgs::Item item = {subject.set.table, lists.misses.data(), lists.stride,
                                       lists.counts.data()};
    backend().ForgetRest(
        {.kv_heads = subject.kv_heads, .items = {&item, 1}, .progress = subject.progress.data()});
    uint32_t left = subject.progress[0].slices * kCopySliceRows;
    for (uint32_t head = 0; head < subject.kv_heads; ++head) {
      for (uint32_t i = 0; i < lists.counts[head].misses; ++i) {
        if (left > 0) {
          --left;
        } else {
          subject.model[head].Forget(lists.misses[head * lists.stride + i].token);
        }
      }
    }
  }

  // Steps of prediction, given up at a random place, and truth.
  void CheckSteps(Random& random, Subject& subject, uint32_t steps) {
    for (uint32_t step = 1; step <= steps && !HasFatalFailure(); ++step) {
      const bool clear = random.Between(0, 99) == 0, predict = random.Between(0, 3) != 0;
      if (predict) {
        Resolve(random, subject, step, /*truth=*/false, clear);
        random.Between(0, 1) ? Forget(random, subject) : ForgetRest(random, subject);
      }
      Resolve(random, subject, step, /*truth=*/true, clear && !predict);
    }
  }
};
SPARSEKV_ON_ONE_INSTRUCTION_SET(HotRowsTest);

TEST_P(HotRowsTest, EqualsAnObviousCacheOver10000Steps) {
  Random random(7);
  Subject subject(random, 2, 96, 400);
  CheckSteps(random, subject, 10000);
}

TEST_P(HotRowsTest, EqualsAnObviousCacheOnLargeTables) {
  Random random(8);
  Subject subject(random, 2, 3000, 20000);
  CheckSteps(random, subject, 4);
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
  Shared<CopyTimes> times(1);
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
    backend().Resolve({.kv_heads = kHeads, .stride = 130, .items = resolve});
    times[0] = {};
    backend().CopyRows({.kv_heads = kHeads, .items = copy, .times = times.data()});
    EXPECT_LE(times[0].begin_ns, times[0].end_ns);
    if (backend().host_memory()) {
      EXPECT_EQ(times[0].end_ns, 0u) << "the caller knows";
    } else if (lists[0]->counts[0].misses > 0) {
      EXPECT_GT(times[0].begin_ns, 0u);
    }
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

// A dense sequence's layer comes whole, beside the rows of a list.
TEST_P(HotRowsTest, FirstRowsGoToTheSamePlaces) {
  constexpr uint32_t kHeads = 2, kTokens = 300;
  Random random(12);
  for (int round = 0; round < 2; ++round) {
    RowSet whole(random, kHeads, kTokens, kTokens), listed(random, kHeads, 100, kTokens);
    const Shared<std::byte> before = whole.device.pool();
    Shared<RowMove> moves = {{5, 9}, {299, 0}, {64, 64}, {0, 1}};
    Shared<Resolved> counts = {{.misses = 2}, {.misses = 1}};
    const uint32_t rows = random.Between(1, kTokens - 1);
    const CopyRowsArgs::Item items[] = {
        {listed.host.Table(0), listed.table.rows, moves.data(), 2, counts.data()},
        {.from = whole.host.Table(0), .to = whole.table.rows, .first_rows = rows}};
    backend().CopyRows({.kv_heads = kHeads, .items = items});
    const size_t bytes = whole.host.layout().row_bytes();
    const auto expect_row = [&](RowSet& set, uint32_t head, RowMove move) {
      ASSERT_EQ(std::memcmp(set.host.Table(0).Row(head, move.token),
                            set.table.rows.Row(head, move.slot), bytes),
                0);
    };
    expect_row(listed, 0, moves[0]);
    expect_row(listed, 0, moves[1]);
    expect_row(listed, 1, moves[2]);
    for (uint32_t head = 0; head < kHeads; ++head) {
      for (uint32_t i = 0; i < rows; ++i) expect_row(whole, head, {i, i});
      const std::byte* next = whole.table.rows.Row(head, rows);
      ASSERT_EQ(std::memcmp(next, before.data() + (next - whole.device.pool().data()), bytes), 0);
    }
  }
}

}  // namespace
}  // namespace sparsekv::testing
