#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cli/eval/policies/head_policy.h"
#include "kernels/label_codes.h"
#include "kernels/labels.h"
#include "kernels/select.h"

// Every policy's options, which default to its paper's, and how one is made. README.md says what
// each does, and where it had to be settled for KV heads with several query heads.
namespace sparsekv {

// Rows that are taken whatever their scores.
struct AlwaysRows {
  uint32_t sinks = kSinkTokens;
  uint32_t recent = kRecentTokens + 1;  // the current one among them
};

// The rows with the most of the dense attention: no selection of so many captures more.
std::unique_ptr<HeadPolicy> MakeOracle(const HeadShape& shape);

// Other rows in each step.
std::unique_ptr<HeadPolicy> MakeRandom(const HeadShape& shape, AlwaysRows always, uint64_t seed);

struct DoubleSparsityOptions {
  std::span<const uint16_t> channels;  // that are labels, of this head
  Pooling pooling = Pooling::kMaxNormalised;
  LabelFormat format = LabelFormat::kBf16;  // of codes: the worker's own labels, whatever `bits` is
  uint32_t bits = 16;  // of a label's number: 16 = bf16; else 2, 4 or 8 with a scale and a zero
  uint32_t query_bits = 16;  // of the query at these channels; 16 = as it is, else as labels
  bool cosine = false;       // labels are divided by their norm
  bool offload = false;      // what the previous layer's input predicts, and the current row
  bool corrected = true;     // offload: and then what the true query says
  AlwaysRows always;
};
std::unique_ptr<HeadPolicy> MakeDoubleSparsity(const HeadShape& shape,
                                               const DoubleSparsityOptions& options);

// Double sparsity whose layers take as many rows as hold `target` of dense attention, up to the
// budget: the worker's rule (gpu_worker/sequence_recall.h). [layers, kv_heads], by layer.
std::vector<std::unique_ptr<HeadPolicy>> MakeAdaptive(
    std::span<const HeadShape> shapes, std::span<const DoubleSparsityOptions> options,
    double target);

// How far StreamingLLM's first tokens stand from the query.
enum class SinkDistance : uint8_t {
  kCache,    // as if the cache were the text (StreamingLLM)
  kCeiling,  // as in the text, but no farther than the cache is long (LM-Infinite)
  kText,
};
std::unique_ptr<HeadPolicy> MakeStreaming(uint32_t sinks, SinkDistance distance);

// The last rows, every `dilation`-th, and the first `globals`.
std::unique_ptr<HeadPolicy> MakeWindow(uint32_t globals, uint32_t dilation);

// Half of the rows (`recent` of them) are the last; the others are those with the most attention so
// far. What falls out never comes back.
std::unique_ptr<HeadPolicy> MakeH2o(const HeadShape& shape, double recent);

struct ScissorhandsOptions {
  uint32_t history = 400;  // steps that are looked at
  uint32_t recent = 10;    // rows that are never dropped
  double drop = 0.5;       // share of the budget that is dropped when it is full
};
std::unique_ptr<HeadPolicy> MakeScissorhands(const HeadShape& shape,
                                             const ScissorhandsOptions& options);

struct SparqOptions {
  uint32_t channels = 0;  // r; 0 = head_dim / 8
  double local = 0.25;    // share of the rows that are the last ones
  bool mean_value = true;
};
std::unique_ptr<HeadPolicy> MakeSparq(const HeadShape& shape, const SparqOptions& options);

struct QuestOptions {
  uint32_t page = 16;
  uint32_t dense_layers = 0;  // the first ones; the paper's evaluation leaves 2
};
std::unique_ptr<HeadPolicy> MakeQuest(const HeadShape& shape, const QuestOptions& options);

// How much of the attention the cheapest cache must keep, over the last queries of the prompt.
std::unique_ptr<HeadPolicy> MakeFastGen(double recovery);

}  // namespace sparsekv
