#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/sentencepiece_file.h"

namespace sparsekv::tokenizer {

// A sentencepiece model: text to ids as its own library gives them, for BPE in O(n log n) and for
// unigram models in O(n), n being bytes. Bytes that are not UTF-8 become byte pieces where there
// are any (the library turns them into U+FFFD). Immutable, thread-safe.
class SentencePiece {
 public:
  explicit SentencePiece(SentencePieceSpec spec);

  // Appends the ids of a text, normalised as the model says. REQUIRES: text.size() < 2^29.
  void Encode(std::string_view text, std::vector<uint32_t>* ids) const;

  const SentencePieceSpec& spec() const { return spec_; }
  void set_add_dummy_prefix(bool value) { spec_.add_dummy_prefix = value; }

 private:
  // A part of the text, and the id it has in the vocabulary.
  struct Token {
    std::string_view text;
    uint32_t id;
  };
  struct Edge {
    uint32_t node = 0;
    uint32_t id = UINT32_MAX;  // of the piece that ends in the node
  };
  struct Merging;  // the state of one Bpe call

  std::string Normalize(std::string_view text) const;
  std::vector<Token> Bpe(std::string_view normal) const;
  std::vector<Token> Unigram(std::string_view normal) const;
  void AddToTrie(uint32_t id);
  float ScoreOf(uint32_t id) const;
  uint32_t IdOf(std::string_view text) const;  // the unknown piece's when there is none
  bool IsUnused(uint32_t id) const {
    return spec_.pieces[id].type == SentencePieceSpec::Type::kUnused;
  }

  SentencePieceSpec spec_;
  TokenIds ids_;                               // of every piece
  std::vector<uint32_t> byte_ids_;             // with byte fallback
  AddedTokenFinder user_defined_;              // BPE: pieces that are never cut
  size_t longest_piece_ = 0;                   // BPE: bytes, of those that may be merged
  absl::flat_hash_map<uint64_t, Edge> edges_;  // unigram: a trie over the pieces' bytes
  uint32_t nodes_ = 1;
  float lowest_score_ = 0;  // of normal pieces
  float highest_score_ = 0;
};

}  // namespace sparsekv::tokenizer
