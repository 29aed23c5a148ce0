#include "cli/eval/scoring.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "cli/eval/summary.h"

namespace sparsekv {
namespace {

double One(Scoring scoring, const std::string& text, std::vector<std::string> answers,
           std::vector<std::string> classes = {}) {
  return Score(scoring, text, answers, classes);
}

TEST(Scoring, Rules) {
  EXPECT_EQ(One(Scoring::kContainsAll, " 48213. The", {"48213"}), 1);
  EXPECT_EQ(One(Scoring::kContainsAll, "ABC and def", {"abc", "xyz"}), 0.5);
  EXPECT_EQ(One(Scoring::kContainsAny, "ABC and def", {"abc", "xyz"}), 1);
  EXPECT_NEAR(One(Scoring::kF1, "the red house", {"a red barn", "green"}), 0.5, 1e-9);
  EXPECT_EQ(One(Scoring::kF1, "", {"word"}), 0);
  EXPECT_NEAR(One(Scoring::kRougeL, "a b c d", {"a c d e"}), 0.75, 1e-9);
  EXPECT_EQ(One(Scoring::kClassification, "City", {"City"}, {"City", "State"}), 1);
  EXPECT_EQ(One(Scoring::kClassification, "City, State", {"City"}, {"City", "State"}), 0.5);
  EXPECT_EQ(One(Scoring::kClassification, "Other city", {"Other city"}, {"Other", "Other city"}),
            1);
  EXPECT_EQ(One(Scoring::kCount, "7 or 8, 7 I think", {"7"}), 2.0 / 3);
  EXPECT_EQ(One(Scoring::kPassage, "12", {"Paragraph 12"}), 1);
  EXPECT_EQ(One(Scoring::kCodeEdit, "# note\nreturn x\nmore", {"return x"}), 1);
  EXPECT_NEAR(One(Scoring::kCodeEdit, "abcd", {"abxd"}), 0.75, 1e-9);
}

using Pair = std::array<CandidateResult, 2>;

Pair Case(double dense, double other) {
  Pair pair;
  for (CandidateResult& result : pair) result.weights = {1};
  pair[0].sums = {dense};
  pair[1].sums = {other};
  pair[0].cost = {1, 10, 100, 10, 100};
  pair[1].cost = {1, 5, 25, 10, 100};
  return pair;
}

// Pairs that differ always by the same have no interval of the difference, though the values have.
TEST(Summary, IntervalsArePaired) {
  std::vector<Pair> cases;
  for (int i = 0; i < 200; ++i) cases.push_back(Case(i % 2, (i % 2) - 0.25));
  std::vector<CaseResult> results;
  for (const Pair& c : cases) results.push_back({&c[0], &c[1]});
  std::vector<CandidateSummary> candidates(2);
  Summarise(results, Metric::kAccuracy, 0, 1, &candidates);
  EXPECT_DOUBLE_EQ(candidates[0].value.value, 0.5);
  EXPECT_NEAR(candidates[0].value.high - candidates[0].value.low, 4 * 0.5 / std::sqrt(200), 0.02);
  EXPECT_DOUBLE_EQ(candidates[1].change.value, -0.25);
  EXPECT_NEAR(candidates[1].change.low, -0.25, 1e-9);
  EXPECT_NEAR(candidates[1].change.high, -0.25, 1e-9);
  EXPECT_DOUBLE_EQ(candidates[1].bytes_share, 0.25);
  EXPECT_DOUBLE_EQ(candidates[1].rows_share, 0.5);
  Summarise(results, Metric::kPerplexity, 0, 1, &candidates);
  EXPECT_NEAR(candidates[1].change.value, std::exp(-0.25) - 1, 1e-9);
}

}  // namespace
}  // namespace sparsekv
