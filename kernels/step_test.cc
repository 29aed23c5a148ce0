#include <gtest/gtest.h>
#include <sys/mman.h>

#include "kernels/test_cases.h"

// Memory of the device, steps, lanes: what backend.h says of a device that notes what it is given.
namespace sparsekv::testing {
namespace {

class StepTest : public BackendTest {};
SPARSEKV_ON_ONE_INSTRUCTION_SET(StepTest);

bool AllAre(const std::vector<std::byte>& bytes, uint8_t value) {
  return std::ranges::all_of(bytes, [&](std::byte b) { return b == std::byte{value}; });
}

TEST_P(StepTest, MemoryIsZeroedAndMoves) {
  Random random(91);
  for (size_t bytes : {size_t{1}, size_t{1000}, size_t{3} << 20}) {
    EXPECT_GT(backend().free_bytes(), bytes);
    std::byte* a = backend().Allocate(bytes);
    std::byte* b = backend().Allocate(bytes);
    ASSERT_TRUE(a != nullptr && b != nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 256, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 256, 0u);
    std::vector<std::byte> got(bytes, std::byte{1}), sent(bytes);
    backend().Download(got.data(), a, bytes);
    EXPECT_TRUE(AllAre(got, 0));
    for (std::byte& byte : sent) byte = std::byte(random.Between(0, 255));
    backend().Upload(a, sent.data(), bytes);
    backend().Copy(b, a, bytes);
    backend().Download(got.data(), b, bytes);
    EXPECT_TRUE(got == sent);
    backend().Fill(a, 0xA5, bytes);
    backend().Fetch(got.data(), a, bytes);
    EXPECT_TRUE(AllAre(got, 0xA5));
    backend().Free(a);
    backend().Free(b);
  }
  EXPECT_EQ(backend().Allocate(backend().host_memory() ? SIZE_MAX : size_t{1} << 60), nullptr);
}

TEST_P(StepTest, SharedHostMemoryIsReadWhereItLies) {
  const size_t bytes = size_t{1} << 20;
  void* mapped =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, /*fd=*/-1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  auto* const host = static_cast<std::byte*>(mapped);
  for (size_t i = 0; i < bytes / 4; ++i) {
    StoreValue(host, i, DType::kF32, static_cast<float>(i));
  }
  std::string why;
  const bool shared = backend().Share(host, bytes, &why);
  if (shared) {
    Output<float> out(2 * 64);
    const uint32_t ids[] = {4095, 17};
    backend().Embed({.ids = ids, .table = {host, DType::kF32, 4096, 64}, .out = out.data()});
    for (uint32_t i = 0; i < 64; ++i) {
      EXPECT_EQ(out[i], 4095.0f * 64 + i);
      EXPECT_EQ(out[64 + i], 17.0f * 64 + i);
    }
    backend().Unshare(host, bytes);
  } else {
    EXPECT_FALSE(why.empty());
  }
  munmap(mapped, bytes);
  if (!shared) GTEST_SKIP() << "the device reads no host memory: " << why;
}

TEST_P(StepTest, LanesWaitForMarks) {
  const size_t bytes = size_t{1} << 20;
  Shared<std::byte> a(bytes), b(bytes), c(bytes);
  std::vector<std::byte> fetched(bytes);
  for (StepKind kind : {StepKind::kPrompt, StepKind::kDecode}) {
    for (Backend* on : {&backend(), &other()}) {
      for (uint8_t value = 1; value < 6; ++value) {
        InStep(*on, kind, [&] {
          on->Fill(a.data(), value, bytes);
          const uint32_t filled = on->Mark();
          on->UseLane(Lane::kPrefetch);
          on->WaitFor(filled);
          on->Copy(b.data(), a.data(), bytes);
          const uint32_t copied = on->Mark();
          on->Fill(a.data(), 0, bytes);  // the step ends when both lanes are done
          on->UseLane(Lane::kCompute);
          on->WaitFor(copied);
          on->Copy(c.data(), b.data(), bytes);
          on->Fetch(fetched.data(), c.data(), bytes);
        });
        EXPECT_TRUE(AllAre(fetched, value));
        EXPECT_TRUE(AllAre({a.begin(), a.end()}, 0));
      }
    }
  }
}

// A model of one layer over sequences whose lengths change from step to step: the same calls on the
// same memory with other parameters, which is what a graph is kept for.
class TinyModel {
 public:
  static constexpr uint32_t kBatch = 3, kTokens = 900, kVocab = 500;
  using Positions = std::array<uint32_t, kBatch>;

  struct Result {
    std::vector<uint32_t> selection;
    std::vector<float> attended, logits;
    std::vector<SampledToken> tokens = std::vector<SampledToken>(kBatch);
  };

  explicit TinyModel(Random& random, LabelFormat format = LabelFormat::kBf16)
      : rows_(random, kKvHeads, kDim, DType::kBF16, std::vector<uint32_t>(kBatch, kTokens)),
        labels_(kKvHeads, kChannels, std::vector<uint32_t>(kBatch, kTokens), format),
        channels_(Labels::Channels(random, kKvHeads, kDim, kChannels)),
        embedding_(random, DType::kBF16, kVocab, kHidden, 1.0f),
        norm_(random, DType::kBF16, 1, kHidden, 1.0f),
        wq_(random, DType::kBF16, kQ, kHidden, 0.1f),
        wk_(random, DType::kBF16, kKvHeads * kDim, kHidden, 0.1f),
        wv_(random, DType::kBF16, kKvHeads * kDim, kHidden, 0.1f),
        wo_(random, DType::kBF16, kHidden, kQ, 0.1f),
        gate_(random, DType::kBF16, kWidth, kHidden, 0.1f),
        up_(random, DType::kBF16, kWidth, kHidden, 0.1f),
        down_(random, DType::kBF16, kHidden, kWidth, 0.1f) {
    for (uint32_t i = 0; i < kBatch; ++i) {
      rows_.Fill(random, i, kTokens);
      labels_.Fill(random, i, kTokens);
    }
    pool_ = rows_.pool();
    pages_ = labels_.memory();
    for (uint32_t c = 0; c < kDim / 2; ++c) frequency_.push_back(1 / std::pow(10000.0f, c / 32.0f));
  }

  // The step of the tokens at `positions`, over the history that every step finds the same.
  Result Run(Backend& on, const Positions& positions, bool as_step) {
    std::ranges::copy(pool_, rows_.pool().begin());
    std::ranges::copy(pages_, labels_.memory().begin());
    std::ranges::fill(selection_, 0);
    Result result;
    result.logits.resize(kBatch * kVocab);
    if (as_step) on.BeginStep(StepKind::kDecode);
    ProjectAndAppend(on, positions);
    Attend(on, positions);
    on.Linear({.x = attended_.data(),
               .tokens = kBatch,
               .weight = wo_.view,
               .y = x_.data(),
               .accumulate = true});
    on.GateUp({.x = x_.data(),
               .tokens = kBatch,
               .norm = norm_.view,
               .gate = gate_.view,
               .up = up_.view,
               .normed = normed_.data(),
               .spare = spare_.data(),
               .out = wide_.data()});
    on.Linear({.x = wide_.data(),
               .tokens = kBatch,
               .weight = down_.view,
               .y = x_.data(),
               .accumulate = true});
    on.RmsNorm({.x = x_.data(), .tokens = kBatch, .weight = norm_.view, .out = normed_.data()});
    on.Linear(
        {.x = normed_.data(), .tokens = kBatch, .weight = embedding_.view, .y = logits_.data()});
    on.Fetch(result.logits.data(), logits_.data(), result.logits.size() * sizeof(float));
    std::vector<SampleArgs> draws;
    for (uint32_t i = 0; i < kBatch; ++i) {
      draws.push_back({.logits = logits_.data() + i * kVocab,
                       .vocab = kVocab,
                       .position = positions[i] + 1,
                       .params = {.temperature = i == 0 ? 0.0f : 0.7f, .top_k = 50, .seed = i},
                       .top_logprobs = 3});
    }
    on.Sample(draws, result.tokens.data());
    if (as_step) on.EndStep();
    result.selection.assign(selection_.begin(), selection_.end());
    result.attended.assign(attended_.begin(), attended_.end());
    return result;
  }

 private:
  void ProjectAndAppend(Backend& on, const Positions& positions) {
    std::vector<uint32_t> ids;
    std::vector<AppendRowsArgs::Item> rows;
    std::vector<AppendLabelsArgs::Item> labels;
    for (uint32_t i = 0; i < kBatch; ++i) {
      const StepSpan span = {.first = i, .tokens = 1, .position = positions[i]};
      ids.push_back((positions[i] * 7 + i) % kVocab);
      rows.push_back({span, rows_.Table(i)});
      labels.push_back({span, labels_.Table(i)});
    }
    on.Embed({.ids = ids, .table = embedding_.view, .out = x_.data()});
    const ProjectArgs::Output outputs[] = {
        {wq_.view, q_.data()}, {wk_.view, k_.data()}, {wv_.view, v_.data()}};
    on.Project({.x = x_.data(),
                .tokens = kBatch,
                .norm = norm_.view,
                .normed = normed_.data(),
                .outputs = outputs});
    on.RotateAppend({.q = q_.data(),
                     .k = k_.data(),
                     .v = v_.data(),
                     .positions = positions,
                     .inverse_frequency = frequency_,
                     .heads = kKvHeads * kGroup,
                     .kv_heads = kKvHeads,
                     .head_dim = kDim,
                     .row_dtype = DType::kBF16,
                     .channels = channels_.data(),
                     .rows = rows,
                     .labels = labels});
  }

  void Attend(Backend& on, const Positions& positions) {
    std::vector<ScoreLabelsArgs::Item> score;
    std::vector<SelectArgs::Item> select;
    std::vector<AttendArgs::Item> attend;
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t tokens = positions[i] + 1;
      const uint32_t count = std::max(AlwaysSetSize(tokens), tokens / 3);
      const size_t at = size_t{i} * kKvHeads * kTokens;
      score.push_back({i, tokens, labels_.Table(i), scores_.data() + at});
      select.push_back({scores_.data() + at, tokens, count, selection_.data() + at});
      attend.push_back({.span = {.first = i, .tokens = 1, .position = positions[i]},
                        .rows = rows_.Table(i),
                        .selection = selection_.data() + at,
                        .count = count});
    }
    on.ScoreLabels({.q = q_.data(),
                    .kv_heads = kKvHeads,
                    .group = kGroup,
                    .head_dim = kDim,
                    .channels = channels_.data(),
                    .score_stride = kTokens,
                    .items = score});
    on.Select({.kv_heads = kKvHeads,
               .score_stride = kTokens,
               .selection_stride = kTokens,
               .items = select});
    on.Attend({.q = q_.data(),
               .out = attended_.data(),
               .kv_heads = kKvHeads,
               .group = kGroup,
               .head_dim = kDim,
               .scale = 0.125f,
               .selection_stride = kTokens,
               .items = attend});
  }

  static constexpr uint32_t kKvHeads = 2, kGroup = 2, kDim = 64, kChannels = 8;
  static constexpr uint32_t kQ = kKvHeads * kGroup * kDim, kHidden = 128, kWidth = 160;

  Rows rows_;
  Labels labels_;
  Shared<std::byte> pool_, pages_;  // the history
  Shared<uint16_t> channels_;
  std::vector<float> frequency_;
  Weights embedding_, norm_, wq_, wk_, wv_, wo_, gate_, up_, down_;
  Shared<float> x_ = Shared<float>(kBatch * kHidden), normed_ = x_;
  Shared<float> q_ = Shared<float>(kBatch * kQ), attended_ = q_;
  Shared<float> k_ = Shared<float>(kBatch * kKvHeads * kDim), v_ = k_;
  Shared<float> wide_ = Shared<float>(kBatch * kWidth), spare_ = wide_;
  Shared<float> logits_ = Shared<float>(kBatch * kVocab);
  Shared<float> scores_ = Shared<float>(kBatch * kKvHeads * kTokens);
  Shared<uint32_t> selection_ = Shared<uint32_t>(scores_.size());
};

void ExpectSame(const TinyModel::Result& got, const TinyModel::Result& expected) {
  EXPECT_TRUE(got.selection == expected.selection);
  ExpectSameBits(got.attended.data(), expected.attended.data(), got.attended.size(), "attended");
  ExpectSameBits(got.logits.data(), expected.logits.data(), got.logits.size(), "logits");
  for (uint32_t i = 0; i < TinyModel::kBatch; ++i) {
    EXPECT_EQ(got.tokens[i].id, expected.tokens[i].id);
    EXPECT_EQ(got.tokens[i].logprob, expected.tokens[i].logprob);
    EXPECT_EQ(got.tokens[i].top, expected.tokens[i].top);
  }
}

void ExpectClose(const TinyModel::Result& got, const TinyModel::Result& expected, float tolerance) {
  for (size_t i = 0; i < got.logits.size(); ++i) {
    ASSERT_NEAR(got.logits[i], expected.logits[i], tolerance * (1 + std::fabs(expected.logits[i])));
  }
}

// |got - expected| / |expected| of all logits.
double Distance(const TinyModel::Result& got, const TinyModel::Result& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.logits.size(); ++i) {
    difference += std::pow(got.logits[i] - expected.logits[i], 2);
    size += std::pow(expected.logits[i], 2);
  }
  return std::sqrt(difference / size);
}

TEST_P(StepTest, ADecodeStepComesAgainWithOtherParameters) {
  Random random(92);
  for (LabelFormat format : {LabelFormat::kBf16, LabelFormat::kInt4}) {
    TinyModel model(random, format);
    const TinyModel::Positions steps[] = {
        {100, 300, 65}, {101, 301, 66}, {899, 0, 512}, {3, 898, 127}, {100, 300, 65}};
    std::vector<TinyModel::Result> first;
    for (const TinyModel::Positions& positions : steps) {
      first.push_back(model.Run(backend(), positions, /*as_step=*/true));
      // Queries that differ in their last bits may have other codes, and so select other rows.
      if (format != LabelFormat::kBf16) continue;
      ExpectClose(first.back(), model.Run(reference(), positions, /*as_step=*/true),
                  Tolerance(1e-2f, 3e-2f));
    }
    ExpectSame(first.back(), first.front());
    for (size_t i = 0; i < std::size(steps); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(model.Run(other(), steps[i], /*as_step=*/true), first[i]);
      ExpectSame(model.Run(backend(), steps[i], /*as_step=*/true), first[i]);
      const TinyModel::Result immediate = model.Run(backend(), steps[i], /*as_step=*/false);
      if (backend().host_memory()) {
        ExpectSame(immediate, first[i]);
      } else if (format == LabelFormat::kBf16) {  // a prompt's way to compute
        EXPECT_LT(Distance(immediate, first[i]), 0.05);
      }
    }
  }
}

}  // namespace
}  // namespace sparsekv::testing
