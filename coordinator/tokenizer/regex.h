#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

struct pcre2_real_code_8;

namespace sparsekv::tokenizer {

// A compiled regular expression over UTF-8. Immutable; Find may run on any number of threads.
class Regex {
 public:
  struct Match {
    size_t begin;  // bytes
    size_t end;
  };

  // The pattern is in PCRE2's dialect, read with PCRE2_UTF, PCRE2_UCP and PCRE2_MULTILINE.
  // InvalidArgument says where and why it cannot be compiled.
  static absl::StatusOr<std::shared_ptr<const Regex>> Compile(const std::string& pattern);

  // A regex that matches just this text. REQUIRES: text is valid UTF-8.
  static std::shared_ptr<const Regex> Literal(std::string_view text);

  // The first match that begins at or after `start`; what stands before `start` is seen by
  // lookbehind. ResourceExhausted when the pattern takes more steps than a small multiple of the
  // text's length.
  // REQUIRES: text is valid UTF-8; start <= text.size() and is at the start of a character.
  absl::StatusOr<std::optional<Match>> Find(std::string_view text, size_t start) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  explicit Regex(pcre2_real_code_8* code) : code_(code) {}

  const std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

}  // namespace sparsekv::tokenizer
