#include "coordinator/tokenizer/tokenizer.h"

#include <utility>

#include "base/concat.h"

namespace sparsekv {

using tokenizer::AddedTokenFinder;
using tokenizer::Bpe;

Tokenizer::Tokenizer(Parts parts) : parts_(std::move(parts)) {}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(std::string_view bytes, Bos bos) const {
  if (bytes.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        Concat("a text of ", bytes.size(), " bytes is longer than ", kMaxTextBytes));
  }
  std::vector<uint32_t> ids;
  if (bos == Bos::kRule) ids = parts_.affixes.prefix;
  if (parts_.sentencepiece) {
    EncodeSentencePiece(bytes, &ids);
  } else {
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
  }
  if (bos == Bos::kRule) {
    ids.insert(ids.end(), parts_.affixes.suffix.begin(), parts_.affixes.suffix.end());
  }
  return ids;
}

void Tokenizer::EncodeSentencePiece(std::string_view bytes, std::vector<uint32_t>* ids) const {
  const tokenizer::LlamaSentencePiece& model = *parts_.sentencepiece;
  const std::string text = model.Prepare(bytes);
  const size_t first = ids->size();
  for (const AddedTokenFinder::Section& section : parts_.raw_tokens.Cut(text)) {
    if (!section.token) {
      model.EncodeStretch(section.text, ids);
      continue;
    }
    if (ids->size() == first + 1 && model.IsDropped(ids->back(), *section.token)) ids->pop_back();
    ids->push_back(*section.token);
  }
}

absl::Status Tokenizer::EncodeSection(std::string_view text, bool at_start, Bpe::Buffers* buffers,
                                      std::vector<uint32_t>* ids) const {
  std::string own_text;
  std::string_view normal = text;
  if (!parts_.normalizer.IsIdentity()) {
    absl::Status status = parts_.normalizer.Apply(text, &own_text);
    if (!status.ok()) return status;
    normal = own_text;
  }
  for (const AddedTokenFinder::Section& section : parts_.normalized_tokens.Cut(normal)) {
    if (section.token) {
      ids->push_back(*section.token);
      continue;
    }
    const bool section_at_start = at_start && section.text.data() == normal.data();
    absl::Status status = parts_.pre_tokenizer.Run(
        section.text, section_at_start,
        [&](std::string_view word) { return parts_.bpe->EncodeWord(word, buffers, ids); });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string Tokenizer::Decode(std::span<const uint32_t> ids, bool skip_special) const {
  return parts_.decoder.Decode(ids, skip_special);
}

}  // namespace sparsekv
