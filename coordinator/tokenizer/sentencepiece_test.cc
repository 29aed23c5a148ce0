#include "coordinator/tokenizer/sentencepiece.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "coordinator/tokenizer/byte_alphabet.h"
#include "coordinator/tokenizer/model_dir_testing.h"
#include "coordinator/tokenizer/sentencepiece_testing.h"

namespace sparsekv::tokenizer {
namespace {

using Ids = std::vector<uint32_t>;
using Type = SentencePieceSpec::Type;
using Algorithm = SentencePieceSpec::Algorithm;

SentencePieceSpec SmallSpec(Algorithm algorithm, bool byte_fallback) {
  SentencePieceSpec spec;
  spec.algorithm = algorithm;
  spec.byte_fallback = byte_fallback;
  spec.remove_extra_whitespaces = false;
  spec.pieces = {
      {"<unk>", 0, Type::kUnknown}, {"<s>", 0, Type::kControl}, {"</s>", 0, Type::kControl}};
  for (int byte = 0; byte < 256 && byte_fallback; ++byte) {
    spec.pieces.push_back({FallbackTokenOfByte(static_cast<uint8_t>(byte)), 0, Type::kByte});
  }
  for (const char* text : {"▁", "a", "b", "c"}) spec.pieces.push_back({text, -9, Type::kNormal});
  spec.pieces.push_back({"ab", -1, Type::kNormal});
  spec.pieces.push_back({"abc", -2, Type::kUnused});
  spec.pieces.push_back({"▁ab", -3, Type::kNormal});
  spec.pieces.push_back({"cc", -4, Type::kUserDefined});
  return spec;
}

std::vector<std::string> Pieces(const SentencePieceSpec& spec, std::string_view text) {
  Ids ids;
  SentencePiece(spec).Encode(text, &ids);
  std::vector<std::string> pieces;
  for (const uint32_t id : ids) pieces.push_back(spec.pieces[id].text);
  return pieces;
}

using Texts = std::vector<std::string>;

TEST(SentencePiece, BpeJoinsTheBestPieceFirst) {
  const SentencePieceSpec spec = SmallSpec(Algorithm::kBpe, true);
  EXPECT_EQ(Pieces(spec, "ab a"), (Texts{"▁ab", "▁", "a"}));
  EXPECT_EQ(Pieces(spec, "bcc"), (Texts{"▁", "b", "cc"}));
  // The unused piece is taken apart again.
  EXPECT_EQ(Pieces(spec, "babc"), (Texts{"▁", "b", "ab", "c"}));
  EXPECT_EQ(Pieces(spec, "é\xFF"), (Texts{"▁", "<0xC3>", "<0xA9>", "<0xFF>"}));
  EXPECT_EQ(Pieces(spec, ""), Texts{});
}

TEST(SentencePiece, UnknownNeighboursAreOne) {
  const SentencePieceSpec spec = SmallSpec(Algorithm::kBpe, false);
  EXPECT_EQ(Pieces(spec, "xyab"), (Texts{"▁", "<unk>", "ab"}));
}

TEST(SentencePiece, ExtraSpacesGoWhereTheModelSaysSo) {
  SentencePieceSpec spec = SmallSpec(Algorithm::kUnigram, true);
  EXPECT_EQ(Pieces(spec, " a  b "), (Texts{"▁", "▁", "a", "▁", "▁", "b", "▁"}));
  spec.remove_extra_whitespaces = true;
  EXPECT_EQ(Pieces(spec, " a  b "), (Texts{"▁", "a", "▁", "b"}));
  EXPECT_EQ(Pieces(spec, "   "), Texts{});
}

// The best of all ways to cut, found by trying them.
double BestScore(const SentencePieceSpec& spec, std::string_view text) {
  if (text.empty()) return 0;
  double best = -INFINITY;
  for (const SentencePieceSpec::Piece& piece : spec.pieces) {
    if (piece.type != Type::kNormal || !text.starts_with(piece.text)) continue;
    best = std::max(best, piece.score + BestScore(spec, text.substr(piece.text.size())));
  }
  return best;
}

TEST(SentencePiece, UnigramFindsTheBestWayToCut) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    SentencePieceSpec spec = SmallSpec(Algorithm::kUnigram, false);
    spec.add_dummy_prefix = false;
    spec.pieces.resize(7);
    for (const char* text : {"ab", "ba", "abc", "cab", "bcab", "aa", "bb"}) {
      if (random() % 2) spec.pieces.push_back({text, -float(random() % 1000) / 40, Type::kNormal});
    }
    std::string text;
    while (text.size() < 12) text += static_cast<char>('a' + random() % 3);
    double score = 0;
    Ids ids;
    SentencePiece(spec).Encode(text, &ids);
    for (const uint32_t id : ids) score += spec.pieces[id].score;
    EXPECT_NEAR(score, BestScore(spec, text), 1e-4) << text;
  }
}

TEST(SentencePieceFile, GivesBackWhatWasWritten) {
  const SentencePieceSpec spec = SmallSpec(Algorithm::kBpe, true);
  const auto read = ParseSentencePieceModel(SerializedModel(spec));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->pieces.size(), spec.pieces.size());
  for (size_t i = 0; i < spec.pieces.size(); ++i) {
    EXPECT_EQ(read->pieces[i].text, spec.pieces[i].text);
    EXPECT_EQ(read->pieces[i].score, spec.pieces[i].score);
    EXPECT_EQ(read->pieces[i].type, spec.pieces[i].type);
  }
  EXPECT_EQ(read->algorithm, Algorithm::kBpe);
  EXPECT_TRUE(read->byte_fallback);
  EXPECT_FALSE(read->remove_extra_whitespaces);
  EXPECT_EQ(read->bos_id, 1u);
  EXPECT_EQ(read->eos_id, 2u);
}

TEST(SentencePieceFile, ErrorsNameTheField) {
  const auto error = [](const auto& change) {
    SentencePieceSpec spec = SmallSpec(Algorithm::kBpe, true);
    change(spec);
    return std::string(ParseSentencePieceModel(SerializedModel(spec)).status().message());
  };
  EXPECT_EQ(error([](auto& s) { s.pieces[259].text = "a"; }), "pieces[260] \"a\" appears twice");
  EXPECT_EQ(error([](auto& s) { s.pieces[259].text = ""; }),
            "pieces[259].piece is not 1 to 512 bytes of UTF-8");
  EXPECT_EQ(error([](auto& s) { s.pieces[259].text = "\xFF"; }),
            "pieces[259].piece is not 1 to 512 bytes of UTF-8");
  EXPECT_EQ(error([](auto& s) { s.pieces[259].score = NAN; }),
            "pieces[259].score is not a finite number");
  EXPECT_EQ(error([](auto& s) { s.pieces[0].type = Type::kNormal; }),
            "has 0 unknown pieces and not one");
  EXPECT_EQ(error([](auto& s) { s.byte_fallback = false; }),
            "pieces[3] \"<0x00>\" is no byte piece");
  EXPECT_EQ(error([](auto& s) { s.pieces[3].type = Type::kNormal; }),
            "byte_fallback is on, but there is no piece <0x00>");
  EXPECT_EQ(error([](auto& s) { s.algorithm = static_cast<Algorithm>(4); }),
            "trainer_spec.model_type 4 is not supported");
  const std::string whole = SerializedModel(SmallSpec(Algorithm::kBpe, true));
  for (const size_t length : {size_t{1}, size_t{9}, whole.size() - 1}) {
    EXPECT_EQ(ParseSentencePieceModel(whole.substr(0, length)).status().message(),
              "not a sentencepiece model: broken protocol buffer");
  }
}

TEST(SentencePieceDirectory, DefaultsAreLlamas) {
  const SentencePieceSpec spec = SmallSpec(Algorithm::kBpe, true);
  const ModelDir dir;
  dir.Write("tokenizer.model", SerializedModel(spec));
  const auto tokenizer = dir.Load();
  const uint32_t ab = static_cast<uint32_t>(spec.pieces.size() - 2);
  EXPECT_EQ(*tokenizer->Encode("ab</s>ab"), (Ids{1, ab, 2, ab}));
  EXPECT_EQ(EncodePlain(*tokenizer, "ab"), Ids{ab});
  EXPECT_EQ(tokenizer->Decode(Ids{1, ab, 2, ab}, true), "ab ab");
  EXPECT_EQ(tokenizer->bos_id(), 1u);
  const std::string bytes = "\xFFx é\xC3 \n";
  EXPECT_EQ(tokenizer->Decode(EncodePlain(*tokenizer, bytes), true), bytes);
}

TEST(SentencePieceDirectory, OlderFilesNameTokens) {
  const SentencePieceSpec spec = SmallSpec(Algorithm::kBpe, true);
  const uint32_t size = static_cast<uint32_t>(spec.pieces.size());
  const ModelDir dir;
  dir.Write("tokenizer.model", SerializedModel(spec));
  dir.Write("special_tokens_map.json", R"({"bos_token": {"content": "</s>", "rstrip": true}})");
  dir.Write("added_tokens.json", nlohmann::json{{"<pad>", size}}.dump());
  EXPECT_EQ(*dir.Load()->Encode("<pad></s> "), (Ids{2, size, 2}));
  dir.Write("added_tokens.json", nlohmann::json{{"<pad>", 7}}.dump());
  EXPECT_EQ(dir.LoadError(), dir.path() +
                                 ": the added token \"<pad>\" with the id 7 contradicts "
                                 "tokenizer.model");
}

}  // namespace
}  // namespace sparsekv::tokenizer
