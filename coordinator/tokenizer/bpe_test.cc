#include "coordinator/tokenizer/bpe.h"

#include <gtest/gtest.h>

namespace sparsekv::tokenizer {
namespace {

using Ids = std::vector<uint32_t>;

// Tokens get ids in order; merges are triples of tokens' places.
Bpe Make(const std::vector<std::string>& tokens, const std::vector<Merge>& merges,
         const BpeOptions& options = {}) {
  TokenIds vocabulary;
  for (uint32_t id = 0; id < tokens.size(); ++id) vocabulary[tokens[id]] = id;
  return Bpe(std::move(vocabulary), merges, options);
}

Ids Encode(const Bpe& bpe, std::string_view word) {
  Bpe::Buffers buffers;
  Ids ids;
  const absl::Status status = bpe.EncodeWord(word, &buffers, &ids);
  EXPECT_TRUE(status.ok()) << status;
  return ids;
}

TEST(Bpe, LowerRanksMergeFirst) {
  const std::vector<std::string> tokens = {"a", "b", "c", "ab", "bc", "abc"};
  EXPECT_EQ(Encode(Make(tokens, {{0, 1, 3}, {1, 2, 4}}), "abc"), (Ids{3, 2}));
  EXPECT_EQ(Encode(Make(tokens, {{1, 2, 4}, {0, 1, 3}}), "abc"), (Ids{0, 4}));
  EXPECT_EQ(Encode(Make(tokens, {{1, 2, 4}, {0, 1, 3}, {0, 4, 5}}), "abcab"), (Ids{5, 3}));
}

TEST(Bpe, EqualPairsMergeFromTheLeft) {
  const Bpe bpe = Make({"a", "aa", "aaaa"}, {{0, 0, 1}, {1, 1, 2}});
  EXPECT_EQ(Encode(bpe, "aaa"), (Ids{1, 0}));
  EXPECT_EQ(Encode(bpe, "aaaaaaa"), (Ids{2, 1, 0}));
}

TEST(Bpe, TheSameMergeTwiceTakesTheLastRank) {
  const std::vector<std::string> tokens = {"a", "b", "c", "ab", "bc"};
  EXPECT_EQ(Encode(Make(tokens, {{0, 1, 3}, {1, 2, 4}, {0, 1, 3}}), "abc"), (Ids{0, 4}));
}

TEST(Bpe, IgnoreMergesTakesAWholeWord) {
  BpeOptions options;
  EXPECT_EQ(Encode(Make({"a", "b", "ab"}, {}, options), "ab"), (Ids{0, 1}));
  options.ignore_merges = true;
  EXPECT_EQ(Encode(Make({"a", "b", "ab"}, {}, options), "ab"), Ids{2});
}

TEST(Bpe, CharactersWithoutATokenFallBackToBytes) {
  BpeOptions options;
  options.byte_fallback = true;
  const Bpe bpe = Make({"a", "<0xC3>", "<0xA9>", "<0xFF>"}, {}, options);
  EXPECT_EQ(Encode(bpe, "a\u00E9\xFF"), (Ids{0, 1, 2, 3}));
  // Not all bytes of a character have a token, and nothing stands for the unknown.
  Bpe::Buffers buffers;
  Ids ids;
  const absl::Status status = bpe.EncodeWord("\u00EA", &buffers, &ids);
  EXPECT_EQ(status.message(), "the tokenizer has no token for <0xC3><0xAA>");
}

TEST(Bpe, UnknownCharactersMayFuse) {
  BpeOptions options;
  options.unk = 0;
  EXPECT_EQ(Encode(Make({"?", "a"}, {}, options), "xyaz"), (Ids{0, 0, 1, 0}));
  options.fuse_unk = true;
  EXPECT_EQ(Encode(Make({"?", "a"}, {}, options), "xyaz"), (Ids{0, 1, 0}));
}

}  // namespace
}  // namespace sparsekv::tokenizer
