#include "coordinator/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "coordinator/tokenizer/model_dir_testing.h"
#include "coordinator/tokenizer/utf8.h"

namespace sparsekv::tokenizer {
namespace {

using nlohmann::json;
using Ids = std::vector<uint32_t>;

const MergeList kEnglish = {{"t", "h"}, {"Ġ", "th"}, {"Ġth", "e"}, {"h", "e"}, {"Ġ", "Ġ"}};
const MergeList kLlama = {{"▁", "t"}, {"h", "e"}, {"▁t", "he"}, {"▁", "▁"}, {"▁▁", "▁▁"}};

std::string RandomBytes(std::mt19937* random, size_t size) {
  std::string text;
  while (text.size() < size) text.push_back(static_cast<char>((*random)()));
  return text;
}

// Characters of one to four bytes, spaces more often than others.
std::string RandomText(std::mt19937* random, size_t characters) {
  constexpr char32_t kLimits[] = {0x80, 0x800, 0xD800, 0x110000};
  std::string text;
  for (size_t i = 0; i < characters; ++i) {
    const uint32_t draw = (*random)();
    char32_t c = draw % 4 == 0 ? U' ' : (draw >> 8) % kLimits[(draw >> 4) % 4];
    if (c >= 0xD800 && c <= 0xDFFF) c = U't';
    AppendUtf8(c, &text);
  }
  return text;
}

TEST(Tokenizer, ByteLevelMergesWithinWords) {
  const json document = ByteLevelJson(kEnglish);
  const auto tokenizer = ModelDir(document).Load();
  const auto id = [&](const char* token) { return IdOf(document, token); };
  EXPECT_EQ(EncodePlain(*tokenizer, "the the"), (Ids{id("th"), id("e"), id("Ġthe")}));
  // The last space of several goes with the word, so that the two before it may merge.
  EXPECT_EQ(EncodePlain(*tokenizer, "a   the"), (Ids{id("a"), id("ĠĠ"), id("Ġthe")}));
  EXPECT_EQ(EncodePlain(*tokenizer, "t'he"), (Ids{id("t"), id("'"), id("he")}));
  EXPECT_EQ(EncodePlain(*tokenizer, ""), Ids{});
  EXPECT_EQ(EncodePlain(*tokenizer, "x<|end|>th"),
            (Ids{id("x"), tokenizer->vocab_size() - 1, id("th")}));
  EXPECT_EQ(tokenizer->vocab_size(), 256 + kEnglish.size() + 1);
}

TEST(Tokenizer, ByteLevelCanAddASpaceInFront) {
  json document = ByteLevelJson(kEnglish);
  document["pre_tokenizer"]["add_prefix_space"] = true;
  const auto tokenizer = ModelDir(document).Load();
  EXPECT_EQ(EncodePlain(*tokenizer, "the"), Ids{IdOf(document, "Ġthe")});
}

TEST(Tokenizer, DigitsMayStandAlone) {
  json document = ByteLevelJson({{"1", "2"}, {"a", "1"}});
  const json byte_level = document["pre_tokenizer"];
  for (const bool each : {true, false}) {
    document["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", each}}, byte_level}}};
    const auto tokenizer = ModelDir(document).Load();
    const Ids expected = each ? Ids{'a', '1', '2'} : Ids{'a', IdOf(document, "12")};
    EXPECT_EQ(EncodePlain(*tokenizer, "a12"), expected) << each;
  }
}

TEST(Tokenizer, ByteLevelGivesBackAnyBytes) {
  std::mt19937 random(7);
  const auto gpt2 = ModelDir(ByteLevelJson(kEnglish)).Load();
  const auto llama3 = ModelDir(SplitRegexJson(kEnglish)).Load();
  for (int round = 0; round < 300; ++round) {
    const std::string text =
        round % 2 == 0 ? RandomBytes(&random, round) : RandomText(&random, round);
    ASSERT_EQ(gpt2->Decode(EncodePlain(*gpt2, text), false), text);
    ASSERT_EQ(llama3->Decode(EncodePlain(*llama3, text), false), text);
  }
}

TEST(Tokenizer, ByteFallbackGivesBackAnyBytes) {
  std::mt19937 random(8);
  const auto tokenizer = ModelDir(ByteFallbackJson(kLlama)).Load();
  for (int round = 0; round < 300; ++round) {
    const std::string text =
        round % 2 == 0 ? RandomBytes(&random, round) : RandomText(&random, round);
    ASSERT_EQ(tokenizer->Decode(EncodePlain(*tokenizer, text), false), text);
  }
}

TEST(Tokenizer, Llama3TakesWholeWordsAndBegins) {
  // "the" cannot be reached by merges, and is still taken whole.
  json document = SplitRegexJson({{"t", "h"}, {"th", "x"}});
  document["model"]["vocab"]["Ġthe"] = 300;
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t begin = document["added_tokens"][0]["id"].get<uint32_t>();
  EXPECT_EQ(EncodePlain(*tokenizer, "th the"), (Ids{IdOf(document, "th"), 300}));
  EXPECT_EQ(*tokenizer->Encode("th"), (Ids{begin, IdOf(document, "th")}));
  EXPECT_EQ(tokenizer->bos_id(), begin);
  EXPECT_TRUE(tokenizer->IsSpecial(begin));
  EXPECT_FALSE(tokenizer->IsSpecial(300));
  EXPECT_FALSE(tokenizer->IsSpecial(1u << 30));
  EXPECT_EQ(tokenizer->vocab_size(), 301u);
  // Numbers are cut into threes, from the left, and contractions in any case.
  EXPECT_EQ(EncodePlain(*tokenizer, "1234").size(), 4u);
  EXPECT_EQ(EncodePlain(*tokenizer, "<|begin|>"), Ids{begin});
}

TEST(Tokenizer, Llama2MarksSpacesAndFallsBackToBytes) {
  const json document = ByteFallbackJson(kLlama);
  const auto tokenizer = ModelDir(document).Load();
  const auto id = [&](const char* token) { return IdOf(document, token); };
  EXPECT_EQ(*tokenizer->Encode("the"), (Ids{1, id("▁the")}));
  EXPECT_EQ(EncodePlain(*tokenizer, "the the"), (Ids{id("▁the"), id("▁the")}));
  EXPECT_EQ(EncodePlain(*tokenizer, "é"), (Ids{id("▁"), id("<0xC3>"), id("<0xA9>")}));
  EXPECT_EQ(EncodePlain(*tokenizer, ""), Ids{});
  EXPECT_EQ(*tokenizer->Encode(""), Ids{1});
  // Each stretch between special tokens is a text of its own with a mark in front.
  EXPECT_EQ(EncodePlain(*tokenizer, "the</s>the"), (Ids{id("▁the"), 2, id("▁the")}));
  EXPECT_EQ(tokenizer->bos_id(), 1u);
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundInTheirNormalForm) {
  json document = ByteFallbackJson(kLlama);
  for (json& token : document["added_tokens"]) token["normalized"] = true;
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t mark = IdOf(document, "▁");
  EXPECT_EQ(EncodePlain(*tokenizer, "</s>"), Ids{2});
  EXPECT_EQ(EncodePlain(*tokenizer, "t </s>"), (Ids{IdOf(document, "▁t"), 2}));
  // Without a space before it the normal form "▁</s>" is not there.
  EXPECT_EQ(EncodePlain(*tokenizer, "\t</s>")[0], mark);
  EXPECT_NE(EncodePlain(*tokenizer, "\t</s>").back(), 2u);
}

TEST(Tokenizer, MetaspaceIsAnotherWayToMarkSpaces) {
  json document = ByteFallbackJson(kLlama);
  const json metaspace = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}};
  document["normalizer"] = nullptr;
  document["pre_tokenizer"] = metaspace;
  document["decoder"] = metaspace;
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t the = IdOf(document, "▁the");
  EXPECT_EQ(EncodePlain(*tokenizer, "the the"), (Ids{the, the}));
  EXPECT_EQ(EncodePlain(*tokenizer, "</s>the"),
            (Ids{2, IdOf(document, "t"), IdOf(document, "he")}));
  EXPECT_EQ(tokenizer->Decode(Ids{the, the}, true), "the the");
  EXPECT_EQ(tokenizer->Decode(Ids{1, the}, true), "the");
  EXPECT_EQ(tokenizer->Decode(Ids{1, the}, false), "<s> the");
}

TEST(Tokenizer, DecodeSkipsSpecialTokensAndUnknownIds) {
  const json document = ByteFallbackJson(kLlama);
  const auto tokenizer = ModelDir(document).Load();
  const uint32_t the = IdOf(document, "▁the");
  EXPECT_EQ(tokenizer->Decode(Ids{1, the, 2}, true), "the");
  EXPECT_EQ(tokenizer->Decode(Ids{1, the, 2}, false), "<s> the</s>");
  EXPECT_EQ(tokenizer->Decode(Ids{the, 4'000'000'000, the}, true), "the the");
}

TEST(Tokenizer, AddedTokensAreDecodedAsTheyAreWritten) {
  json document = ByteLevelJson({});
  document["added_tokens"].push_back(AddedTokenJson(300, "é¡Ġ", false));
  const auto tokenizer = ModelDir(document).Load();
  EXPECT_EQ(EncodePlain(*tokenizer, "xé¡Ġ"), (Ids{'x', 300}));
  EXPECT_EQ(tokenizer->Decode(Ids{'x', 300}, true), "xé¡Ġ");
}

TEST(Tokenizer, TheConfigSaysWhatGoesAroundAText) {
  const json document = ByteLevelJson({});
  const uint32_t end = document["added_tokens"][0]["id"].get<uint32_t>();
  const ModelDir dir(document);
  const auto ids_with = [&](std::string_view config) {
    dir.Write("tokenizer_config.json", config);
    return *dir.Load()->Encode("x");
  };
  EXPECT_EQ(dir.Load()->bos_id(), std::nullopt);
  EXPECT_EQ(ids_with(R"({"bos_token": "<|end|>"})"), Ids{'x'});
  EXPECT_EQ(dir.Load()->bos_id(), end);
  EXPECT_EQ(ids_with(R"({"bos_token": {"content": "<|end|>"}, "add_bos_token": true})"),
            (Ids{end, 'x'}));
  EXPECT_EQ(EncodePlain(*dir.Load(), "x"), Ids{'x'});
  EXPECT_EQ(ids_with(R"({"eos_token": "<|end|>", "add_eos_token": true})"), (Ids{'x', end}));
  EXPECT_EQ(ids_with(R"({"bos_token": null, "add_bos_token": true})"), Ids{'x'});
}

// As transformers: what the configuration says of BOS or EOS replaces the file's own rule.
TEST(Tokenizer, TheConfigPrecedesTheFile) {
  const ModelDir dir(ByteFallbackJson(kLlama));
  EXPECT_EQ(*dir.Load()->Encode(""), Ids{1});
  dir.Write("tokenizer_config.json", R"({"bos_token": "</s>", "add_bos_token": true})");
  EXPECT_EQ(*dir.Load()->Encode(""), Ids{2});
  dir.Write("tokenizer_config.json", R"({"bos_token": "</s>", "add_bos_token": false})");
  EXPECT_EQ(*dir.Load()->Encode(""), Ids{});
  dir.Write("tokenizer_config.json", R"({"bos_token": "</s>"})");
  EXPECT_EQ(*dir.Load()->Encode(""), Ids{1});
}

TEST(Tokenizer, ATemplateMayPutTokensAfterTheText) {
  json document = ByteFallbackJson(kLlama);
  const json bos = document["post_processor"]["single"][0];
  document["post_processor"]["single"].push_back(bos);
  const uint32_t mark = IdOf(document, "▁t");
  EXPECT_EQ(*ModelDir(document).Load()->Encode("t"), (Ids{1, mark, 1}));
  for (const char* type : {"BertProcessing", "RobertaProcessing"}) {
    document["post_processor"] = {{"type", type}, {"sep", {"</s>", 2}}, {"cls", {"<s>", 1}}};
    EXPECT_EQ(*ModelDir(document).Load()->Encode("t"), (Ids{1, mark, 2})) << type;
  }
}

TEST(Tokenizer, NormalizersRunInOrder) {
  json document = ByteLevelJson({});
  const auto normal = [&](const json& steps) {
    document["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
    const auto tokenizer = ModelDir(document).Load();
    return tokenizer->Decode(EncodePlain(*tokenizer, " \tÉ  x\xFF  "), false);
  };
  EXPECT_EQ(normal(json::array({{{"type", "NFD"}}})), " \tE\u0301  x\xFF  ");
  EXPECT_EQ(
      normal(json::array({{{"type", "NFD"}}, {{"type", "StripAccents"}}, {{"type", "Lowercase"}}})),
      " \te  x\xFF  ");
  EXPECT_EQ(
      normal(json::array({{{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}}})),
      "É  x\xFF  ");
  const json spaces = {{"type", "Replace"}, {"pattern", {{"Regex", "\\s+"}}}, {"content", "_"}};
  EXPECT_EQ(normal(json::array({spaces})), "_É_x\xFF_");
}

TEST(Tokenizer, TextThatTheVocabularyCannotExpressIsAnError) {
  json document = ByteFallbackJson(kLlama);
  document["model"]["byte_fallback"] = false;
  EXPECT_EQ(EncodePlain(*ModelDir(document).Load(), "éé").back(), 0u);  // <unk>
  document["model"].erase("unk_token");
  const auto ids = ModelDir(document).Load()->Encode("é");
  EXPECT_EQ(ids.status().message(), "the tokenizer has no token for <0xC3><0xA9>");
}

TEST(Tokenizer, OneTokenizerServesManyThreads) {
  const auto tokenizer = ModelDir(SplitRegexJson(kEnglish)).Load();
  std::mt19937 random(9);
  const std::string text = RandomText(&random, 5000);
  const Ids expected = EncodePlain(*tokenizer, text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] { result = EncodePlain(*tokenizer, text); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace sparsekv::tokenizer
