#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/copy_ahead.h"
#include "kernels/hot_rows_cases.h"

namespace sparsekv::testing {
namespace {

// Attention over lists that the operation before it selects, in one step, as decode steps have it:
// the bits of the same in steps of their own. A device may begin with lists that are there while
// others are being selected.
class SelectAttendTest : public BackendTest {
 protected:
  static constexpr uint32_t kDim = 64;

  struct Shape {
    uint32_t kv_heads = 1;
    uint32_t group = 1;
    LabelFormat format = LabelFormat::kBf16;
    DType dtype = DType::kBF16;
    bool offloaded = false;  // a third of the rows, about, is in slots
    std::vector<uint32_t> lengths, counts;
  };

  // Two queries, lists and results, as of two layers.
  struct Run {
    Run(Random& random, const Shape& of)
        : shape(of),
          stride(*std::ranges::max_element(of.counts)),
          labels(of.kv_heads, 8, of.lengths, of.format),
          rows(random, of.kv_heads, kDim, of.dtype, of.lengths),
          channels(Labels::Channels(random, of.kv_heads, kDim, 8)),
          scores(of.lengths.size() * of.kv_heads * score_stride()),
          out{Output<float>(of.lengths.size() * width()),
              Output<float>(of.lengths.size() * width())} {
      for (uint32_t i = 0; i < of.lengths.size(); ++i) {
        labels.Fill(random, i, of.lengths[i]);
        rows.Fill(random, i, of.lengths[i]);
      }
      for (uint32_t i = 0; of.offloaded && i < of.lengths.size(); ++i) Offload(random, i);
      for (auto& one : q) one = random.Normals(of.lengths.size() * width(), 2.0f);
      for (auto& list : lists) list.assign(of.lengths.size() * of.kv_heads * stride, 0);
    }

    void Offload(Random& random, uint32_t item) {
      const uint32_t length = shape.lengths[item], slots = std::max(length / 3, 1u);
      sets.push_back(
          std::make_unique<RowSet>(random, shape.kv_heads, slots, length, kDim, shape.dtype));
      const SlotTable& table = sets.back()->table;
      for (uint32_t head = 0; head < shape.kv_heads; ++head) {
        std::vector<uint32_t> tokens(length);
        std::iota(tokens.begin(), tokens.end(), 0u);
        random.Shuffle(tokens);
        for (uint32_t slot = 0; slot < slots; ++slot) {
          table.SlotOf(head, tokens[slot]) = static_cast<uint16_t>(slot);
          // It counts from where a row is read.
          std::byte* row = rows.Table(item).Row(head, tokens[slot]);
          std::memcpy(table.rows.Row(head, slot), row, rows.layout().row_bytes());
          std::memset(row, 0xFF, rows.layout().row_bytes());
        }
      }
      landing.push_back(std::make_unique<Rows>(random, shape.kv_heads, kDim, shape.dtype,
                                               std::vector<uint32_t>{shape.counts[item]}));
    }

    size_t width() const { return size_t{shape.kv_heads} * shape.group * kDim; }
    size_t score_stride() const { return *std::ranges::max_element(shape.lengths); }

    // To one of the lists, by one of the queries.
    void Select(Backend& backend, uint32_t list, uint32_t query) {
      std::vector<ScoreLabelsArgs::Item> score;
      std::vector<SelectArgs::Item> select;
      for (uint32_t i = 0; i < shape.lengths.size(); ++i) {
        float* at = scores.data() + i * shape.kv_heads * score_stride();
        score.push_back({i, shape.lengths[i], labels.Table(i), at});
        select.push_back({at, shape.lengths[i], shape.counts[i], List(list, i)});
      }
      backend.ScoreSelect({.q = q[query].data(),
                           .kv_heads = shape.kv_heads,
                           .group = shape.group,
                           .head_dim = kDim,
                           .channels = channels.data(),
                           .score_stride = score_stride(),
                           .items = score},
                          {.kv_heads = shape.kv_heads,
                           .score_stride = score_stride(),
                           .selection_stride = stride,
                           .items = select});
    }

    // By the query, to its result.
    void Attend(Backend& backend, uint32_t list, uint32_t query) {
      std::vector<AttendArgs::Item> items;
      for (uint32_t i = 0; i < shape.lengths.size(); ++i) {
        items.push_back({.span = {.first = i, .tokens = 1, .position = shape.lengths[i] - 1},
                         .rows = rows.Table(i),
                         .selection = List(list, i),
                         .count = shape.counts[i]});
        if (!shape.offloaded) continue;
        items.back().offloaded = OffloadedRows{
            .hot = sets[i]->table, .landing = landing[i]->Table(0), .times = times.data()};
      }
      backend.Attend({.q = q[query].data(),
                      .out = out[query].data(),
                      .kv_heads = shape.kv_heads,
                      .group = shape.group,
                      .head_dim = kDim,
                      .scale = 1 / std::sqrt(static_cast<float>(kDim)),
                      .selection_stride = stride,
                      .items = items});
    }

    uint32_t* List(uint32_t list, uint32_t item) {
      return lists[list].data() + item * shape.kv_heads * stride;
    }
    // So that a list of before, or a result, is none of this step.
    void Forget() {
      for (auto& list : lists) std::ranges::fill(list, 0u);
      for (auto& one : out) std::fill_n(one.data(), one.size(), NAN);
    }

    const Shape shape;
    const size_t stride;
    Labels labels;
    Rows rows;
    Shared<uint16_t> channels;
    Shared<float> q[2];
    Output<float> scores;
    Output<float> out[2];
    Shared<uint32_t> lists[2];
    std::vector<std::unique_ptr<RowSet>> sets;
    std::vector<std::unique_ptr<Rows>> landing;
    Shared<CopyTimes> times = Shared<CopyTimes>(1);
  };

  // step(backend), in one step, again and again: the results of so many queries are what the
  // operations give one by one.
  template <typename Step>
  void Check(Run& run, uint32_t queries, const Step& step) {
    for (StepKind kind : Kinds()) {
      std::vector<float> expected[2];
      run.Forget();
      for (uint32_t query = 0; query < queries; ++query) {
        InStep(backend(), kind, [&] { run.Select(backend(), 0, query); });
        InStep(backend(), kind, [&] { run.Attend(backend(), 0, query); });
        expected[query].assign(run.out[query].data(),
                               run.out[query].data() + run.out[query].size());
        for (float value : expected[query]) ASSERT_TRUE(std::isfinite(value));
      }
      for (Backend* on : {&backend(), &backend(), &backend(), &other()}) {
        run.Forget();
        InStep(*on, kind, [&] { step(*on); });
        for (uint32_t query = 0; query < queries; ++query) {
          ExpectSameBits(run.out[query].data(), expected[query].data(), expected[query].size(),
                         "attention");
        }
        EXPECT_TRUE(run.out[0].MarginsUntouched() && run.out[1].MarginsUntouched());
      }
    }
  }

  // Two layers, the lists of the second where the first one's were.
  void CheckInOneStep(Random& random, const Shape& shape) {
    SCOPED_TRACE(::testing::Message() << shape.lengths.size() << " items, the first of "
                                      << shape.lengths[0] << ", " << shape.kv_heads << " x "
                                      << shape.group << " heads, labels " << Name(shape.format));
    Run run(random, shape);
    Check(run, 2, [&](Backend& on) {
      for (uint32_t query : {0, 1}) {
        run.Select(on, 0, query);
        run.Attend(on, 0, query);
      }
    });
  }
};
SPARSEKV_ON_EVERY_BACKEND(SelectAttendTest);

TEST_P(SelectAttendTest, AnyShape) {
  Random random(61);
  for (uint32_t round = 0; round < 12; ++round) {
    Shape shape{.kv_heads = random.Between(1, 4), .group = random.Pick({1u, 2u, 4u, 8u, 11u})};
    if (round % 3 == 2) shape.format = LabelFormat::kInt4;
    if (round % 4 == 3) shape.dtype = random.Pick({DType::kF16, DType::kF32});
    shape.offloaded = round % 5 > 2;
    const bool same = round % 4 != 0;
    const uint32_t count = random.Between(69, 900), items = random.Between(1, 9);
    for (uint32_t i = 0; i < items; ++i) {
      shape.counts.push_back(same ? count : random.Between(69, 900));
      // Some attend to all they have.
      shape.lengths.push_back(shape.counts.back() + random.Pick({0u, random.Between(0, 1500)}));
    }
    CheckInOneStep(random, shape);
  }
}

// More rows than a device has multiprocessors; one row on several of them.
TEST_P(SelectAttendTest, ManyRowsAndLongOnes) {
  Random random(62);
  CheckInOneStep(random, {.kv_heads = 8,
                          .group = 4,
                          .lengths = std::vector<uint32_t>(40, 400),
                          .counts = std::vector<uint32_t>(40, 150)});
  for (bool offloaded : {false, true}) {
    CheckInOneStep(
        random,
        {.kv_heads = 2, .group = 4, .offloaded = offloaded, .lengths = {12000}, .counts = {2000}});
  }
}

// Attention over other lists than those of the last selection, and with something between.
TEST_P(SelectAttendTest, OtherListsThanTheLast) {
  Random random(63);
  Run run(random, {.kv_heads = 2,
                   .group = 4,
                   .lengths = std::vector<uint32_t>(5, 1500),
                   .counts = std::vector<uint32_t>(5, 300)});
  Check(run, 2, [&](Backend& on) {
    run.Select(on, 0, 0);
    run.Select(on, 1, 1);
    run.Attend(on, 0, 0);
    run.Attend(on, 1, 1);
  });
  Check(run, 1, [&](Backend& on) {
    run.Select(on, 1, 1);
    run.Select(on, 0, 0);
    on.Fill(run.scores.data(), 0, sizeof(float));
    run.Attend(on, 0, 0);
  });
  Check(run, 1, [&](Backend& on) {
    run.Select(on, 0, 0);
    on.WaitFor(on.Mark());
    run.Attend(on, 0, 0);
  });
}

// Selected on one lane, attended to on another; and outside of a step.
TEST_P(SelectAttendTest, OtherLanesAndNoStep) {
  Random random(64);
  Run run(random, {.kv_heads = 2, .group = 4, .lengths = {1500, 1500}, .counts = {300, 300}});
  Check(run, 1, [&](Backend& on) {
    const uint32_t begun = on.Mark();
    on.UseLane(Lane::kPredict);
    on.WaitFor(begun);
    run.Select(on, 0, 0);
    const uint32_t selected = on.Mark();
    on.UseLane(Lane::kCompute);
    on.WaitFor(selected);
    run.Attend(on, 0, 0);
  });
  run.Forget();
  run.Select(backend(), 0, 0);
  run.Attend(backend(), 0, 0);
  const std::vector<float> alone(run.out[0].data(), run.out[0].data() + run.out[0].size());
  run.Forget();
  InStep(backend(), StepKind::kPrompt, [&] {
    run.Select(backend(), 0, 0);
    run.Attend(backend(), 0, 0);
  });
  ExpectSameBits(run.out[0].data(), alone.data(), alone.size(), "attention");
}

}  // namespace
}  // namespace sparsekv::testing
