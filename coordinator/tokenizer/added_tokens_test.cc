#include "coordinator/tokenizer/added_tokens.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace sparsekv::tokenizer {
namespace {

// "text" for what is between tokens and "text=id" for tokens.
std::vector<std::string> Cut(const std::vector<AddedToken>& tokens, std::string_view text) {
  std::vector<std::string> shown;
  for (const AddedTokenFinder::Section& section : AddedTokenFinder(tokens).Cut(text)) {
    shown.emplace_back(section.text);
    if (section.token) shown.back() += "=" + std::to_string(*section.token);
  }
  return shown;
}

using Sections = std::vector<std::string>;

TEST(AddedTokens, TheLongestAtTheLeftmostPlaceWins) {
  const std::vector<AddedToken> tokens = {
      {.id = 1, .content = "ab"}, {.id = 2, .content = "abcd"}, {.id = 3, .content = "bcde"}};
  EXPECT_EQ(Cut(tokens, "xabcdex"), (Sections{"x", "abcd=2", "ex"}));
  EXPECT_EQ(Cut(tokens, "abcab"), (Sections{"ab=1", "c", "ab=1"}));
  EXPECT_EQ(Cut(tokens, "bcde"), Sections{"bcde=3"});
  EXPECT_EQ(Cut(tokens, ""), Sections{});
  EXPECT_EQ(Cut({}, "ab"), Sections{"ab"});
}

TEST(AddedTokens, WhiteSpaceGoesWithTheToken) {
  EXPECT_EQ(Cut({{.id = 1, .content = "<m>", .lstrip = true}}, "a \u3000\n<m> b"),
            (Sections{"a", " \u3000\n<m>=1", " b"}));
  EXPECT_EQ(Cut({{.id = 1, .content = "<m>", .rstrip = true}}, "a <m>\t\u00A0 b"),
            (Sections{"a ", "<m>\t\u00A0 =1", "b"}));
  EXPECT_EQ(Cut({{.id = 1, .content = "<m>", .lstrip = true, .rstrip = true}}, "<m>  <m>"),
            (Sections{"<m>  =1", "<m>=1"}));
}

// As in Hugging Face's tokenizers, which go on from the token's own end.
TEST(AddedTokens, WhiteSpaceThatWentWithATokenMayBeginAnother) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<m>", .rstrip = true},
                                          {.id = 2, .content = " x"}};
  EXPECT_EQ(Cut(tokens, "<m> x"), (Sections{"<m> =1", " x=2"}));
  EXPECT_EQ(Cut(tokens, "<m>   y"), (Sections{"<m>   =1", "y"}));
}

// The leftmost longest token at each place, by trying all.
TEST(AddedTokens, RandomTokensAreFoundAsByTryingAll) {
  std::mt19937 random(3);
  for (uint32_t round = 0; round < 500; ++round) {
    const auto word = [&](size_t longest) {
      std::string text;
      for (size_t i = random() % longest + 1; i > 0; --i) text += "ab"[random() % 2];
      return text;
    };
    std::map<std::string, uint32_t> ids;
    std::vector<AddedToken> tokens;
    for (uint32_t id = 0; id < round % 9; ++id) {
      const std::string content = word(6);
      if (ids.emplace(content, id).second) tokens.push_back({.id = id, .content = content});
    }
    const std::string text = word(40);
    Sections expected;
    std::string gap;
    for (size_t at = 0; at < text.size();) {
      size_t length = 0;
      for (const auto& [content, id] : ids) {
        if (text.compare(at, content.size(), content) == 0)
          length = std::max(length, content.size());
      }
      if (length == 0) {
        gap += text[at++];
        continue;
      }
      if (!gap.empty()) expected.push_back(std::exchange(gap, ""));
      const std::string found = text.substr(at, length);
      expected.push_back(found + "=" + std::to_string(ids[found]));
      at += length;
    }
    if (!gap.empty()) expected.push_back(gap);
    EXPECT_EQ(Cut(tokens, text), expected) << text;
  }
}

TEST(AddedTokens, ASingleWordStandsAlone) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "cat", .single_word = true}};
  EXPECT_EQ(Cut(tokens, "cat, a cat"), (Sections{"cat=1", ", a ", "cat=1"}));
  for (const std::string_view text : {"cats", "écat", "cat\u0301", "cat_", "9cat", "cat\u200D"}) {
    EXPECT_EQ(Cut(tokens, text), Sections{std::string(text)}) << text;
  }
  EXPECT_EQ(Cut(tokens,
                "\xFF"
                "cat\xFF"),
            (Sections{"\xFF", "cat=1", "\xFF"}));
}

}  // namespace
}  // namespace sparsekv::tokenizer
