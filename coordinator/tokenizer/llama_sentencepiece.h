#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/tokenizer/sentencepiece.h"

namespace sparsekv::tokenizer {

// How transformers' LlamaTokenizer (the one that has no tokenizer.json) goes about a text with
// added tokens in it. legacy: each stretch between added tokens is a text of its own to the model,
// with a space before it. Otherwise only the whole text gets a space, and stretches are as they
// stand. Immutable, thread-safe.
class LlamaSentencePiece {
 public:
  // named_tokens: the ids of BOS, EOS and the other tokens that the configuration gives a role.
  LlamaSentencePiece(SentencePiece model, bool legacy, bool add_prefix_space,
                     std::vector<uint32_t> named_tokens);

  // The text in which added tokens are looked for.
  std::string Prepare(std::string_view text) const;

  // Appends the ids of a stretch between added tokens.
  void EncodeStretch(std::string_view stretch, std::vector<uint32_t>* ids) const;

  // Whether the first id of a text, an added token being the second, is a space to be dropped.
  bool IsDropped(uint32_t first, uint32_t added_token) const;

  const SentencePieceSpec& spec() const { return model_.spec(); }
  // Whether a decoded text begins with a space that was not in it.
  bool adds_space() const { return adds_space_; }

 private:
  SentencePiece model_;
  bool legacy_;
  bool adds_space_;
  std::string unknown_;        // the unknown piece, which shields a space at a stretch's start
  size_t unknown_length_ = 0;  // ids it becomes
  std::optional<uint32_t> space_id_;
  std::vector<uint32_t> named_tokens_;
};

}  // namespace sparsekv::tokenizer
