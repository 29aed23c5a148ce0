#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text_codec.h"
#include "coordinator/tokenizer/stream_decoder.h"
#include "coordinator/tokenizer/tokenizer.h"

namespace sparsekv {

// The checkpoint's own tokenizer as a TextCodec.
class TokenizerCodec final : public TextCodec {
 public:
  explicit TokenizerCodec(std::unique_ptr<Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

  absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view text, bool bos) const override {
    return tokenizer_->Encode(text, bos ? Tokenizer::Bos::kRule : Tokenizer::Bos::kNone);
  }
  std::unique_ptr<TextStream> NewCompletion() const override {
    return std::make_unique<Completion>(*tokenizer_);
  }

 private:
  class Completion final : public TextStream {
   public:
    explicit Completion(const Tokenizer& tokenizer) : decoder_(tokenizer, /*at_start=*/false) {}
    std::string Push(uint32_t id) override { return decoder_.Push(id); }
    std::string Finish() override { return decoder_.Finish(); }

   private:
    StreamDecoder decoder_;
  };

  const std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace sparsekv
