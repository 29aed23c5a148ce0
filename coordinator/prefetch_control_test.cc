#include "coordinator/prefetch_control.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace sparsekv {
namespace {

using Control = PrefetchControl;
using Setting = Control::Setting;

// One report of half a plan; layer 1 is the one that tests look at.
struct Epoch {
  uint64_t prefetched = 1000, useful = 950, missed = 50, cut = 0;
  double link = 0.3;  // share of the time
  double similarity = 0.8;
  uint64_t selected = 5000;
  uint64_t dense = 0;  // rows of dense sequences
  std::optional<uint64_t> predicted = {}, predicted_selected = {};

  // Under a setting of `percent`, where the prediction names what was not missed.
  v1::EpochStats Report(uint32_t steps = 16, uint32_t percent = 100) const {
    v1::EpochStats stats;
    stats.set_steps(steps);
    stats.set_busy_s(2);
    stats.set_link_s(2 * link);
    stats.add_layers();
    v1::LayerStats* layer = stats.add_layers();
    layer->set_selected(selected + dense);
    layer->set_prefetched(prefetched);
    layer->set_useful(useful);
    layer->set_missed(missed + dense);
    layer->set_cut(cut);
    layer->set_hits(selected - std::min(selected, useful + missed));
    // A sample: one of ten steps.
    layer->set_predicted(predicted.value_or(selected * percent / 1000));
    layer->set_predicted_selected(
        predicted_selected.value_or((selected - std::min(selected, missed)) / 10));
    layer->set_similarity_sum(3 * similarity);
    layer->set_similarity_count(3);
    return stats;
  }
};

Epoch WithCoverage(double coverage) {
  Epoch epoch;
  epoch.useful = static_cast<uint64_t>(std::lround(1000 * coverage));
  epoch.missed = 1000 - epoch.useful;
  return epoch;
}

// Until a layer is judged once: two half plans.
Setting Layer1(const Control& control) { return control.settings().at(1); }

std::vector<Control::Change> Judge(Control& control, const Epoch& epoch) {
  const v1::EpochStats report = epoch.Report(16, Layer1(control).percent);
  EXPECT_TRUE(control.OnEpoch(report).empty()) << "judged too early";
  return control.OnEpoch(report);
}

TEST(PrefetchControl, BeginsPredictedButForTheFirstLayer) {
  const Control control({}, 3);
  v1::Plan plan;
  control.FillPlan(&plan);
  ASSERT_EQ(plan.layers_size(), 3);
  EXPECT_FALSE(plan.layers(0).predict());
  for (int i : {1, 2}) {
    EXPECT_TRUE(plan.layers(i).predict());
    EXPECT_EQ(plan.layers(i).prefetch_percent(), 100u);
    EXPECT_FALSE(plan.layers(i).uncorrected());
  }
}

TEST(PrefetchControl, OffMeansNoLayerPlans) {
  Control control({.predict = false}, 3);
  v1::Plan plan;
  control.FillPlan(&plan);
  EXPECT_EQ(plan.layers_size(), 0);
  EXPECT_TRUE(control.OnEpoch(Epoch().Report(100)).empty());
}

TEST(PrefetchControl, UncorrectedIsSaidOfPredictedLayers) {
  const Control control({.correct = false}, 2);
  v1::Plan plan;
  control.FillPlan(&plan);
  EXPECT_FALSE(plan.layers(0).uncorrected());
  EXPECT_TRUE(plan.layers(1).uncorrected());
}

TEST(PrefetchControl, LeavesAGoodLayerAlone) {
  Control control({}, 2);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Judge(control, WithCoverage(0.95)).empty());
  EXPECT_EQ(Layer1(control), (Setting{true, 100}));
}

TEST(PrefetchControl, RaisesWhileItHelpsAndTakesBackWhatDidNot) {
  Control control({}, 2);
  const auto changes = Judge(control, WithCoverage(0.6));
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].layer, 1u);
  EXPECT_EQ(changes[0].now, (Setting{true, 125}));
  EXPECT_EQ(changes[0].why, "coverage 60 %");
  Judge(control, WithCoverage(0.7));
  EXPECT_EQ(Layer1(control).percent, 150u);
  Judge(control, WithCoverage(0.71));  // hardly better
  EXPECT_EQ(Layer1(control).percent, 125u);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(Judge(control, WithCoverage(0.7)).empty());
}

TEST(PrefetchControl, ARaiseIsJudgedOnce) {
  Control control({}, 2);
  Judge(control, WithCoverage(0.6));
  EXPECT_TRUE(Judge(control, WithCoverage(0.95)).empty());  // it was worth it
  Judge(control, WithCoverage(0.55));                       // other input: more, not less
  EXPECT_EQ(Layer1(control).percent, 150u);
}

TEST(PrefetchControl, RaisesToTheCap) {
  Control control({}, 2);
  for (int i = 0; i < 10; ++i) Judge(control, WithCoverage(0.3 + 0.05 * i));
  EXPECT_EQ(Layer1(control).percent, Control::kMaxPercent);
}

TEST(PrefetchControl, RaisesOnlyWhileTheLinkHasTimeAndNothingIsCut) {
  Control control({}, 2);
  Epoch epoch = WithCoverage(0.6);
  epoch.link = 0.75;
  EXPECT_TRUE(Judge(control, epoch).empty());
  epoch.link = 0.3;
  epoch.cut = 30;  // 3 %
  EXPECT_TRUE(Judge(control, epoch).empty());
  epoch.cut = 0;
  EXPECT_FALSE(Judge(control, epoch).empty());
}

TEST(PrefetchControl, LowersWhatIsCutDownToTheFloor) {
  Control control({}, 2);
  Epoch epoch = WithCoverage(0.5);
  epoch.cut = 500;
  EXPECT_EQ(Judge(control, epoch).at(0).why, "33 % cut, link busy 30 %");
  EXPECT_EQ(Layer1(control).percent, 75u);
  Judge(control, epoch);
  EXPECT_EQ(Layer1(control).percent, 50u);
  EXPECT_TRUE(Judge(control, epoch).empty());
}

TEST(PrefetchControl, ReactsToLinkTime) {
  Control control({}, 2);
  Epoch epoch = WithCoverage(0.95);
  epoch.cut = 100;  // 9 %
  epoch.link = 0.8;
  EXPECT_TRUE(Judge(control, epoch).empty());
  epoch.link = 0.95;
  EXPECT_EQ(Judge(control, epoch).size(), 1u);
  EXPECT_EQ(Layer1(control).percent, 75u);
  epoch.cut = 0;  // busy, but everything comes in time
  EXPECT_TRUE(Judge(control, epoch).empty());
}

TEST(PrefetchControl, WhatTheLinkCouldNotCarryIsNotTriedAgainForTheSameWork) {
  Control control({}, 2);
  Epoch slow = WithCoverage(0.5);
  slow.cut = 500;
  Judge(control, slow);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(Judge(control, WithCoverage(0.6)).empty());
  Epoch less_work = WithCoverage(0.6);
  less_work.selected /= 3;
  EXPECT_EQ(Judge(control, less_work).size(), 1u);
  EXPECT_EQ(Layer1(control).percent, 100u);
}

TEST(PrefetchControl, SwitchesOffWhatIsOfNoUseAndOnAgainWhenInputsAreMoreAlike) {
  Control control({}, 2);
  Epoch epoch = WithCoverage(0.1);
  epoch.similarity = 0.6;
  Judge(control, epoch);
  EXPECT_FALSE(Layer1(control).predict);
  epoch = WithCoverage(0);
  for (double similarity : {0.6, 0.7, 0.79}) {
    epoch.similarity = similarity;
    EXPECT_TRUE(Judge(control, epoch).empty()) << similarity;
  }
  epoch.similarity = 0.81;  // half of what it lacked
  EXPECT_EQ(Judge(control, epoch).size(), 1u);
  EXPECT_EQ(Layer1(control), (Setting{true, 100}));
}

// Similarity that goes up and down, and a layer that cannot be predicted at any.
TEST(PrefetchControl, AsksForMoreSimilarityEachTimeItWasInVain) {
  Control control({}, 2);
  int changes = 0;
  for (int i = 0; i < 200; ++i) {
    Epoch epoch = WithCoverage(0.1);
    epoch.similarity = i % 2 ? 0.9 : 0.3;
    changes += static_cast<int>(Judge(control, epoch).size());
  }
  EXPECT_EQ(changes, 3);  // off, on, off
  EXPECT_FALSE(Layer1(control).predict);
}

// A dense sequence misses every row that it attends in every step, and nobody predicts them.
TEST(PrefetchControl, DenseSequencesDoNotSpeakAgainstPrediction) {
  Control control({}, 2);
  Epoch epoch = WithCoverage(0.95);
  epoch.dense = 1000000;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(Judge(control, epoch).empty());
  EXPECT_NEAR(*control.Coverage(1, epoch.Report().layers(1)), 0.95, 1e-9);
  epoch.useful = epoch.missed = epoch.prefetched = 0;  // dense ones alone
  epoch.predicted = 0;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(control.OnEpoch(epoch.Report()).empty());
  EXPECT_FALSE(control.Coverage(1, epoch.Report().layers(1)).has_value());
  EXPECT_TRUE(Layer1(control).predict);
}

TEST(PrefetchControl, IgnoresReportsWithTooFewRows) {
  Control control({}, 2);
  Epoch epoch;
  epoch.useful = 0;
  epoch.missed = Control::kEnoughRows - 1;
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(control.OnEpoch(epoch.Report()).empty());
  epoch.missed = Control::kEnoughRows;
  EXPECT_EQ(Judge(control, epoch).size(), 1u);
  Control idle({}, 2);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(idle.OnEpoch(WithCoverage(0).Report(0)).empty());
}

TEST(PrefetchControl, UncorrectedGoesByWhatPredictionsHit) {
  Control control({.correct = false}, 2);
  Epoch epoch = WithCoverage(1);  // nothing is missed
  epoch.cut = 900;
  epoch.predicted = 1000;
  epoch.predicted_selected = 500;
  EXPECT_TRUE(Judge(control, epoch).empty());
  EXPECT_EQ(Layer1(control), (Setting{true, 100}));
  epoch.predicted_selected = 150;
  EXPECT_EQ(Judge(control, epoch).size(), 1u);
  EXPECT_FALSE(Layer1(control).predict);
}

class RandomControl : public ::testing::TestWithParam<unsigned> {
 protected:
  std::mt19937 random_{GetParam()};

  double Unit() { return std::uniform_real_distribution<>(0, 1)(random_); }
  uint64_t Below(uint64_t bound) { return random_() % bound; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

  Epoch RandomEpoch() {
    const uint64_t scale = uint64_t{1} << Below(20);
    return {.prefetched = Below(scale),
            .useful = Below(scale),
            .missed = Below(scale),
            .cut = OneIn(2) ? 0 : Below(scale),
            .link = 1.2 * Unit(),
            .similarity = 2 * Unit() - 1,
            .selected = Below(scale),
            .predicted = Below(scale),
            .predicted_selected = Below(scale)};
  }
  PrefetchOptions RandomOptions() { return {.correct = !OneIn(4)}; }
};

TEST_P(RandomControl, ConstantReportsSettle) {
  Control control(RandomOptions(), 2);
  const uint32_t steps = 1 + static_cast<uint32_t>(Below(32));
  const v1::EpochStats report = RandomEpoch().Report(steps);
  const uint32_t one_judgement = (Control::kJudgeSteps + steps - 1) / steps;
  for (uint32_t i = 0; i < 4 * one_judgement; ++i) control.OnEpoch(report);
  for (int i = 0; i < 500; ++i) ASSERT_TRUE(control.OnEpoch(report).empty()) << i;
}

TEST_P(RandomControl, AnyReportsGiveValidPlans) {
  Control control(RandomOptions(), 2);
  for (int i = 0; i < 500; ++i) {
    v1::EpochStats report = RandomEpoch().Report(static_cast<uint32_t>(Below(64)));
    if (OneIn(10)) report.set_link_s(std::numeric_limits<double>::quiet_NaN());
    if (OneIn(10)) report.set_busy_s(OneIn(2) ? -1 : std::numeric_limits<double>::infinity());
    if (OneIn(10)) report.mutable_layers(1)->set_similarity_sum(std::nan(""));
    if (OneIn(10)) report.mutable_layers(1)->set_useful(UINT64_MAX);
    if (OneIn(10)) report.mutable_layers(0)->set_missed(UINT64_MAX);
    if (OneIn(10)) report.mutable_layers()->RemoveLast();
    if (OneIn(10)) report.add_layers()->set_missed(1000);  // of a layer that there is not
    control.OnEpoch(report);
    v1::Plan plan;
    control.FillPlan(&plan);
    ASSERT_EQ(plan.layers_size(), 2);
    ASSERT_FALSE(plan.layers(0).predict());
    const uint32_t percent = plan.layers(1).prefetch_percent();
    ASSERT_EQ(percent % Control::kStep, 0u);
    ASSERT_GE(percent, Control::kMinPercent);
    ASSERT_LE(percent, Control::kMaxPercent);
  }
}

// A layer as one might be, behind a link: the more rows are predicted, the more of the needed ones
// are among them, up to a part that no prediction finds; what the link cannot carry in time is cut.
struct SimulatedLayer {
  double needed;     // rows that are not hot, per step
  double findable;   // of those, by any prediction
  double steepness;  // of how that is approached
  double capacity;   // rows that the link carries before the layer begins
  double noise;      // of every figure, relative
  uint64_t selected = 100000;

  Epoch Run(Setting setting, double random) const {
    const double asked = setting.predict ? needed * setting.percent / 100 : 0;
    const double came = std::min(asked, capacity);
    const double found = findable * (1 - std::exp(-steepness * setting.percent / 100.0));
    const double useful = needed * found * (asked > 0 ? came / asked : 0);
    const double off = 1 + noise * (2 * random - 1);
    const auto count = [&](double rows) { return static_cast<uint64_t>(std::max(0.0, rows)); };
    return {.prefetched = count(came * off),
            .useful = count(useful * off),
            .missed = count(needed - useful * off),
            .cut = count(asked - came),
            .link = std::min(1.0, (came + needed - useful) / (1.5 * capacity)),
            .similarity = findable * off,
            .selected = selected};
  }
};

v1::EpochStats Simulate(const SimulatedLayer& layer, const Control& control, double random) {
  const Setting setting = Layer1(control);
  return layer.Run(setting, random).Report(16, setting.percent);
}

TEST_P(RandomControl, ClosedLoopSettlesAndAgainAfterTheWorkHasChanged) {
  SimulatedLayer layer{.needed = 200 + 5000 * Unit(),
                       .findable = Unit(),
                       .steepness = 1 + 4 * Unit(),
                       .capacity = 0,
                       .noise = 0};
  layer.capacity = layer.needed * 2.5 * Unit() + 10;
  Control control({}, 2);
  for (int work = 0; work < 3; ++work) {
    int changes = 0;
    for (int i = 0; i < 60; ++i) {
      changes += static_cast<int>(control.OnEpoch(Simulate(layer, control, 0.5)).size());
    }
    EXPECT_LE(changes, 12);
    for (int i = 0; i < 200; ++i) {
      ASSERT_TRUE(control.OnEpoch(Simulate(layer, control, 0.5)).empty())
          << "work " << work << " after " << 60 + i;
    }
    layer.needed *= 3;
    layer.selected *= 3;
  }
}

TEST_P(RandomControl, ClosedLoopWithNoiseChangesAFewTimesOnly) {
  SimulatedLayer layer{.needed = 200 + 5000 * Unit(),
                       .findable = Unit(),
                       .steepness = 1 + 4 * Unit(),
                       .capacity = 0,
                       .noise = 0.3};
  layer.capacity = layer.needed * 2.5 * Unit() + 10;
  Control control({}, 2);
  int changes = 0;
  for (int i = 0; i < 5000; ++i) {
    changes += static_cast<int>(control.OnEpoch(Simulate(layer, control, Unit())).size());
  }
  EXPECT_LE(changes, 30);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomControl, ::testing::Range(0u, 300u));

}  // namespace
}  // namespace sparsekv
