#include "coordinator/tokenizer/llama_sentencepiece.h"

#include <algorithm>
#include <utility>

#include "base/concat.h"
#include "coordinator/tokenizer/strings.h"

namespace sparsekv::tokenizer {

LlamaSentencePiece::LlamaSentencePiece(SentencePiece model, bool legacy, bool add_prefix_space,
                                       std::vector<uint32_t> named_tokens)
    : model_(std::move(model)), legacy_(legacy), named_tokens_(std::move(named_tokens)) {
  adds_space_ = legacy_ ? model_.spec().add_dummy_prefix : add_prefix_space;
  if (legacy_) return;
  model_.set_add_dummy_prefix(false);
  unknown_ = model_.spec().pieces[model_.spec().unk_id].text;
  std::vector<uint32_t> ids;
  model_.Encode(unknown_, &ids);
  unknown_length_ = ids.size();
  const auto& pieces = model_.spec().pieces;
  for (uint32_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].text == kSpaceMark) space_id_ = id;
  }
}

std::string LlamaSentencePiece::Prepare(std::string_view text) const {
  if (legacy_ || text.empty()) return std::string(text);
  return Concat(adds_space_ ? kSpaceMark : "", ReplaceAll(text, kSpaceMark, " "));
}

bool LlamaSentencePiece::IsDropped(uint32_t first, uint32_t added_token) const {
  return space_id_ == first &&
         std::find(named_tokens_.begin(), named_tokens_.end(), added_token) != named_tokens_.end();
}

void LlamaSentencePiece::EncodeStretch(std::string_view stretch, std::vector<uint32_t>* ids) const {
  if (legacy_ || !(stretch.starts_with(kSpaceMark) || stretch.starts_with(' '))) {
    return model_.Encode(stretch, ids);
  }
  std::vector<uint32_t> shielded;
  model_.Encode(Concat(unknown_, stretch), &shielded);
  const size_t skipped = shielded.size() >= unknown_length_ ? unknown_length_ : 0;
  ids->insert(ids->end(), shielded.begin() + static_cast<std::ptrdiff_t>(skipped), shielded.end());
}

}  // namespace sparsekv::tokenizer
