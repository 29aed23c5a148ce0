#include "coordinator/tokenizer/added_tokens.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/check.h"
#include "coordinator/tokenizer/regex.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

uint64_t EdgeKey(uint32_t node, char byte) {
  return (uint64_t{node} << 8) | static_cast<uint8_t>(byte);
}

bool IsWordChar(const Utf8Char& c) {
  if (c.kind != Utf8Char::Kind::kValid) return false;
  static const std::shared_ptr<const Regex> word =
      *Regex::Compile("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]");
  std::string text;
  AppendUtf8(c.code_point, &text);
  const auto match = word->Find(text, 0);
  return match.ok() && match->has_value();
}

bool IsSingleWord(std::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !IsWordChar(LastUtf8Char(text.substr(0, begin)))) &&
         (end == text.size() || !IsWordChar(FirstUtf8Char(text.substr(end))));
}

size_t StartOfWhiteSpaceBefore(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    const Utf8Char c = LastUtf8Char(text.substr(limit, end - limit));
    if (!IsWhiteSpace(c.code_point)) break;
    end -= c.length;
  }
  return end;
}

size_t EndOfWhiteSpaceAfter(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Utf8Char c = FirstUtf8Char(text.substr(begin));
    if (!IsWhiteSpace(c.code_point)) break;
    begin += c.length;
  }
  return begin;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), nodes_{{.token = kNone}} {
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    CHECK(!tokens_[i].content.empty());
    AddToTrie(i);
  }
  LinkNodes();
}

void AddedTokenFinder::AddToTrie(uint32_t token) {
  const std::string& content = tokens_[token].content;
  uint32_t node = 0;
  for (size_t i = content.size(); i-- > 0;) {
    const uint8_t byte = static_cast<uint8_t>(content[i]);
    const uint32_t next = static_cast<uint32_t>(nodes_.size());
    uint32_t& edge = node == 0 ? root_edges_[byte] : edges_[EdgeKey(node, content[i])];
    if (edge == 0) {
      edge = next;
      nodes_.push_back({.token = kNone});
    }
    node = edge;
  }
  if (nodes_[node].token == kNone) nodes_[node].token = token;
}

// Nodes nearer to the root are linked first: a node's fallback is nearer to the root than it.
void AddedTokenFinder::LinkNodes() {
  struct Place {
    uint32_t parent = 0;
    uint32_t depth = 1;
    char byte = 0;
  };
  std::vector<Place> places(nodes_.size());
  for (const auto& [key, node] : edges_) {
    places[node] = {static_cast<uint32_t>(key >> 8), 0, static_cast<char>(key & 0xFF)};
  }
  std::vector<uint32_t> order;
  for (uint32_t node = 1; node < nodes_.size(); ++node) {  // parents come before children
    if (places[node].parent != 0) places[node].depth = places[places[node].parent].depth + 1;
    order.push_back(node);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return places[a].depth < places[b].depth; });
  for (const uint32_t index : order) {
    Node& node = nodes_[index];
    const Place& place = places[index];
    if (place.parent != 0) node.fallback = Step(nodes_[place.parent].fallback, place.byte);
    if (node.token == kNone) node.token = nodes_[node.fallback].token;
  }
}

uint32_t AddedTokenFinder::Step(uint32_t node, char byte) const {
  for (; node != 0; node = nodes_[node].fallback) {
    const auto edge = edges_.find(EdgeKey(node, byte));
    if (edge != edges_.end()) return edge->second;
  }
  return root_edges_[static_cast<uint8_t>(byte)];
}

std::vector<AddedTokenFinder::Match> AddedTokenFinder::FindAll(std::string_view text) const {
  std::vector<Match> matches;
  if (tokens_.empty()) return matches;
  uint32_t node = 0;
  for (size_t at = text.size(); at-- > 0;) {
    node = Step(node, text[at]);
    if (nodes_[node].token != kNone) matches.push_back({at, nodes_[node].token});
  }
  return matches;
}

std::vector<AddedTokenFinder::Section> AddedTokenFinder::Cut(std::string_view text) const {
  std::vector<Section> sections;
  size_t covered = 0;    // where what follows the last section begins
  size_t searched = 0;   // where the last match ended
  size_t space_end = 0;  // of the white space that was walked over last
  const std::vector<Match> matches = FindAll(text);
  for (size_t i = matches.size(); i-- > 0;) {
    const AddedToken& token = tokens_[matches[i].token];
    size_t begin = matches[i].begin;
    if (begin < searched) continue;
    size_t end = searched = begin + token.content.size();
    if (token.single_word && !IsSingleWord(text, begin, end)) continue;
    if (token.lstrip && covered < begin) begin = StartOfWhiteSpaceBefore(text, begin, covered);
    if (token.rstrip) {
      if (end >= space_end) space_end = EndOfWhiteSpaceAfter(text, end);
      end = space_end;
    }
    if (covered < begin) sections.push_back({text.substr(covered, begin - covered), {}});
    sections.push_back({text.substr(begin, end - begin), token.id});
    covered = end;
  }
  if (covered < text.size()) sections.push_back({text.substr(covered), {}});
  return sections;
}

}  // namespace sparsekv::tokenizer
