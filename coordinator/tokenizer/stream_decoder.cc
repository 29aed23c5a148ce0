#include "coordinator/tokenizer/stream_decoder.h"

#include <string_view>
#include <utility>

#include "coordinator/tokenizer/utf8.h"

namespace sparsekv {
namespace {

using tokenizer::FirstUtf8Char;
using tokenizer::Utf8Char;

// Moves what is certain from *held to the result; the start of a character stays.
std::string TakeCertain(std::string* held) {
  std::string text;
  std::string_view rest = *held;
  while (!rest.empty()) {
    const Utf8Char next = FirstUtf8Char(rest);
    if (next.kind == Utf8Char::Kind::kIncomplete) break;
    const bool valid = next.kind == Utf8Char::Kind::kValid;
    text += valid ? rest.substr(0, next.length) : tokenizer::kReplacementCharacter;
    rest.remove_prefix(next.length);
  }
  held->erase(0, held->size() - rest.size());
  return text;
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool at_start)
    : decoder_(tokenizer.decoder()), first_(at_start) {
  if (at_start) strip_ = decoder_.strip();
}

std::string StreamDecoder::Push(uint32_t id) {
  if (id >= decoder_.vocab_size() || decoder_.IsSpecial(id)) return {};
  held_ += decoder_.TokenBytes(id, std::exchange(first_, false));
  std::string text = TakeCertain(&held_);
  strip_.Consume(&text);
  return text;
}

std::string StreamDecoder::Finish() {
  if (held_.empty()) return {};
  held_.clear();
  return std::string(tokenizer::kReplacementCharacter);
}

}  // namespace sparsekv
