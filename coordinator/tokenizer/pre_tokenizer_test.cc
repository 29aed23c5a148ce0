#include "coordinator/tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

#include "coordinator/tokenizer/oniguruma.h"

namespace sparsekv::tokenizer {
namespace {

using Pieces = std::vector<std::string>;

std::shared_ptr<const Regex> Compiled(std::string_view oniguruma) {
  const absl::StatusOr<std::string> pattern = TranslateOniguruma(oniguruma);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  absl::StatusOr<std::shared_ptr<const Regex>> regex = Regex::Compile(*pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  return *regex;
}

Pieces PiecesOf(std::vector<PreTokenizerStep> steps, std::string_view text, bool at_start = true) {
  Pieces pieces;
  const absl::Status status =
      PreTokenizer(std::move(steps)).Run(text, at_start, [&](std::string_view piece) {
        pieces.emplace_back(piece);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}

Pieces SplitBy(std::string_view regex, SplitBehavior behavior, bool invert, std::string_view text) {
  return PiecesOf({SplitStep{Compiled(regex), behavior, invert}}, text);
}

TEST(PreTokenizer, EachBehaviorOfASplit) {
  const std::string_view text = "the-final--countdown-";
  EXPECT_EQ(SplitBy("-", SplitBehavior::kIsolated, false, text),
            (Pieces{"the", "-", "final", "-", "-", "countdown", "-"}));
  EXPECT_EQ(SplitBy("-", SplitBehavior::kRemoved, false, text),
            (Pieces{"the", "final", "countdown"}));
  EXPECT_EQ(SplitBy("-", SplitBehavior::kContiguous, false, text),
            (Pieces{"the", "-", "final", "--", "countdown", "-"}));
  EXPECT_EQ(SplitBy("-", SplitBehavior::kMergedWithPrevious, false, text),
            (Pieces{"the-", "final-", "-", "countdown-"}));
  EXPECT_EQ(SplitBy("-", SplitBehavior::kMergedWithNext, false, text),
            (Pieces{"the", "-final", "-", "-countdown", "-"}));
  EXPECT_EQ(SplitBy("[a-z]+", SplitBehavior::kRemoved, true, text),
            (Pieces{"the", "final", "countdown"}));
}

TEST(PreTokenizer, EmptyMatchesOnlyCut) {
  EXPECT_EQ(SplitBy("(?=é)", SplitBehavior::kIsolated, false, "aébé"), (Pieces{"a", "éb", "é"}));
  EXPECT_EQ(SplitBy("x*", SplitBehavior::kIsolated, false, "axxb"), (Pieces{"a", "xx", "b"}));
}

TEST(PreTokenizer, InvalidBytesAreTheirOwnPieces) {
  EXPECT_EQ(SplitBy("\\p{L}+", SplitBehavior::kIsolated, false,
                    "ab\xFF\xFE"
                    "cd é\xE2\x96"),
            (Pieces{"ab", "\xFF\xFE", "cd", " ", "é", "\xE2\x96"}));
}

TEST(PreTokenizer, APrefixSpaceIsAddedOnce) {
  EXPECT_EQ(PiecesOf({PrefixSpaceStep{}}, "a b"), Pieces{" a b"});
  EXPECT_EQ(PiecesOf({PrefixSpaceStep{}}, " a"), Pieces{" a"});
  EXPECT_EQ(PiecesOf({PrefixSpaceStep{}}, ""), Pieces{});
}

TEST(PreTokenizer, MetaspaceMarksSpaces) {
  using Prepend = MetaspaceStep::Prepend;
  const SplitStep at_marks{Regex::Literal("▁"), SplitBehavior::kMergedWithNext};
  EXPECT_EQ(PiecesOf({MetaspaceStep{"▁", Prepend::kAlways}, at_marks}, "a  b", false),
            (Pieces{"▁a", "▁", "▁b"}));
  EXPECT_EQ(PiecesOf({MetaspaceStep{"▁", Prepend::kFirst}}, "a b", true), Pieces{"▁a▁b"});
  EXPECT_EQ(PiecesOf({MetaspaceStep{"▁", Prepend::kFirst}}, "a b", false), Pieces{"a▁b"});
  EXPECT_EQ(PiecesOf({MetaspaceStep{"▁", Prepend::kAlways}}, " a"), Pieces{"▁a"});
  EXPECT_EQ(PiecesOf({MetaspaceStep{"▁", Prepend::kNever}}, "a b"), Pieces{"a▁b"});
  // Only the first piece of the text is at its start.
  const SplitStep at_commas{Regex::Literal(","), SplitBehavior::kIsolated};
  EXPECT_EQ(PiecesOf({at_commas, MetaspaceStep{"▁", Prepend::kFirst}}, "a,b"),
            (Pieces{"▁a", ",", "b"}));
}

TEST(PreTokenizer, TheFirstErrorOfTheSinkEndsTheRun) {
  int calls = 0;
  const absl::Status status =
      PreTokenizer({SplitStep{Compiled("."), SplitBehavior::kIsolated}})
          .Run("abc", true, [&](std::string_view) {
            return ++calls == 2 ? absl::InternalError("enough") : absl::OkStatus();
          });
  EXPECT_EQ(status.message(), "enough");
  EXPECT_EQ(calls, 2);
}

TEST(PreTokenizer, ARegexThatBacktracksWithoutEndGivesUp) {
  const SplitStep step{Compiled("(?:a|aa)+[bc]"), SplitBehavior::kIsolated};
  const PreTokenizer pre_tokenizer({step});
  const absl::Status status = pre_tokenizer.Run(std::string(200, 'a'), true,
                                                [](std::string_view) { return absl::OkStatus(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(Oniguruma, WhiteSpaceAndWordsAreUnicodes) {
  EXPECT_EQ(SplitBy("\\s+", SplitBehavior::kRemoved, false, "a\u00A0\u3000b\u180Ec"),
            (Pieces{"a", "b\u180Ec"}));
  EXPECT_EQ(SplitBy("[^\\S]", SplitBehavior::kRemoved, false, "a\u2003b"), (Pieces{"a", "b"}));
  EXPECT_EQ(SplitBy("\\w+", SplitBehavior::kRemoved, true, "e\u0301_½ ٣-\u2460"),
            (Pieces{"e\u0301_½", "٣"}));
  EXPECT_EQ(SplitBy("\\W", SplitBehavior::kRemoved, false, "a.b"), (Pieces{"a", "b"}));
  EXPECT_EQ(SplitBy("[\\w]+", SplitBehavior::kRemoved, false, "a.b"), Pieces{"."});
}

TEST(Oniguruma, ClassesHoldOthersAndIntersections) {
  const auto kept = [](std::string_view pattern, std::string_view text) {
    return SplitBy(pattern, SplitBehavior::kRemoved, true, text);
  };
  EXPECT_EQ(kept("[a[bc]d]+", "xabcdy"), Pieces{"abcd"});
  EXPECT_EQ(kept("[a[^\\w ]]+", "b a! b"), Pieces{"a!"});
  EXPECT_EQ(kept("[\\p{L}&&[^a-c]]+", "abxéc"), Pieces{"xé"});
  EXPECT_EQ(kept("[^\\p{L}&&[^a-c]]+", "abx1"), (Pieces{"ab", "1"}));
  EXPECT_EQ(kept("[a-z&&b-y&&[^m]]+", "abmcz"), (Pieces{"b", "c"}));
  EXPECT_EQ(kept("[\\u0061\\]]+", "xa]"), Pieces{"a]"});
  EXPECT_EQ(kept("\\p{Uppercase_Letter}+", "aBC"), Pieces{"BC"});
}

TEST(Oniguruma, APlusAfterAnIntervalRepeatsIt) {
  const auto kept = [](std::string_view pattern, std::string_view text) {
    return SplitBy(pattern, SplitBehavior::kRemoved, true, text);
  };
  EXPECT_EQ(kept("\\p{N}{1,3}+", "a12345b"), Pieces{"12345"});
  EXPECT_EQ(kept("(?:ab){2}+c", "ababababc"), Pieces{"ababababc"});
  EXPECT_EQ(kept("x[ab]{2}+", "xababb"), Pieces{"xabab"});
  EXPECT_EQ(kept("xé{2}+", "xééé"), Pieces{"xéé"});
}

TEST(Oniguruma, APropertyNamesTheScriptItself) {
  // U+30FC is used with Hiragana but belongs to no script of its own.
  EXPECT_EQ(SplitBy("\\p{Hiragana}+", SplitBehavior::kRemoved, false, "ひ\u30FC"),
            Pieces{"\u30FC"});
  EXPECT_EQ(SplitBy("\\p{^Lu}+", SplitBehavior::kRemoved, false, "aBc"), Pieces{"B"});
}

TEST(Oniguruma, LinesEndAtAnchors) {
  EXPECT_EQ(SplitBy("^a$", SplitBehavior::kRemoved, false, "b\na\nb"), (Pieces{"b\n", "\nb"}));
}

TEST(Oniguruma, WhatHasNoTranslationIsRefused) {
  for (const std::string_view pattern :
       {"\\bx",  "\\h",   "(?m:.)",    "(?i)a|b", "a{1,3}++",    "a{2}?",
        "a{,3}", "\\1",   "\\K",       "[\\W]",   "\\",          "[]a]",
        "\\p{L", "\\p{}", "\\v",       "{",       "[a",          "[a[b]",
        "[a&&]", "[&&a]", "[a-[z]]",   "[a&&^b]", "[[:alpha:]]", "(?1)",
        "(?R)",  "(?#a)", "(*ACCEPT)", "(?(1)a)", "\\u12",       "[[[[[[[[[[a]]]]]]]]]]"}) {
    EXPECT_EQ(TranslateOniguruma(pattern).status().code(), absl::StatusCode::kUnimplemented)
        << pattern;
  }
  for (const std::string_view pattern : {"(?i:a|b)", "(?:a)", "(?!a)", "a{1,3}", "a{1,3}?", "a++",
                                         "a?+", "[^a\\]b]", "(?<=a)b", "(?>a)"}) {
    const absl::StatusOr<std::string> same = TranslateOniguruma(pattern);
    ASSERT_TRUE(same.ok()) << pattern << same.status();
    EXPECT_EQ(*same, pattern);
  }
}

TEST(Regex, AnErrorSaysWhere) {
  const auto regex = Regex::Compile("a(b");
  ASSERT_FALSE(regex.ok());
  EXPECT_EQ(regex.status().message(), "missing closing parenthesis (at byte 3)");
}

}  // namespace
}  // namespace sparsekv::tokenizer
