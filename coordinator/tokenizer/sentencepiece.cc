#include "coordinator/tokenizer/sentencepiece.h"

#include <algorithm>
#include <cfloat>
#include <utility>

#include "base/check.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

using Type = SentencePieceSpec::Type;

constexpr size_t kMaxTextBytes = size_t{1} << 29;
constexpr float kUnknownPenalty = 10.0f;  // below the lowest score

// Pieces that text may become; the others are only reached by name or as bytes.
bool IsOfText(Type type) {
  return type == Type::kNormal || type == Type::kUserDefined || type == Type::kUnused;
}

uint64_t EdgeKey(uint32_t node, char byte) {
  return (uint64_t{node} << 8) | static_cast<uint8_t>(byte);
}

}  // namespace

SentencePiece::SentencePiece(SentencePieceSpec spec) : spec_(std::move(spec)), byte_ids_(256) {
  lowest_score_ = FLT_MAX;
  highest_score_ = FLT_MIN;
  std::vector<AddedToken> user_defined;
  const bool is_unigram = spec_.algorithm == SentencePieceSpec::Algorithm::kUnigram;
  for (uint32_t id = 0; id < spec_.pieces.size(); ++id) {
    const SentencePieceSpec::Piece& piece = spec_.pieces[id];
    ids_.emplace(piece.text, id);
    if (piece.type == Type::kByte) byte_ids_[*ByteOfFallbackToken(piece.text)] = id;
    if (piece.type == Type::kNormal) {
      lowest_score_ = std::min(lowest_score_, piece.score);
      highest_score_ = std::max(highest_score_, piece.score);
    }
    if (piece.type == Type::kUserDefined) user_defined.push_back({.id = id, .content = piece.text});
    if (!IsOfText(piece.type)) continue;
    longest_piece_ = std::max(longest_piece_, piece.text.size());
    if (is_unigram) AddToTrie(id);
  }
  if (!is_unigram) user_defined_ = AddedTokenFinder(std::move(user_defined));
}

void SentencePiece::AddToTrie(uint32_t id) {
  Edge* edge = nullptr;
  uint32_t node = 0;
  for (const char byte : spec_.pieces[id].text) {
    edge = &edges_[EdgeKey(node, byte)];
    if (edge->node == 0) edge->node = nodes_++;
    node = edge->node;
  }
  edge->id = id;
}

uint32_t SentencePiece::IdOf(std::string_view text) const {
  const auto found = ids_.find(text);
  return found == ids_.end() ? spec_.unk_id : found->second;
}

void SentencePiece::Encode(std::string_view text, std::vector<uint32_t>* ids) const {
  CHECK_LT(text.size(), kMaxTextBytes);
  const std::string normal = Normalize(text);
  const bool is_bpe = spec_.algorithm == SentencePieceSpec::Algorithm::kBpe;
  bool after_unknown = false;
  for (const Token& token : is_bpe ? Bpe(normal) : Unigram(normal)) {
    const bool is_unknown = spec_.pieces[token.id].type == Type::kUnknown;
    if (is_unknown && spec_.byte_fallback) {
      for (const char byte : token.text) ids->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
    } else if (!is_unknown || !after_unknown) {
      ids->push_back(token.id);
    }
    after_unknown = is_unknown;
  }
}

std::string SentencePiece::Normalize(std::string_view text) const {
  const bool removes = spec_.remove_extra_whitespaces;
  while (removes && text.starts_with(' ')) text.remove_prefix(1);
  std::string normal;
  if (text.empty()) return normal;
  if (spec_.add_dummy_prefix) normal += kSpaceMark;
  bool after_space = removes;
  for (const char byte : text) {
    if (byte != ' ') {
      normal += byte;
    } else if (!after_space) {
      normal += kSpaceMark;
    }
    after_space = removes && byte == ' ';
  }
  while (removes && normal.ends_with(kSpaceMark)) {
    normal.resize(normal.size() - kSpaceMark.size());
  }
  return normal;
}

// User-defined pieces have a bonus, so that they are always taken.
float SentencePiece::ScoreOf(uint32_t id) const {
  const SentencePieceSpec::Piece& piece = spec_.pieces[id];
  if (piece.type != Type::kUserDefined) return piece.score;
  return static_cast<float>(static_cast<float>(piece.text.size()) * highest_score_ - 0.1);
}

std::vector<SentencePiece::Token> SentencePiece::Unigram(std::string_view normal) const {
  struct Best {  // of the ways to cut the text up to a place
    float score = 0;
    uint32_t begin = UINT32_MAX;  // of the last piece
    uint32_t id = 0;
  };
  std::vector<Best> best(normal.size() + 1);
  // Sums are rounded to float as sentencepiece does it, or ties would break otherwise.
  const auto offer = [&](size_t begin, size_t end, float score, uint32_t id) {
    const float sum = score + best[begin].score;
    if (best[end].begin != UINT32_MAX && sum <= best[end].score) return;
    best[end] = {sum, static_cast<uint32_t>(begin), id};
  };
  for (size_t begin = 0; begin < normal.size();) {
    const size_t length = FirstUtf8Char(normal.substr(begin)).length;
    bool is_known = false;
    uint32_t node = 0;
    for (size_t end = begin + 1; end <= normal.size(); ++end) {
      const auto edge = edges_.find(EdgeKey(node, normal[end - 1]));
      if (edge == edges_.end()) break;
      node = edge->second.node;
      const uint32_t id = edge->second.id;
      if (id == UINT32_MAX || IsUnused(id)) continue;
      offer(begin, end, ScoreOf(id), id);
      is_known = is_known || end - begin == length;
    }
    if (!is_known) offer(begin, begin + length, lowest_score_ - kUnknownPenalty, spec_.unk_id);
    begin += length;
  }
  std::vector<Token> tokens;
  for (size_t end = normal.size(); end > 0; end = best[end].begin) {
    tokens.push_back({normal.substr(best[end].begin, end - best[end].begin), best[end].id});
  }
  std::reverse(tokens.begin(), tokens.end());
  return tokens;
}

}  // namespace sparsekv::tokenizer
