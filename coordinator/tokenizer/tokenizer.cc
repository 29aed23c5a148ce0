#include "coordinator/tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/concat.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv {
namespace {

using tokenizer::AddedToken;
using tokenizer::AddedTokenFinder;
using tokenizer::Bpe;
using tokenizer::Decoder;
using tokenizer::Normalizer;
using tokenizer::PreTokenizer;
using tokenizer::TokenIds;
using tokenizer::TokenizerConfig;
using tokenizer::TokenizerSpec;
using tokenizer::TokenText;

std::optional<uint32_t> FindId(const TokenizerSpec& spec, const std::string& token) {
  for (const AddedToken& added : spec.added_tokens) {
    if (added.content == token) return added.id;
  }
  const auto found = spec.model.vocabulary.find(token);
  if (found == spec.model.vocabulary.end()) return std::nullopt;
  return found->second;
}

std::vector<TokenText> TokensById(const TokenizerSpec& spec) {
  std::vector<TokenText> tokens;
  const auto at = [&tokens](uint32_t id) -> TokenText& {
    if (id >= tokens.size()) tokens.resize(size_t{id} + 1);
    return tokens[id];
  };
  for (const auto& [text, id] : spec.model.vocabulary) at(id).text = text;
  for (const AddedToken& token : spec.added_tokens) {
    const bool in_model = spec.model.vocabulary.contains(token.content);
    at(token.id) = {
        .text = token.content, .is_outside_model = !in_model, .is_special = token.special};
  }
  return tokens;
}

// The added tokens that are looked for in raw text or, as their own normal forms, in normal text.
AddedTokenFinder FinderOf(const TokenizerSpec& spec, const Normalizer& normalizer,
                          bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : spec.added_tokens) {
    if (token.normalized != normalized) continue;
    if (normalized) token.content = normalizer.Apply(token.content);
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return AddedTokenFinder(std::move(tokens));
}

// Keys as the model meets them: for a byte-level tokenizer the bytes themselves. Tokens outside the
// alphabet can then only be reached by id.
TokenIds ModelVocabulary(TokenizerSpec* spec) {
  if (!spec->pre_tokenizer.byte_level) return std::move(spec->model.vocabulary);
  TokenIds vocabulary;
  vocabulary.reserve(spec->model.vocabulary.size());
  for (const auto& [token, id] : spec->model.vocabulary) {
    if (std::optional<std::string> bytes = tokenizer::BytesOfToken(token)) {
      vocabulary.emplace(*std::move(bytes), id);
    }
  }
  return vocabulary;
}

}  // namespace

Tokenizer::Tokenizer(Parts parts) : parts_(std::move(parts)) {}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  absl::StatusOr<TokenizerSpec> spec =
      tokenizer::ReadTokenizerJson(Concat(model_dir, "/tokenizer.json"));
  if (!spec.ok()) return spec.status();
  const std::string config_path = Concat(model_dir, "/tokenizer_config.json");
  const absl::StatusOr<TokenizerConfig> config = tokenizer::ReadTokenizerConfig(config_path);
  if (!config.ok()) return config.status();

  std::optional<uint32_t> bos_id;
  if (config->bos_token) bos_id = FindId(*spec, *config->bos_token);
  if (!spec->prefix && config->add_bos_token && !bos_id) {
    return absl::InvalidArgumentError(Concat(
        config_path, ": add_bos_token is true, but bos_token names no token of the vocabulary"));
  }
  std::vector<uint32_t> prefix;
  if (spec->prefix) {
    prefix = *spec->prefix;
    if (!prefix.empty()) bos_id = prefix[0];
  } else if (config->add_bos_token) {
    prefix = {*bos_id};
  }

  const Normalizer normalizer(spec->normalizer);
  AddedTokenFinder raw_tokens = FinderOf(*spec, normalizer, false);
  AddedTokenFinder normalized_tokens = FinderOf(*spec, normalizer, true);
  Decoder decoder(spec->decoder, TokensById(*spec));
  tokenizer::BpeOptions options = spec->model.options;
  options.byte_symbols = spec->pre_tokenizer.byte_level;
  Bpe bpe(ModelVocabulary(&*spec), spec->model.merges, options);
  return std::unique_ptr<Tokenizer>(
      new Tokenizer({.prefix = std::move(prefix),
                     .bos_id = bos_id,
                     .raw_tokens = std::move(raw_tokens),
                     .normalized_tokens = std::move(normalized_tokens),
                     .normalizer = normalizer,
                     .pre_tokenizer = PreTokenizer(std::move(spec->pre_tokenizer.steps)),
                     .bpe = std::move(bpe),
                     .decoder = std::move(decoder)}));
}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(std::string_view bytes, Bos bos) const {
  if (bytes.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        Concat("a text of ", bytes.size(), " bytes is longer than ", kMaxTextBytes));
  }
  std::vector<uint32_t> ids;
  if (bos == Bos::kRule) ids = parts_.prefix;
  Bpe::Buffers buffers;
  for (const AddedTokenFinder::Section& section : parts_.raw_tokens.Cut(bytes)) {
    if (section.token) {
      ids.push_back(*section.token);
      continue;
    }
    const bool at_start = section.text.data() == bytes.data();
    absl::Status status = EncodeSection(section.text, at_start, &buffers, &ids);
    if (!status.ok()) return status;
  }
  return ids;
}

absl::Status Tokenizer::EncodeSection(std::string_view text, bool at_start, Bpe::Buffers* buffers,
                                      std::vector<uint32_t>* ids) const {
  const std::string normal = parts_.normalizer.Apply(text);
  for (const AddedTokenFinder::Section& section : parts_.normalized_tokens.Cut(normal)) {
    if (section.token) {
      ids->push_back(*section.token);
      continue;
    }
    const bool section_at_start = at_start && section.text.data() == normal.data();
    absl::Status status = parts_.pre_tokenizer.Run(
        section.text, section_at_start,
        [&](std::string_view word) { return parts_.bpe.EncodeWord(word, buffers, ids); });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string Tokenizer::Decode(std::span<const uint32_t> ids, bool skip_special) const {
  return parts_.decoder.Decode(ids, skip_special);
}

}  // namespace sparsekv
