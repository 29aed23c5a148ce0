#include <gtest/gtest.h>

#include "kernels/test_cases.h"

// The invariance rule (backend.h): what is computed for a token has the same bits alone or in a
// batch, in one chunk or several, on one thread or more, dense or over a selection of everything.
namespace sparsekv::testing {
namespace {

class InvarianceTest : public CpuTest {
 protected:
  // The same instruction set with another number of threads.
  Backend& other_threads() { return *other_threads_; }

 private:
  void SetUp() override {
    CpuTest::SetUp();
    other_threads_ = MakeCpuBackend(GetParam().threads == 1 ? 2 : 1);
  }

  std::unique_ptr<Backend> other_threads_;
};
SPARSEKV_ON_EVERY_CPU(InvarianceTest);

TEST_P(InvarianceTest, Linear) {
  Random random(61);
  const uint32_t tokens = 103;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (uint32_t inputs : {50u, 256u, 2112u}) {
      const uint32_t outputs = random.Between(20, 80);
      const Weights weight(random, dtype, outputs, inputs, 1.0f);
      const std::vector<float> x = random.Normals(size_t{tokens} * inputs);
      Output<float> whole(size_t{tokens} * outputs);
      LinearArgs args{.x = x.data(), .tokens = tokens, .weight = weight.view, .y = whole.data()};
      cpu().Linear(args);
      Output<float> again(whole.size());
      args.y = again.data();
      other_threads().Linear(args);
      ExpectSameBits(again.data(), whole.data(), whole.size(), "other threads");
      for (uint32_t chunk : {1u, 2u, 3u, 5u, 7u, 8u, 50u, 97u}) {
        Output<float> part(size_t{chunk} * outputs);
        const uint32_t first = random.Between(0, tokens - chunk);
        args.x = x.data() + size_t{first} * inputs;
        args.tokens = chunk;
        args.y = part.data();
        cpu().Linear(args);
        ExpectSameBits(part.data(), whole.data() + size_t{first} * outputs, part.size(), "chunk");
      }
    }
  }
}

TEST_P(InvarianceTest, TokenwiseOperations) {
  Random random(62);
  const uint32_t tokens = 37;
  const uint32_t width = 1003;
  const Weights weight(random, DType::kBF16, 1, width, 1.0f);
  const std::vector<float> x = random.Normals(size_t{tokens} * width);
  Output<float> norm(x.size());
  Output<float> gate(x.size());
  std::copy(x.begin(), x.end(), gate.data());
  cpu().RmsNorm({.x = x.data(), .tokens = tokens, .weight = weight.view, .out = norm.data()});
  cpu().SwiGlu({.gate = gate.data(), .up = norm.data(), .tokens = tokens, .width = width});
  for (uint32_t t = 0; t < tokens; ++t) {
    const size_t at = size_t{t} * width;
    Output<float> alone(width);
    other_threads().RmsNorm(
        {.x = x.data() + at, .tokens = 1, .weight = weight.view, .out = alone.data()});
    ExpectSameBits(alone.data(), norm.data() + at, width, "norm alone");
    std::copy_n(x.data() + at, width, alone.data());
    other_threads().SwiGlu(
        {.gate = alone.data(), .up = norm.data() + at, .tokens = 1, .width = width});
    ExpectSameBits(alone.data(), gate.data() + at, width, "swiglu alone");
  }
}

// One prompt in a pool, its queries, and its dense attention computed in one call.
struct Prompt {
  Prompt(Backend& backend, Random& random, uint32_t kv_heads_in, uint32_t group_in,
         uint32_t head_dim_in, DType dtype, uint32_t tokens_in)
      : kv_heads(kv_heads_in),
        group(group_in),
        head_dim(head_dim_in),
        tokens(tokens_in),
        width(size_t{kv_heads} * group * head_dim),
        rows(random, kv_heads, head_dim, dtype, {tokens}),
        q(random.Normals(tokens * width, 2.0f)),
        whole(tokens * width) {
    rows.Fill(random, 0, tokens);
    Attend(backend, 0, tokens, whole.data());
  }

  AttendArgs Args(const float* first_q, float* out) const {
    return {.q = first_q,
            .out = out,
            .kv_heads = kv_heads,
            .group = group,
            .head_dim = head_dim,
            .scale = 0.2f};
  }

  // Tokens [first, first + count) as a step of their own.
  void Attend(Backend& backend, uint32_t first, uint32_t count, float* out) {
    const std::vector<AttendArgs::Item> items = {
        {.span = {.tokens = count, .position = first}, .rows = rows.Table(0)}};
    AttendArgs args = Args(q.data() + first * width, out);
    args.items = items;
    backend.Attend(args);
  }

  void ExpectSame(const Output<float>& got, uint32_t first, const char* what) const {
    EXPECT_TRUE(got.MarginsUntouched());
    ExpectSameBits(got.data(), whole.data() + first * width, got.size(), what);
  }

  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t tokens;
  size_t width;
  Rows rows;
  std::vector<float> q;
  Output<float> whole;
};

void CheckPrompt(Backend& cpu, Backend& other, Random& random, Prompt& prompt) {
  // Chunks of any size.
  for (uint32_t first = 0; first < prompt.tokens;) {
    const uint32_t count = std::min(random.Between(1, 300), prompt.tokens - first);
    Output<float> chunk(count * prompt.width);
    prompt.Attend(random.Between(0, 1) ? cpu : other, first, count, chunk.data());
    prompt.ExpectSame(chunk, first, "chunk");
    first += count;
  }
  // Single tokens, dense and as selections of all rows.
  std::vector<uint32_t> all(prompt.kv_heads * size_t{prompt.tokens});
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint32_t>(i % prompt.tokens);
  for (uint32_t t : {0u, 1u, 63u, 64u, 65u, 1022u, 1023u, 1024u, 1087u, prompt.tokens - 1}) {
    if (t >= prompt.tokens) continue;
    for (Backend* backend : {&cpu, &other}) {
      Output<float> alone(prompt.width);
      prompt.Attend(*backend, t, 1, alone.data());
      prompt.ExpectSame(alone, t, "alone");
      Output<float> selected(prompt.width);
      const std::vector<AttendArgs::Item> items = {{.span = {.tokens = 1, .position = t},
                                                    .rows = prompt.rows.Table(0),
                                                    .selection = all.data(),
                                                    .count = t + 1}};
      AttendArgs args = prompt.Args(prompt.q.data() + t * prompt.width, selected.data());
      args.selection_stride = prompt.tokens;
      args.items = items;
      backend->Attend(args);
      prompt.ExpectSame(selected, t, "selection of all rows");
    }
  }
}

TEST_P(InvarianceTest, AttentionInChunksAndOverFullSelections) {
  Random random(63);
  Prompt narrow(cpu(), random, 1, 1, 8, DType::kF32, 2100);
  CheckPrompt(cpu(), other_threads(), random, narrow);
  Prompt grouped(cpu(), random, 2, 5, 24, DType::kF16, 1200);
  CheckPrompt(cpu(), other_threads(), random, grouped);
  Prompt wide(cpu(), random, 1, 3, 136, DType::kBF16, 1100);
  CheckPrompt(cpu(), other_threads(), random, wide);
}

TEST_P(InvarianceTest, AttentionInABatch) {
  Random random(64);
  const uint32_t length = 1500;
  const uint32_t batch = 8;
  Rows rows(random, 2, 64, DType::kBF16, std::vector<uint32_t>(batch, length));
  const size_t width = 2 * 2 * 64;
  const std::vector<float> q = random.Normals(batch * width);
  std::vector<AttendArgs::Item> items;
  for (uint32_t i = 0; i < batch; ++i) {
    rows.Fill(random, i, length);
    items.push_back({.span = {.first = i, .tokens = 1, .position = random.Between(0, length - 1)},
                     .rows = rows.Table(i)});
  }
  AttendArgs args{.q = q.data(), .kv_heads = 2, .group = 2, .head_dim = 64, .scale = 0.125f};
  Output<float> together(batch * width);
  args.out = together.data();
  args.items = items;
  cpu().Attend(args);
  for (uint32_t i = 0; i < batch; ++i) {
    Output<float> alone(width);
    AttendArgs::Item item = items[i];
    item.span.first = 0;
    args.q = q.data() + i * width;
    args.out = alone.data();
    args.items = {&item, 1};
    cpu().Attend(args);
    ExpectSameBits(alone.data(), together.data() + i * width, width, "alone");
  }
}

TEST_P(InvarianceTest, ScoresInABatch) {
  Random random(65);
  const std::vector<uint32_t> lengths = {70, 9000, 64, 4097, 1, 300};
  const auto batch = static_cast<uint32_t>(lengths.size());
  const size_t stride = 9000;
  Labels labels(2, 8, lengths);
  const std::vector<uint16_t> channels = Labels::Channels(random, 2, 64, 8);
  const std::vector<float> q = random.Normals(batch * 2 * 3 * 64);
  for (uint32_t i = 0; i < batch; ++i) labels.Fill(random, i, lengths[i]);
  for (Pooling pooling : {Pooling::kMaxNormalised, Pooling::kSum, Pooling::kSoftmaxMass}) {
    ScoreLabelsArgs args{.q = q.data(),
                         .kv_heads = 2,
                         .group = 3,
                         .head_dim = 64,
                         .channels = channels.data(),
                         .pooling = pooling,
                         .score_stride = stride};
    Output<float> together(batch * 2 * stride);
    std::vector<ScoreLabelsArgs::Item> items;
    for (uint32_t i = 0; i < batch; ++i) {
      items.push_back({.query = i,
                       .tokens = lengths[i],
                       .labels = labels.Table(i),
                       .scores = together.data() + i * 2 * stride});
    }
    args.items = items;
    cpu().ScoreLabels(args);
    for (uint32_t i = 0; i < batch; ++i) {
      Output<float> alone(2 * stride);
      ScoreLabelsArgs::Item item = items[i];
      item.scores = alone.data();
      args.items = {&item, 1};
      other_threads().ScoreLabels(args);
      ExpectSameBits(alone.data(), together.data() + i * 2 * stride, 2 * stride, "alone");
    }
  }
}

TEST_P(InvarianceTest, Rope) {
  Random random(66);
  std::vector<float> frequency(32);
  for (float& f : frequency) f = std::fabs(random.Normal());
  std::vector<uint32_t> positions(40);
  for (uint32_t& position : positions) position = random.Between(0, 100000);
  const std::vector<float> x = random.Normals(40 * 64);
  Output<float> together(x.size());
  std::copy(x.begin(), x.end(), together.data());
  RopeArgs args{.x = together.data(),
                .positions = positions,
                .inverse_frequency = frequency,
                .heads = 1,
                .head_dim = 64};
  cpu().Rope(args);
  for (size_t t = 0; t < positions.size(); ++t) {
    Output<float> alone(64);
    std::copy_n(x.data() + t * 64, 64, alone.data());
    args.x = alone.data();
    args.positions = {&positions[t], 1};
    other_threads().Rope(args);
    ExpectSameBits(alone.data(), together.data() + t * 64, 64, "alone");
  }
}

}  // namespace
}  // namespace sparsekv::testing
