#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace sparsekv::tokenizer {

// A token that is found in the text as a whole, beside the model's own vocabulary.
struct AddedToken {
  uint32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character stands beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
  bool normalized = true;    // looked for in normalised text, in its own normalised form
  bool special = false;      // skipped when decoding for people
};

// Finds added tokens in a text: at each place the longest one, from left to right, without overlap
// (also not with white space that a token took along). Takes O(text * longest token) steps.
// Immutable, thread-safe.
class AddedTokenFinder {
 public:
  struct Section {
    std::string_view text;          // not empty unless `token` is set
    std::optional<uint32_t> token;  // the id of the added token that the text is
  };

  AddedTokenFinder() = default;
  // The contents are what is looked for. REQUIRES: no content is empty.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // The text as added tokens and what is between them, in order; views into the text.
  std::vector<Section> Cut(std::string_view text) const;

 private:
  // Index of the longest token that the text starts with.
  std::optional<uint32_t> LongestAtStart(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  // A trie over bytes. Node 0 is the root; a node holds the index into tokens_ of what ends there.
  std::vector<std::optional<uint32_t>> nodes_ = {std::nullopt};
  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // EdgeKey(node, byte) -> node
};

}  // namespace sparsekv::tokenizer
