#include "gpu_worker/calibration_criterion.h"

#include <array>

namespace sparsekv {

namespace {

// In the order of ChannelWorth.
constexpr std::array<std::string_view, 10> kNames = {
    "published-q", "published-k", "published-qk", "q",       "k",
    "qk",          "qk-diagonal", "qk-variance",  "qk-mass", "qk-lift"};
constexpr std::string_view kPairs = "-pairs";

}  // namespace

std::string Name(ChannelCriterion criterion) {
  std::string name(kNames[static_cast<size_t>(criterion.worth)]);
  return criterion.pairs ? name.append(kPairs) : name;
}

std::optional<ChannelCriterion> ParseCriterion(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    for (bool pairs : {false, true}) {
      const ChannelCriterion criterion = {static_cast<ChannelWorth>(i), pairs};
      if (criterion.published() && pairs) continue;
      if (Name(criterion) == name) return criterion;
    }
  }
  return std::nullopt;
}

std::span<const ChannelCriterion> ComparedCriteria() {
  static constexpr ChannelCriterion kAll[] = {
      {ChannelWorth::kPublishedQ}, {ChannelWorth::kPublishedK}, {ChannelWorth::kPublishedQk},
      {ChannelWorth::kQ},          {ChannelWorth::kK},          {ChannelWorth::kDiagonal},
      {ChannelWorth::kQk},         {ChannelWorth::kVariance},   {ChannelWorth::kMass},
      {ChannelWorth::kLift},       {ChannelWorth::kQk, true},   {ChannelWorth::kVariance, true},
      {ChannelWorth::kMass, true}, {ChannelWorth::kLift, true}};
  return kAll;
}

}  // namespace sparsekv
