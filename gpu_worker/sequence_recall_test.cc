// How many rows a recall target takes: the arithmetic alone, without a model.
#include "gpu_worker/sequence_recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "gpu_worker/mass_curve.h"

namespace sparsekv {
namespace {

ScoreHistogram Histogram(const std::vector<float>& scores) {
  ScoreHistogram histogram;
  histogram.low = *std::ranges::min_element(scores);
  histogram.high = *std::ranges::max_element(scores);
  for (float score : scores) {
    ++histogram.counts[ScoreHistogram::Bin(score, histogram.low, histogram.bins_per_score())];
  }
  return histogram;
}

// What the `rows` highest scores hold, one by one.
double ShareOfBest(std::vector<float> scores, double logits_per_score, uint32_t rows) {
  std::ranges::sort(scores, std::greater());
  double total = 0, best = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(logits_per_score * (scores[i] - scores[0]));
    total += weight;
    if (i < rows) best += weight;
  }
  return best / total;
}

TEST(MassCurve, EstimatesWhatTheBestScoresHold) {
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> scores(100 + random() % 5000);
    for (float& score : scores) score = normal(random);
    const double slope = 0.1 + 0.2 * (round % 10);
    const MassCurve curve = MassCurve::Estimated(Histogram(scores), slope);
    EXPECT_EQ(curve.rows(), scores.size());
    EXPECT_EQ(curve.Share(0), 0);
    EXPECT_NEAR(curve.Share(curve.rows()), 1, 1e-9);
    for (double part : {0.01, 0.1, 0.3, 0.7}) {
      const auto rows = static_cast<uint32_t>(part * static_cast<double>(scores.size()));
      EXPECT_NEAR(curve.Share(rows), ShareOfBest(scores, slope, rows), 0.02);
    }
  }
}

TEST(MassCurve, RowsForAShareAreTheFewest) {
  std::mt19937 random(2);
  for (int round = 0; round < 30; ++round) {
    std::vector<MassCurve> heads;
    for (int head = 0; head < 3; ++head) {
      std::vector<float> scores(800);
      for (float& score : scores) score = static_cast<float>(random() % 1000) / 100;
      heads.push_back(MassCurve::Estimated(Histogram(scores), 0.3 * head));
    }
    const auto mean = [&](uint32_t rows) {
      return (heads[0].Share(rows) + heads[1].Share(rows) + heads[2].Share(rows)) / 3;
    };
    for (double share : {0.2, 0.9, 0.98}) {
      const uint32_t rows = RowsForShare(heads, share);
      EXPECT_GE(mean(rows), share - 1e-12);
      EXPECT_LT(mean(rows - 1), share + 1e-12);
    }
    EXPECT_EQ(RowsForShare(heads, 0), 0u);
    EXPECT_EQ(RowsForShare(heads, 1.5), 800u);  // never reached: all
  }
  EXPECT_EQ(RowsForShare({}, 0.9), 0u);
}

TEST(MassCurve, MeasuredMassIsAddedToWhatIsTakenAnyway) {
  ScoreHistogram histogram = Histogram({0, 1, 1, 2});
  std::array<double, kScoreBins> mass = {};
  mass[kScoreBins - 1] = 0.25;
  mass[kScoreBins / 2] = 0.1;
  mass[0] = 0.05;
  const MassCurve curve = MassCurve::Measured(histogram, mass, 0.6);
  EXPECT_DOUBLE_EQ(curve.Share(0), 0.6);
  EXPECT_DOUBLE_EQ(curve.Share(1), 0.85);
  EXPECT_DOUBLE_EQ(curve.Share(2), 0.9);  // half of the two in the middle
  EXPECT_DOUBLE_EQ(curve.Share(4), 1.0);
}

TEST(RowGain, WhatStaysTheSameIsTakenAsItIs) {
  for (double needed : {0.0, 3.0, 50.0, 1e5, 1e9}) {
    RowGain gain;
    for (int i = 0; i < 20; ++i) {
      gain.Add(50, needed);
      EXPECT_NEAR(gain.Value() / std::clamp(needed / 50, RowGain::kLeast, RowGain::kMost), 1, 1e-9);
    }
    EXPECT_EQ(gain.samples(), 20u);
  }
}

// The share of steps that had as many rows as they needed, and how many more they had than what is
// needed in the mean of logarithms.
std::pair<double, double> HeldAndTaken(double deviation) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal(0, deviation);
  double held = 0, taken = 0;
  constexpr int kRounds = 100, kSamples = 30;
  for (int round = 0; round < kRounds; ++round) {
    RowGain gain;
    for (int sample = 0; sample < kSamples; ++sample) {
      const double needed = 100 * std::exp(normal(random));
      if (sample >= 4) {
        held += gain.Value() * 100 >= needed;
        taken += std::log(gain.Value());
      }
      gain.Add(100, needed);
    }
  }
  const double all = kRounds * (kSamples - 4);
  return {held / all, std::exp(taken / all)};
}

TEST(RowGain, TheLessSamplesAgreeTheMoreIsTaken) {
  const auto [text_held, text_taken] = HeldAndTaken(0.1);
  EXPECT_GT(text_held, 0.95);
  EXPECT_LT(text_taken, 1.4);
  const auto [chase_held, chase_taken] = HeldAndTaken(1.6);
  EXPECT_GT(chase_held, 0.95);
  EXPECT_GT(chase_taken, 20);
}

// What was needed once is not needed for ever.
TEST(RowGain, OldSamplesAreForgotten) {
  RowGain gain;
  for (int i = 0; i < 4; ++i) gain.Add(10, 1000);
  for (int i = 0; i < 100; ++i) gain.Add(10, 20);
  EXPECT_NEAR(gain.Value(), 2, 0.1);
  gain.Add(10, 1000);
  EXPECT_GT(gain.Value(), 10);
}

TEST(RowGain, StaysInItsBounds) {
  RowGain gain;
  gain.Add(1000, 0);
  EXPECT_DOUBLE_EQ(gain.Value(), RowGain::kLeast);
  gain.Add(0, 1e12);
  EXPECT_DOUBLE_EQ(gain.Value(), RowGain::kMost);
  RowGain nothing;
  nothing.Add(0, 0);
  EXPECT_TRUE(std::isfinite(nothing.Value()));
}

// As many samples as there are first steps, all of which needed so many rows.
void Learn(SequenceRecall* recall, uint32_t layer, uint32_t estimated, uint32_t needed) {
  for (int step = 0; step < 4; ++step) recall->Correct(layer, 69, estimated, needed, 500);
}

TEST(SequenceRecall, ChoosesWithinItsBounds) {
  SequenceRecall recall(2, 100, 0.9);
  EXPECT_EQ(recall.rows(1), 0u);
  EXPECT_EQ(recall.Choose(1, 69, 30, 500), 500u) << "nothing is known";
  Learn(&recall, 1, 30, 30);
  EXPECT_EQ(recall.Choose(1, 69, 30, 500), 99u);
  EXPECT_EQ(recall.Choose(1, 69, 5000, 500), 500u);
  EXPECT_EQ(recall.Choose(1, 69, 0, 500), 70u);
  EXPECT_EQ(recall.Choose(1, 69, 10, 69), 69u);
  EXPECT_EQ(recall.rows(1), 69u);
  EXPECT_EQ(recall.rows(0), 0u);
}

TEST(SequenceRecall, TheFirstStepsTakeTheBudgetAndTeach) {
  SequenceRecall recall(2, 100, 0.9);
  for (int step = 0; step < 4; ++step) {
    EXPECT_TRUE(recall.Samples(0, 100 + step));
    EXPECT_EQ(recall.Choose(0, 69, 30, 500), 500u);
    EXPECT_FALSE(recall.Correct(0, 69, 30, 60, 500));
  }
  EXPECT_EQ(recall.Choose(0, 69, 30, 500), 129u);
  EXPECT_EQ(recall.Choose(1, 69, 30, 500), 500u);
  EXPECT_FALSE(recall.Correct(0, 69, 30, 240, 500));
  EXPECT_GT(recall.Choose(0, 69, 30, 500), 150u);
}

TEST(SequenceRecall, FallsBackWhereTheBudgetIsTooSmallTwiceInARow) {
  SequenceRecall recall(2, 100, 0.9);
  EXPECT_FALSE(recall.Correct(0, 69, 30, 432, 500));
  EXPECT_FALSE(recall.Correct(0, 69, 30, 431, 500));  // just enough
  EXPECT_FALSE(recall.Correct(0, 69, 30, 432, 500));
  EXPECT_FALSE(recall.whole(0));
  EXPECT_TRUE(recall.Correct(0, 69, 30, 432, 500));
  EXPECT_TRUE(recall.whole(0));
  EXPECT_FALSE(recall.whole(1));
  EXPECT_FALSE(recall.Correct(0, 69, 30, 432, 500)) << "once";
  EXPECT_EQ(recall.whole_layers(), 1u);
  SequenceRecall watched(2, 100, 0);  // without a target nothing falls back
  EXPECT_FALSE(watched.whole(0));
}

TEST(SequenceRecall, EveryLayerIsSampledInItsTurn) {
  for (double target : {0.0, 0.9}) {
    const SequenceRecall recall(3, 100, target);
    for (uint32_t layer = 0; layer < 3; ++layer) EXPECT_FALSE(recall.Samples(layer, 99));
    std::vector<int> samples(3);
    for (uint32_t position = 104; position < 100 + 16 * 3 * 4; ++position) {
      int now = 0;
      for (uint32_t layer = 0; layer < 3; ++layer) {
        now += recall.Samples(layer, position);
        samples[layer] += recall.Samples(layer, position);
      }
      EXPECT_LE(now, 1) << "one layer at a time";
    }
    for (int count : samples) EXPECT_GE(count, target > 0 ? 12 : 3);
    for (uint32_t layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(recall.Samples(layer, 101), target > 0);
    }
  }
}

TEST(SequenceRecall, WhatIsNoNumberHoldsNothing) {
  SequenceRecall recall(1, 0, 0);
  recall.Add(0.5);
  recall.Add(std::nan(""));
  recall.Add(1.00001);
  EXPECT_EQ(recall.samples(), 3u);
  EXPECT_DOUBLE_EQ(recall.sum(), 1.5);
}

}  // namespace
}  // namespace sparsekv
