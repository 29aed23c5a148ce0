#pragma once

#include <bit>
#include <string>

#include "coordinator/tokenizer/sentencepiece_file.h"

// Sentencepiece models for tests, written as files.
namespace sparsekv::tokenizer {

inline void PutVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

inline void PutNumber(uint32_t field, uint64_t value, std::string* out) {
  PutVarint(uint64_t{field} << 3, out);
  PutVarint(value, out);
}

inline void PutBytes(uint32_t field, std::string_view bytes, std::string* out) {
  PutVarint((uint64_t{field} << 3) | 2, out);
  PutVarint(bytes.size(), out);
  out->append(bytes);
}

// The model as a file. What the spec says need not be consistent.
inline std::string SerializedModel(const SentencePieceSpec& spec) {
  std::string model;
  for (const SentencePieceSpec::Piece& piece : spec.pieces) {
    std::string fields;
    PutBytes(1, piece.text, &fields);
    PutVarint((2 << 3) | 5, &fields);
    const uint32_t bits = std::bit_cast<uint32_t>(piece.score);
    for (int i = 0; i < 4; ++i) fields.push_back(static_cast<char>(bits >> (8 * i)));
    PutNumber(3, static_cast<uint64_t>(piece.type), &fields);
    PutBytes(1, fields, &model);
  }
  std::string trainer, normalizer;
  PutNumber(3, static_cast<uint64_t>(spec.algorithm), &trainer);
  PutNumber(35, spec.byte_fallback, &trainer);
  PutNumber(3, spec.add_dummy_prefix, &normalizer);
  PutNumber(4, spec.remove_extra_whitespaces, &normalizer);
  PutBytes(2, trainer, &model);
  PutBytes(3, normalizer, &model);
  return model;
}

}  // namespace sparsekv::tokenizer
