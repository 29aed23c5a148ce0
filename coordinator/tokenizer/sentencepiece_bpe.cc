#include <algorithm>
#include <utility>

#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/utf8.h"

// sentencepiece's byte-pair encoding: of all neighbours whose text together is a piece, those with
// the best piece are joined first, of equal ones the leftmost. (There is no list of merges.)
namespace sparsekv::tokenizer {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

struct Symbol {
  std::string_view text;  // empty once it was joined to the one before it
  uint32_t previous;      // indices into symbols, kNone at the ends
  uint32_t next;
  bool is_fixed;  // a user-defined piece
};

struct Candidate {
  float score;
  uint32_t left;
  uint32_t right;
  uint32_t size;  // of both texts when it was found
};

constexpr auto kLater = [](const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score < b.score : a.left > b.left;
};

}  // namespace

struct SentencePiece::Merging {
  const SentencePiece& model;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  // What unused pieces were made of, so that they can be taken apart again.
  absl::flat_hash_map<std::string_view, size_t> size_of_left;

  void Cut(std::string_view normal) {
    for (const AddedTokenFinder::Section& section : model.user_defined_.Cut(normal)) {
      std::string_view rest = section.text;
      while (!rest.empty()) {
        const size_t length = section.token ? rest.size() : FirstUtf8Char(rest).length;
        const uint32_t index = static_cast<uint32_t>(symbols.size());
        symbols.push_back(
            {rest.substr(0, length), index - 1, index + 1, section.token.has_value()});
        rest.remove_prefix(length);
      }
    }
    if (!symbols.empty()) symbols.back().next = kNone;
  }

  // Whether the two would make a piece; if so, they are in the heap.
  bool Offer(uint32_t left, uint32_t right) {
    if (left == kNone || right == kNone) return false;
    if (symbols[left].is_fixed || symbols[right].is_fixed) return false;
    const std::string_view text(symbols[left].text.data(),
                                symbols[left].text.size() + symbols[right].text.size());
    if (text.size() > model.longest_piece_) return false;
    const auto found = model.ids_.find(text);
    if (found == model.ids_.end()) return false;
    const SentencePieceSpec::Piece& piece = model.spec_.pieces[found->second];
    using Type = SentencePieceSpec::Type;
    if (piece.type == Type::kUnused) {
      size_of_left[text] = symbols[left].text.size();
    } else if (piece.type != Type::kNormal && piece.type != Type::kUserDefined) {
      return false;
    }
    heap.push_back({piece.score, left, right, static_cast<uint32_t>(text.size())});
    return true;
  }

  void MergeAll() {
    for (uint32_t right = 1; right < symbols.size(); ++right) Offer(right - 1, right);
    std::make_heap(heap.begin(), heap.end(), kLater);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), kLater);
      const Candidate best = heap.back();
      heap.pop_back();
      Symbol& left = symbols[best.left];
      Symbol& right = symbols[best.right];
      if (left.text.empty() || right.text.empty()) continue;
      if (left.text.size() + right.text.size() != best.size) continue;
      left.text = {left.text.data(), best.size};
      left.next = right.next;
      if (right.next != kNone) symbols[right.next].previous = best.left;
      right.text = {};
      if (Offer(left.previous, best.left)) std::push_heap(heap.begin(), heap.end(), kLater);
      if (Offer(best.left, left.next)) std::push_heap(heap.begin(), heap.end(), kLater);
    }
  }

  void AppendTokens(std::string_view text, std::vector<Token>* tokens) const {
    std::vector<std::string_view> rest = {text};
    while (!rest.empty()) {
      const std::string_view part = rest.back();
      rest.pop_back();
      const uint32_t id = model.IdOf(part);
      const auto split = model.IsUnused(id) ? size_of_left.find(part) : size_of_left.end();
      if (split == size_of_left.end()) {
        tokens->push_back({part, id});
      } else {
        rest.push_back(part.substr(split->second));
        rest.push_back(part.substr(0, split->second));
      }
    }
  }
};

std::vector<SentencePiece::Token> SentencePiece::Bpe(std::string_view normal) const {
  Merging merging{*this, {}, {}, {}};
  merging.Cut(normal);
  merging.MergeAll();
  std::vector<Token> tokens;
  const auto& symbols = merging.symbols;
  for (uint32_t at = symbols.empty() ? kNone : 0; at != kNone; at = symbols[at].next) {
    merging.AppendTokens(symbols[at].text, &tokens);
  }
  return tokens;
}

}  // namespace sparsekv::tokenizer
