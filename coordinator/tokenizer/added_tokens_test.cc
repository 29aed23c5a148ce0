#include "coordinator/tokenizer/added_tokens.h"

#include <gtest/gtest.h>

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

TEST(AddedTokens, NoTextIsTakenTwice) {
  EXPECT_EQ(Cut({{.id = 1, .content = "<m>", .rstrip = true}, {.id = 2, .content = " x"}}, "<m> x"),
            (Sections{"<m> =1", "x"}));
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
