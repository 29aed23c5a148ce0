#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/stop_strings.h"
#include "coordinator/text_codec.h"

namespace sparsekv {

// The text of one completion as its tokens come: decoded, cut before the first stop string. Not
// thread-safe.
class Completion {
 public:
  Completion(const TextCodec& codec, std::vector<std::string> stops)
      : text_(codec.NewCompletion()), stops_(std::move(stops)) {}

  // The text that the next token makes certain. REQUIRES: not stopped.
  std::string Push(uint32_t token_id) {
    ++tokens_;
    return stops_.Push(text_->Push(token_id));
  }
  // The rest, after the last token. It may still complete a stop string.
  std::string Finish() {
    std::string rest = stops_.Push(text_->Finish());
    return rest + stops_.Finish();
  }

  uint32_t tokens() const { return tokens_; }
  bool stopped() const { return stops_.matched(); }
  const std::string& stop_string() const { return stops_.match(); }

 private:
  std::unique_ptr<TextStream> text_;
  StopStrings stops_;
  uint32_t tokens_ = 0;
};

}  // namespace sparsekv
