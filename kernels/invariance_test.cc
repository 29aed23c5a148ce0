#include <gtest/gtest.h>

#include "kernels/test_cases.h"

// The invariance rule (backend.h): what is computed for a token has the same bits alone or in a
// batch, in any order, in one chunk or several, on one thread or more, dense or over a selection of
// everything; within a kind of step where a backend computes the kinds in different ways.
namespace sparsekv::testing {
namespace {

class InvarianceTest : public BackendTest {};
SPARSEKV_ON_EVERY_BACKEND(InvarianceTest);

TEST_P(InvarianceTest, Linear) {
  Random random(61);
  const uint32_t tokens = 103;
  std::vector<uint32_t> order(tokens);
  std::iota(order.begin(), order.end(), 0u);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (uint32_t inputs : {50u, 256u, 2112u}) {
      if (slow() && inputs > 256) continue;
      const uint32_t outputs = random.Between(20, 80);
      const Weights weight(random, dtype, outputs, inputs, 1.0f);
      const Shared<float> x = random.Normals(size_t{tokens} * inputs);
      for (StepKind kind : Kinds()) {
        Output<float> whole(size_t{tokens} * outputs);
        const auto run = [&](Backend& on, const float* from, uint32_t count, Output<float>& y) {
          InStep(on, kind, [&] {
            on.Linear({.x = from, .tokens = count, .weight = weight.view, .y = y.data()});
          });
        };
        run(backend(), x.data(), tokens, whole);
        Output<float> again(whole.size());
        run(other(), x.data(), tokens, again);
        ExpectSameBits(again.data(), whole.data(), whole.size(), "other threads");
        random.Shuffle(order);
        Shared<float> shuffled;
        for (uint32_t t : order) {
          shuffled.insert(shuffled.end(), x.begin() + t * inputs, x.begin() + (t + 1) * inputs);
        }
        run(backend(), shuffled.data(), tokens, again);
        for (uint32_t t = 0; t < tokens; ++t) {
          ExpectSameBits(again.data() + t * outputs, whole.data() + order[t] * outputs, outputs,
                         "another order");
        }
        for (uint32_t chunk : {1u, 2u, 3u, 5u, 7u, 8u, 9u, 16u, 50u, 97u}) {
          Output<float> part(size_t{chunk} * outputs);
          const uint32_t first = random.Between(0, tokens - chunk);
          run(backend(), x.data() + size_t{first} * inputs, chunk, part);
          ExpectSameBits(part.data(), whole.data() + size_t{first} * outputs, part.size(), "chunk");
        }
      }
    }
  }
}

TEST_P(InvarianceTest, ProjectAndGateUp) {
  Random random(67);
  const uint32_t tokens = 33, hidden = 264, width = 72;
  const Weights norm(random, DType::kBF16, 1, hidden, 1.0f);
  const Weights gate(random, DType::kBF16, width, hidden, 0.1f);
  const Weights up(random, DType::kBF16, width, hidden, 0.1f);
  const Shared<float> x = random.Normals(size_t{tokens} * hidden);
  Output<float> normed(x.size()), spare(size_t{tokens} * width);
  for (StepKind kind : Kinds()) {
    const auto run = [&](Backend& on, uint32_t first, uint32_t count, Output<float>& projected,
                         Output<float>& gated) {
      const float* from = x.data() + size_t{first} * hidden;
      const ProjectArgs::Output output = {gate.view, projected.data()};
      InStep(on, kind, [&] {
        on.Project({.x = from,
                    .tokens = count,
                    .norm = norm.view,
                    .normed = normed.data(),
                    .outputs = {&output, 1}});
        on.GateUp({.x = from,
                   .tokens = count,
                   .norm = norm.view,
                   .gate = gate.view,
                   .up = up.view,
                   .normed = normed.data(),
                   .spare = spare.data(),
                   .out = gated.data()});
      });
    };
    Output<float> projected(size_t{tokens} * width), gated(projected.size());
    run(backend(), 0, tokens, projected, gated);
    for (uint32_t chunk : {1u, 2u, 8u, 12u, 17u, tokens}) {
      const uint32_t first = random.Between(0, tokens - chunk);
      Output<float> part(size_t{chunk} * width), gated_part(part.size());
      run(other(), first, chunk, part, gated_part);
      const size_t at = size_t{first} * width;
      ExpectSameBits(part.data(), projected.data() + at, part.size(), "projected");
      ExpectSameBits(gated_part.data(), gated.data() + at, part.size(), "gated");
    }
  }
}

TEST_P(InvarianceTest, TokenwiseOperations) {
  Random random(62);
  const uint32_t tokens = 37;
  const uint32_t width = 1003;
  const Weights weight(random, DType::kBF16, 1, width, 1.0f);
  const Shared<float> x = random.Normals(size_t{tokens} * width);
  Output<float> norm(x.size());
  Output<float> gate(x.size());
  std::copy(x.begin(), x.end(), gate.data());
  backend().RmsNorm({.x = x.data(), .tokens = tokens, .weight = weight.view, .out = norm.data()});
  backend().SwiGlu({.gate = gate.data(), .up = norm.data(), .tokens = tokens, .width = width});
  for (uint32_t t = 0; t < tokens; ++t) {
    const size_t at = size_t{t} * width;
    Output<float> alone(width);
    other().RmsNorm({.x = x.data() + at, .tokens = 1, .weight = weight.view, .out = alone.data()});
    ExpectSameBits(alone.data(), norm.data() + at, width, "norm alone");
    std::copy_n(x.data() + at, width, alone.data());
    other().SwiGlu({.gate = alone.data(), .up = norm.data() + at, .tokens = 1, .width = width});
    ExpectSameBits(alone.data(), gate.data() + at, width, "swiglu alone");
  }
}

// One prompt in a pool, its queries, and its dense attention computed in one call.
struct Prompt {
  Prompt(Backend& backend, Random& random, uint32_t kv_heads_in, uint32_t group_in,
         uint32_t head_dim_in, DType dtype, uint32_t tokens_in, uint32_t window_in = 0)
      : kv_heads(kv_heads_in),
        group(group_in),
        head_dim(head_dim_in),
        tokens(tokens_in),
        window(window_in),
        width(size_t{kv_heads} * group * head_dim),
        rows(random, kv_heads, head_dim, dtype, {tokens}),
        q(random.Normals(tokens * width, 2.0f)),
        whole(tokens * width) {
    rows.Fill(random, 0, tokens);
    Attend(backend, StepKind::kPrompt, 0, tokens, whole.data());
  }

  AttendArgs Args(const float* first_q, float* out) const {
    return {.q = first_q,
            .out = out,
            .kv_heads = kv_heads,
            .group = group,
            .head_dim = head_dim,
            .scale = 0.2f,
            .window = window};
  }

  // Tokens [first, first + count) as a step of their own.
  void Attend(Backend& backend, StepKind kind, uint32_t first, uint32_t count, float* out) {
    const std::vector<AttendArgs::Item> items = {
        {.span = {.tokens = count, .position = first}, .rows = rows.Table(0)}};
    AttendArgs args = Args(q.data() + first * width, out);
    args.items = items;
    InStep(backend, kind, [&] { backend.Attend(args); });
  }

  void ExpectSame(const Output<float>& got, uint32_t first, const char* what) const {
    EXPECT_TRUE(got.MarginsUntouched());
    ExpectSameBits(got.data(), whole.data() + first * width, got.size(), what);
  }

  uint32_t kv_heads;
  uint32_t group;
  uint32_t head_dim;
  uint32_t tokens;
  uint32_t window;
  size_t width;
  Rows rows;
  Shared<float> q;
  Output<float> whole;
};

void CheckPrompt(Backend& backend, Backend& other, Random& random, Prompt& prompt) {
  // Chunks of any size.
  for (uint32_t first = 0; first < prompt.tokens;) {
    const uint32_t count = std::min(random.Between(1, 300), prompt.tokens - first);
    Output<float> chunk(count * prompt.width);
    prompt.Attend(random.Between(0, 1) ? backend : other, StepKind::kPrompt, first, count,
                  chunk.data());
    prompt.ExpectSame(chunk, first, "chunk");
    first += count;
  }
  // Single tokens, dense and as selections of all rows.
  Shared<uint32_t> all(prompt.kv_heads * size_t{prompt.tokens});
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint32_t>(i % prompt.tokens);
  for (uint32_t t : {0u, 1u, 63u, 64u, 65u, 1022u, 1023u, 1024u, 1087u, prompt.tokens - 1}) {
    if (t >= prompt.tokens) continue;
    for (Backend* on : {&backend, &other}) {
      Output<float> alone(prompt.width);
      prompt.Attend(*on, StepKind::kPrompt, t, 1, alone.data());
      prompt.ExpectSame(alone, t, "alone");
      Output<float> decoded(prompt.width);
      prompt.Attend(*on, StepKind::kDecode, t, 1, decoded.data());
      if (on->host_memory()) prompt.ExpectSame(decoded, t, "decoded");
      Output<float> selected(prompt.width);
      const uint32_t begin = FirstInWindow(t, prompt.window);
      const std::vector<AttendArgs::Item> items = {{.span = {.tokens = 1, .position = t},
                                                    .rows = prompt.rows.Table(0),
                                                    .selection = all.data() + begin,
                                                    .count = t + 1 - begin}};
      AttendArgs args = prompt.Args(prompt.q.data() + t * prompt.width, selected.data());
      args.selection_stride = prompt.tokens;
      args.items = items;
      InStep(*on, StepKind::kDecode, [&] { on->Attend(args); });
      EXPECT_TRUE(selected.MarginsUntouched());
      ExpectSameBits(selected.data(), decoded.data(), decoded.size(), "selection of all rows");
    }
  }
}

TEST_P(InvarianceTest, AttentionInChunksAndOverFullSelections) {
  Random random(63);
  const uint32_t most = slow() ? 300 : 2100;  // the reference has no splits
  Prompt narrow(backend(), random, 1, 1, 8, DType::kF32, std::min(most, 2100u));
  CheckPrompt(backend(), other(), random, narrow);
  Prompt grouped(backend(), random, 4, 5, 24, DType::kF16, std::min(most, 1200u));
  CheckPrompt(backend(), other(), random, grouped);
  Prompt wide(backend(), random, 1, 3, 136, DType::kBF16, std::min(most, 1100u));
  CheckPrompt(backend(), other(), random, wide);
}

TEST_P(InvarianceTest, AttentionInAWindow) {
  if (cuda()) GTEST_SKIP() << "no windows on this backend";
  Random random(68);
  // Four KV heads: with one thread a task takes two in turn, with three one or a split.
  for (uint32_t window : {5u, 64u, 100u, 1030u, 1600u}) {
    Prompt prompt(backend(), random, 4, random.Between(1, 4), 24, DType::kBF16, slow() ? 300 : 2100,
                  window);
    CheckPrompt(backend(), other(), random, prompt);
  }
}

TEST_P(InvarianceTest, AttentionInABatch) {
  Random random(64);
  const uint32_t length = slow() ? 150 : 1500;
  const uint32_t batch = 8;
  Rows rows(random, 2, 64, DType::kBF16, std::vector<uint32_t>(batch, length));
  const size_t width = 2 * 2 * 64;
  const Shared<float> q = random.Normals(batch * width);
  std::vector<AttendArgs::Item> items;
  for (uint32_t i = 0; i < batch; ++i) {
    rows.Fill(random, i, length);
    items.push_back({.span = {.first = i, .tokens = 1, .position = random.Between(0, length - 1)},
                     .rows = rows.Table(i)});
  }
  AttendArgs args{.q = q.data(), .kv_heads = 2, .group = 2, .head_dim = 64, .scale = 0.125f};
  for (StepKind kind : Kinds()) {
    const auto run = [&](const float* from, std::span<const AttendArgs::Item> some, float* out) {
      args.q = from;
      args.items = some;
      args.out = out;
      InStep(backend(), kind, [&] { backend().Attend(args); });
    };
    Output<float> together(batch * width);
    run(q.data(), items, together.data());
    std::vector<AttendArgs::Item> shuffled = items;
    random.Shuffle(shuffled);
    Output<float> again(batch * width);
    run(q.data(), shuffled, again.data());
    ExpectSameBits(again.data(), together.data(), together.size(), "items in another order");
    for (uint32_t i = 0; i < batch; ++i) {
      Output<float> alone(width);
      AttendArgs::Item item = items[i];
      item.span.first = 0;
      run(q.data() + i * width, {&item, 1}, alone.data());
      ExpectSameBits(alone.data(), together.data() + i * width, width, "alone");
    }
  }
}

TEST_P(InvarianceTest, ScoresInABatch) {
  Random random(65);
  const std::vector<uint32_t> lengths = {70, 9000, 64, 4097, 1, 300};
  const auto batch = static_cast<uint32_t>(lengths.size());
  const size_t stride = 9000;
  for (LabelFormat format : kLabelFormats) {
    Labels labels(2, 8, lengths, format);
    const Shared<uint16_t> channels = Labels::Channels(random, 2, 64, 8);
    const Shared<float> q = random.Normals(batch * 2 * 3 * 64);
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
      backend().ScoreLabels(args);
      for (uint32_t i = 0; i < batch; ++i) {
        Output<float> alone(2 * stride);
        ScoreLabelsArgs::Item item = items[i];
        item.scores = alone.data();
        args.items = {&item, 1};
        other().ScoreLabels(args);
        ExpectSameBits(alone.data(), together.data() + i * 2 * stride, 2 * stride, "alone");
      }
    }
  }
}

TEST_P(InvarianceTest, Rope) {
  Random random(66);
  std::vector<float> frequency(32);
  for (float& f : frequency) f = std::fabs(random.Normal());
  std::vector<uint32_t> positions(40);
  for (uint32_t& position : positions) position = random.Between(0, 100000);
  const Shared<float> x = random.Normals(40 * 64);
  Output<float> together(x.size());
  std::copy(x.begin(), x.end(), together.data());
  RopeArgs args{.x = together.data(),
                .positions = positions,
                .inverse_frequency = frequency,
                .heads = 1,
                .head_dim = 64};
  backend().Rope(args);
  for (size_t t = 0; t < positions.size(); ++t) {
    Output<float> alone(64);
    std::copy_n(x.data() + t * 64, 64, alone.data());
    args.x = alone.data();
    args.positions = {&positions[t], 1};
    other().Rope(args);
    ExpectSameBits(alone.data(), together.data() + t * 64, 64, "alone");
  }
}

}  // namespace
}  // namespace sparsekv::testing
