#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/affixes.h"
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/decoder.h"
#include "coordinator/tokenizer/json_cursor.h"
#include "coordinator/tokenizer/normalizer.h"
#include "coordinator/tokenizer/pre_tokenizer.h"

// What a tokenizer.json says, checked: ids are in range, no id has two tokens and no token two ids,
// merges name tokens, regexes compile.
namespace sparsekv::tokenizer {

inline constexpr uint32_t kMaxTokenIds = 1u << 20;  // the largest id is below this

struct ModelSpec {
  TokenIds vocabulary;  // as written in the file
  std::vector<Merge> merges;
  BpeOptions options;
};

struct PreTokenizerSpec {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;  // the model sees bytes, written in GPT-2's alphabet
};

struct TokenizerSpec {
  ModelSpec model;
  std::vector<AddedToken> added_tokens;
  std::vector<NormalizerStep> normalizer;
  PreTokenizerSpec pre_tokenizer;
  DecoderSpec decoder;
  std::optional<Affixes> affixes;  // nothing when the file has no rule for them
};

// Reads and checks a tokenizer.json. Errors are one line that names the file, the field and the
// value. The sections "truncation" and "padding" are for batches and are not used.
absl::StatusOr<TokenizerSpec> ReadTokenizerJson(const std::string& path);

// The parts of it. They report to the cursor; after an error what they return has no meaning.
ModelSpec ParseModel(const JsonCursor& model);
std::vector<AddedToken> ParseAddedTokens(const JsonCursor& tokens);
void CheckAddedToken(const AddedToken& token, const JsonCursor& field);
void CheckAddedTokens(const std::vector<AddedToken>& tokens, const JsonCursor& field);
std::vector<NormalizerStep> ParseNormalizer(const JsonCursor& normalizer);
PreTokenizerSpec ParsePreTokenizer(const JsonCursor& pre_tokenizer);
DecoderSpec ParseDecoder(const JsonCursor& decoder);
std::optional<Affixes> ParsePostProcessor(const JsonCursor& post_processor);

}  // namespace sparsekv::tokenizer
