#include "coordinator/tokenizer/decoder.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/strings.h"

namespace sparsekv::tokenizer {
namespace {

// One step of one token: an overload for each kind of step.
struct StepRunner {
  const TokenText& token;
  const bool first;
  std::string* bytes;

  void operator()(const ReplaceStep& step) const { step.Apply(bytes); }

  void operator()(const ByteFallbackStep&) const {
    if (const std::optional<uint8_t> byte = ByteOfFallbackToken(*bytes)) {
      bytes->assign(1, static_cast<char>(*byte));
    }
  }

  void operator()(const ByteLevelStep&) const {
    if (token.is_outside_model) return;
    if (std::optional<std::string> real = BytesOfToken(*bytes)) *bytes = *std::move(real);
  }

  void operator()(const MetaspaceDecodeStep& step) const {
    const std::string_view space = first && step.drop_first ? "" : " ";
    *bytes = ReplaceAll(*bytes, step.mark, space);
  }
};

std::string BytesOf(const DecoderSpec& spec, const TokenText& token, bool first) {
  std::string bytes = token.text;
  for (const DecodeStep& step : spec.steps) std::visit(StepRunner{token, first, &bytes}, step);
  return bytes;
}

bool FirstTokenDiffers(const DecodeStep& step) {
  const auto* metaspace = std::get_if<MetaspaceDecodeStep>(&step);
  return metaspace != nullptr && metaspace->drop_first;
}

}  // namespace

void LeadingStrip::Consume(std::string* piece) {
  size_t stripped = 0;
  while (count > 0 && stripped < piece->size()) {
    if (piece->compare(stripped, text.size(), text) != 0) {
      count = 0;
      break;
    }
    stripped += text.size();
    --count;
  }
  piece->erase(0, stripped);
}

Decoder::Decoder(const DecoderSpec& spec, const std::vector<TokenText>& tokens)
    : strip_(spec.strip) {
  CHECK(strip_.count == 0 || !strip_.text.empty());
  const bool first_differs = std::any_of(spec.steps.begin(), spec.steps.end(), FirstTokenDiffers);
  bytes_.reserve(tokens.size());
  for (const TokenText& token : tokens) {
    special_.push_back(token.is_special);
    bytes_.push_back(BytesOf(spec, token, false));
    if (first_differs) first_bytes_.push_back(BytesOf(spec, token, true));
  }
}

std::string Decoder::Decode(std::span<const uint32_t> ids, bool skip_special) const {
  std::string text;
  bool first = true;
  for (const uint32_t id : ids) {
    if (id >= vocab_size() || (skip_special && special_[id])) continue;
    text += TokenBytes(id, first);
    first = false;
  }
  LeadingStrip(strip_).Consume(&text);
  return text;
}

std::string_view Decoder::TokenBytes(uint32_t id, bool first) const {
  if (id >= vocab_size()) return {};
  return first && !first_bytes_.empty() ? first_bytes_[id] : bytes_[id];
}

}  // namespace sparsekv::tokenizer
