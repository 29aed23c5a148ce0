// Texts and tokenizers made to take long. Quadratic work would take minutes to hours here, which
// the test's time limit ends; tests/golden/time_tokenizers.py prints figures.
#include <gtest/gtest.h>

#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/model_dir_testing.h"
#include "coordinator/tokenizer/sentencepiece_testing.h"
#include "coordinator/tokenizer/unicode_forms.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;
using Ids = std::vector<uint32_t>;

constexpr size_t kBytes = 1'000'000;

std::string Repeated(std::string_view unit) {
  std::string text;
  while (text.size() + unit.size() <= kBytes) text += unit;
  return text;
}

// Merges that double a run of one character ten times.
MergeList Doubling() {
  MergeList merges;
  std::string run = "a";
  for (int i = 0; i < 10; ++i, run += run) merges.emplace_back(run, run);
  return merges;
}

void ExpectGivenBack(const Tokenizer& tokenizer) {
  for (const std::string_view unit :
       {"a", " ", "\n", "\xFF", "1", "<", "\u0301", "語", "👍", "\u0316\u0301", "a\u0301", " \n"}) {
    const std::string text = Repeated(unit);
    const Ids ids = EncodePlain(tokenizer, text);
    EXPECT_TRUE(tokenizer.Decode(ids, false) == text) << testing::PrintToString(unit);
  }
}

TEST(HostileText, ByteLevel) { ExpectGivenBack(*ModelDir(ByteLevelJson(Doubling())).Load()); }

TEST(HostileText, SplitRegex) { ExpectGivenBack(*ModelDir(SplitRegexJson(Doubling())).Load()); }

TEST(HostileText, ByteFallback) {
  MergeList merges = Doubling();
  merges.emplace_back("▁", "▁");
  ExpectGivenBack(*ModelDir(ByteFallbackJson(merges)).Load());
}

TEST(HostileText, SentencePiece) {
  for (const auto algorithm :
       {SentencePieceSpec::Algorithm::kBpe, SentencePieceSpec::Algorithm::kUnigram}) {
    SentencePieceSpec spec;
    spec.algorithm = algorithm;
    spec.byte_fallback = true;
    spec.remove_extra_whitespaces = false;
    using Type = SentencePieceSpec::Type;
    spec.pieces = {{"<unk>", 0, Type::kUnknown}, {"▁", -5, Type::kNormal}};
    for (int byte = 0; byte < 256; ++byte) {
      spec.pieces.push_back({FallbackTokenOfByte(static_cast<uint8_t>(byte)), 0, Type::kByte});
    }
    for (size_t length = 1; length <= 512; length += length) {
      const float score = -20.0f + static_cast<float>(length) / 100;
      spec.pieces.push_back({std::string(length, 'a'), score, Type::kNormal});
    }
    const ModelDir dir;
    dir.Write("tokenizer.model", SerializedModel(spec));
    ExpectGivenBack(*dir.Load());
  }
}

TEST(HostileText, AddedTokens) {
  json document = ByteLevelJson({});
  uint32_t id = 1000;
  for (int i = 0; i < 100'000; ++i) {
    const std::string name = "<extra_" + std::to_string(i) + ">";
    document["added_tokens"].push_back(AddedTokenJson(id++, name, false));
  }
  // At each place of a run of these the text is a start of the longest token.
  document["added_tokens"].push_back(AddedTokenJson(id++, std::string(1000, 'a') + "b", false));
  document["added_tokens"].push_back(AddedTokenJson(id++, "b" + std::string(1000, 'a'), false));
  document["added_tokens"].push_back(AddedTokenJson(id, "\u3000", false));
  document["added_tokens"].back()["rstrip"] = true;
  document["added_tokens"].back()["lstrip"] = true;
  const auto tokenizer = ModelDir(document).Load();
  EXPECT_EQ(EncodePlain(*tokenizer, "x<extra_99999>"), (Ids{'x', 1000 + 99'999}));
  ExpectGivenBack(*tokenizer);
  EXPECT_EQ(EncodePlain(*tokenizer, Repeated("<extra_0>")).size(), kBytes / 9);
  EXPECT_FALSE(EncodePlain(*tokenizer, Repeated("\u3000")).empty());
  EXPECT_FALSE(EncodePlain(*tokenizer, Repeated("<extra_")).empty());
}

TEST(HostileText, MarksInBadOrder) {
  for (const UnicodeForm form : {UnicodeForm::kNfc, UnicodeForm::kNfd, UnicodeForm::kNfkc}) {
    const std::string text = Repeated("\u0301\u0316");
    EXPECT_EQ(NormalForm(form, text).size(), text.size());
  }
}

TEST(HostileText, ARegexThatBlowsUpIsGivenUp) {
  json document = SplitRegexJson({});
  for (const char* regex : {"(a+)+[bc]", "(?:a|a)*[bc]", "(?=(?:a|aa)+[bc])a"}) {
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex;
    const auto ids = ModelDir(document).Load()->Encode(std::string(5000, 'a'));
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted) << regex;
  }
}

}  // namespace
}  // namespace sparsekv::tokenizer
