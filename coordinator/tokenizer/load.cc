// Tokenizer::Load: from what the files say to what encodes and decodes.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/concat.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "coordinator/tokenizer/tokenizer_spec.h"

namespace sparsekv {
namespace {

using tokenizer::AddedToken;
using tokenizer::AddedTokenFinder;
using tokenizer::Affixes;
using tokenizer::DecoderSpec;
using tokenizer::LlamaSentencePiece;
using tokenizer::Normalizer;
using tokenizer::SentencePieceSpec;
using tokenizer::TokenIds;
using tokenizer::TokenizerConfig;
using tokenizer::TokenizerSpec;
using tokenizer::TokenText;

using FindId = absl::FunctionRef<std::optional<uint32_t>(const std::string& token)>;

// What the configuration wants around a text. A token that it does not name is left out, as
// transformers do; one that it names must be in the vocabulary.
absl::StatusOr<Affixes> AffixesOf(const TokenizerConfig& config, const std::string& path,
                                  FindId find) {
  Affixes affixes;
  const auto add = [&](bool wanted, std::string_view end, const std::optional<AddedToken>& token,
                       std::vector<uint32_t>* ids) -> absl::Status {
    if (!wanted || !token) return absl::OkStatus();
    const std::optional<uint32_t> id = find(token->content);
    if (!id) {
      return absl::InvalidArgumentError(Concat(path, ": add_", end, "_token is true, but ", end,
                                               "_token names no token of the vocabulary"));
    }
    ids->push_back(*id);
    return absl::OkStatus();
  };
  absl::Status status =
      add(config.add_bos_token.value_or(false), "bos", config.bos_token, &affixes.prefix);
  status.Update(
      add(config.add_eos_token.value_or(false), "eos", config.eos_token, &affixes.suffix));
  if (!status.ok()) return status;
  return affixes;
}

TokenText& AtId(uint32_t id, std::vector<TokenText>* tokens) {
  if (id >= tokens->size()) tokens->resize(size_t{id} + 1);
  return (*tokens)[id];
}

std::vector<TokenText> TokensById(const TokenizerSpec& spec) {
  std::vector<TokenText> tokens;
  for (const auto& [text, id] : spec.model.vocabulary) AtId(id, &tokens).text = text;
  for (const AddedToken& token : spec.added_tokens) {
    const bool in_model = spec.model.vocabulary.contains(token.content);
    AtId(token.id, &tokens) = {
        .text = token.content, .is_outside_model = !in_model, .is_special = token.special};
  }
  return tokens;
}

// The added tokens that are looked for in raw text or, as their own normal forms, in normal text.
absl::StatusOr<AddedTokenFinder> FinderOf(const TokenizerSpec& spec, const Normalizer& normalizer,
                                          bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : spec.added_tokens) {
    if (token.normalized != normalized) continue;
    if (normalized) {
      std::string normal;
      absl::Status status = normalizer.Apply(token.content, &normal);
      if (!status.ok()) return status;
      token.content = std::move(normal);
    }
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

// LlamaTokenizer's defaults: <s>, </s> and <unk>, or what the model has for them; BOS before a
// text.
void AddLlamaDefaults(const SentencePieceSpec& model, TokenizerConfig* config) {
  const auto set = [&](std::string_view usual, const std::optional<uint32_t>& id,
                       std::optional<AddedToken>* token) {
    if (token->has_value()) return;
    for (const SentencePieceSpec::Piece& piece : model.pieces) {
      if (piece.text == usual) *token = AddedToken{.content = piece.text, .special = true};
    }
    if (!*token && id) *token = AddedToken{.content = model.pieces[*id].text, .special = true};
  };
  set("<s>", model.bos_id, &config->bos_token);
  set("</s>", model.eos_id, &config->eos_token);
  set("<unk>", model.unk_id, &config->unk_token);
  if (!config->add_bos_token) config->add_bos_token = true;
}

// All added tokens of a directory with a sentencepiece model, with their ids.
absl::StatusOr<std::vector<AddedToken>> AddedTokensOf(const SentencePieceSpec& model,
                                                      const TokenizerConfig& config,
                                                      const std::string& dir) {
  TokenIds ids;
  absl::flat_hash_map<uint32_t, std::string_view> texts;
  for (uint32_t id = 0; id < model.pieces.size(); ++id) {
    ids.emplace(model.pieces[id].text, id);
    texts.emplace(id, model.pieces[id].text);
  }
  std::vector<AddedToken> added = config.added_tokens;
  for (AddedToken& token : added) {
    token.normalized = false;
    const bool id_is_free =
        texts.try_emplace(token.id, token.content).first->second == token.content;
    const bool text_is_free = ids.try_emplace(token.content, token.id).first->second == token.id;
    if (!id_is_free || !text_is_free) {
      return absl::InvalidArgumentError(Concat(dir, ": the added token ",
                                               tokenizer::Shown(token.content), " with the id ",
                                               token.id, " contradicts tokenizer.model"));
    }
  }
  for (const auto* named :
       {&config.bos_token, &config.eos_token, &config.unk_token, &config.pad_token}) {
    if (!*named) continue;
    const auto same = std::find_if(added.begin(), added.end(), [&](const AddedToken& token) {
      return token.content == (*named)->content;
    });
    if (same != added.end()) {
      same->special = true;
    } else if (const auto id = ids.find((*named)->content); id != ids.end()) {
      added.push_back(**named);
      added.back().id = id->second;
      added.back().normalized = false;
    }
  }
  return added;
}

}  // namespace

absl::StatusOr<Tokenizer::Parts> Tokenizer::PartsOfJson(TokenizerSpec spec,
                                                        const TokenizerConfig& config,
                                                        const std::string& config_path) {
  const auto find_id = [&](const std::string& token) -> std::optional<uint32_t> {
    for (const AddedToken& added : spec.added_tokens) {
      if (added.content == token) return added.id;
    }
    const auto found = spec.model.vocabulary.find(token);
    if (found == spec.model.vocabulary.end()) return std::nullopt;
    return found->second;
  };
  Parts parts;
  if (config.bos_token) parts.bos_id = find_id(config.bos_token->content);
  if (config.add_bos_token || config.add_eos_token) {
    absl::StatusOr<Affixes> affixes = AffixesOf(config, config_path, find_id);
    if (!affixes.ok()) return affixes.status();
    parts.affixes = *std::move(affixes);
  } else if (spec.affixes) {
    parts.affixes = *std::move(spec.affixes);
  }
  if (!parts.affixes.prefix.empty()) parts.bos_id = parts.affixes.prefix[0];

  parts.normalizer = Normalizer(spec.normalizer);
  absl::StatusOr<AddedTokenFinder> raw = FinderOf(spec, parts.normalizer, false);
  absl::StatusOr<AddedTokenFinder> normalized = FinderOf(spec, parts.normalizer, true);
  if (!raw.ok() || !normalized.ok()) return raw.ok() ? normalized.status() : raw.status();
  parts.raw_tokens = *std::move(raw);
  parts.normalized_tokens = *std::move(normalized);
  parts.decoder = tokenizer::Decoder(spec.decoder, TokensById(spec));
  tokenizer::BpeOptions options = spec.model.options;
  options.byte_symbols = spec.pre_tokenizer.byte_level;
  TokenIds vocabulary = ModelVocabulary(&spec);
  parts.bpe = tokenizer::Bpe(std::move(vocabulary), spec.model.merges, options);
  parts.pre_tokenizer = tokenizer::PreTokenizer(std::move(spec.pre_tokenizer.steps));
  return parts;
}

absl::StatusOr<Tokenizer::Parts> Tokenizer::PartsOfSentencePiece(SentencePieceSpec model,
                                                                 TokenizerConfig config,
                                                                 const std::string& dir) {
  absl::Status status = tokenizer::ReadOlderFiles(dir, &config);
  if (!status.ok()) return status;
  AddLlamaDefaults(model, &config);
  absl::StatusOr<std::vector<AddedToken>> added = AddedTokensOf(model, config, dir);
  if (!added.ok()) return added.status();
  const auto find_id = [&](const std::string& token) -> std::optional<uint32_t> {
    for (const AddedToken& known : *added) {
      if (known.content == token) return known.id;
    }
    return std::nullopt;
  };
  Parts parts;
  absl::StatusOr<Affixes> affixes =
      AffixesOf(config, Concat(dir, "/tokenizer_config.json"), find_id);
  if (!affixes.ok()) return affixes.status();
  parts.affixes = *std::move(affixes);
  if (config.bos_token) parts.bos_id = find_id(config.bos_token->content);

  std::vector<TokenText> tokens;
  for (uint32_t id = 0; id < model.pieces.size(); ++id) {
    const SentencePieceSpec::Type type = model.pieces[id].type;
    const bool is_special =
        type == SentencePieceSpec::Type::kControl || type == SentencePieceSpec::Type::kUnknown;
    AtId(id, &tokens) = {.text = model.pieces[id].text, .is_special = is_special};
  }
  for (const AddedToken& token : *added) {
    AtId(token.id, &tokens) = {.text = token.content, .is_special = token.special};
  }
  std::vector<uint32_t> named;
  for (const AddedToken& token : *added) {
    if (config.IsNamed(token.content)) named.push_back(token.id);
  }
  parts.raw_tokens = AddedTokenFinder(*std::move(added));
  parts.sentencepiece.emplace(tokenizer::SentencePiece(std::move(model)), config.legacy,
                              config.add_prefix_space, std::move(named));
  DecoderSpec decoder;
  decoder.steps = {tokenizer::ReplaceStep{std::string(tokenizer::kSpaceMark), " "},
                   tokenizer::ByteFallbackStep{}};
  if (parts.sentencepiece->adds_space()) decoder.strip = {" ", 1};
  parts.decoder = tokenizer::Decoder(decoder, tokens);
  return parts;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const std::string config_path = Concat(model_dir, "/tokenizer_config.json");
  absl::StatusOr<TokenizerSpec> spec =
      tokenizer::ReadTokenizerJson(Concat(model_dir, "/tokenizer.json"));
  if (!spec.ok() && !absl::IsNotFound(spec.status())) return spec.status();
  absl::StatusOr<TokenizerConfig> config = tokenizer::ReadTokenizerConfig(config_path);
  if (!config.ok()) return config.status();
  absl::StatusOr<Parts> parts;
  if (spec.ok()) {
    parts = PartsOfJson(*std::move(spec), *config, config_path);
  } else {
    absl::StatusOr<SentencePieceSpec> model =
        tokenizer::ReadSentencePieceModel(Concat(model_dir, "/tokenizer.model"));
    if (absl::IsNotFound(model.status())) return spec.status();
    if (!model.ok()) return model.status();
    parts = PartsOfSentencePiece(*std::move(model), *std::move(config), model_dir);
  }
  if (!parts.ok()) return parts.status();
  return std::unique_ptr<Tokenizer>(new Tokenizer(*std::move(parts)));
}

}  // namespace sparsekv
