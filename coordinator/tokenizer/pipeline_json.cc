#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/concat.h"
#include "coordinator/tokenizer/oniguruma.h"
#include "coordinator/tokenizer/tokenizer_spec.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

constexpr size_t kMaxSteps = 32;
constexpr uint32_t kMaxStripCount = 1u << 16;

// GPT-2's words: contractions, then letters, digits and the rest with the space before them.
constexpr std::string_view kGpt2Words =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// Runs of word characters and runs of what is neither a word character nor white space, after
// Unicode's definition of a word character.
constexpr std::string_view kWordOrOther =
    "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]+|"
    "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}\\p{White_Space}]+";

// A pattern of ours, in PCRE2's dialect.
std::shared_ptr<const Regex> CompilePattern(std::string_view pattern, const JsonCursor& at) {
  absl::StatusOr<std::shared_ptr<const Regex>> regex = Regex::Compile(std::string(pattern));
  if (regex.ok()) return *std::move(regex);
  at.Fail(Concat(Shown(pattern), ": ", regex.status().message()));
  return nullptr;
}

std::shared_ptr<const Regex> CompileRegex(std::string_view pattern, const JsonCursor& at) {
  const absl::StatusOr<std::string> translated = TranslateOniguruma(pattern);
  if (!translated.ok()) {
    at.Fail(Concat(Shown(pattern), ": ", translated.status().message()));
    return nullptr;
  }
  absl::StatusOr<std::shared_ptr<const Regex>> regex = Regex::Compile(*translated);
  if (!regex.ok()) {
    at.Fail(Concat(Shown(pattern), ": ", regex.status().message()));
    return nullptr;
  }
  return *std::move(regex);
}

void AppendClass(std::string_view characters, const JsonCursor& at, SplitBehavior behavior,
                 PreTokenizerSpec* spec) {
  spec->steps.emplace_back(SplitStep{CompilePattern(characters, at), behavior});
}

// A field that must hold exactly one character.
std::string OneChar(const JsonCursor& field) {
  std::string text = field.String();
  if (text.empty() || FirstUtf8Char(text).length != text.size()) {
    field.Fail("is not one character");
    return " ";
  }
  return text;
}

ReplaceStep ParseReplace(const JsonCursor& step) {
  const JsonCursor pattern = step["pattern"];
  ReplaceStep replace{pattern["String"].String(), step["content"].String()};
  if (replace.pattern.empty()) pattern["String"].Fail("is empty");
  return replace;
}

std::string PrependScheme(const JsonCursor& metaspace) {
  const JsonCursor scheme = metaspace["prepend_scheme"];
  if (!scheme.IsNull()) return scheme.String();
  return metaspace["add_prefix_space"].BoolOr(true) ? "always" : "never";
}

SplitBehavior ParseBehavior(const JsonCursor& behavior) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kBehaviors = {{
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"Contiguous", SplitBehavior::kContiguous},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
  }};
  const std::string name = behavior.String();
  for (const auto& [known, value] : kBehaviors) {
    if (name == known) return value;
  }
  behavior.Refuse();
  return SplitBehavior::kIsolated;
}

SplitStep ParseSplit(const JsonCursor& step) {
  SplitStep split;
  const JsonCursor regex = step["pattern"]["Regex"];
  if (regex.IsNull()) {
    const std::string text = step["pattern"]["String"].String();
    if (text.empty()) step["pattern"]["String"].Fail("is empty");
    split.regex = Regex::Literal(text);
  } else {
    split.regex = CompileRegex(regex.String(), regex);
  }
  split.behavior = ParseBehavior(step["behavior"]);
  split.invert = step["invert"].BoolOr(false);
  return split;
}

void AppendByteLevel(const JsonCursor& step, PreTokenizerSpec* spec) {
  if (step["add_prefix_space"].BoolOr(true)) spec->steps.emplace_back(PrefixSpaceStep{});
  if (step["use_regex"].BoolOr(true)) {
    spec->steps.emplace_back(SplitStep{CompileRegex(kGpt2Words, step), SplitBehavior::kIsolated});
  }
  spec->byte_level = true;
}

void AppendDigits(const JsonCursor& step, PreTokenizerSpec* spec) {
  const bool each = step["individual_digits"].BoolOr(false);
  AppendClass("\\p{N}", step, each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, spec);
}

void AppendMetaspace(const JsonCursor& step, PreTokenizerSpec* spec) {
  MetaspaceStep metaspace;
  metaspace.mark = OneChar(step["replacement"]);
  const std::string scheme = PrependScheme(step);
  if (scheme == "never") {
    metaspace.prepend = MetaspaceStep::Prepend::kNever;
  } else if (scheme == "first") {
    metaspace.prepend = MetaspaceStep::Prepend::kFirst;
  } else if (scheme != "always") {
    step["prepend_scheme"].Refuse();
  }
  const std::string mark = metaspace.mark;
  spec->steps.emplace_back(std::move(metaspace));
  if (step["split"].BoolOr(true)) {
    spec->steps.emplace_back(SplitStep{Regex::Literal(mark), SplitBehavior::kMergedWithNext});
  }
}

void AppendPreTokenizer(const JsonCursor& step, PreTokenizerSpec* spec) {
  if (step.failed()) return;
  const std::string type = step["type"].String();
  if (type == "Sequence") {
    const JsonCursor parts = step["pretokenizers"];
    for (size_t i = 0; i < parts.Size() && !step.failed(); ++i) AppendPreTokenizer(parts[i], spec);
    return;
  }
  if (spec->byte_level) {
    step["type"].Fail(Concat(Shown(step["type"].value()), " after ByteLevel is not supported"));
  } else if (type == "ByteLevel") {
    AppendByteLevel(step, spec);
  } else if (type == "Split") {
    spec->steps.emplace_back(ParseSplit(step));
  } else if (type == "Digits") {
    AppendDigits(step, spec);
  } else if (type == "Metaspace") {
    AppendMetaspace(step, spec);
  } else if (type == "Punctuation") {
    const JsonCursor behavior = step["behavior"];  // early files leave it out
    AppendClass(PunctuationClass(), step,
                behavior.IsNull() ? SplitBehavior::kIsolated : ParseBehavior(behavior), spec);
  } else if (type == "WhitespaceSplit") {
    AppendClass("\\p{White_Space}", step, SplitBehavior::kRemoved, spec);
  } else if (type == "Whitespace") {
    spec->steps.emplace_back(
        SplitStep{CompilePattern(kWordOrOther, step), SplitBehavior::kRemoved, /*invert=*/true});
  } else {
    step["type"].Refuse();
  }
  if (spec->steps.size() > kMaxSteps) step.Fail("is one step too many");
}

std::optional<UnicodeForm> FormOf(std::string_view type) {
  if (type == "NFC") return UnicodeForm::kNfc;
  if (type == "NFD") return UnicodeForm::kNfd;
  if (type == "NFKC") return UnicodeForm::kNfkc;
  if (type == "NFKD") return UnicodeForm::kNfkd;
  return std::nullopt;
}

void AppendReplace(const JsonCursor& step, std::vector<NormalizerStep>* steps) {
  const JsonCursor regex = step["pattern"]["Regex"];
  if (regex.IsNull()) {
    steps->emplace_back(ParseReplace(step));
  } else {
    steps->emplace_back(
        ReplaceRegexStep{CompileRegex(regex.String(), regex), step["content"].String()});
  }
}

void AppendNormalizer(const JsonCursor& step, std::vector<NormalizerStep>* steps) {
  if (step.failed()) return;
  const std::string type = step["type"].String();
  if (type == "Sequence") {
    const JsonCursor parts = step["normalizers"];
    for (size_t i = 0; i < parts.Size() && !step.failed(); ++i) AppendNormalizer(parts[i], steps);
    return;
  }
  if (type == "Prepend") {
    steps->emplace_back(PrependStep{step["prepend"].String()});
  } else if (type == "Replace") {
    AppendReplace(step, steps);
  } else if (type == "Strip") {
    const auto side = [&](const char* name) { return step[name].BoolOr(true); };
    steps->emplace_back(StripStep{side("strip_left"), side("strip_right")});
  } else if (type == "StripAccents") {
    steps->emplace_back(StripAccentsStep{});
  } else if (type == "Lowercase") {
    steps->emplace_back(LowercaseStep{});
  } else if (const std::optional<UnicodeForm> form = FormOf(type)) {
    steps->emplace_back(*form);
  } else {
    step["type"].Refuse();
  }
  if (steps->size() > kMaxSteps) step.Fail("is one step too many");
}

// Decoder steps work on tokens until something joins them; then only Fuse and one Strip may come.
struct DecoderParser {
  DecoderSpec spec;
  bool tokens_are_bytes = false;
  bool is_joined = false;

  void Append(const JsonCursor& step) {
    if (step.failed()) return;
    const std::string type = step["type"].String();
    if (type == "Sequence") {
      const JsonCursor parts = step["decoders"];
      for (size_t i = 0; i < parts.Size() && !step.failed(); ++i) Append(parts[i]);
      return;
    }
    if (type == "Fuse") {
      is_joined = true;
    } else if (type == "Strip") {
      AppendStrip(step);
    } else if (is_joined || tokens_are_bytes) {
      step["type"].Fail(Concat(Shown(step["type"].value()), " in this place is not supported"));
    } else if (type == "Replace") {
      spec.steps.emplace_back(ParseReplace(step));
    } else if (type == "ByteFallback") {
      spec.steps.emplace_back(ByteFallbackStep{});
      tokens_are_bytes = true;
    } else if (type == "ByteLevel") {
      spec.steps.emplace_back(ByteLevelStep{});
      is_joined = true;
    } else if (type == "Metaspace") {
      const bool drop_first = PrependScheme(step) != "never";
      spec.steps.emplace_back(MetaspaceDecodeStep{OneChar(step["replacement"]), drop_first});
    } else {
      step["type"].Refuse();
    }
    if (spec.steps.size() > kMaxSteps) step.Fail("is one step too many");
  }

  void AppendStrip(const JsonCursor& step) {
    if (!is_joined || spec.strip.count != 0) {
      step["type"].Fail("\"Strip\" in this place is not supported");
    }
    spec.strip = {OneChar(step["content"]), step["start"].UintBelow(kMaxStripCount)};
    if (step["stop"].UintBelow(kMaxStripCount) != 0) step["stop"].Refuse();
  }
};

}  // namespace

std::vector<NormalizerStep> ParseNormalizer(const JsonCursor& normalizer) {
  std::vector<NormalizerStep> steps;
  if (!normalizer.IsNull()) AppendNormalizer(normalizer, &steps);
  return steps;
}

PreTokenizerSpec ParsePreTokenizer(const JsonCursor& pre_tokenizer) {
  PreTokenizerSpec spec;
  if (!pre_tokenizer.IsNull()) AppendPreTokenizer(pre_tokenizer, &spec);
  return spec;
}

DecoderSpec ParseDecoder(const JsonCursor& decoder) {
  DecoderParser parser;
  if (decoder.IsNull()) {
    decoder.Refuse();
  } else {
    parser.Append(decoder);
  }
  return parser.spec;
}

}  // namespace sparsekv::tokenizer
