#include "coordinator/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "base/check.h"
#include "base/concat.h"

namespace sparsekv::tokenizer {
namespace {

// Steps of one match. Regexes that cut words go over a text a few times at most.
constexpr uint64_t kBaseSteps = 50'000;
constexpr uint64_t kStepsPerByte = 64;
constexpr uint32_t kHeapLimitKib = 256 * 1024;  // without JIT
constexpr size_t kJitStackStart = size_t{32} << 10;
constexpr size_t kJitStackMax = size_t{64} << 20;  // grows on demand

uint32_t MatchLimit(size_t bytes) {
  const uint64_t most = std::numeric_limits<uint32_t>::max();
  return static_cast<uint32_t>(std::min(most, kBaseSteps + kStepsPerByte * bytes));
}

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof(text)) < 0) return Concat("error ", code);
  return reinterpret_cast<const char*>(text);
}

// What a thread needs in order to match; made once per thread.
class MatchSpace {
 public:
  MatchSpace()
      : data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        jit_stack_(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)) {
    CHECK(data_ != nullptr && context_ != nullptr);
    pcre2_set_heap_limit(context_, kHeapLimitKib);
    if (jit_stack_ != nullptr) pcre2_jit_stack_assign(context_, nullptr, jit_stack_);
  }
  ~MatchSpace() {
    pcre2_jit_stack_free(jit_stack_);
    pcre2_match_context_free(context_);
    pcre2_match_data_free(data_);
  }
  MatchSpace(const MatchSpace&) = delete;
  MatchSpace& operator=(const MatchSpace&) = delete;

  pcre2_match_data* data() { return data_; }
  pcre2_match_context* context() { return context_; }

 private:
  pcre2_match_data* const data_;
  pcre2_match_context* const context_;
  pcre2_jit_stack* const jit_stack_;
};

}  // namespace

void Regex::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  // PCRE2_NEVER_BACKSLASH_C: \C would end a match inside a character.
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    return absl::InvalidArgumentError(Concat(ErrorText(error), " (at byte ", offset, ")"));
  }
  // Where the machine does not allow JIT code the interpreter gives the same matches.
  (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return std::shared_ptr<const Regex>(new Regex(code));
}

std::shared_ptr<const Regex> Regex::Literal(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80) {
      pattern += Concat("\\x{", std::hex, static_cast<int>(c), "}");
    } else {
      pattern.push_back(c);
    }
  }
  absl::StatusOr<std::shared_ptr<const Regex>> regex = Compile(pattern);
  CHECK(regex.ok());
  return *regex;
}

absl::StatusOr<std::optional<Regex::Match>> Regex::Find(std::string_view text, size_t start) const {
  CHECK_LE(start, text.size());
  thread_local MatchSpace space;
  pcre2_set_match_limit(space.context(), MatchLimit(text.size() - start));
  const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                start, PCRE2_NO_UTF_CHECK, space.data(), space.context());
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) {
    return absl::ResourceExhaustedError(
        Concat("the pre-tokenizer's regex gave up: ", ErrorText(found)));
  }
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(space.data());
  CHECK(start <= bounds[0] && bounds[0] <= bounds[1]);  // only \K could break it
  return Match{bounds[0], bounds[1]};
}

}  // namespace sparsekv::tokenizer
