#pragma once

#include <array>
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

// Finds added tokens in a text: at each place the longest one, from left to right, without overlap.
// (White space that a token took along may still be an added token itself.) Takes time in
// proportion to the text, whatever it and the tokens are: an Aho-Corasick automaton over the
// reversed tokens reads the text backwards and so knows the longest token that begins at each
// place. Immutable, thread-safe.
class AddedTokenFinder {
 public:
  struct Section {
    std::string_view text;          // not empty unless `token` is set
    std::optional<uint32_t> token;  // the id of the added token that the text is
  };

  AddedTokenFinder() = default;
  // The contents are what is looked for; of equal ones the first counts. REQUIRES: no content is
  // empty; all together have less than 2^31 bytes.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // The text as added tokens and what is between them, in order; views into the text.
  std::vector<Section> Cut(std::string_view text) const;

 private:
  struct Node {
    uint32_t fallback = 0;  // the node of the longest other start of a token that ends here
    uint32_t token;         // index into tokens_ of the longest token that ends here, or kNone
  };
  struct Match {
    size_t begin;
    uint32_t token;  // index into tokens_
  };

  void AddToTrie(uint32_t token);
  void LinkNodes();
  uint32_t Step(uint32_t node, char byte) const;
  // The longest token at each place where one begins, the last place first.
  std::vector<Match> FindAll(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;                        // node 0 is the root
  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // EdgeKey(node, byte) -> node
  std::array<uint32_t, 256> root_edges_{};         // the same for the root; 0 for none
};

}  // namespace sparsekv::tokenizer
