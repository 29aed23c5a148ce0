// The forward pass as a whole: against the reference backend, and the promises that selections rest
// on: what is computed for a token depends on that token's sequence alone, to the bit.
#include "gpu_worker/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "gpu_worker/local_runner.h"
#include "gpu_worker/random_checkpoint.h"

namespace sparsekv {
namespace {

using Logits = std::vector<std::vector<float>>;  // [tokens][vocab]

std::vector<uint32_t> RandomIds(size_t count, uint32_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint32_t> ids(count);
  for (uint32_t& id : ids) id = static_cast<uint32_t>(random() % vocab);
  return ids;
}

// Shapes that differ in everything that an operation could trip over.
std::vector<RandomCheckpoint::Shape> Shapes() {
  return {
      {},
      {.layers = 1, .kv_heads = 1, .group = 8, .head_dim = 8, .channels = 2, .dtype = DType::kBF16},
      {.layers = 3,
       .kv_heads = 3,
       .group = 1,
       .head_dim = 40,
       .hidden = 33,
       .intermediate = 71,
       .channels = 5,
       .dtype = DType::kF16,
       .tied = true},
      {.layers = 2,
       .kv_heads = 2,
       .group = 3,
       .head_dim = 128,
       .channels = 8,
       .dtype = DType::kBF16},
      {.dtype = DType::kF16, .gptq = true},
      {.layers = 2,
       .kv_heads = 2,
       .group = 3,
       .head_dim = 64,
       .channels = 12,
       .label_format = LabelFormat::kInt4,
       .dtype = DType::kBF16},
      {.channels = 6, .label_format = LabelFormat::kInt8},
  };
}

struct How {
  uint32_t chunk = 512;
  RowBudget budget;
  unsigned threads = 2;
  bool reference = false;
};

// Logits of every token; a budget counts from token `sparse_from` on, token by token.
Logits RunLocal(const ModelFiles& files, const std::vector<uint32_t>& ids, const How& run,
                size_t sparse_from = SIZE_MAX) {
  auto runner = LocalRunner::Make(
      files, {.max_tokens = static_cast<uint32_t>(ids.size()),
              .chunk_tokens = run.chunk,
              .threads = run.threads,
              .backend = run.reference ? BackendKind::kReference : BackendKind::kCpu});
  EXPECT_TRUE(runner.ok()) << runner.status();
  Logits all;
  for (size_t from = 0; from < ids.size();) {
    const bool sparse = from >= sparse_from;
    size_t count = sparse ? 1 : std::min<size_t>(run.chunk, ids.size() - from);
    if (!sparse && sparse_from < ids.size()) count = std::min(count, sparse_from - from);
    (*runner)->Forward(std::span(ids).subspan(from, count), sparse ? run.budget : RowBudget{});
    for (uint32_t i = 0; i < count; ++i) {
      const float* logits = (*runner)->Logits(i);
      all.emplace_back(logits, logits + files.config.vocab_size);
    }
    from += count;
  }
  return all;
}

void ExpectSameBits(const Logits& a, const Logits& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t t = 0; t < a.size(); ++t) {
    ASSERT_EQ(std::memcmp(a[t].data(), b[t].data(), a[t].size() * sizeof(float)), 0)
        << what << " differs at token " << t;
  }
}

class ModelTest : public testing::TestWithParam<size_t> {
 protected:
  RandomCheckpoint checkpoint_{Shapes()[GetParam()], 11 + GetParam()};
  const ModelFiles& files_ = checkpoint_.files();
  std::vector<uint32_t> Ids(size_t count) {
    return RandomIds(count, files_.config.vocab_size, 7 + GetParam());
  }
};

TEST_P(ModelTest, CpuAgreesWithReference) {
  const auto ids = Ids(90);
  const Logits cpu = RunLocal(files_, ids, {.budget = {.rows = 72}}, 80);
  const Logits reference = RunLocal(files_, ids, {.budget = {.rows = 72}, .reference = true}, 80);
  // A last bit's difference before rows are rounded to 16 bits can become one of theirs.
  const double tolerance = files_.weights->row_dtype() == DType::kF32 ? 5e-4 : 2e-2;
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t i = 0; i < cpu[t].size(); ++i) {
      ASSERT_TRUE(std::isfinite(cpu[t][i]));
      ASSERT_NEAR(cpu[t][i], reference[t][i], tolerance * (1 + std::fabs(reference[t][i])))
          << "token " << t << " logit " << i;
    }
  }
}

TEST_P(ModelTest, ChunksDoNotMatter) {
  const auto ids = Ids(300);
  const Logits whole = RunLocal(files_, ids, {.chunk = 300});
  ExpectSameBits(whole, RunLocal(files_, ids, {.chunk = 256}), "chunks of 256");
  ExpectSameBits(whole, RunLocal(files_, ids, {.chunk = 37}), "chunks of 37");
  ExpectSameBits(whole, RunLocal(files_, ids, {.chunk = 1}), "token by token");
}

TEST_P(ModelTest, ThreadsDoNotMatter) {
  const auto ids = Ids(200);
  const How one = {.budget = {.denominator = 2}, .threads = 1};
  const How three = {.budget = {.denominator = 2}, .threads = 3};
  ExpectSameBits(RunLocal(files_, ids, one, 150), RunLocal(files_, ids, three, 150), "threads");
}

// P1: with a budget of the context or more, selection changes nothing.
TEST_P(ModelTest, BudgetOfTheContextIsDense) {
  const auto ids = Ids(200);
  const Logits dense = RunLocal(files_, ids, {.chunk = 1});
  ExpectSameBits(dense, RunLocal(files_, ids, {.chunk = 1, .budget = {.rows = 200}}, 0), "rows");
  ExpectSameBits(dense, RunLocal(files_, ids, {.chunk = 64, .budget = {.denominator = 1}}, 100),
                 "1/1");
}

TEST_P(ModelTest, SmallBudgetsSelectWhatTheySay) {
  const auto ids = Ids(400);
  auto runner = LocalRunner::Make(files_, {.max_tokens = 400});
  ASSERT_TRUE(runner.ok());
  size_t seen = 0;
  (*runner)->model().attention().set_selection_hook(
      [&](uint32_t, uint32_t, uint32_t, bool, std::span<uint32_t> selection) {
        ++seen;
        const uint32_t last = (*runner)->position();
        ASSERT_EQ(selection.size(), 100u);
        ASSERT_TRUE(std::ranges::is_sorted(selection));
        for (uint32_t sink = 0; sink < kSinkTokens; ++sink) ASSERT_EQ(selection[sink], sink);
        for (uint32_t i = 0; i <= kRecentTokens; ++i) {
          ASSERT_EQ(selection[selection.size() - 1 - i], last - i);
        }
      });
  (*runner)->Forward(std::span(ids).first(390), RowBudget{});
  for (size_t t = 390; t < 400; ++t) {
    (*runner)->Forward(std::span(ids).subspan(t, 1), {.rows = 100});
  }
  EXPECT_EQ(seen, 10u * files_.config.layers * files_.config.kv_heads);
}

// Eight sequences in one forward pass, over scattered blocks of one pool, give what each gives
// alone.
TEST_P(ModelTest, BatchDoesNotMatter) {
  constexpr size_t kSequences = 8;
  const uint32_t pool_blocks = 64;
  const RowLayout layout = files_.Layout(pool_blocks);
  std::vector<std::byte> pool(layout.pool_bytes(), std::byte{0xff});  // NaN: nothing is written
  auto device = Device::Make(files_, {.device_bytes = size_t{1} << 30,
                                      .max_batch = kSequences,
                                      .prefill_unit_tokens = 1024,
                                      .threads = 2,
                                      .row_layout = layout,
                                      .row_pool = pool.data()});
  ASSERT_TRUE(device.ok()) << device.status();
  std::vector<uint32_t> free_blocks(pool_blocks);
  std::iota(free_blocks.begin(), free_blocks.end(), 0u);
  std::ranges::shuffle(free_blocks, std::mt19937(5));
  struct State {
    std::vector<uint32_t> ids, blocks;
    std::vector<std::byte*> pages;
    uint32_t prompt, position = 0;
    RowBudget budget;
    Logits logits;
  };
  std::vector<State> states(kSequences);
  for (size_t i = 0; i < kSequences; ++i) {
    State& s = states[i];
    s.prompt = static_cast<uint32_t>(20 + 37 * i);
    s.ids = RandomIds(s.prompt + 6, files_.config.vocab_size, 100 + i);
    for (size_t b = 0; b * kBlockTokens < s.ids.size(); ++b) {
      s.blocks.push_back(free_blocks.back());
      free_blocks.pop_back();
    }
    ASSERT_TRUE(device->labels->Take(static_cast<uint32_t>(s.blocks.size()), s.pages));
    if (i % 2 == 0) s.budget = {.rows = 75};
  }
  auto step = [&](auto tokens_of) {
    std::vector<StepItem> items;
    for (State& s : states) {
      const uint32_t tokens = tokens_of(s);
      items.push_back({.ids = std::span(s.ids).subspan(s.position, tokens),
                       .position = s.position,
                       .blocks = s.blocks.data(),
                       .label_pages = s.pages.data(),
                       .budget = s.position < s.prompt ? RowBudget{} : s.budget});
    }
    device->model->BeginStep(StepKind::kPrompt);
    device->model->Forward(items);
    device->model->EndStep();
    uint32_t token = 0;
    for (State& s : states) {
      const uint32_t tokens = tokens_of(s);
      for (uint32_t t = 0; t < tokens; ++t) {
        const float* logits = device->model->Logits(token++, 1);
        s.logits.emplace_back(logits, logits + files_.config.vocab_size);
      }
    }
    for (State& s : states) s.position += tokens_of(s);
  };
  // The prompts in two passes, then six decode steps together.
  for (int half = 0; half < 2; ++half) {
    step([&](State& s) { return half == 0 ? s.prompt / 2 : s.prompt - s.position; });
  }
  for (int i = 0; i < 6; ++i) step([](State&) { return 1u; });

  for (State& s : states) {
    const How alone = {.chunk = 512, .budget = s.budget};
    ExpectSameBits(s.logits, RunLocal(files_, s.ids, alone, s.budget.dense() ? SIZE_MAX : s.prompt),
                   "a batch");
    device->labels->Return(s.pages);
  }
  EXPECT_EQ(device->labels->free_pages(), device->labels->total_pages());
}

INSTANTIATE_TEST_SUITE_P(Shapes, ModelTest, testing::Range(size_t{0}, Shapes().size()));

TEST(CodesTest, CudaDevicesRefuseThemByTheField) {
  const RandomCheckpoint codes({.gptq = true}, 4), floats({}, 4);
  EXPECT_EQ(
      codes.files().CheckCuda().message(),
      codes.dir() +
          "/config.json: quantization_config.quant_method \"gptq\" is not supported with CUDA "
          "devices");
  EXPECT_TRUE(floats.files().CheckCuda().ok());
  EXPECT_EQ(BackendFor("auto", codes.files()), BackendKind::kCpu);
  EXPECT_EQ(BackendFor("cuda", codes.files()), BackendKind::kCuda);
  auto runner = LocalRunner::Make(codes.files(), {.max_tokens = 8, .backend = BackendKind::kCuda});
  EXPECT_EQ(runner.status().message(), codes.files().CheckCuda().message());
}

TEST(MemoryPlanTest, IsWhatTheArenaHolds) {
  RandomCheckpoint checkpoint({.context = 4096}, 3);
  for (size_t budget : {size_t{2} << 20, size_t{8} << 20, size_t{64} << 20}) {
    auto device = Device::Make(checkpoint.files(), {.device_bytes = budget,
                                                    .max_batch = 16,
                                                    .prefill_unit_tokens = 256,
                                                    .threads = 1,
                                                    .row_layout = checkpoint.files().Layout(1)});
    if (!device.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(device.status())) << device.status();
      continue;
    }
    const size_t page = device->labels->page_bytes();
    const size_t most = 4096 / kBlockTokens * 16;
    EXPECT_LE(device->arena->used_bytes(), budget);
    // Nothing is left that one more page would have needed, unless a full batch has all it can use.
    EXPECT_TRUE(device->plan.label_pages == most || device->arena->free_bytes() < page + 1280)
        << device->plan.label_pages << " pages, " << device->arena->free_bytes() << " free";
  }
}

}  // namespace
}  // namespace sparsekv
