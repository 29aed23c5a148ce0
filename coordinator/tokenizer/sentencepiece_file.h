#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sparsekv::tokenizer {

inline constexpr std::string_view kSpaceMark = "\u2581";  // "▁", which stands for a space

// What a sentencepiece model file (tokenizer.model) says, checked: pieces are unique, valid UTF-8
// and of at most kMaxPieceBytes, scores are finite, exactly one piece is the unknown one, and with
// byte fallback all 256 byte pieces are there.
struct SentencePieceSpec {
  enum class Algorithm { kUnigram = 1, kBpe = 2 };
  enum class Type { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Piece {
    std::string text;
    float score = 0;
    Type type = Type::kNormal;
  };

  Algorithm algorithm = Algorithm::kUnigram;
  std::vector<Piece> pieces;  // by id
  uint32_t unk_id = 0;
  std::optional<uint32_t> bos_id;
  std::optional<uint32_t> eos_id;
  bool byte_fallback = false;
  bool add_dummy_prefix = true;          // a space before every text
  bool remove_extra_whitespaces = true;  // at the ends, and all but one in the middle
};

inline constexpr size_t kMaxPieceBytes = 512;

// An error is one line without the file's name. What the file asks for and this library does not do
// (tables of characters to normalise, word and char models, marks at the end of words) is refused.
absl::StatusOr<SentencePieceSpec> ParseSentencePieceModel(std::string_view bytes);

// NotFound when there is no such file; other errors are one line that names it.
absl::StatusOr<SentencePieceSpec> ReadSentencePieceModel(const std::string& path);

}  // namespace sparsekv::tokenizer
