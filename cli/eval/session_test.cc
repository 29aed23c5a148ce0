// A session's candidates against the worker's own ways of doing the same, and against each other.
#include "cli/eval/session.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/concat.h"
#include "cli/local_memory.h"
#include "cli/recall/seeded_random.h"
#include "gpu_worker/random_checkpoint.h"

namespace sparsekv {
namespace {

constexpr uint32_t kPrefix = 300, kSteps = 10, kTokens = kPrefix + kSteps;
constexpr RowBudget kBudget = {.rows = 90};

Candidate Make(const std::string& policy, RowBudget budget = kBudget) {
  auto spec = PolicySpec::Parse(policy);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return {*spec, budget};
}

std::vector<Candidate> Everybody(RowBudget budget) {
  std::vector<Candidate> all;
  for (const std::string& name : PolicySpec::Names()) all.push_back(Make(name, budget));
  all.push_back(Make("double-sparsity-offload:correction=none", budget));
  all.push_back(Make("streaming-llm:positions=lm-infinite", budget));
  return all;
}

struct Stored {
  DType rows;
  LabelFormat labels;
  uint32_t channels;
};

class SessionTest : public testing::TestWithParam<Stored> {
 protected:
  SessionTest()
      : checkpoint_({.layers = 3,
                     .channels = GetParam().channels,
                     .label_format = GetParam().labels,
                     .dtype = GetParam().rows},
                    5) {
    SeededRandom random(1, 2);
    for (uint32_t i = 0; i < kTokens; ++i) ids_.push_back(static_cast<uint32_t>(random.Below(160)));
  }
  std::unique_ptr<Session> Open(const std::vector<Candidate>& candidates,
                                BudgetUnit unit = BudgetUnit::kRows) {
    auto session = Session::Make(
        checkpoint_.files(),
        {.max_tokens = kTokens, .threads = 2, .unit = unit, .attention_stride = 1}, candidates);
    EXPECT_TRUE(session.ok()) << session.status();
    (*session)->Start(std::span(ids_).first(kPrefix));
    return *std::move(session);
  }
  std::vector<float> Run(Session& session, const Candidate& candidate) {
    std::vector<float> logits;
    session.Begin(candidate);
    session.Steps(std::span(ids_).subspan(kPrefix), [&](size_t, const float* l) {
      logits.insert(logits.end(), l, l + session.config().vocab_size);
    });
    return logits;
  }
  std::vector<float> RunWorker(LocalRunner& runner, RowBudget budget) {
    std::vector<float> logits;
    runner.Prefill(0, std::span(ids_).first(kPrefix));
    for (uint32_t i = kPrefix; i < kTokens; ++i) {
      runner.Forward({&ids_[i], 1}, budget);
      const float* l = runner.Logits(0);
      logits.insert(logits.end(), l, l + checkpoint_.files().config.vocab_size);
    }
    return logits;
  }

  RandomCheckpoint checkpoint_;
  std::vector<uint32_t> ids_;
};

TEST_P(SessionTest, DoubleSparsityIsTheWorkersOwn) {
  const Candidate candidate = Make("double-sparsity");
  auto session = Open({candidate});
  auto runner = LocalRunner::Make(checkpoint_.files(), {.max_tokens = kTokens, .threads = 2});
  ASSERT_TRUE(runner.ok());
  EXPECT_EQ(Run(*session, candidate), RunWorker(**runner, kBudget));
  EXPECT_EQ(Run(*session, Make("double-sparsity-offload")), Run(*session, candidate));
}

TEST_P(SessionTest, UncorrectedOffloadIsTheWorkersOwn) {
  const Candidate candidate = Make("double-sparsity-offload:correction=none");
  auto session = Open({candidate});
  auto runner = LocalRunner::Make(checkpoint_.files(),
                                  {.max_tokens = kTokens,
                                   .threads = 2,
                                   .rows = {.in_place = false, .hot_rows = 128, .predict = true},
                                   .selection = kBudget.rows});
  ASSERT_TRUE(runner.ok());
  std::vector<LayerPolicy> policies(3, {true, 100, true});
  policies[0].predict = false;
  (*runner)->device().attention->set_policies(policies);
  const auto uncorrected = Run(*session, candidate);
  const auto worker = RunWorker(**runner, kBudget);
  ASSERT_EQ(uncorrected.size(), worker.size());
  for (size_t i = 0; i < worker.size(); ++i) ASSERT_NEAR(uncorrected[i], worker[i], 1e-4) << i;
  EXPECT_NE(uncorrected, Run(*session, Make("double-sparsity")));
}

// The same rule on other kernels: what is measured may be rounded otherwise, so a layer may take a
// row more or less.
TEST_P(SessionTest, AdaptiveBudgetsAreTheWorkersOwn) {
  for (const auto& [target, most] : {std::pair{0.5, kTokens}, {0.9, kTokens}, {0.9, 90u}}) {
    const RowBudget budget = {.rows = most};
    const Candidate candidate =
        Make("double-sparsity-adaptive:target=" + std::to_string(target), budget);
    auto session = Open({candidate});
    auto runner = LocalRunner::Make(checkpoint_.files(),
                                    {.max_tokens = kTokens, .threads = 2, .recall_target = target});
    ASSERT_TRUE(runner.ok());
    const auto logits = Run(*session, candidate);
    const auto worker = RunWorker(**runner, budget);
    const auto rows = static_cast<double>((*runner)->counts().selected);
    EXPECT_NEAR(static_cast<double>(session->cost().rows), rows, 0.005 * rows);
    for (size_t i = 0; i < worker.size(); ++i) ASSERT_NEAR(logits[i], worker[i], 2e-2) << i;
    const AttendCost& cost = session->cost();
    EXPECT_EQ(cost.looked_at, cost.selections);
    // The first four steps take the budget: everything, or 90 rows that hold less than asked for.
    const double held = cost.held / static_cast<double>(cost.looked_at);
    EXPECT_GE(held, most == kTokens ? target : target - 0.1);
    EXPECT_LT(held, 1);
    EXPECT_EQ((*runner)->recall()->whole_layers(), most == 90 ? 3u : 0u);
  }
}

// Bits that are asked for are no codes of the worker's.
TEST_P(SessionTest, BitsLeaveTheConfigsFormat) {
  const Candidate candidate = Make("double-sparsity");
  auto session = Open({candidate});
  const auto own = Run(*session, candidate);
  EXPECT_EQ(Run(*session, Make("double-sparsity:bits=config")), own);
  const auto plain = Run(*session, Make("double-sparsity:bits=16"));
  if (GetParam().labels == LabelFormat::kBf16) {
    EXPECT_EQ(plain, own);
  } else {
    EXPECT_NE(plain, own);
  }
}

// P1 of the design: with a budget of all there is, every policy is dense attention.
TEST_P(SessionTest, AFullBudgetIsDense) {
  const auto all = Everybody({.rows = kTokens});
  auto session = Open(all);
  const auto dense = Run(*session, Make("dense", {}));
  for (const Candidate& candidate : all) {
    const auto logits = Run(*session, candidate);
    // These take fewer rows where they may.
    if (candidate.policy.name() == "fastgen" || candidate.policy.adaptive()) continue;
    // Uncorrected, the current row comes on top of the prediction of the others.
    for (size_t i = 0; i < dense.size(); ++i) {
      ASSERT_NEAR(logits[i], dense[i], 1e-3) << candidate.policy.text();
    }
  }
}

// What ran before leaves nothing behind.
TEST_P(SessionTest, CandidatesDoNotSeeEachOther) {
  const auto all = Everybody(kBudget);
  auto shared = Open(all);
  std::vector<std::vector<float>> first;
  for (const Candidate& candidate : all) first.push_back(Run(*shared, candidate));
  for (size_t i = all.size(); i-- > 0;) {
    EXPECT_EQ(Run(*shared, all[i]), first[i]) << all[i].policy.text();
    auto alone = Open({all[i]});
    EXPECT_EQ(Run(*alone, all[i]), first[i]) << all[i].policy.text();
    // Nor what the same policy did at another budget, with other tokens.
    alone->Begin({all[i].policy, {.rows = 120}});
    for (uint32_t t = 0; t < 7; ++t) alone->Step(ids_[t]);
    EXPECT_EQ(Run(*alone, all[i]), first[i]) << all[i].policy.text();
  }
}

TEST_P(SessionTest, CostsAreCounted) {
  auto session = Open({Make("double-sparsity"), Make("quest")});
  const uint64_t heads = 3 * 2, row = 2 * 16 * SizeOf(GetParam().rows);
  const uint64_t label = LabelBytes(GetParam().labels, GetParam().channels);
  uint64_t tokens = 0;
  for (uint32_t n = kPrefix + 1; n <= kTokens; ++n) tokens += n;
  Run(*session, Make("dense", {}));
  EXPECT_EQ(session->cost().bytes, heads * tokens * row);
  Run(*session, Make("double-sparsity"));
  EXPECT_EQ(session->cost().steps, kSteps);
  EXPECT_EQ(session->cost().rows, heads * kSteps * kBudget.rows);
  EXPECT_EQ(session->cost().bytes, heads * (kSteps * kBudget.rows * row + tokens * label));
  EXPECT_EQ(session->cost().dense_bytes, heads * tokens * row);
}

// What fits is judged by the rows of all sessions and by what they keep beside them.
TEST_P(SessionTest, KeysAreCountedBesideRows) {
  EXPECT_EQ(Session::KeyBytes(checkpoint_.files().config), 3 * 2 * 16 * sizeof(float));
  EXPECT_TRUE(CheckLocalMemory(checkpoint_.files(), 1000, 384).ok());
  const absl::Status status = CheckLocalMemory(checkpoint_.files(), 1000, size_t{1} << 50);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

// A budget in bytes pays for labels too.
TEST_P(SessionTest, BytesAreABudget) {
  const RowBudget budget = {.denominator = 2};
  auto session = Open({Make("double-sparsity", budget)}, BudgetUnit::kBytes);
  Run(*session, Make("double-sparsity", budget));
  const AttendCost cost = session->cost();
  EXPECT_LE(cost.bytes, cost.dense_bytes / 2 + kSteps * 6 * 2 * 16 * 4);
  EXPECT_GE(cost.bytes, cost.dense_bytes * 9 / 20);
  EXPECT_LT(cost.rows, cost.dense_rows / 2);
}

TEST_P(SessionTest, ProbesSeeDenseSteps) {
  const std::vector<Candidate> candidates = {Make("oracle"), Make("random"), Make("h2o")};
  auto session = Open(candidates);
  std::vector<double> captured(3);
  session->BeginProbe(candidates, [&](const Session::ProbeView& view) {
    EXPECT_NEAR(std::accumulate(view.attention.begin(), view.attention.end(), 0.0), 1, 1e-5);
    for (uint32_t row : view.rows) captured[view.candidate] += view.attention[row];
  });
  std::vector<float> logits;
  for (uint32_t i = kPrefix; i < kTokens; ++i) {
    const float* l = session->Step(ids_[i]);
    logits.insert(logits.end(), l, l + 160);
  }
  EXPECT_GT(captured[0], captured[1]);
  EXPECT_GT(captured[0], captured[2]);
  EXPECT_EQ(logits, Run(*session, Make("dense", {})));
}

INSTANTIATE_TEST_SUITE_P(RowAndLabelTypes, SessionTest,
                         testing::Values(Stored{DType::kF32, LabelFormat::kBf16, 4},
                                         Stored{DType::kBF16, LabelFormat::kBf16, 4},
                                         Stored{DType::kF32, LabelFormat::kInt4, 10},
                                         Stored{DType::kBF16, LabelFormat::kInt8, 10},
                                         Stored{DType::kBF16, LabelFormat::kInt2, 10}),
                         [](const auto& stored) {
                           return Concat(Name(stored.param.rows), "_", Name(stored.param.labels));
                         });

// Rows that are moved: against attention with keys rotated to where they stand, in doubles.
TEST(SelectionAttender, MovesKeysToTheirDistances) {
  RandomCheckpoint checkpoint({.layers = 1, .kv_heads = 1, .group = 1}, 3);
  const ModelConfig& config = checkpoint.files().config;
  auto backend = MakeCpuBackend(1);
  const uint32_t tokens = 40, width = config.head_dim, half = width / 2;
  const RowLayout layout = {1, 1, width, DType::kF32, 1};
  std::byte* pool = backend->Allocate(layout.pool_bytes());
  const uint32_t block = 0;
  const RowTable rows = {pool, &block, &layout};
  const auto frequency = config.InverseFrequency();
  const auto turn = [&](std::vector<double> x, double position) {
    for (uint32_t c = 0; c < half; ++c) {
      const double angle = position * frequency[c], a = x[c], b = x[c + half];
      x[c] = a * std::cos(angle) - b * std::sin(angle);
      x[c + half] = b * std::cos(angle) + a * std::sin(angle);
    }
    return x;
  };
  SeededRandom random(3, 3);
  const auto draw = [&] {
    std::vector<double> x(width);
    for (double& value : x) value = random.Normal();
    return x;
  };
  std::vector<std::vector<double>> keys, values;
  for (uint32_t t = 0; t < tokens; ++t) {
    keys.push_back(draw());
    values.push_back(draw());
    auto* row = reinterpret_cast<float*>(rows.Row(0, t));
    const auto turned = turn(keys.back(), t);
    for (uint32_t c = 0; c < width; ++c) {
      row[c] = static_cast<float>(turned[c]);
      row[width + c] = static_cast<float>(values.back()[c]);
    }
  }
  const auto asked = draw(), query = turn(asked, tokens - 1);
  const std::vector<float> q(query.begin(), query.end());
  const HeadSelection selection = {.rows = {0, 3, 20, 38, 39}, .distances = {9, 8, 2, 1, 0}};
  double sum = 0;
  std::vector<double> wanted(width);
  for (size_t i = 0; i < 5; ++i) {
    const auto key = turn(keys[selection.rows[i]], tokens - 1 - selection.distances[i]);
    double score = 0;
    for (uint32_t c = 0; c < width; ++c) score += query[c] * key[c];
    const double weight = std::exp(score / std::sqrt(static_cast<double>(width)));
    sum += weight;
    for (uint32_t c = 0; c < width; ++c) wanted[c] += weight * values[selection.rows[i]][c];
  }
  SelectionAttender attender(config, backend.get(), 64);
  std::vector<float> out(width);
  attender.Attend(selection, 0, tokens - 1, rows, q.data(), {}, out.data());
  for (uint32_t c = 0; c < width; ++c) EXPECT_NEAR(out[c], wanted[c] / sum, 1e-4) << c;
  // A share: the rest is the mean value.
  HeadSelection half_share = selection;
  half_share.distances.clear();
  std::vector<float> all(width), some(width);
  attender.Attend(half_share, 0, tokens - 1, rows, q.data(), {}, all.data());
  half_share.share = {0.25f};
  const std::vector<double> mean(width, 2.0);
  attender.Attend(half_share, 0, tokens - 1, rows, q.data(), mean, some.data());
  for (uint32_t c = 0; c < width; ++c) EXPECT_NEAR(some[c], 0.25 * all[c] + 1.5, 1e-5);
  backend->Free(pool);
}

}  // namespace
}  // namespace sparsekv
