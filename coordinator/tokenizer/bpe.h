#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace sparsekv::tokenizer {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

// Vocabulary: a token's text to its id.
using TokenIds = absl::flat_hash_map<std::string, uint32_t, TextHash, std::equal_to<>>;

// `left` and `right` beside each other may become `result`. A merge's rank is its place in the
// list; lower ranks merge first.
struct Merge {
  uint32_t left;
  uint32_t right;
  uint32_t result;
};

struct BpeOptions {
  bool byte_symbols = false;   // words start as bytes; otherwise as UTF-8 characters
  bool byte_fallback = false;  // a character without a token becomes the tokens <0xHH> of its bytes
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  bool fuse_unk = false;       // neighbouring unknown characters become one unknown token
  std::optional<uint32_t> unk;
};

// Byte-pair encoding of one word at a time. Merging takes O(n log n) for a word of n bytes,
// whatever they are. Immutable, thread-safe; the buffers of a call are the caller's.
class Bpe {
 public:
  // Working memory, reused from word to word by one thread.
  class Buffers {
    friend class Bpe;
    struct Symbol {
      uint32_t id;
      uint32_t previous;  // indices into symbols, kNone at the ends
      uint32_t next;
    };
    struct Candidate {
      uint32_t rank;
      uint32_t left;    // index of the left symbol
      uint32_t result;  // what the pair would become
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> candidates;  // a heap
  };

  // With byte_symbols the keys of `vocabulary` are bytes, not characters that stand for bytes.
  // REQUIRES: the ids in `merges` and `options` are those of `vocabulary`.
  Bpe(TokenIds vocabulary, const std::vector<Merge>& merges, const BpeOptions& options);

  // Appends the word's ids. InvalidArgument for a character that has no token when there is neither
  // a byte fallback nor an unknown token for it. REQUIRES: word.size() < 2^31.
  absl::Status EncodeWord(std::string_view word, Buffers* buffers,
                          std::vector<uint32_t>* ids) const;

 private:
  struct RankedResult {
    uint32_t rank;
    uint32_t result;
  };

  absl::Status MakeSymbols(std::string_view word, Buffers* buffers) const;
  bool AppendFallback(std::string_view character, Buffers* buffers) const;
  void MergeAll(Buffers* buffers) const;
  const RankedResult* FindMerge(uint32_t left, uint32_t right) const;

  TokenIds vocabulary_;
  BpeOptions options_;
  absl::flat_hash_map<uint64_t, RankedResult> merges_;  // key: PairKey(left, right)
  std::vector<uint32_t> byte_ids_;                      // of byte symbols or fallbacks; or kNone
};

}  // namespace sparsekv::tokenizer
