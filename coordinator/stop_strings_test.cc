#include "coordinator/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace sparsekv {
namespace {

// The specification: the shortest prefix of the text that ends with a stop string, less the longest
// stop string that it ends with.
struct Expected {
  std::string text;
  std::string match;
};
Expected Cut(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string match;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop) && stop.size() > match.size()) {
        match = stop;
      }
    }
    if (!match.empty()) return {text.substr(0, end - match.size()), match};
  }
  return {text, ""};
}

TEST(StopStrings, CutsBeforeAStopThatIsSpreadOverPieces) {
  StopStrings stops({"###", "END"});
  EXPECT_EQ(stops.Push("one #"), "one ");
  EXPECT_EQ(stops.Push("#"), "");
  EXPECT_EQ(stops.Push(" E"), "## ");
  EXPECT_EQ(stops.Push("ND tail"), "");
  EXPECT_TRUE(stops.matched());
  EXPECT_EQ(stops.match(), "END");
  EXPECT_EQ(stops.Push("more"), "");
  EXPECT_EQ(stops.Finish(), "");
}

TEST(StopStrings, GivesBackWhatOnlyLookedLikeAStop) {
  StopStrings stops({"stop"});
  EXPECT_EQ(stops.Push("a sto"), "a ");
  EXPECT_EQ(stops.Finish(), "sto");
  EXPECT_FALSE(stops.matched());
}

TEST(StopStrings, HoldsNothingWithoutStops) {
  StopStrings stops({});
  EXPECT_EQ(stops.Push("abc"), "abc");
  EXPECT_EQ(stops.Finish(), "");
}

TEST(StopStrings, AnySplitGivesWhatTheWholeTextGives) {
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    auto word = [&](size_t longest) {
      std::string out(1 + random() % longest, ' ');
      for (char& c : out) c = "ab"[random() % 2];
      return out;
    };
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& stop : stops) stop = word(5);
    const std::string text = word(24);
    const Expected expected = Cut(text, stops);

    StopStrings matcher(stops);
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % (text.size() - at);
      out += matcher.Push(std::string_view(text).substr(at, length));
      ASSERT_EQ(expected.text.substr(0, out.size()), out) << text;
      at += length;
    }
    out += matcher.Finish();
    ASSERT_EQ(out, expected.text) << text;
    ASSERT_EQ(matcher.match(), expected.match) << text;
    ASSERT_EQ(matcher.matched(), !expected.match.empty());
  }
}

}  // namespace
}  // namespace sparsekv
