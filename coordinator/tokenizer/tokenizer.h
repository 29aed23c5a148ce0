#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/affixes.h"
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/decoder.h"
#include "coordinator/tokenizer/llama_sentencepiece.h"
#include "coordinator/tokenizer/normalizer.h"
#include "coordinator/tokenizer/pre_tokenizer.h"

namespace sparsekv {

namespace tokenizer {
struct TokenizerConfig;
struct TokenizerSpec;
}  // namespace tokenizer

// A checkpoint's tokenizer: bytes to ids and back. Ids are those of Hugging Face's tokenizers
// library for a tokenizer.json (byte-pair models), and for a directory that has only a
// tokenizer.model (sentencepiece) those of transformers' LlamaTokenizer. Immutable after Load: all
// methods may run on any number of threads at once.
class Tokenizer {
 public:
  static constexpr size_t kMaxTextBytes = size_t{256} << 20;

  // Reads tokenizer.json, or tokenizer.model where there is none, and tokenizer_config.json if it
  // is there. An error is one line that names the file, the field and the value; what is not
  // understood is refused, never skipped.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  enum class Bos {
    kRule,  // with what the tokenizer's own rule puts before and after a text, if it has one
    kNone,  // the text alone
  };

  // The text's ids. It may hold any bytes: a byte-level tokenizer encodes invalid UTF-8 byte for
  // byte, one with byte fallback by its byte tokens. Added tokens written out in the text become
  // their ids, special ones too, with or without a rule. InvalidArgument when the text is longer
  // than kMaxTextBytes or has a character that the vocabulary cannot express; ResourceExhausted
  // when a regex of the file gives up.
  absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view bytes, Bos bos = Bos::kRule) const;

  // The bytes of the ids, the inverse of Encode without BOS. Ids without a token are nothing.
  std::string Decode(std::span<const uint32_t> ids, bool skip_special) const;

  bool IsSpecial(uint32_t id) const { return parts_.decoder.IsSpecial(id); }
  uint32_t vocab_size() const { return parts_.decoder.vocab_size(); }  // 1 + the largest id
  std::optional<uint32_t> bos_id() const { return parts_.bos_id; }
  const tokenizer::Decoder& decoder() const { return parts_.decoder; }

 private:
  struct Parts {
    tokenizer::Affixes affixes;  // the rule
    std::optional<uint32_t> bos_id;
    tokenizer::AddedTokenFinder raw_tokens;  // looked for in the text as it is
    tokenizer::Decoder decoder;
    // Of a tokenizer.json:
    tokenizer::AddedTokenFinder normalized_tokens;  // looked for in normalised text
    tokenizer::Normalizer normalizer;
    tokenizer::PreTokenizer pre_tokenizer;
    std::optional<tokenizer::Bpe> bpe;
    // Of a tokenizer.model:
    std::optional<tokenizer::LlamaSentencePiece> sentencepiece;
  };
  static absl::StatusOr<Parts> PartsOfJson(tokenizer::TokenizerSpec spec,
                                           const tokenizer::TokenizerConfig& config,
                                           const std::string& config_path);
  static absl::StatusOr<Parts> PartsOfSentencePiece(tokenizer::SentencePieceSpec model,
                                                    tokenizer::TokenizerConfig config,
                                                    const std::string& dir);
  explicit Tokenizer(Parts parts);

  void EncodeSentencePiece(std::string_view bytes, std::vector<uint32_t>* ids) const;

  // Appends the ids of a stretch between the added tokens of the raw text.
  absl::Status EncodeSection(std::string_view text, bool at_start, tokenizer::Bpe::Buffers* buffers,
                             std::vector<uint32_t>* ids) const;

  const Parts parts_;
};

}  // namespace sparsekv
