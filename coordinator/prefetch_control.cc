#include "coordinator/prefetch_control.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace sparsekv {

namespace {

constexpr double kMuchCut = 1.0 / 4;
constexpr double kSomeCut = 1.0 / 20;
constexpr double kHardlyCut = 1.0 / 100;
constexpr double kLinkFull = 9.0 / 10;
constexpr double kLinkHasTime = 7.0 / 10;
constexpr double kOfNoUse = 1.0 / 5;
constexpr double kGoodCoverage = 9.0 / 10;
constexpr double kWorthARaise = 0.02;
constexpr double kLeastRise = 0.05;  // of similarity

double Share(double part, double rest) { return part > 0 ? part / (part + rest) : 0; }
double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }
std::string Percent(double share) { return absl::StrCat(std::lround(100 * share), " %"); }

}  // namespace

PrefetchControl::PrefetchControl(PrefetchOptions options, uint32_t layers) : options_(options) {
  if (!options.predict) return;
  layers_.resize(layers);
  settings_.assign(layers, {.predict = true, .percent = 100});
  if (layers > 0) settings_[0].predict = false;  // there is no layer before it
}

std::vector<PrefetchControl::Change> PrefetchControl::OnEpoch(const v1::EpochStats& stats) {
  std::vector<Change> changes;
  if (stats.steps() == 0) return changes;
  const size_t count = std::min(layers_.size(), static_cast<size_t>(stats.layers_size()));
  for (size_t i = 1; i < count; ++i) {
    const v1::LayerStats& report = stats.layers(static_cast<int>(i));
    if (!EnoughToJudge(report, settings_[i].predict)) continue;
    Sums& sums = layers_[i].sums;
    sums.steps += stats.steps();
    sums.link_s += stats.link_s();
    sums.busy_s += stats.busy_s();
    Add(report, &sums);
    if (sums.steps < kJudgeSteps) continue;
    std::string why = Judge(layers_[i], settings_[i]);
    sums = {};
    if (!why.empty()) changes.push_back({static_cast<uint32_t>(i), settings_[i], std::move(why)});
  }
  return changes;
}

void PrefetchControl::Add(const v1::LayerStats& stats, Sums* sums) {
  sums->selected += static_cast<double>(stats.selected());
  sums->hits += static_cast<double>(stats.hits());
  sums->prefetched += static_cast<double>(stats.prefetched());
  sums->useful += static_cast<double>(stats.useful());
  sums->missed += static_cast<double>(stats.missed());
  sums->cut += static_cast<double>(stats.cut());
  sums->predicted += static_cast<double>(stats.predicted());
  sums->predicted_selected += static_cast<double>(stats.predicted_selected());
  if (!std::isfinite(stats.similarity_sum())) return;
  sums->similarity += stats.similarity_sum();
  sums->similarity_count += stats.similarity_count();
}

bool PrefetchControl::EnoughToJudge(const v1::LayerStats& stats, bool predicted) const {
  if (!predicted) return stats.similarity_count() > 0 && std::isfinite(stats.similarity_sum());
  if (!options_.correct) return stats.predicted() >= kEnoughRows;
  return stats.predicted() >= kEnoughRows &&
         static_cast<double>(stats.useful()) + static_cast<double>(stats.missed()) >= kEnoughRows;
}

// `missed` counts dense sequences' rows too, which nobody predicts. So no more of it is believed
// than predicted sequences can have missed: what was cut, and what predictions did not name. A
// sample of the steps tells which share of a selection they name; what they named is a hit, useful
// or cut.
double PrefetchControl::Coverage(const Sums& sums, uint32_t percent) const {
  if (!options_.correct) return Ratio(sums.predicted_selected, sums.predicted);
  const double selection = sums.predicted * std::max(1.0, 100.0 / percent);  // not less than it was
  const double named = std::min(1.0, Ratio(sums.predicted_selected, selection));
  if (named == 0) return 0;
  const double unnamed = (1 - named) / named * (sums.hits + sums.useful + sums.cut);
  return Share(sums.useful, std::min(sums.missed, unnamed + sums.cut));
}

std::optional<double> PrefetchControl::Coverage(uint32_t layer, const v1::LayerStats& stats) const {
  if (layer >= settings_.size() || stats.predicted() == 0) return std::nullopt;
  if (options_.correct && stats.useful() == 0 && stats.missed() == 0) return std::nullopt;
  Sums sums;
  Add(stats, &sums);
  return Coverage(sums, settings_[layer].percent);
}

std::string PrefetchControl::Judge(Layer& layer, Setting& setting) const {
  return setting.predict ? JudgePredicted(layer, setting) : JudgeOff(layer, setting);
}

std::string PrefetchControl::JudgePredicted(Layer& layer, Setting& setting) const {
  const Sums& sums = layer.sums;
  const double load = sums.selected / sums.steps;
  const double coverage = Coverage(sums, setting.percent);
  const double cut = Share(sums.cut, sums.prefetched);
  const double link = Ratio(sums.link_s, sums.busy_s);
  const bool adjusts = options_.correct;
  const auto less = [&] {
    setting.percent -= kStep;
    layer.limit = setting.percent;
    layer.limit_load = load;
    layer.before_raise.reset();
  };
  if (layer.limit < kMaxPercent && (load > 2 * layer.limit_load || 2 * load < layer.limit_load)) {
    layer.limit = kMaxPercent;
  }
  const bool slow = cut > kMuchCut || (cut > kSomeCut && link > kLinkFull);
  if (adjusts && slow && setting.percent > kMinPercent) {
    less();
    return absl::StrCat(Percent(cut), " cut, link busy ", Percent(link));
  }
  if (coverage < kOfNoUse) {
    setting.predict = false;
    layer.before_raise.reset();
    if (sums.similarity_count > 0) {
      const double similarity = sums.similarity / sums.similarity_count;
      layer.off_similarity = std::max(similarity, layer.off_similarity.value_or(similarity));
    }
    return absl::StrCat("coverage ", Percent(coverage));
  }
  if (!adjusts) return "";
  if (layer.before_raise && coverage < *layer.before_raise + kWorthARaise) {
    less();
    return absl::StrCat("coverage ", Percent(coverage), " with more");
  }
  layer.before_raise.reset();
  if (coverage < kGoodCoverage && cut < kHardlyCut && link < kLinkHasTime &&
      setting.percent + kStep <= layer.limit) {
    setting.percent += kStep;
    layer.before_raise = coverage;
    return absl::StrCat("coverage ", Percent(coverage));
  }
  return "";
}

std::string PrefetchControl::JudgeOff(Layer& layer, Setting& setting) const {
  const double similarity = layer.sums.similarity / layer.sums.similarity_count;
  if (!layer.off_similarity) {  // none was reported while it was predicted
    layer.off_similarity = similarity;
    return "";
  }
  const double was = *layer.off_similarity;
  if (!(similarity >= was + std::max(kLeastRise, (1 - was) / 2))) return "";
  layer.off_similarity = similarity;  // should this not be enough either
  setting = {.predict = true, .percent = 100};
  layer.limit = kMaxPercent;
  return absl::StrCat("similarity ", Percent(similarity), ", was ", Percent(was));
}

void PrefetchControl::FillPlan(v1::Plan* plan) const {
  for (const Setting& setting : settings_) {
    v1::LayerPlan* layer = plan->add_layers();
    layer->set_predict(setting.predict);
    layer->set_prefetch_percent(setting.percent);
    layer->set_uncorrected(setting.predict && !options_.correct);
  }
}

}  // namespace sparsekv
