#pragma once

#include <cstdint>
#include <string>

#include "coordinator/tokenizer/decoder.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace sparsekv {

// Turns ids that come one by one into text that is always whole UTF-8 characters: a character whose
// bytes are spread over tokens comes with its last one, and bytes that cannot become a character
// come as U+FFFD, one for each maximal start of a character. All pieces together are
// Tokenizer::Decode() of all ids, special ones skipped, with its invalid bytes replaced so. A token
// costs its own length. Not thread-safe; the tokenizer must outlive it.
class StreamDecoder {
 public:
  // at_start: the ids begin a text. A completion continues its prompt, so it is decoded with false:
  // the space that a decoder takes off the start of a text stays.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool at_start = true);

  // The text that this id completes; may be empty.
  std::string Push(uint32_t id);

  // What is still held back: the start of a character that never came to its end. Afterwards the
  // decoder is empty and may go on as a continuation.
  std::string Finish();

 private:
  const tokenizer::Decoder& decoder_;
  bool first_;                     // no token has been decoded yet
  tokenizer::LeadingStrip strip_;  // what of it is still to do
  std::string held_;               // the start of a character, at most 3 bytes
};

}  // namespace sparsekv
