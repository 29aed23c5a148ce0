#pragma once

#include "base/check.h"
#include "coordinator/tokenizer/stream_decoder.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace sparsekv::fuzz {

// Loads the tokenizer of Directory() and uses it, if there is one.
inline void UseTokenizer() {
  const auto tokenizer = Tokenizer::Load(Directory());
  if (!tokenizer.ok()) return CheckOneLine(std::string(tokenizer.status().message()));
  for (const std::string_view text :
       {"",
        "a ab  abc\n\n1234 \xC3\xA9"
        "e\xCC\x81\xE8\xAA\x9E",
        "<s>x</s> <|a|>  cat\xFF\xF0\x9F",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        " \t\r\n\xE2\x96\x81\xE2\x96\x81!?'s'LL_"}) {
    for (const auto rule : {Tokenizer::Bos::kRule, Tokenizer::Bos::kNone}) {
      const auto ids = (*tokenizer)->Encode(text, rule);
      if (!ids.ok()) {
        CheckOneLine(std::string(ids.status().message()));
        continue;
      }
      for (const uint32_t id : *ids) CHECK(id < (*tokenizer)->vocab_size());
      (void)(*tokenizer)->Decode(*ids, false);
      StreamDecoder stream(**tokenizer);
      for (const uint32_t id : *ids) (void)stream.Push(id);
      (void)stream.Finish();
    }
  }
}

}  // namespace sparsekv::fuzz
