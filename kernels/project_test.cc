#include <gtest/gtest.h>

#include <array>

#include "kernels/test_cases.h"

// Several operations in one (project.h, rotate_append.h) against the same ones by themselves.
namespace sparsekv::testing {
namespace {

class ProjectTest : public BackendTest {
 protected:
  // RmsNorm on the reference.
  Output<float> Normed(const Shared<float>& x, uint32_t tokens, const Weights& norm) {
    Output<float> normed(x.size());
    reference().RmsNorm(
        {.x = x.data(), .tokens = tokens, .weight = norm.view, .out = normed.data()});
    return normed;
  }
  Output<float> Product(const Output<float>& x, uint32_t tokens, const Weights& weight) {
    Output<float> y(size_t{tokens} * weight.view.rows);
    reference().Linear({.x = x.data(), .tokens = tokens, .weight = weight.view, .y = y.data()});
    return y;
  }
  static Weights Matrix(Random& random, DType dtype, uint32_t rows, uint32_t cols) {
    return Weights(random, dtype, rows, cols, 1 / std::sqrt(static_cast<float>(cols)));
  }
};
SPARSEKV_ON_EVERY_BACKEND(ProjectTest);

struct Shape {
  uint32_t tokens, hidden, width;
  DType dtype;
};
constexpr Shape kShapes[] = {{1, 1024, 96, DType::kBF16},
                             {3, 129, 40, DType::kF16},
                             {8, 512, 130, DType::kBF16},
                             {17, 100, 24, DType::kF32},
                             {64, 256, 48, DType::kF16},
                             {300, 72, 33, DType::kBF16},
                             // More outputs than a device has multiprocessors for their tiles.
                             {17, 72, 4301, DType::kBF16},
                             {33, 136, 4300, DType::kF16}};

TEST_P(ProjectTest, ProjectsTheNormedInput) {
  Random random(81);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(::testing::Message() << shape.tokens << " tokens of " << shape.hidden);
    const Weights norm(random, shape.dtype, 1, shape.hidden, 1.0f);
    const Weights q = Matrix(random, shape.dtype, 4 * shape.width, shape.hidden);
    const Weights k = Matrix(random, shape.dtype, shape.width, shape.hidden);
    const Weights v = Matrix(random, shape.dtype, shape.width, shape.hidden);
    const Shared<float> x = random.Normals(size_t{shape.tokens} * shape.hidden, 3.0f);
    const Output<float> expected_norm = Normed(x, shape.tokens, norm);
    for (StepKind kind : Kinds()) {
      Output<float> normed(x.size());
      Output<float> got_q(size_t{4} * shape.tokens * shape.width);
      Output<float> got_k(size_t{shape.tokens} * shape.width), got_v(got_k.size());
      const ProjectArgs::Output outputs[] = {
          {q.view, got_q.data()}, {k.view, got_k.data()}, {v.view, got_v.data()}};
      InStep(backend(), kind, [&] {
        backend().Project({.x = x.data(),
                           .tokens = shape.tokens,
                           .norm = norm.view,
                           .normed = normed.data(),
                           .outputs = outputs});
      });
      EXPECT_TRUE(normed.MarginsUntouched());
      const float tolerance = ProductTolerance(2e-5f, kind);
      ExpectNear(got_q, Product(expected_norm, shape.tokens, q), tolerance);
      ExpectNear(got_k, Product(expected_norm, shape.tokens, k), tolerance);
      ExpectNear(got_v, Product(expected_norm, shape.tokens, v), tolerance);
    }
  }
}

TEST_P(ProjectTest, GateUpIsSwiGluOfTwoProducts) {
  Random random(82);
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(::testing::Message() << shape.tokens << " tokens of " << shape.hidden);
    const Weights norm(random, shape.dtype, 1, shape.hidden, 1.0f);
    const Weights gate = Matrix(random, shape.dtype, shape.width, shape.hidden);
    const Weights up = Matrix(random, shape.dtype, shape.width, shape.hidden);
    const Shared<float> x = random.Normals(size_t{shape.tokens} * shape.hidden, 3.0f);
    const Output<float> expected_norm = Normed(x, shape.tokens, norm);
    Output<float> expected = Product(expected_norm, shape.tokens, gate);
    const Output<float> expected_up = Product(expected_norm, shape.tokens, up);
    reference().SwiGlu({.gate = expected.data(),
                        .up = expected_up.data(),
                        .tokens = shape.tokens,
                        .width = shape.width});
    for (StepKind kind : Kinds()) {
      Output<float> normed(x.size()), spare(expected.size()), got(expected.size());
      InStep(backend(), kind, [&] {
        backend().GateUp({.x = x.data(),
                          .tokens = shape.tokens,
                          .norm = norm.view,
                          .gate = gate.view,
                          .up = up.view,
                          .normed = normed.data(),
                          .spare = spare.data(),
                          .out = got.data()});
      });
      EXPECT_TRUE(normed.MarginsUntouched() && spare.MarginsUntouched());
      ExpectNear(got, expected, 2 * ProductTolerance(2e-5f, kind));
    }
  }
}

// A step of two sequences with a token between them that belongs to neither. The second one's rows
// go to two places, in one of them to slots.
struct Appended {
  Appended(Random& random, DType dtype, uint32_t first_tokens)
      : kv_heads(random.Between(1, 4)),
        heads(kv_heads * random.Between(1, 4)),
        head_dim(random.Pick({16u, 64u, 128u})),
        spans{{.first = 0, .tokens = first_tokens, .position = random.Between(0, 100)},
              {.first = first_tokens + 1, .tokens = 1, .position = random.Between(0, 300)}},
        tokens(first_tokens + 2),
        ends{spans[0].position + spans[0].tokens, spans[1].position + 1},
        rows(random, kv_heads, head_dim, dtype, {ends[0], ends[1], 200}),
        labels(kv_heads, 5, ends, kLabelFormats[random.Between(0, 3)]),
        channels(Labels::Channels(random, kv_heads, head_dim, 5)),
        slots(2 * kv_heads) {
    for (uint32_t& slot : slots) slot = random.Between(0, 199);
    row_items = {{spans[0], rows.Table(0)},
                 {spans[1], rows.Table(1)},
                 {spans[1], rows.Table(2), slots.data(), 2}};
    label_items = {{spans[0], labels.Table(0)}, {spans[1], labels.Table(1)}};
  }

  AppendLabelsArgs LabelArgs(const float* k) const {
    return {.k = k,
            .kv_heads = kv_heads,
            .head_dim = head_dim,
            .row_dtype = rows.layout().dtype,
            .channels = channels.data(),
            .items = label_items};
  }

  uint32_t kv_heads, heads, head_dim;
  StepSpan spans[2];
  uint32_t tokens;
  std::vector<uint32_t> ends;
  Rows rows;
  Labels labels;
  Shared<uint16_t> channels;
  Shared<uint32_t> slots;
  std::vector<AppendRowsArgs::Item> row_items;
  std::vector<AppendLabelsArgs::Item> label_items;
};

TEST_P(ProjectTest, RotateAppendStoresWhatItRotates) {
  Random random(83);
  for (StepKind kind : Kinds()) {
    for (uint32_t round = 0; round < 9; ++round) {
      const DType dtype = std::array{DType::kF32, DType::kF16, DType::kBF16}[round % 3];
      const uint32_t first_tokens = kind == StepKind::kDecode ? 1 : random.Between(1, 40);
      Appended to(random, dtype, first_tokens);
      std::vector<float> frequency(to.head_dim / 2);
      for (float& f : frequency) f = std::fabs(random.Normal());
      std::vector<uint32_t> positions(to.tokens, 7);
      for (const StepSpan& span : to.spans) {
        std::iota(positions.begin() + span.first, positions.begin() + span.first + span.tokens,
                  span.position);
      }
      const size_t q_size = size_t{to.tokens} * to.heads * to.head_dim;
      const size_t k_size = size_t{to.tokens} * to.kv_heads * to.head_dim;
      const Shared<float> q_in = random.Normals(q_size), k_in = random.Normals(k_size);
      const Shared<float> v = random.Normals(k_size);
      Output<float> q(q_size), k(k_size), expected_q(q_size), expected_k(k_size);
      for (Output<float>* out : {&q, &expected_q}) std::ranges::copy(q_in, out->data());
      for (Output<float>* out : {&k, &expected_k}) std::ranges::copy(k_in, out->data());
      const Shared<std::byte> pool = to.rows.pool(), pages = to.labels.memory();
      InStep(backend(), kind, [&] {
        backend().RotateAppend({.q = q.data(),
                                .k = k.data(),
                                .v = v.data(),
                                .positions = positions,
                                .inverse_frequency = frequency,
                                .heads = to.heads,
                                .kv_heads = to.kv_heads,
                                .head_dim = to.head_dim,
                                .row_dtype = dtype,
                                .channels = to.channels.data(),
                                .rows = to.row_items,
                                .labels = to.label_items});
      });
      RopeArgs rope = {.x = expected_q.data(),
                       .positions = positions,
                       .inverse_frequency = frequency,
                       .heads = to.heads,
                       .head_dim = to.head_dim};
      reference().Rope(rope);
      rope.x = expected_k.data();
      rope.heads = to.kv_heads;
      reference().Rope(rope);
      ExpectNear(q, expected_q, Tolerance(1e-6f, 5e-6f));
      ExpectNear(k, expected_k, Tolerance(1e-6f, 5e-6f));
      // Of the keys that it made itself: the very bits.
      const Shared<std::byte> got_pool = to.rows.pool(), got_pages = to.labels.memory();
      std::ranges::copy(pool, to.rows.pool().begin());
      std::ranges::copy(pages, to.labels.memory().begin());
      reference().AppendRows({.k = k.data(), .v = v.data(), .items = to.row_items});
      reference().AppendLabels(to.LabelArgs(k.data()));
      EXPECT_TRUE(got_pool == to.rows.pool());
      EXPECT_TRUE(got_pages == to.labels.memory());
    }
  }
}

}  // namespace
}  // namespace sparsekv::testing
