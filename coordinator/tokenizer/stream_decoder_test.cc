#include "coordinator/tokenizer/stream_decoder.h"

#include <gtest/gtest.h>

#include <random>

#include "coordinator/tokenizer/model_dir_testing.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;
using Ids = std::vector<uint32_t>;

constexpr const char* kReplacement = "\uFFFD";

// Invalid bytes replaced, one U+FFFD for each maximal start of a character.
std::string Replaced(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const Utf8Char c = FirstUtf8Char(bytes);
    if (c.kind == Utf8Char::Kind::kValid) {
      text += bytes.substr(0, c.length);
    } else {
      text += kReplacement;
    }
    bytes.remove_prefix(c.length);
  }
  return text;
}

// All pieces, each of which must be valid by itself.
std::string Stream(const Tokenizer& tokenizer, const Ids& ids, bool at_start = true) {
  StreamDecoder decoder(tokenizer, at_start);
  std::string text;
  for (const uint32_t id : ids) {
    const std::string piece = decoder.Push(id);
    EXPECT_EQ(ValidUtf8Prefix(piece), piece.size());
    text += piece;
  }
  const std::string last = decoder.Finish();
  EXPECT_EQ(ValidUtf8Prefix(last), last.size());
  return text + last;
}

TEST(StreamDecoder, ACharacterComesWithItsLastByte) {
  const auto tokenizer = ModelDir(ByteLevelJson({})).Load();
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push('a'), "a");
  EXPECT_EQ(decoder.Push(0xF0), "");
  EXPECT_EQ(decoder.Push(0x9F), "");
  EXPECT_EQ(decoder.Push(0xA6), "");
  EXPECT_EQ(decoder.Push(0x99), "🦙");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoder, BytesThatCannotBecomeACharacterAreReplacedAtOnce) {
  const auto tokenizer = ModelDir(ByteLevelJson({})).Load();
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push(0xFF), kReplacement);
  EXPECT_EQ(decoder.Push(0xE2), "");
  EXPECT_EQ(decoder.Push(0x96), "");
  EXPECT_EQ(decoder.Push('x'), std::string(kReplacement) + "x");
  EXPECT_EQ(decoder.Push(0xC3), "");
  EXPECT_EQ(decoder.Finish(), kReplacement);
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(decoder.Push(0xA9), kReplacement);  // what Finish gave up does not come back
}

TEST(StreamDecoder, OnlyTheStartOfATextLosesItsSpace) {
  const json document = ByteFallbackJson({{"▁", "a"}});
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t a = IdOf(document, "▁a");
  const uint32_t mark = IdOf(document, "▁");
  EXPECT_EQ(Stream(*tokenizer, {1, a, a}), "a a");
  EXPECT_EQ(Stream(*tokenizer, {a, a}, false), " a a");
  EXPECT_EQ(Stream(*tokenizer, {mark, mark, a}), "  a");
  EXPECT_EQ(Stream(*tokenizer, {}), "");
}

TEST(StreamDecoder, MetaspaceDropsTheFirstMark) {
  json document = ByteFallbackJson({{"▁", "a"}});
  document["decoder"] = {{"type", "Metaspace"}, {"replacement", "▁"}};
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t a = IdOf(document, "▁a");
  EXPECT_EQ(Stream(*tokenizer, {1, a, a}), "a a");
  EXPECT_EQ(Stream(*tokenizer, {a, a}, false), " a a");
}

TEST(StreamDecoder, SpecialTokensAndUnknownIdsAreNothing) {
  const json document = ByteFallbackJson({{"▁", "a"}});
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t c3 = IdOf(document, "<0xC3>");
  const uint32_t a9 = IdOf(document, "<0xA9>");
  EXPECT_EQ(Stream(*tokenizer, {c3, 2, 4'000'000'000, a9}), "é");
}

TEST(StreamDecoder, PiecesTogetherAreTheDecodedText) {
  const auto gpt2 = ModelDir(ByteLevelJson({{"Ã", "©"}, {"Ġ", "ð"}, {"Ł", "¦"}})).Load();
  const auto llama2 = ModelDir(ByteFallbackJson({{"▁", "t"}, {"▁", "▁"}})).Load();
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    for (const Tokenizer* tokenizer : {gpt2.get(), llama2.get()}) {
      Ids ids;
      // Mostly bytes of multi-byte characters in some order, so that all kinds of breaks occur.
      const bool whole_text = round % 2 == 0;
      for (int i = 0; i < round % 50; ++i) ids.push_back(random() % tokenizer->vocab_size());
      if (whole_text)
        ids = EncodePlain(*tokenizer, "  é🦙 t\xE2\x96" + std::string(round % 7, 'x') + "▁");
      ASSERT_EQ(Stream(*tokenizer, ids), Replaced(tokenizer->Decode(ids, true)));
    }
  }
}

}  // namespace
}  // namespace sparsekv::tokenizer
