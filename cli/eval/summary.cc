#include "cli/eval/summary.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/concat.h"
#include "cli/recall/seeded_random.h"

namespace sparsekv {

namespace {

constexpr uint64_t kStream = 41;

double Value(Metric metric, double sum, double weight) {
  const double mean = weight > 0 ? sum / weight : 0;
  return metric == Metric::kPerplexity ? std::exp(mean) : mean;
}

double Change(Metric metric, double value, double dense) {
  if (metric == Metric::kPerplexity) return dense > 0 ? value / dense - 1 : 0;
  return value - dense;
}

// The bounds of the middle 95 %.
void SetInterval(std::vector<double>& drawn, Estimate* estimate) {
  std::ranges::sort(drawn);
  const auto at = [&](double share) {
    return drawn[static_cast<size_t>(std::lround(share * static_cast<double>(drawn.size() - 1)))];
  };
  estimate->low = at(0.025);
  estimate->high = at(0.975);
}

struct Units {
  std::vector<double> weights;            // [units]
  std::vector<std::vector<double>> sums;  // [candidates][units]
};

Units Collect(std::span<const CaseResult> results) {
  Units units;
  units.sums.resize(results[0].size());
  for (const CaseResult& result : results) {
    const std::vector<double>& weights = result[0]->weights;
    units.weights.insert(units.weights.end(), weights.begin(), weights.end());
    for (size_t c = 0; c < units.sums.size(); ++c) {
      const std::vector<double>& sums = result[c]->sums;
      CHECK_EQ(sums.size(), weights.size());
      units.sums[c].insert(units.sums[c].end(), sums.begin(), sums.end());
    }
  }
  return units;
}

void SetIntervals(const Units& units, Metric metric, size_t dense, uint64_t seed,
                  std::vector<CandidateSummary>* candidates) {
  SeededRandom random(seed, kStream);
  const size_t count = units.weights.size();
  std::vector<std::vector<double>> values(units.sums.size(), std::vector<double>(kResamples));
  std::vector<uint32_t> times(count);
  for (uint32_t i = 0; i < kResamples; ++i) {
    std::ranges::fill(times, 0u);
    for (size_t n = 0; n < count; ++n) ++times[random.Below(count)];
    double weight = 0;
    for (size_t n = 0; n < count; ++n) weight += times[n] * units.weights[n];
    for (size_t c = 0; c < units.sums.size(); ++c) {
      double sum = 0;
      for (size_t n = 0; n < count; ++n) sum += times[n] * units.sums[c][n];
      values[c][i] = Value(metric, sum, weight);
    }
  }
  const std::vector<double> of_dense = values[dense];
  for (size_t c = 0; c < units.sums.size(); ++c) {
    std::vector<double> changes;
    for (uint32_t i = 0; i < kResamples; ++i) {
      changes.push_back(Change(metric, values[c][i], of_dense[i]));
    }
    SetInterval(values[c], &(*candidates)[c].value);
    SetInterval(changes, &(*candidates)[c].change);
  }
}

void SetCosts(std::span<const CaseResult> results, size_t c, CandidateSummary* summary) {
  AttendCost cost;
  for (const CaseResult& result : results) cost.Add(result[c]->cost);
  const auto steps = static_cast<double>(std::max<uint64_t>(cost.steps, 1));
  const auto dense_rows = static_cast<double>(std::max<uint64_t>(cost.dense_rows, 1));
  summary->bytes_per_step = static_cast<double>(cost.bytes) / steps;
  summary->bytes_share = static_cast<double>(cost.bytes) /
                         static_cast<double>(std::max<uint64_t>(cost.dense_bytes, 1));
  summary->mean_rows =
      static_cast<double>(cost.rows) / static_cast<double>(std::max<uint64_t>(cost.selections, 1));
  if (cost.looked_at > 0) summary->recall = cost.held / static_cast<double>(cost.looked_at);
  summary->rows_share = static_cast<double>(cost.rows) / dense_rows;
}

// Means over all steps of all cases.
void SetHeads(std::span<const CaseResult> results, size_t c, CandidateSummary* summary) {
  const size_t heads = results[0][c]->captured.size();
  if (heads == 0) return;
  summary->captured.assign(heads, 0);
  summary->overlap.assign(heads, 0);
  double steps = 0;
  for (const CaseResult& result : results) {
    for (double w : result[c]->weights) steps += w;
    for (size_t h = 0; h < heads; ++h) {
      summary->captured[h] += result[c]->captured[h];
      summary->overlap[h] += result[c]->overlap[h];
    }
  }
  for (size_t h = 0; h < heads && steps > 0; ++h) {
    summary->captured[h] /= steps;
    summary->overlap[h] /= steps;
  }
}

nlohmann::ordered_json ToJson(const Estimate& e) {
  return {{"value", e.value}, {"low", e.low}, {"high", e.high}};
}

}  // namespace

std::string BudgetText(const RowBudget& budget) {
  if (budget.dense()) return "all";
  return budget.denominator ? Concat("1/", budget.denominator) : Concat(budget.rows);
}

void Summarise(std::span<const CaseResult> results, Metric metric, size_t dense, uint64_t seed,
               std::vector<CandidateSummary>* candidates) {
  CHECK(!results.empty());
  const Units units = Collect(results);
  CHECK_EQ(units.sums.size(), candidates->size());
  double weight = 0;
  for (double w : units.weights) weight += w;
  std::vector<double> values;
  for (const auto& sums : units.sums) {
    double sum = 0;
    for (double s : sums) sum += s;
    values.push_back(Value(metric, sum, weight));
  }
  for (size_t c = 0; c < candidates->size(); ++c) {
    CandidateSummary& summary = (*candidates)[c];
    summary.value.value = values[c];
    summary.change.value = Change(metric, values[c], values[dense]);
    SetCosts(results, c, &summary);
    SetHeads(results, c, &summary);
  }
  SetIntervals(units, metric, dense, seed, candidates);
}

nlohmann::ordered_json TaskSummary::ToJson() const {
  nlohmann::ordered_json json = {
      {"task", name},
      {"about", about},
      {"metric", metric == Metric::kPerplexity ? "perplexity" : "accuracy"},
      {"cases", cases},
      {"units", units},
      {"results", nlohmann::ordered_json::array()}};
  for (const CandidateSummary& c : candidates) {
    nlohmann::ordered_json result = {{"policy", c.policy},
                                     {"budget", c.budget},
                                     {"score", sparsekv::ToJson(c.value)},
                                     {"change", sparsekv::ToJson(c.change)},
                                     {"mean_rows", c.mean_rows},
                                     {"rows_share", c.rows_share},
                                     {"bytes_per_step", c.bytes_per_step},
                                     {"bytes_share", c.bytes_share}};
    if (c.recall) result["recall"] = *c.recall;
    if (metric == Metric::kPerplexity) result["mean_nll"] = std::log(c.value.value);
    if (!c.captured.empty()) {
      result["captured"] = c.captured;
      result["overlap"] = c.overlap;
    }
    json["results"].push_back(std::move(result));
  }
  return json;
}

}  // namespace sparsekv
