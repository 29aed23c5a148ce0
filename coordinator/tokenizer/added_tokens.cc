#include "coordinator/tokenizer/added_tokens.h"

#include <memory>
#include <utility>

#include "base/check.h"
#include "coordinator/tokenizer/regex.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

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

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    CHECK(!tokens_[i].content.empty());
    uint32_t node = 0;
    for (const char byte : tokens_[i].content) {
      const auto [edge, is_new] =
          edges_.try_emplace(EdgeKey(node, byte), static_cast<uint32_t>(nodes_.size()));
      if (is_new) nodes_.emplace_back();
      node = edge->second;
    }
    if (!nodes_[node]) nodes_[node] = i;
  }
}

std::optional<uint32_t> AddedTokenFinder::LongestAtStart(std::string_view text) const {
  std::optional<uint32_t> longest;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto edge = edges_.find(EdgeKey(node, byte));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (nodes_[node]) longest = nodes_[node];
  }
  return longest;
}

std::vector<AddedTokenFinder::Section> AddedTokenFinder::Cut(std::string_view text) const {
  std::vector<Section> sections;
  size_t covered = 0;  // what of the text the sections hold
  size_t at = 0;
  while (at < text.size() && !tokens_.empty()) {
    const std::optional<uint32_t> found = LongestAtStart(text.substr(at));
    if (!found) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[*found];
    size_t begin = at;
    size_t end = at + token.content.size();
    at = end;
    if (token.single_word && !IsSingleWord(text, begin, end)) continue;
    if (token.lstrip) begin = StartOfWhiteSpaceBefore(text, begin, covered);
    if (token.rstrip) at = end = EndOfWhiteSpaceAfter(text, end);
    if (covered < begin) sections.push_back({text.substr(covered, begin - covered), {}});
    sections.push_back({text.substr(begin, end - begin), token.id});
    covered = end;
  }
  if (covered < text.size()) sections.push_back({text.substr(covered), {}});
  return sections;
}

}  // namespace sparsekv::tokenizer
