#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cli/eval/policies/key_history.h"

namespace sparsekv {

// Which (layer, KV head) a policy works for, and its sizes.
struct HeadShape {
  uint32_t layer = 0, kv_head = 0;
  uint32_t head_dim = 0;
  uint32_t group = 0;        // query heads that share the KV head
  uint32_t value_bytes = 2;  // of one number of a row
  float scale = 1;           // of a score before softmax

  size_t key_bytes() const { return size_t{head_dim} * value_bytes; }
  size_t row_bytes() const { return 2 * key_bytes(); }
};

// What a token is, for policies that look at the text.
enum class TokenKind : uint8_t { kOther, kSpecial, kPunctuation };

// What is known when the prompt has been computed, all of it densely. Outlives the steps.
struct PromptStatistics {
  const KeyHistory* keys = nullptr;  // of the prompt's tokens
  // Attention that each token got from the prompt's queries (a sample of them, scaled up), mean
  // over the group; empty when no policy asked for it.
  std::span<const float> attention;
  // Attention of each of the prompt's last queries, mean over the group, that of the last token
  // last: [queries][tokens up to the query's]. Empty when no policy asked for it.
  std::span<const std::vector<float>> last_attention;
  const std::vector<TokenKind>* kinds = nullptr;  // of every token so far, in steps too
};

// One decode step of one head. The current token's key is the last of `keys`.
struct HeadStep {
  const float* q = nullptr;          // [group, head_dim], after rotary embedding
  const float* predicted = nullptr;  // guessed from the layer before; null where there is none
  const KeyHistory* keys = nullptr;
  uint32_t rows = 0;  // that the budget allows, 1 .. tokens()

  uint32_t tokens() const { return keys->tokens(); }
};

// What is attended instead of everything.
struct HeadSelection {
  std::vector<uint32_t> rows;  // ascending, each once, never empty
  size_t index_bytes = 0;      // read to choose them, beside the rows themselves
  // How far from the query a row stands, for policies that move them; empty: where it is.
  std::vector<uint32_t> distances;  // [rows]
  // Share of the result that the rows give; the rest is the mean of all values. Empty: all of it.
  std::vector<float> share;  // [group]

  void Clear() { *this = HeadSelection(); }
};

// A rule that chooses, for one (layer, KV head), which rows are attended. May keep statistics of
// past steps. A new object, or Begin, for every sequence; one thread.
class HeadPolicy {
 public:
  virtual ~HeadPolicy() = default;

  // Before the first step.
  virtual void Begin(const PromptStatistics& prompt) { (void)prompt; }
  // Back to the end of the prompt, of so many tokens, that Begin saw, as if no step had been.
  // False: cannot, and needs Begin on a new object.
  virtual bool Rewind(uint32_t tokens) {
    (void)tokens;
    return false;
  }
  // Before Select, every head of a layer once: for policies whose heads decide together.
  virtual void Look(const HeadStep& step) { (void)step; }
  // Once per step and token, in order.
  virtual void Select(const HeadStep& step, HeadSelection* selection) = 0;
  // What Select will have read beside rows, with so many tokens present: for budgets in bytes.
  virtual size_t IndexBytes(uint32_t tokens) const {
    (void)tokens;
    return 0;
  }
};

}  // namespace sparsekv
